/** Records of requests → the figures of a set of them: all, or those of one adapter. Pure. */
import type { AdapterAggregate, Aggregate, Latencies, Outcome, RequestRecord } from '../report/run-report.js';
import { LatencyHistogram } from './histogram.js';
import { tpotOf } from './recorder.js';
import type { Recorder } from './recorder.js';

/** Bins of each distribution: many for the plot of all requests, few for an adapter's, none where there are too many adapters. */
const BINS = { total: 160, adapter: 40, adaptersWithBins: 50 } as const;

/** Measured requests, and the window from its begin to the last end. */
export interface Measured {
  readonly records: readonly RequestRecord[];
  readonly fromMs: number;
  readonly spanMs: number;
}

/** `fromMs`: begin of the measured window. */
export function measuredOf(records: readonly RequestRecord[], fromMs: number): Measured {
  const measured = records.filter(({ phase }) => phase === 'measured');
  const lastEnd = measured.reduce((last, { endAtMs }) => Math.max(last, endAtMs ?? 0), 0);
  return { records: measured, fromMs, spanMs: Math.max(lastEnd, fromMs) - fromMs };
}

export function aggregateTotal(recorder: Recorder, measured: Measured): Aggregate {
  return aggregate(measured.records, recorder.itlOf(), measured.spanMs, BINS.total);
}

/** Most requests first; equal numbers in the order of names. */
export function aggregateAdapters(recorder: Recorder, { records, spanMs }: Measured): AdapterAggregate[] {
  const groups = new Map<string | null, RequestRecord[]>();
  for (const record of records) {
    const group = groups.get(record.adapter);
    if (group === undefined) groups.set(record.adapter, [record]);
    else group.push(record);
  }
  const order = [...groups].sort(
    ([leftName, left], [rightName, right]) =>
      right.length - left.length || (leftName ?? '').localeCompare(rightName ?? '', 'en', { numeric: true }),
  );
  return order.map(([adapter, group], index) => {
    const bins = index < BINS.adaptersWithBins ? BINS.adapter : 0;
    const figures = aggregate(group, recorder.itlOf(adapter), spanMs, bins);
    return { adapter, requestShare: group.length / records.length, ...figures };
  });
}

function aggregate(
  records: readonly RequestRecord[],
  itl: LatencyHistogram,
  spanMs: number,
  maxBins: number,
): Aggregate {
  const sums = { ok: 0, good: 0, promptTokens: 0, outputTokens: 0 };
  const errors: Partial<Record<Outcome, number>> = {};
  for (const record of records) {
    sums.good += record.good ? 1 : 0;
    sums.outputTokens += record.outputTokens;
    // What the server did not count is taken as asked, else a total would be lower than it was.
    sums.promptTokens += record.promptTokens ?? (record.outcome === 'ok' ? record.promptTokensAsked : 0);
    if (record.outcome === 'ok') sums.ok++;
    else errors[record.outcome] = (errors[record.outcome] ?? 0) + 1;
  }
  const perSecond = (value: number): number => (spanMs > 0 ? (value * 1000) / spanMs : 0);
  return {
    requests: records.length,
    ...sums,
    errors,
    requestsPerSecond: perSecond(sums.ok),
    outputTokensPerSecond: perSecond(sums.outputTokens),
    totalTokensPerSecond: perSecond(sums.promptTokens + sums.outputTokens),
    goodputPerSecond: perSecond(sums.good),
    goodShare: records.length === 0 ? 0 : sums.good / records.length,
    spanMs,
    latency: latenciesOf(records, itl, maxBins),
  };
}

function latenciesOf(records: readonly RequestRecord[], itl: LatencyHistogram, maxBins: number): Latencies {
  const histograms = {
    ttft: new LatencyHistogram(),
    ttftFromSent: new LatencyHistogram(),
    tpot: new LatencyHistogram(),
    e2e: new LatencyHistogram(),
    e2eFromSent: new LatencyHistogram(),
    sendDelay: new LatencyHistogram(),
  };
  for (const record of records) {
    const { scheduledAtMs, sentAtMs, firstTokenAtMs, endAtMs, outcome } = record;
    if (sentAtMs === null) continue;
    // The client's own delay is known for every request that was sent, whatever became of it.
    histograms.sendDelay.add(sentAtMs - scheduledAtMs);
    if (outcome !== 'ok' || firstTokenAtMs === null || endAtMs === null) continue;
    histograms.ttft.add(firstTokenAtMs - scheduledAtMs);
    histograms.ttftFromSent.add(firstTokenAtMs - sentAtMs);
    histograms.e2e.add(endAtMs - scheduledAtMs);
    histograms.e2eFromSent.add(endAtMs - sentAtMs);
    const tpot = tpotOf(record);
    if (tpot !== null) histograms.tpot.add(tpot);
  }
  return {
    ttft: histograms.ttft.summary(maxBins),
    ttftFromSent: histograms.ttftFromSent.summary(maxBins),
    tpot: histograms.tpot.summary(maxBins),
    itl: itl.summary(maxBins),
    e2e: histograms.e2e.summary(maxBins),
    e2eFromSent: histograms.e2eFromSent.summary(maxBins),
    sendDelay: histograms.sendDelay.summary(maxBins),
  };
}
