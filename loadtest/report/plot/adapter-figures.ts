/** Adapters against each other: the most used ones by name, and all of them by popularity. */
import { adapterName } from '../labels.js';
import type { Markup } from '../markup.js';
import { element, fragment } from '../markup.js';
import { countText, durationText } from '../number-text.js';
import type { AdapterAggregate, Distribution } from '../run-report.js';
import { clip, plainText } from '../text-table.js';
import type { Point, Tone } from './chart.js';
import { round } from './chart.js';
import type { Panel } from './figure.js';
import { chartPanel, figure } from './figure.js';
import type { Scale } from './scale.js';
import { logScale } from './scale.js';
import { groups, highest, middle } from './slices.js';

/** Adapters with a row of their own. */
const ROWS = 20;
const ROW_HEIGHT = 34;
/** Points of a line over all adapters. */
const RANKS = 300;

const RANGES: readonly { readonly name: string; readonly tone: Tone; readonly key: 'ttft' | 'tpot' | 'e2e' }[] = [
  { name: 'TPOT', tone: 3, key: 'tpot' },
  { name: 'TTFT', tone: 1, key: 'ttft' },
  { name: 'E2E', tone: 4, key: 'e2e' },
];

/** `adapters` are sorted by requests, as in a report. */
export function adapterFigures(adapters: readonly AdapterAggregate[]): Markup {
  return fragment(
    figure({
      id: 'plot-adapters',
      title: adapters.length > ROWS ? `The ${ROWS} most used adapters` : 'Adapters',
      caption: 'From p50 (dot) to p99 (end of the bar), most requests first.',
      panels: [rangePanel(adapters.slice(0, ROWS))],
      full: adapters.length <= 3,
    }),
    adapters.length > 3 ? popularityFigure(adapters) : undefined,
  );
}

function rangePanel(adapters: readonly AdapterAggregate[]): Panel {
  return {
    heading: '',
    description: adapters
      .slice(0, 5)
      .map(({ adapter, requests, latency: { ttft } }) => {
        const times = `TTFT p50 ${durationText(ttft.p50Ms ?? undefined)}, p99 ${durationText(ttft.p99Ms ?? undefined)}`;
        return `${clip(plainText(adapterName(adapter)), 60)}: ${countText(requests)} requests, ${times}.`;
      })
      .join(' '),
    keys: RANGES.map(({ name, tone }) => ({ name, tone, mark: 'range' })),
    draw: (width) => {
      const height = 34 + ROW_HEIGHT * Math.max(1, adapters.length);
      return { height, contents: drawRanges(adapters, width, height) };
    },
  };
}

function drawRanges(adapters: readonly AdapterAggregate[], width: number, height: number): Markup {
  const values = adapters.flatMap(({ latency }) =>
    RANGES.flatMap(({ key }) => [latency[key].p50Ms, latency[key].p99Ms].filter((value) => value !== null)),
  );
  const positive = values.filter((value) => value > 0);
  const domain =
    positive.length === 0 ? ([1, 1000] as const) : ([Math.min(...positive), Math.max(...positive)] as const);
  const x = logScale({ domain, range: [24, width - 26], label: durationText });
  const bottom = height - 22;
  const labelled = x.ticks.filter(({ minor }) => !minor);
  return fragment(
    element(
      'g',
      { class: 'axis' },
      x.ticks.map(({ value, minor }) =>
        element('path', { class: minor ? 'grid minor' : 'grid', d: `M${round(x.at(value))} 4V${bottom}` }),
      ),
      (labelled.length > width / 60 ? labelled.filter((_, index) => index % 2 === 0) : labelled).map(
        ({ value, label }) => element('text', { x: round(x.at(value)), y: height - 6, 'text-anchor': 'middle' }, label),
      ),
    ),
    adapters.map((adapter, row) => drawRow(adapter, row * ROW_HEIGHT, x, width)),
  );
}

function drawRow(adapter: AdapterAggregate, top: number, x: Scale, width: number): Markup {
  const name = plainText(adapterName(adapter.adapter));
  return element(
    'g',
    {},
    element('title', {}, `${clip(name, 120)}: ${countText(adapter.requests)} requests`),
    element('text', { class: 'ink', x: 4, y: top + 14 }, clip(name, width < 500 ? 28 : 44)),
    element('text', { x: width - 4, y: top + 14, 'text-anchor': 'end' }, countText(adapter.requests)),
    RANGES.map(({ key, tone }) => drawRange(adapter.latency[key], tone, top + 24, x)),
  );
}

function drawRange({ p50Ms, p99Ms }: Distribution, tone: Tone, y: number, x: Scale): Markup | undefined {
  if (p50Ms === null || p99Ms === null) return undefined;
  const from = round(x.at(p50Ms));
  return element(
    'g',
    { class: `tone-${tone}` },
    element('path', { class: 'range', d: `M${from} ${y}H${round(Math.max(x.at(p99Ms), from + 0.1))}` }),
    element('g', { class: 'dots' }, element('circle', { cx: from, cy: y, r: 3.5 })),
  );
}

/** Whether rare adapters, which are cold more often, wait longer than popular ones. */
function popularityFigure(adapters: readonly AdapterAggregate[]): Markup {
  const ranked = adapters.map((adapter, index) => ({ rank: index + 1, adapter }));
  const merged = groups(ranked, RANKS);
  const line = (pick: (group: readonly AdapterAggregate[]) => number | null): readonly Point[] =>
    merged.map((group): Point => [group[0]?.rank ?? 1, pick(group.map(({ adapter }) => adapter))]);
  const rank = { kind: 'log', label: 'adapters, most used first (log)', text: countText } as const;
  return figure({
    id: 'plot-popularity',
    title: 'By popularity',
    caption: `All ${countText(adapters.length)} adapters. A line that rises to the right says that rare adapters wait longer.`,
    panels: [
      chartPanel(
        {
          x: rank,
          y: { kind: 'log', label: 'TTFT of an adapter (log)', text: durationText },
          series: [
            {
              name: 'p50',
              tone: 1,
              mark: 'dots',
              points: line((group) => middle(group.map(({ latency }) => latency.ttft.p50Ms))),
            },
            {
              name: 'p99',
              tone: 2,
              mark: 'rings',
              points: line((group) => highest(group.map(({ latency }) => latency.ttft.p99Ms))),
            },
          ],
        },
        'Time to first token of each adapter against its rank by requests.',
      ),
      chartPanel(
        {
          x: rank,
          y: { kind: 'log', label: 'Requests of an adapter (log)', text: countText },
          series: [
            {
              name: 'requests',
              tone: 5,
              mark: 'line',
              points: line((group) => highest(group.map(({ requests }) => requests))),
            },
          ],
        },
        'Requests of each adapter against its rank: how uneven the popularity was.',
      ),
    ],
  });
}
