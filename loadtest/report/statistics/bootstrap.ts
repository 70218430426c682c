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
  /** Where a request has many values: their counts by bucket. Quantiles are of these then, and the mean is of `values`. */
  readonly spread?: Spread;
}

/** Request r has `count[i]` values in bucket `bucket[i]`, for i in `start[r]` … `start[r + 1] − 1`. */
export interface Spread {
  readonly start: Uint32Array;
  /** From 0. */
  readonly bucket: Uint16Array;
  readonly count: Uint32Array;
  readonly buckets: number;
  /** The value at a share of a bucket's width. */
  readonly valueAt: (bucket: number, share: number) => number;
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

function resampler(sample: Sample, statistics: readonly Statistic[], { replicates }: ResampleOptions): Resampler {
  const results = statistics.map(() => new Float64Array(replicates).fill(NaN));
  const meanAt = statistics.indexOf('mean');
  const meanOf = meanAt < 0 ? undefined : resampledMean(sample);
  const quantiles = statistics.flatMap((statistic, place) =>
    statistic === 'mean' ? [] : [{ share: statistic.quantile, place }],
  );
  const quantilesOf =
    quantiles.length === 0 ? undefined : sample.spread === undefined ? rankedValues(sample) : rankedGaps(sample.spread);
  return {
    replicates: results,
    add: (counts, replicate) => {
      if (meanOf !== undefined) (results[meanAt] as Float64Array)[replicate] = meanOf(counts);
      const at = quantilesOf?.(counts);
      if (at === undefined) return;
      for (const { share, place } of quantiles) (results[place] as Float64Array)[replicate] = at(share);
    },
  };
}

/** Requests without a value weigh nothing. */
function massesOf({ values, mass }: Sample): Float64Array {
  return Float64Array.from(values, (value, index) => (Number.isNaN(value) ? 0 : (mass?.[index] ?? 1)));
}

type Counts = Uint16Array;

function resampledMean(sample: Sample): (counts: Counts) => number {
  const masses = massesOf(sample);
  const products = sample.values.map((value, index) => (Number.isNaN(value) ? 0 : value * (masses[index] as number)));
  return (counts) => {
    let drawn = 0;
    let sum = 0;
    for (let index = 0; index < counts.length; index += 1) {
      const times = counts[index] as number;
      drawn += times * (masses[index] as number);
      sum += times * (products[index] as number);
    }
    return sum / drawn;
  };
}

/** Values of a segment, in ascending order: a resample's quantile is sought among the segments, then inside of one. */
const SEGMENT = 256;

/** Exact quantiles in O(n) a resample, read in schedule order; a sort or a walk in the order of values is far slower. */
function rankedValues(sample: Sample): (counts: Counts) => (share: number) => number {
  const { values } = sample;
  const order = sortedOrder(values);
  const masses = massesOf(sample);
  const segments = Math.ceil(order.length / SEGMENT);
  // Those without a value stand in a segment of their own behind the last.
  const segmentOf = new Uint32Array(values.length).fill(segments);
  for (let place = 0; place < order.length; place += 1) segmentOf[order[place] as number] = Math.floor(place / SEGMENT);
  const inSegment = new Float64Array(segments + 1);
  const addUp = sample.mass === undefined ? addCounts : addMasses;
  return (counts) => {
    inSegment.fill(0);
    addUp(inSegment, segmentOf, counts, masses);
    inSegment[segments] = 0;
    const drawn = inSegment.reduce((sum, weight) => sum + weight, 0);
    return (share) => {
      const rank = rankOf(share, drawn);
      let segment = 0;
      let below = 0;
      while (segment < segments && below + (inSegment[segment] as number) < rank) {
        below += inSegment[segment] as number;
        segment += 1;
      }
      for (let place = segment * SEGMENT; place < Math.min(order.length, (segment + 1) * SEGMENT); place += 1) {
        const index = order[place] as number;
        const weight = (counts[index] as number) * (masses[index] as number);
        below += weight;
        if (weight > 0 && below >= rank) return values[index] as number;
      }
      return NaN; // The resample held no value.
    };
  };
}

function addCounts(inSegment: Float64Array, segmentOf: Uint32Array, counts: Counts): void {
  for (let index = 0; index < counts.length; index += 1) {
    const segment = segmentOf[index] as number;
    inSegment[segment] = (inSegment[segment] as number) + (counts[index] as number);
  }
}

function addMasses(inSegment: Float64Array, segmentOf: Uint32Array, counts: Counts, masses: Float64Array): void {
  for (let index = 0; index < counts.length; index += 1) {
    const segment = segmentOf[index] as number;
    inSegment[segment] = (inSegment[segment] as number) + (counts[index] as number) * (masses[index] as number);
  }
}

/** Within the bucket of its rank a quantile lies as if the bucket's values were spread evenly over its width. */
function rankedGaps({ start, bucket, count, buckets, valueAt }: Spread): (counts: Counts) => (share: number) => number {
  const inBucket = new Float64Array(buckets);
  return (counts) => {
    inBucket.fill(0);
    let drawn = 0;
    for (let index = 0; index < counts.length; index += 1) {
      const times = counts[index] as number;
      if (times === 0) continue;
      for (let entry = start[index] as number; entry < (start[index + 1] as number); entry += 1) {
        const weight = times * (count[entry] as number);
        const place = bucket[entry] as number;
        inBucket[place] = (inBucket[place] as number) + weight;
        drawn += weight;
      }
    }
    return (share) => {
      const rank = rankOf(share, drawn);
      let below = 0;
      for (let place = 0; place < buckets; place += 1) {
        const here = inBucket[place] as number;
        if (here > 0 && below + here >= rank) return valueAt(place, (rank - below) / here);
        below += here;
      }
      return NaN;
    };
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
  if (statistic !== 'mean' && sample.mass === undefined && sample.spread === undefined) {
    const sorted = sample.values.filter((value) => !Number.isNaN(value)).sort();
    return sorted[rankOf(statistic.quantile, sorted.length) - 1] ?? NaN;
  }
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
