/**
 * Two runs side by side, with intervals that say which differences chance could not have made. Pure and repeatable: the
 * resamples come from a fixed seed.
 *
 * Method. Latencies and rates: percentile intervals of a circular block bootstrap over requests, or slices of time, in
 * schedule order (statistics/bootstrap.ts), with the block length that the series' own dependence asks for
 * (statistics/block-length.ts); runs of one trace are resampled in pairs. Share of failures: Newcombe's score interval
 * with the number of requests divided by the design effect (statistics/proportion.ts). 95 % for the run as a whole; 99 %
 * for single adapters, for there are many of them. A metric with too few requests beyond its percentile has no interval.
 */
import { ManyfoldError } from '../../src/core/errors.js';
import { seededRandom } from '../workload/random.js';
import type { ComparedLatency, ComparedRate } from './compared-metrics.js';
import {
  ADAPTER_PLAN,
  isMoreBetter,
  latencySample,
  measuredOf,
  RATES,
  rateSample,
  requestsBeyond,
  STATISTICS,
  TOTAL_PLAN,
} from './compared-metrics.js';
import { comparisonWarnings, invalidity } from './comparison-warnings.js';
import { adapterName } from './labels.js';
import type { ComparedMetric, ComparedRun, ComparedStatistic, RunComparison } from './run-comparison.js';
import type { RequestRecord, RunReport } from './run-report.js';
import { blockLength, designEffect } from './statistics/block-length.js';
import type { Interval, ResampledColumn, Sample, Statistic } from './statistics/bootstrap.js';
import { differenceInterval, mean, observed, resampleRuns } from './statistics/bootstrap.js';
import { plainText } from './text-table.js';
import { newcombeInterval } from './statistics/proportion.js';

export const TOTAL_CONFIDENCE = 0.95;
export const ADAPTER_CONFIDENCE = 0.99;
/**
 * Resamples; fewer for long runs, or a comparison would take minutes. A 95 % interval leaves 12 of 500 beyond each end, a
 * 99 % interval of an adapter 5 of 1000.
 */
const REPLICATES = { most: 2000, least: 500, drawsAtMost: 2e7, ofAdapters: 1000 } as const;
/** Values that must lie beyond a percentile, and blocks that a run must have, for an interval to be meant. */
const LEAST_BEYOND = 10;
const LEAST_BLOCKS = 10;
/** Adapters are compared one by one from this many requests on, in both runs, and at most so many of them. */
const LEAST_ADAPTER_REQUESTS = 50;
const MOST_ADAPTERS = 20;
const SEED = 20_240_501;

type Pair<Value> = readonly [before: Value, after: Value];

export function compareRuns(before: RunReport, after: RunReport): RunComparison {
  const isPaired = isSameSchedule(before, after);
  return compareReports(before, after, { warnings: comparisonWarnings(before, after), isPaired });
}

/**
 * Two adapters of one run, such as a stable and a canary version under one load: latencies and failures. Rates are left
 * out, for the load decides them. Refuses names that the run did not measure with `invalid_config`.
 */
export function compareAdapters(report: RunReport, before: string | null, after: string | null): RunComparison {
  // Requests of two adapters are no pairs, whatever their number.
  const options = { warnings: invalidity(report), isPaired: false };
  const { total, ...rest } = compareReports(onlyAdapter(report, before), onlyAdapter(report, after), options);
  return { ...rest, total: total.filter(({ statistic }) => statistic !== 'rate'), adapters: [] };
}

function compareReports(
  before: RunReport,
  after: RunReport,
  { warnings, isPaired }: { readonly warnings: readonly string[]; readonly isPaired: boolean },
): RunComparison {
  const requests: Pair<readonly RequestRecord[]> = [measuredOf(before), measuredOf(after)];
  const options = { isPaired, confidence: TOTAL_CONFIDENCE, replicates: REPLICATES.most };
  return {
    before: identity(before),
    after: identity(after),
    warnings,
    total: [
      ...compareLatencies(requests, TOTAL_PLAN, options),
      ...RATES.flatMap((metric) => compareRate([before, after], metric)),
      ...compareErrors(requests, TOTAL_CONFIDENCE),
    ],
    adapters: compareEachAdapter([before, after], requests, isPaired),
  };
}

