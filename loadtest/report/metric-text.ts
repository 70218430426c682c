/** Figures of a comparison in words, for the terminal and the page alike. */
import { LATENCY_NAMES } from './labels.js';
import { durationText, NOTHING, numberText, percentText, signedPercentText } from './number-text.js';
import type { ComparedMetric, RunComparison } from './run-comparison.js';

const NAMES: Readonly<Partial<Record<ComparedMetric['metric'], string>>> = {
  requestsPerSecond: 'requests completed',
  outputTokensPerSecond: 'output tokens',
  goodputPerSecond: 'goodput',
  errorShare: 'failed requests',
};

export function metricName({ metric, statistic }: ComparedMetric): string {
  const name =
    metric in LATENCY_NAMES ? LATENCY_NAMES[metric as keyof typeof LATENCY_NAMES] : (NAMES[metric] ?? metric);
  if (statistic === 'rate' || statistic === 'share') return name;
  return `${name} ${statistic === 'p999' ? 'p99.9' : statistic}`;
}

export function valueText(value: number, unit: ComparedMetric['unit']): string {
  if (unit === 'ms') return durationText(value);
  return unit === 'share' ? percentText(value) : `${numberText(value)}/s`;
}

/** A difference with its sign; shares differ in percentage points. */
export function differenceText(value: number, unit: ComparedMetric['unit']): string {
  const sign = value > 0 ? '+' : value < 0 ? '−' : '';
  const size = Math.abs(value);
  return `${sign}${unit === 'share' ? `${numberText(size * 100)} pp` : valueText(size, unit)}`;
}

export function changeText({ change }: ComparedMetric): string {
  return signedPercentText(change ?? undefined);
}

export function intervalText({ interval, unit }: ComparedMetric): string {
  if (interval === null) return NOTHING;
  return `${differenceText(interval.low, unit)} to ${differenceText(interval.high, unit)}`;
}

/** How many of the figures would differ by chance alone if the runs did not differ; people should expect that many. */
export function chanceNote({ total, adapters }: RunComparison): string {
  const all = [...total, ...adapters.flatMap(({ metrics }) => metrics)].flatMap(({ interval }) => interval ?? []);
  const expected = all.reduce((sum, { confidence }) => sum + 1 - confidence, 0);
  return (
    `Intervals are of the difference, 95 % for the whole run and 99 % for single adapters. Of ${all.length} figures about ` +
    `${numberText(expected)} would look different by chance alone. What changes from one run to the next on one machine ` +
    'is not in the intervals: repeat both runs before you rely on a small difference.'
  );
}
