/** What of two runs is compared: the metrics, their values request by request, and which way is better. */
import { withinBucket } from './gap-bins.js';
import type { ComparedMetric, ComparedStatistic } from './run-comparison.js';
import type { RequestRecord, RunReport } from './run-report.js';
import type { Sample, Spread, Statistic } from './statistics/bootstrap.js';
import { mean, observed, quantile } from './statistics/bootstrap.js';

export type ComparedLatency = 'ttft' | 'tpot' | 'itl' | 'e2e';
export type ComparedRate = 'requestsPerSecond' | 'outputTokensPerSecond' | 'goodputPerSecond';

interface LatencyPlan {
  readonly metric: ComparedLatency;
  readonly statistics: readonly ComparedStatistic[];
}

export const TOTAL_PLAN: readonly LatencyPlan[] = [
  { metric: 'ttft', statistics: ['mean', 'p50', 'p90', 'p95', 'p99', 'p999'] },
  { metric: 'tpot', statistics: ['mean', 'p50', 'p90', 'p99'] },
  { metric: 'itl', statistics: ['mean', 'p50', 'p99'] },
  { metric: 'e2e', statistics: ['mean', 'p50', 'p90', 'p95', 'p99'] },
];
export const ADAPTER_PLAN: readonly LatencyPlan[] = [
  { metric: 'ttft', statistics: ['mean', 'p50', 'p90'] },
  { metric: 'tpot', statistics: ['p50'] },
  { metric: 'e2e', statistics: ['p50'] },
];
export const RATES: readonly ComparedRate[] = ['requestsPerSecond', 'outputTokensPerSecond', 'goodputPerSecond'];

export const STATISTICS: Readonly<
  Record<Exclude<ComparedStatistic, 'rate' | 'share'>, { readonly of: Statistic; readonly share: number }>
> = {
  mean: { of: mean, share: 0.5 },
  p50: { of: quantile(0.5), share: 0.5 },
  p90: { of: quantile(0.9), share: 0.9 },
  p95: { of: quantile(0.95), share: 0.95 },
  p99: { of: quantile(0.99), share: 0.99 },
  p999: { of: quantile(0.999), share: 0.999 },
};

/** The metric of each request in the order given; failed requests have none. */
export function latencySample(requests: readonly RequestRecord[], metric: ComparedLatency): Sample {
  const values = Float64Array.from(requests, (request) => latencyOf(request, metric) ?? NaN);
  if (metric !== 'itl') return { values };
  const mass = Float64Array.from(requests, ({ pieces }) => Math.max(0, pieces - 1));
  const spread = spreadOf(requests);
  return { values, mass, ...(spread === undefined ? {} : { spread }) };
}

/** All gaps by bucket; `undefined` when a request's record does not hold them. */
function spreadOf(requests: readonly RequestRecord[]): Spread | undefined {
  const bins = requests.map(({ outcome, itl }) => (outcome === 'ok' && itl !== null ? itl.bins : []));
  const present = bins.filter((one) => one !== undefined);
  if (present.length < bins.length) return undefined;
  const lowest = present.reduce((least, one) => Math.min(least, one[0] ?? Infinity), Infinity);
  const highest = present.reduce((most, one) => Math.max(most, one.at(-2) ?? -Infinity), -Infinity);
  const entries = present.reduce((sum, one) => sum + one.length / 2, 0);
  const start = new Uint32Array(present.length + 1);
  const [bucket, count] = [new Uint16Array(entries), new Uint32Array(entries)];
  let next = 0;
  for (const [index, one] of present.entries()) {
    for (let place = 0; place + 1 < one.length; place += 2) {
      bucket[next] = (one[place] as number) - lowest;
      count[next++] = one[place + 1] as number;
    }
    start[index + 1] = next;
  }
  const buckets = entries === 0 ? 0 : highest - lowest + 1;
  return { start, bucket, count, buckets, valueAt: (place, share) => withinBucket(lowest + place, share) };
}

/** Requests with a value above the percentile: as many must there be for an interval to be meant. */
export function requestsBeyond({ values, spread }: Sample, share: number): number {
  const present = values.reduce((sum, value) => sum + Number(!Number.isNaN(value)), 0);
  if (spread === undefined) return present * (1 - share);
  const limit = observed({ values, spread }, quantile(share));
  let beyond = 0;
  for (let request = 0; request + 1 < spread.start.length; request += 1) {
    const [from, to] = [spread.start[request] as number, spread.start[request + 1] as number];
    if (to > from && spread.valueAt(spread.bucket[to - 1] as number, 1) > limit) beyond += 1;
  }
  return beyond;
}

/** Milliseconds, as run-report.ts defines them. */
export function latencyOf(request: RequestRecord, metric: ComparedLatency): number | null {
  const { scheduledAtMs, firstTokenAtMs, lastTokenAtMs, endAtMs, outputTokens, itl } = request;
  if (request.outcome !== 'ok') return null;
  switch (metric) {
    case 'ttft':
      return firstTokenAtMs === null ? null : firstTokenAtMs - scheduledAtMs;
    case 'tpot':
      if (firstTokenAtMs === null || lastTokenAtMs === null || outputTokens < 2) return null;
      return (lastTokenAtMs - firstTokenAtMs) / (outputTokens - 1);
    case 'itl':
      return itl?.meanMs ?? null;
    case 'e2e':
      return endAtMs === null ? null : endAtMs - scheduledAtMs;
  }
}

export function measuredOf({ requests }: RunReport): readonly RequestRecord[] {
  return requests.filter(({ phase }) => phase === 'measured');
}

/** Rates of equal slices of the run's span, whose mean is the rate of the run. Answers count when they end. */
export function rateSample(report: RunReport, metric: ComparedRate): Sample {
  const { spanMs } = report.total;
  const slices = Math.min(400, Math.max(20, Math.floor(spanMs / 1000)));
  const values = new Float64Array(slices);
  if (!(spanMs > 0)) return { values: values.fill(NaN) };
  for (const request of measuredOf(report)) {
    if (request.endAtMs === null || request.outcome !== 'ok') continue;
    const place = Math.floor(((request.endAtMs - report.workload.measuredFromMs) / spanMs) * slices);
    const slice = Math.min(slices - 1, Math.max(0, place));
    values[slice] = (values[slice] as number) + (amountOf(request, metric) * 1000 * slices) / spanMs;
  }
  return { values };
}

function amountOf(request: RequestRecord, metric: ComparedRate): number {
  if (metric === 'requestsPerSecond') return 1;
  return metric === 'outputTokensPerSecond' ? request.outputTokens : Number(request.good);
}

/** Whether a larger value is the better one. */
export function isMoreBetter(metric: ComparedMetric['metric']): boolean {
  return metric.endsWith('PerSecond');
}