function identity({ run, verdict, trace }: RunReport): ComparedRun {
  return { run, verdict, traceSha256: trace.sha256 };
}

/** The run as if it had had this adapter only. */
function onlyAdapter(report: RunReport, adapter: string | null): RunReport {
  const aggregate = report.adapters.find((one) => one.adapter === adapter);
  if (aggregate === undefined) {
    const known = report.adapters.slice(0, 10).map((one) => plainText(adapterName(one.adapter)));
    throw new ManyfoldError(
      'invalid_config',
      `Run ${report.run.name} measured no request of adapter '${plainText(adapterName(adapter))}', but of ${known.join(', ') || 'none'}. Name two of these.`,
    );
  }
  return {
    ...report,
    run: { ...report.run, name: `${report.run.name}, ${adapterName(adapter)}` },
    total: aggregate,
    adapters: [aggregate],
    requests: report.requests.filter((request) => request.adapter === adapter),
  };
}

/** Requests can be paired when both runs sent the same ones at the same times. */
function isSameSchedule(before: RunReport, after: RunReport): boolean {
  const isOpen = before.workload.loop === 'open' && after.workload.loop === 'open';
  const isAsLong = measuredOf(before).length === measuredOf(after).length;
  return isOpen && before.trace.sha256 === after.trace.sha256 && isAsLong;
}

interface CompareOptions {
  readonly isPaired: boolean;
  readonly confidence: number;
  /** Resamples at most. */
  readonly replicates: number;
}

/** All latencies of one set of requests, from the same resamples. */
function compareLatencies(
  requests: Pair<readonly RequestRecord[]>,
  plan: typeof TOTAL_PLAN,
  { isPaired, confidence, replicates }: CompareOptions,
): ComparedMetric[] {
  const columns = plan.map(({ metric, statistics }) => latencyColumn(requests, metric, statistics));
  const block = Math.max(1, ...columns.map(({ samples }) => longerBlock(samples, logarithm)));
  const wanted = columns.map(({ samples, figures }) => {
    const least = Math.min(...samples.map(({ values }) => present(values).length));
    if (least / block < LEAST_BLOCKS) return [];
    return figures.filter(({ share }) => samples.every((one) => requestsBeyond(one, share) >= LEAST_BEYOND));
  });
  const draws = resample(
    columns.map(({ samples }, index) => ({ samples, statistics: wanted[index]?.map(({ of }) => of) ?? [] })),
    { isPaired, block, most: replicates },
  );
  return columns.flatMap(({ metric, samples, figures }, index) =>
    figures.flatMap(({ name, of }) => {
      const place = wanted[index]?.findIndex((figure) => figure.name === name) ?? -1;
      const [before, after] = draws[index] ?? [[], []];
      const interval = intervalOf(before[place], after[place], confidence);
      const values: Pair<number> = [observed(samples[0], of), observed(samples[1], of)];
      return judged({ metric, statistic: name, unit: 'ms' }, values, interval);
    }),
  );
}

interface LatencyColumn {
  readonly metric: ComparedLatency;
  readonly samples: Pair<Sample>;
  readonly figures: readonly { readonly name: ComparedStatistic; readonly of: Statistic; readonly share: number }[];
}

function latencyColumn(
  [before, after]: Pair<readonly RequestRecord[]>,
  metric: ComparedLatency,
  names: readonly ComparedStatistic[],
): LatencyColumn {
  const samples: Pair<Sample> = [latencySample(before, metric), latencySample(after, metric)];
  // Older reports hold no gaps; there ITL has its mean only.
  const hasMeanOnly = metric === 'itl' && samples.some(({ spread }) => spread === undefined);
  const figures = names.flatMap((name) =>
    name === 'rate' || name === 'share' || (hasMeanOnly && name !== 'mean') ? [] : [{ name, ...STATISTICS[name] }],
  );
  return {
    metric,
    samples,
    figures,
  };
}

function compareRate(reports: Pair<RunReport>, metric: ComparedRate): ComparedMetric[] {
  const samples: Pair<Sample> = [rateSample(reports[0], metric), rateSample(reports[1], metric)];
  const block = longerBlock(samples, (rate) => rate);
  const isEnough = Math.min(...samples.map(({ values }) => values.length)) / block >= LEAST_BLOCKS;
  const [draws] = resample([{ samples, statistics: isEnough ? [mean] : [] }], {
    isPaired: false,
    block,
    most: REPLICATES.most,
  });
  return judged(
    { metric, statistic: 'rate', unit: '1/s' },
    [reports[0].total[metric], reports[1].total[metric]],
    intervalOf(draws?.[0][0], draws?.[1][0], TOTAL_CONFIDENCE),
  );
}

