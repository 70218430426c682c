/** The run as it went, client and server on one axis of time. */
import type { Markup } from '../markup.js';
import { countText, durationText, numberText, percentText } from '../number-text.js';
import type { RunReport, ServerSample, TimelineBucket } from '../run-report.js';
import type { Axis, Chart, Series } from './chart.js';
import type { Panel } from './figure.js';
import { chartPanel, figure } from './figure.js';
import { timeText } from './latency-figures.js';
import { perSecond, steps } from './load-figures.js';
import { mergeSlices, phaseBands, serverLine, serverRate } from './slices.js';

/** Labels such as `500 ms` fit; panels under each other then have one axis of time. */
const ROOM = 52;

const count = (label: string): Axis => ({ kind: 'linear', label, text: numberText, include: [0, 1] });

export function timelineFigure(report: RunReport): Markup {
  const slices = mergeSlices(report.timeline);
  const samples = report.server?.samples ?? [];
  const panel = panelMaker(report, slices);
  const hasErrors = slices.some(({ errors }) => errors > 0);
  const panels = [
    panel(
      count('Requests at once'),
      [
        { name: 'in flight', tone: 1, mark: 'step', points: steps(slices, ({ inFlightMax }) => inFlightMax) },
        ...ofServer(samples, 'running on the server', 5, ({ running }) => running),
        ...ofServer(samples, 'waiting on the server', 2, ({ waiting }) => waiting),
      ],
      ({ inFlightMax }) => `${countText(inFlightMax)} in flight`,
    ),
    panel(
      count('Tokens a second'),
      [
        {
          name: 'pieces received',
          tone: 3,
          mark: 'step',
          points: steps(slices, (slice) => perSecond(slice, slice.pieces)),
        },
        ...known(
          'by the server',
          4,
          serverRate(samples, ({ outputTokens }) => outputTokens),
        ),
      ],
      (slice) => `${numberText(perSecond(slice, slice.pieces))} pieces a second`,
    ),
    panel(
      { kind: 'log', label: 'Time to first token (log)', text: durationText },
      [
        { name: 'p50', tone: 1, mark: 'step', points: steps(slices, ({ ttftP50Ms }) => ttftP50Ms) },
        { name: 'p99', tone: 2, mark: 'step', points: steps(slices, ({ ttftP99Ms }) => ttftP99Ms) },
      ],
      ({ ttftP50Ms, ttftP99Ms }) =>
        `TTFT p50 ${durationText(ttftP50Ms ?? undefined)}, p99 ${durationText(ttftP99Ms ?? undefined)}`,
    ),
    ...(hasErrors ? [errorPanel(panel, slices)] : []),
    ...serverPanels(panel, samples),
  ];
  return figure({
    id: 'plot-timeline',
    title: 'Client and server on one axis of time',
    caption: [
      hasErrors ? '' : 'No request failed. ',
      report.server === null ? 'The server has no readable /metrics, so only the client speaks here.' : '',
    ].join(''),
    panels,
    full: true,
  });
}

type PanelMaker = (y: Axis, series: readonly Series[], hint?: (slice: TimelineBucket) => string) => Panel;

/** Panels share the axis of time to its very ends, so that they line up. */
function panelMaker(report: RunReport, slices: readonly TimelineBucket[]): PanelMaker {
  const end = Math.max(report.run.durationMs, slices.at(-1)?.toMs ?? 0);
  const x: Axis = { kind: 'time', label: '', text: timeText, include: [0, end] };
  return (y, series, hint) => {
    const chart: Chart = {
      x,
      y,
      series,
      bands: phaseBands(report),
      tall: 0.8,
      room: ROOM,
      ...(hint === undefined
        ? {}
        : {
            hints: slices.map((slice) => ({
              from: slice.fromMs,
              to: slice.toMs,
              text: `${timeText(slice.fromMs)}: ${hint(slice)}`,
            })),
          }),
    };
    return chartPanel(chart, `${y.label} over the run: ${series.map(({ name }) => name).join(', ')}.`);
  };
}

function errorPanel(panel: PanelMaker, slices: readonly TimelineBucket[]): Panel {
  const points = steps(slices, (slice) => perSecond(slice, slice.errors));
  return panel(
    { kind: 'linear', label: 'Failures a second', text: numberText, include: [0] },
    [{ name: 'failed requests', tone: 'bad', mark: 'bars', points }],
    ({ errors }) => `${countText(errors)} failed`,
  );
}

function serverPanels(panel: PanelMaker, samples: readonly ServerSample[]): Panel[] {
  const use = ofServer(samples, 'in use', 6, ({ kvUsageShare }) => kvUsageShare);
  const adapters = [
    ...ofServer(samples, 'resident', 5, ({ adaptersResident }) => adaptersResident),
    ...ofServer(samples, 'waiting for a place', 2, ({ adaptersWaiting }) => adaptersWaiting),
  ];
  return [
    ...(use.length === 0
      ? []
      : [panel({ kind: 'linear', label: 'KV memory', text: percentText, include: [0, 1] }, use)]),
    ...(adapters.length === 0 ? [] : [panel(count('Adapters'), adapters)]),
  ];
}

function ofServer(
  samples: readonly ServerSample[],
  name: string,
  tone: Series['tone'],
  pick: (sample: ServerSample) => number | null,
): Series[] {
  return known(name, tone, serverLine(samples, pick));
}

/** A figure that the server never told has no line and no key. */
function known(name: string, tone: Series['tone'], points: Series['points']): Series[] {
  return points.some(([, y]) => y !== null) ? [{ name, tone, mark: 'dashes', points }] : [];
}
