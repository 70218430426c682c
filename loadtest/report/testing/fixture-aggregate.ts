/** Aggregates of fixture requests, by sorting all values. */
import type { AdapterAggregate, Aggregate, Distribution, Outcome, RequestRecord } from '../run-report.js';

export function aggregate(requests: readonly RequestRecord[], spanMs: number): Aggregate {
  const ok = requests.filter(({ outcome }) => outcome === 'ok');
  const errors: Partial<Record<Outcome, number>> = {};
  for (const { outcome } of requests) if (outcome !== 'ok') errors[outcome] = (errors[outcome] ?? 0) + 1;
  const promptTokens = ok.reduce((sum, request) => sum + (request.promptTokens ?? 0), 0);
  const outputTokens = ok.reduce((sum, request) => sum + request.outputTokens, 0);
  const good = requests.filter((request) => request.good).length;
  const perSecond = (count: number): number => (count / spanMs) * 1000;
  return {
    requests: requests.length,
    ok: ok.length,
    errors,
    good,
    promptTokens,
    outputTokens,
    requestsPerSecond: perSecond(ok.length),
    outputTokensPerSecond: perSecond(outputTokens),
    totalTokensPerSecond: perSecond(promptTokens + outputTokens),
    goodputPerSecond: perSecond(good),
    goodShare: requests.length === 0 ? 0 : good / requests.length,
    spanMs,
    latency: latencies(ok),
  };
}

export function adapterAggregates(requests: readonly RequestRecord[], spanMs: number): AdapterAggregate[] {
  const groups = new Map<string | null, RequestRecord[]>();
  for (const request of requests) {
    const own = groups.get(request.adapter);
    if (own === undefined) groups.set(request.adapter, [request]);
    else own.push(request);
  }
  return [...groups]
    .map(([adapter, own]) => ({
      adapter,
      requestShare: own.length / requests.length,
      ...aggregate(own, spanMs),
    }))
    .sort((one, other) => other.requests - one.requests);
}

function latencies(ok: readonly RequestRecord[]): Aggregate['latency'] {
  const span = (from: keyof RequestRecord, to: keyof RequestRecord): Distribution =>
    distribution(
      ok.flatMap((request) => {
        const [begin, end] = [request[from], request[to]];
        return typeof begin === 'number' && typeof end === 'number' ? [end - begin] : [];
      }),
    );
  return {
    ttft: span('scheduledAtMs', 'firstTokenAtMs'),
    ttftFromSent: span('sentAtMs', 'firstTokenAtMs'),
    tpot: distribution(
      ok.flatMap(({ firstTokenAtMs, lastTokenAtMs, outputTokens }) =>
        firstTokenAtMs === null || lastTokenAtMs === null || outputTokens < 2
          ? []
          : [(lastTokenAtMs - firstTokenAtMs) / (outputTokens - 1)],
      ),
    ),
    itl: distribution(ok.flatMap(({ itl }) => (itl === null ? [] : [itl.meanMs, itl.p99Ms]))),
    e2e: span('scheduledAtMs', 'endAtMs'),
    e2eFromSent: span('sentAtMs', 'endAtMs'),
    sendDelay: span('scheduledAtMs', 'sentAtMs'),
  };
}

export function distribution(values: readonly number[]): Distribution {
  const sorted = Float64Array.from(values).sort();
  const count = sorted.length;
  const nearestRank = (share: number): number | null => sorted[Math.max(0, Math.ceil(share * count) - 1)] ?? null;
  const mean = count === 0 ? null : sorted.reduce((sum, value) => sum + value, 0) / count;
  const variance = sorted.reduce((sum, value) => sum + (value - (mean ?? 0)) ** 2, 0) / Math.max(1, count - 1);
  const bins = new Map<number, number>();
  for (const value of sorted) {
    const bin = Math.floor(Math.log(Math.max(value, 1e-3)) / Math.log(1.02));
    bins.set(bin, (bins.get(bin) ?? 0) + 1);
  }
  return {
    count,
    meanMs: mean,
    standardDeviationMs: count === 0 ? null : Math.sqrt(variance),
    minMs: sorted[0] ?? null,
    maxMs: sorted.at(-1) ?? null,
    p50Ms: nearestRank(0.5),
    p90Ms: nearestRank(0.9),
    p95Ms: nearestRank(0.95),
    p99Ms: nearestRank(0.99),
    p999Ms: nearestRank(0.999),
    bins: [...bins].map(([bin, binCount]) => ({ fromMs: 1.02 ** bin, toMs: 1.02 ** (bin + 1), count: binCount })),
  };
}
