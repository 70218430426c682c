/** What was asked of the server and what came of it: rates over time, and throughput against latency within the run. */
import type { Markup } from '../markup.js';
import { fragment } from '../markup.js';
import { countText, durationText, numberText, percentText } from '../number-text.js';
import { htmlTable } from '../html-table.js';
import type { RunReport, TimelineBucket } from '../run-report.js';
import type { Axis, Point } from './chart.js';
import { chartPanel, figure } from './figure.js';
import { timeText } from './latency-figures.js';
import { mergeSlices, phaseBands } from './slices.js';

/** Points of the scatter; each stands for a stretch of the run. */
const STRETCHES = 60;
const TIME: Axis = { kind: 'time', label: 'time since the run began', text: timeText, include: [0] };

export function loadFigures(report: RunReport): Markup {
  return fragment(rateFigure(report), throughputFigure(report));
}

/** A count of a slice as a rate. */
export function perSecond(slice: TimelineBucket, count: number): number {
  return slice.toMs > slice.fromMs ? (count / (slice.toMs - slice.fromMs)) * 1000 : 0;
}

/** A line of steps needs its last value twice: where the last slice begins and where it ends. */
export function steps(
  slices: readonly TimelineBucket[],
  pick: (slice: TimelineBucket) => number | null,
): readonly Point[] {
  const points = slices.map((slice): Point => [slice.fromMs, pick(slice)]);
  const last = slices.at(-1);
  return last === undefined ? points : [...points, [last.toMs, pick(last)]];
}

function rateFigure(report: RunReport): Markup {
  const { workload } = report;
  const slices = mergeSlices(report.timeline, 60);
  const rate = (pick: (slice: TimelineBucket) => number) => steps(slices, (slice) => perSecond(slice, pick(slice)));
  const achieved =
    workload.askedPerSecond === null
      ? `A closed loop with ${countText(workload.concurrency ?? undefined)} at once; no rate was asked.`
      : `Asked ${numberText(workload.askedPerSecond)}/s, sent ${numberText(workload.sentPerSecond)}/s, completed ${numberText(workload.completedPerSecond)}/s: ${percentText(workload.achievedShare ?? undefined)} achieved.`;
  return figure({
    id: 'plot-rate',
    title: 'Asked and achieved rate',
    caption: achieved,
    panels: [
      chartPanel(
        {
          x: TIME,
          y: { kind: 'linear', label: 'Requests a second', text: numberText, include: [0] },
          bands: phaseBands(report),
          series: [
            { name: 'sent', tone: 1, mark: 'step', points: rate(({ sent }) => sent) },
            { name: 'completed', tone: 3, mark: 'step', points: rate(({ ok }) => ok) },
            { name: 'scheduled', tone: 2, mark: 'dashed-step', points: rate(({ scheduled }) => scheduled) },
          ],
        },
        `Requests scheduled, sent and completed in each second of the run. ${achieved}`,
      ),
    ],
    table: timelineTable(mergeSlices(report.timeline, 40)),
  });
}

/** The time line at a length that can be read; requests.csv has everything. */
function timelineTable(slices: readonly TimelineBucket[]): Markup {
  const columns = ['from', 'scheduled', 'sent', 'ok', 'failed', 'pieces', 'in flight', 'TTFT p50', 'p99'];
  return htmlTable(
    'Slices of the run, neighbours merged to at most 40. Of merged slices: the middle p50, the highest p99.',
    columns.map((title) => ({ title })),
    slices.map((slice) => [
      timeText(slice.fromMs),
      ...[slice.scheduled, slice.sent, slice.ok, slice.errors, slice.pieces, slice.inFlightMax].map((count) =>
        countText(count),
      ),
      durationText(slice.ttftP50Ms ?? undefined),
      durationText(slice.ttftP99Ms ?? undefined),
    ]),
  );
}

function throughputFigure(report: RunReport): Markup {
  const { measuredFromMs, measuredToMs } = report.workload;
  const measured = report.timeline.filter(({ fromMs, toMs }) => fromMs >= measuredFromMs && toMs <= measuredToMs);
  const stretches = mergeSlices(measured, STRETCHES).filter(({ ttftP50Ms }) => ttftP50Ms !== null);
  const points = (pick: (slice: TimelineBucket) => number | null) =>
    stretches.map((slice): Point => [perSecond(slice, slice.pieces), pick(slice)]);
  return figure({
    id: 'plot-throughput',
    title: 'Throughput against latency',
    caption:
      'Each stretch of the measured window is one p50 and one p99. A cloud that turns upward while it no longer moves right is a server at its limit.',
    panels: [
      chartPanel(
        {
          x: { kind: 'linear', label: 'pieces of streams a second', text: numberText, include: [0] },
          y: { kind: 'log', label: 'TTFT (log)', text: durationText },
          series: [
            { name: 'p50', tone: 1, mark: 'dots', points: points(({ ttftP50Ms }) => ttftP50Ms) },
            { name: 'p99', tone: 2, mark: 'rings', points: points(({ ttftP99Ms }) => ttftP99Ms) },
          ],
        },
        `Time to first token against throughput in ${stretches.length} stretches of the measured window.`,
      ),
    ],
  });
}
