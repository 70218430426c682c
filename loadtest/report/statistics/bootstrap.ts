/**
 * Resampling of two runs: the circular block bootstrap of Politis and Romano ("A circular block-resampling procedure for
 * stationary data", 1992), which draws blocks of neighbouring requests so that what depends on each other stays together,
 * and percentile intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13) of the difference.
 *
 * Runs of one trace are drawn *paired*, the same requests in both: what differs between requests (lengths, prompts) then
 * cancels out, and smaller differences can be shown.
 *
 * What the interval cannot know is what changes from one run to the next on the same machine; only more runs show that.
 */
import type { Random } from '../../workload/random.js';

/** What requests have of one metric, in schedule order. */
export interface Sample {
  /** NaN where a request has none: it failed, or had one token. */
  readonly values: Float64Array;
  /** How much each value counts, such as the number of gaps behind a mean gap. 1 each when absent. */
  readonly mass?: Float64Array;
}

/** A figure of a resample: its mean, or the quantile of a share in 0..1 by nearest rank. */
export type Statistic = 'mean' | { readonly quantile: number };

export const mean: Statistic = 'mean';

/** The smallest value that at least this share of values does not exceed. */
export function quantile(share: number): Statistic {
  return { quantile: share };
}

export interface ResampleOptions {
  /** Neighbours in a block; see block-length.ts. */
  readonly block: number;
  readonly replicates: number;
  readonly random: Random;
}

/** For each statistic its values over all resamples, in order of drawing. NaN where a resample held no value. */
export type Replicates = readonly Float64Array[];

/** One metric of both runs and what is wanted of it. */
export interface ResampledColumn {
  readonly samples: readonly [before: Sample, after: Sample];
  readonly statistics: readonly Statistic[];
}

/**
 * Every column from the same resamples: all samples of a run have one value a request. The runs are drawn together when
 * `paired` (they must have equal lengths then), else each on its own.
 */
export function resampleRuns(
  columns: readonly ResampledColumn[],
  { paired, ...options }: ResampleOptions & { readonly paired: boolean },
): readonly (readonly [Replicates, Replicates])[] {
  const wanted = columns.filter(({ statistics }) => statistics.length > 0);
  const counts = [0, 1].map((run) => new Uint16Array(wanted[0]?.samples[run as 0 | 1].values.length ?? 0));
  const [before, after] = counts as [Uint16Array, Uint16Array];
  if (paired && before.length !== after.length) throw new RangeError('Paired samples have equal lengths');
  const draws = columns.map(
    ({ samples, statistics }) =>
      [resampler(samples[0], statistics, options), resampler(samples[1], statistics, options)] as const,
  );
  for (let replicate = 0; replicate < options.replicates && wanted.length > 0; replicate += 1) {
    drawBlocks(before, options);
    if (paired) after.set(before);
    else drawBlocks(after, options);
    for (const [one, other] of draws) {
      one.add(before, replicate);
      other.add(after, replicate);
    }
  }
  return draws.map(([one, other]) => [one.replicates, other.replicates] as const);
}

/** How often each of n neighbours in a circle is drawn, by blocks with uniform beginnings; n draws in all. */
function drawBlocks(counts: Uint16Array, { block, random }: ResampleOptions): void {
  const n = counts.length;
  counts.fill(0);
  for (let left = n; left > 0; left -= block) {
    const start = Math.floor(random() * n);
    for (let index = start; index < start + Math.min(block, left); index += 1) {
      const place = index < n ? index : index % n;
      counts[place] = (counts[place] as number) + 1;
    }
  }
}

interface Resampler {
  readonly replicates: Replicates;
  /** Computes every statistic of one resample, given how often each request was drawn. */
  readonly add: (counts: Uint16Array, replicate: number) => void;
}

/** All statistics of a resample come from one walk over the values in ascending order. */
function resampler(
  { values, mass }: Sample,
  statistics: readonly Statistic[],
  { replicates }: ResampleOptions,
): Resampler {
  const order = sortedOrder(values);
  const sorted = Float64Array.from(order, (index) => values[index] as number);
  const massOf = Float64Array.from(values, (value, index) => (Number.isNaN(value) ? 0 : (mass?.[index] ?? 1)));
  const masses = Float64Array.from(order, (index) => massOf[index] as number);
  const results = statistics.map(() => new Float64Array(replicates).fill(NaN));
  const quantiles = statistics
    .flatMap((statistic, place) => (statistic === 'mean' ? [] : [{ share: statistic.quantile, place }]))
    .sort((one, other) => one.share - other.share);
  return {
    replicates: results,
    add: (counts, replicate) => {
      if (statistics.length === 0) return;
      let drawn = 0;
      for (let index = 0; index < counts.length; index += 1) {
        drawn += (counts[index] as number) * (massOf[index] as number);
      }
      const ranks = quantiles.map(({ share }) => rankOf(share, drawn));
      let below = 0;
      let sum = 0;
      let next = 0;
      for (let index = 0; index < order.length; index += 1) {
        const weight = (counts[order[index] as number] as number) * (masses[index] as number);
        below += weight;
        sum += weight * (sorted[index] as number);
        while (weight > 0 && below >= (ranks[next] ?? Infinity)) {
          (results[quantiles[next]?.place ?? 0] as Float64Array)[replicate] = sorted[index] as number;
          next += 1;
        }
      }
      const place = statistics.indexOf('mean');
      if (place >= 0) (results[place] as Float64Array)[replicate] = sum / drawn;
    },
  };
}

/** A product such as 0.1 · 30 can lie above the whole number that it means. */
function rankOf(share: number, drawn: number): number {
  return Math.ceil(share * drawn - 1e-9);
}

/** Places of the values that are there, smallest value first. */
function sortedOrder(values: Float64Array): Uint32Array {
  const present: number[] = [];
  for (let index = 0; index < values.length; index += 1) if (!Number.isNaN(values[index])) present.push(index);
  return Uint32Array.from(present).sort((one, other) => (values[one] as number) - (values[other] as number));
}

/** The statistic of the sample itself; NaN when it has no values. */
export function observed(sample: Sample, statistic: Statistic): number {
  const { replicates, add } = resampler(sample, [statistic], { block: 1, replicates: 1, random: () => 0 });
  add(new Uint16Array(sample.values.length).fill(1), 0);
  return replicates[0]?.[0] ?? NaN;
}

export interface Interval {
  readonly low: number;
  readonly high: number;
  readonly confidence: number;
}

/** The middle `confidence` of after − before over the resamples; `null` when a tenth of them or more held no value. */
export function differenceInterval(before: Float64Array, after: Float64Array, confidence: number): Interval | null {
  const differences = after
    .map((value, index) => value - (before[index] as number))
    .filter((value) => !Number.isNaN(value))
    .sort();
  if (differences.length < 0.9 * after.length || differences.length === 0) return null;
  const tail = (1 - confidence) / 2;
  const at = (share: number): number => {
    const place = Math.ceil(share * differences.length) - 1;
    return differences[Math.min(differences.length - 1, Math.max(0, place))] as number;
  };
  return { low: at(tail), high: at(1 - tail), confidence };
}