function compareErrors(requests: Pair<readonly RequestRecord[]>, confidence: number): ComparedMetric[] {
  const [before, after] = requests.map((some) => {
    const failed = Float64Array.from(some, ({ outcome }) => Number(outcome !== 'ok'));
    const share = failed.reduce((sum, one) => sum + one, 0) / failed.length;
    return { share, effectiveCount: failed.length / designEffect(failed, blockLength(failed)) };
  });
  if (before === undefined || after === undefined) return [];
  const isEnough = Math.min(before.effectiveCount, after.effectiveCount) >= LEAST_BEYOND;
  return judged(
    { metric: 'errorShare', statistic: 'share', unit: 'share' },
    [before.share, after.share],
    isEnough ? newcombeInterval(before, after, confidence) : null,
  );
}

function compareEachAdapter(
  [before, after]: Pair<RunReport>,
  [some, others]: Pair<readonly RequestRecord[]>,
  isPaired: boolean,
): RunComparison['adapters'] {
  const later = new Map(after.adapters.map((aggregate) => [aggregate.adapter, aggregate.requests]));
  const names = before.adapters
    .filter(({ adapter, requests }) => Math.min(requests, later.get(adapter) ?? 0) >= LEAST_ADAPTER_REQUESTS)
    .slice(0, MOST_ADAPTERS)
    .map(({ adapter }) => adapter);
  const options = { isPaired, confidence: ADAPTER_CONFIDENCE, replicates: REPLICATES.ofAdapters };
  return names.map((adapter) => {
    const own: Pair<readonly RequestRecord[]> = [
      some.filter((request) => request.adapter === adapter),
      others.filter((request) => request.adapter === adapter),
    ];
    const metrics = [...compareLatencies(own, ADAPTER_PLAN, options), ...compareErrors(own, ADAPTER_CONFIDENCE)];
    return { adapter, metrics };
  });
}

function resample(
  columns: readonly ResampledColumn[],
  { isPaired, block, most }: { readonly isPaired: boolean; readonly block: number; readonly most: number },
): ReturnType<typeof resampleRuns> {
  const longest = Math.max(1, ...columns.flatMap(({ samples }) => samples.map(({ values }) => values.length)));
  const affordable = Math.floor(REPLICATES.drawsAtMost / longest);
  const replicates = Math.min(most, Math.max(REPLICATES.least, affordable));
  return resampleRuns(columns, { paired: isPaired, block, replicates, random: seededRandom(SEED) });
}

function intervalOf(
  before: Float64Array | undefined,
  after: Float64Array | undefined,
  confidence: number,
): Interval | null {
  return before === undefined || after === undefined ? null : differenceInterval(before, after, confidence);
}

function longerBlock(samples: Pair<Sample>, scale: (value: number) => number): number {
  return Math.max(...samples.map(({ values }) => blockLength(present(values).map(scale))));
}

/** Of latencies the logarithm: a few stalls would hide how the rest depends on each other. */
function logarithm(latencyMs: number): number {
  return Math.log(Math.max(latencyMs, 1e-3));
}

function present(values: Float64Array): Float64Array {
  return values.filter((value) => !Number.isNaN(value));
}

/** A metric that one of the runs has no value of is left out. */
function judged(
  what: Pick<ComparedMetric, 'metric' | 'statistic' | 'unit'>,
  [before, after]: Pair<number>,
  interval: Interval | null,
): ComparedMetric[] {
  if (!Number.isFinite(before) || !Number.isFinite(after)) return [];
  const change = before === 0 ? null : after / before - 1;
  const rest = { ...what, before, after, difference: after - before, change, interval };
  if (interval === null) return [{ ...rest, judgement: 'too few samples' }];
  if (interval.low <= 0 && interval.high >= 0) return [{ ...rest, judgement: 'no clear difference' }];
  return [{ ...rest, judgement: interval.low > 0 === isMoreBetter(what.metric) ? 'better' : 'worse' }];
}
