/** Whether the load generator kept up: its event loop and its CPU over the run. */
import type { Markup } from '../markup.js';
import { durationText, percentText } from '../number-text.js';
import type { ClientSample, RunReport } from '../run-report.js';
import type { Axis, Point } from './chart.js';
import { chartPanel, figure } from './figure.js';
import { timeText } from './latency-figures.js';
import { groups, highest, phaseBands } from './slices.js';

export function clientFigure(report: RunReport): Markup {
  const merged = groups(report.client.samples, 120);
  const line = (pick: (sample: ClientSample) => number): readonly Point[] =>
    merged.map((group): Point => [group.at(-1)?.atMs ?? 0, highest(group.map(pick))]);
  const x: Axis = {
    kind: 'time',
    label: 'time since the run began',
    text: timeText,
    include: [0, report.run.durationMs],
  };
  const bands = phaseBands(report);
  return figure({
    id: 'plot-client',
    title: 'The client over time',
    caption: 'Lag is how late a timer fires; it is in every latency of that moment.',
    full: true,
    panels: [
      chartPanel(
        {
          x,
          bands,
          tall: 0.75,
          room: 48,
          y: { kind: 'linear', label: 'Event-loop lag', text: durationText, include: [0] },
          series: [
            { name: 'p99', tone: 1, mark: 'line', points: line(({ eventLoopLagP99Ms }) => eventLoopLagP99Ms) },
            { name: 'highest', tone: 2, mark: 'dashes', points: line(({ eventLoopLagMaxMs }) => eventLoopLagMaxMs) },
          ],
        },
        'Lag of the event loop of the load generator over the run.',
      ),
      chartPanel(
        {
          x,
          bands,
          tall: 0.75,
          room: 48,
          y: { kind: 'linear', label: 'CPU of one core', text: percentText, include: [0, 1] },
          series: [{ name: 'used', tone: 5, mark: 'line', points: line(({ cpuShare }) => cpuShare) }],
        },
        'Share of one core that the load generator used over the run.',
      ),
    ],
  });
}
