/** How latencies are distributed: cumulative, and by percentile with the tail drawn out. */
import { LATENCY_NAMES, PERCENTILES } from '../labels.js';
import type { Markup } from '../markup.js';
import { fragment } from '../markup.js';
import { countText, durationText, percentText, threeDigits } from '../number-text.js';
import { htmlTable } from '../html-table.js';
import type { Aggregate, Distribution, LatencyKey } from '../run-report.js';
import type { Point, Series, Tone } from './chart.js';
import { chartPanel, figure } from './figure.js';

const SHOWN: readonly { readonly key: LatencyKey; readonly tone: Tone }[] = [
  { key: 'ttft', tone: 1 },
  { key: 'tpot', tone: 3 },
  { key: 'itl', tone: 2 },
  { key: 'e2e', tone: 4 },
];
/** Steps in which a cumulative line is drawn; finer ones do not show. */
const STEPS = 250;

/** The two figures of the section on latency. */
export function latencyFigures({ latency }: Aggregate): Markup {
  const gist = SHOWN.map(({ key }) => summary(key, latency[key])).join(' ');
  const duration = { kind: 'log', label: '', text: durationText } as const;
  const cumulative = chartPanel(
    {
      x: { ...duration, label: 'latency (log)' },
      y: { kind: 'linear', label: 'Share of values at or below', text: percentText, include: [0, 1] },
      series: lines((values) => cumulativePoints(values), latency),
    },
    `Cumulative distribution of latencies on a logarithmic axis. ${gist}`,
  );
  const tail = chartPanel(
    {
      x: { kind: 'log', label: 'percentile', text: (odds) => percentText(1 - 1 / odds), include: [1, 100] },
      y: { ...duration, label: 'Latency (log)' },
      series: lines((values) => tailPoints(values), latency),
    },
    `Latency by percentile, each further nine as wide as the one before. ${gist}`,
  );
  return fragment(
    figure({
      id: 'plot-cdf',
      title: 'Latency, cumulative',
      caption: 'Steep is steady. What lies to the right of the bend is the tail.',
      panels: [cumulative],
      table: percentileTable(latency),
    }),
    figure({
      id: 'plot-tail',
      title: 'Latency by percentile',
      caption: 'The tail drawn out: every further nine has the same width.',
      panels: [tail],
    }),
  );
}

function lines(toPoints: (values: Distribution) => readonly Point[], latency: Aggregate['latency']): Series[] {
  return SHOWN.filter(({ key }) => latency[key].count > 0).map(({ key, tone }) => ({
    name: LATENCY_NAMES[key],
    tone,
    mark: 'line',
    points: toPoints(latency[key]),
  }));
}

function summary(key: LatencyKey, { count, p50Ms, p99Ms }: Distribution): string {
  if (count === 0) return `${LATENCY_NAMES[key]}: no values.`;
  return `${LATENCY_NAMES[key]}: half within ${durationText(p50Ms ?? undefined)}, 99 % within ${durationText(p99Ms ?? undefined)}.`;
}

/** (latency, share at or below); ends at the exact smallest and largest value. */
export function cumulativePoints({ bins, count, minMs, maxMs }: Distribution): readonly Point[] {
  const points: Point[] = minMs === null ? [] : [[minMs, 0]];
  let below = 0;
  let drawn = 0;
  for (const { toMs, count: inBin } of bins) {
    below += inBin;
    if (below < count && below - drawn < count / STEPS) continue;
    points.push([Math.min(toMs, maxMs ?? toMs), below / count]);
    drawn = below;
  }
  return points;
}

/** (1 / (1 − percentile), latency): a logarithmic axis of these gives every nine the same width. */
export function tailPoints({ bins, count, minMs, maxMs }: Distribution): readonly Point[] {
  const points: Point[] = minMs === null ? [] : [[1, minMs]];
  let below = 0;
  let drawn = 1;
  for (const { toMs, count: inBin } of bins) {
    below += inBin;
    const odds = count / (count - below);
    if (below >= count || odds < drawn * 1.02) continue;
    points.push([odds, Math.min(toMs, maxMs ?? toMs)]);
    drawn = odds;
  }
  if (maxMs !== null) points.push([Math.max(count, drawn), maxMs]);
  return points;
}

/** All latencies of a set of requests with their percentiles. */
export function percentileTable(latency: Aggregate['latency']): Markup {
  const columns = ['', 'mean', 'σ', 'min', ...PERCENTILES.map(({ title }) => title), 'max', 'values'];
  const keys: readonly LatencyKey[] = ['ttft', 'tpot', 'itl', 'e2e', 'ttftFromSent', 'e2eFromSent', 'sendDelay'];
  return htmlTable(
    'Of requests that ended well. TTFT and E2E count from the scheduled time.',
    columns.map((title) => ({ title })),
    keys.map((key) => {
      const values = latency[key];
      const figures = [
        values.meanMs,
        values.standardDeviationMs,
        values.minMs,
        ...PERCENTILES.map((percentile) => values[percentile.key]),
        values.maxMs,
      ];
      return [LATENCY_NAMES[key], ...figures.map((ms) => durationText(ms ?? undefined)), countText(values.count)];
    }),
  );
}

/** Places on an axis of time: `0 s`, `45 s`, `2 min`, `2:30 min`. */
export function timeText(ms: number): string {
  const seconds = ms / 1000;
  if (seconds < 120 && seconds !== 60) return `${threeDigits(seconds)} s`;
  const rest = Math.round(seconds) % 60;
  return `${Math.floor(Math.round(seconds) / 60)}${rest === 0 ? '' : `:${String(rest).padStart(2, '0')}`} min`;
}
