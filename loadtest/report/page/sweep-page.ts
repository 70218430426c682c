/** sweep.html: throughput against latency over runs that differ in load, the usual picture of where a server gives in. */
import { htmlTable } from '../html-table.js';
import type { Child, Markup } from '../markup.js';
import { element, fragment } from '../markup.js';
import { countText, durationText, numberText, percentText } from '../number-text.js';
import type { Point, Tone } from '../plot/chart.js';
import { chartPanel, figure } from '../plot/figure.js';
import type { Distribution, RunReport } from '../run-report.js';
import { plainText } from '../text-table.js';
import { page, sections } from './page.js';

const METRICS = [
  { key: 'ttft', title: 'TTFT' },
  { key: 'tpot', title: 'TPOT' },
  { key: 'e2e', title: 'E2E' },
] as const;

/** The runs need not be sorted; invalid ones are drawn in the colour of errors and named. */
export function sweepPage(reports: readonly RunReport[]): string {
  const sorted = [...reports].sort((one, other) => loadOf(one) - loadOf(other));
  const invalid = sorted.filter(({ verdict }) => !verdict.valid);
  const parts = [
    { id: 'curves', title: 'Throughput against latency', body: element('div', { class: 'figures' }, curves(sorted)) },
    { id: 'runs', title: 'Runs', body: element('div', { class: 'block scroll' }, runTable(sorted)) },
  ];
  return page({
    title: `${countText(sorted.length)} load tests: throughput against latency`,
    header: fragment(
      element('h1', {}, 'Throughput against latency'),
      element(
        'p',
        { class: 'soft' },
        [...new Set(sorted.map(({ run }) => `${run.targetUrl} (${run.dialect})`))].join(', '),
      ),
      invalid.length === 0
        ? undefined
        : element(
            'div',
            { class: 'banner bad', role: 'note' },
            element('strong', {}, `${countText(invalid.length)} of ${countText(sorted.length)} runs are not valid.`),
            element(
              'ul',
              {},
              invalid.map(({ run, verdict }) =>
                element(
                  'li',
                  {},
                  `${plainText(run.name)} (${run.id}): ${verdict.findings.map(({ message }) => message).join(' ')}`,
                ),
              ),
            ),
          ),
    ),
    main: sections(parts),
    footer: element('p', {}, 'This file loads nothing from elsewhere.'),
  });
}

/** Rate for open loops, concurrency for closed ones. */
function loadOf({ workload }: RunReport): number {
  return workload.askedPerSecond ?? workload.concurrency ?? 0;
}

function curves(reports: readonly RunReport[]): readonly Child[] {
  return [
    ...METRICS.map(({ key, title }) => curve(`sweep-${key}`, title, reports, (report) => report.total.latency[key])),
    rateCurve(reports),
  ];
}

function curve(
  id: string,
  title: string,
  reports: readonly RunReport[],
  pick: (report: RunReport) => Distribution,
): Markup {
  const line = (of: keyof Distribution & `p${string}Ms`, kept: (report: RunReport) => boolean): readonly Point[] =>
    reports.map((report): Point => [report.total.outputTokensPerSecond, kept(report) ? pick(report)[of] : null]);
  const all = (): boolean => true;
  const percentiles: readonly (readonly [string, keyof Distribution & `p${string}Ms`, Tone])[] = [
    ['p50', 'p50Ms', 1],
    ['p99', 'p99Ms', 2],
  ];
  return figure({
    id,
    title: `${title} against throughput`,
    caption: 'One point a run, joined in order of load.',
    panels: [
      chartPanel(
        {
          x: { kind: 'linear', label: 'output tokens a second', text: numberText, include: [0] },
          y: { kind: 'log', label: `${title} (log)`, text: durationText },
          series: [
            ...percentiles.flatMap(([name, of, tone]) => [
              { name, tone, mark: 'line' as const, points: line(of, all) },
            ]),
            ...percentiles.flatMap(([, of, tone]) => [
              { name: '', tone, mark: 'dots' as const, points: line(of, all) },
            ]),
            ...(reports.every(({ verdict }) => verdict.valid)
              ? []
              : [
                  {
                    name: 'not valid',
                    tone: 'bad' as const,
                    mark: 'rings' as const,
                    points: line('p99Ms', ({ verdict }) => !verdict.valid),
                  },
                ]),
          ],
        },
        `${title} of ${reports.length} runs against their throughput.`,
      ),
    ],
  });
}

function rateCurve(reports: readonly RunReport[]): Markup {
  const line = (pick: (report: RunReport) => number): readonly Point[] =>
    reports.map((report): Point => [loadOf(report), pick(report)]);
  return figure({
    id: 'sweep-rate',
    title: 'Achieved against asked',
    caption:
      'Where completed leaves asked, the server is full; where good leaves completed, it is too slow for the SLO.',
    panels: [
      chartPanel(
        {
          x: { kind: 'linear', label: 'asked requests a second, or requests at once', text: numberText, include: [0] },
          y: { kind: 'linear', label: 'Requests a second', text: numberText, include: [0] },
          series: [
            {
              name: 'asked',
              tone: 'muted',
              mark: 'dashes',
              points: reports.map(({ workload }): Point => [workload.askedPerSecond ?? 0, workload.askedPerSecond]),
            },
            { name: 'completed', tone: 3, mark: 'line', points: line(({ workload }) => workload.completedPerSecond) },
            { name: 'good', tone: 1, mark: 'line', points: line(({ total }) => total.goodputPerSecond) },
          ],
        },
        'Completed and good requests a second against what was asked.',
      ),
    ],
  });
}

function runTable(reports: readonly RunReport[]): Child {
  const columns = [
    'run',
    'asked',
    'achieved',
    'tokens/s',
    'goodput',
    'failed',
    'TTFT p50',
    'p99',
    'TPOT p50',
    'p99',
    'E2E p50',
    'p99',
    'verdict',
  ];
  return htmlTable(
    'In order of load.',
    columns.map((title) => ({ title })),
    reports.map(({ run, workload, total, verdict }) => [
      `${plainText(run.name)} (${run.id})`,
      workload.askedPerSecond === null
        ? `${countText(workload.concurrency ?? undefined)} at once`
        : `${numberText(workload.askedPerSecond)}/s`,
      percentText(workload.achievedShare ?? undefined),
      numberText(total.outputTokensPerSecond),
      `${numberText(total.goodputPerSecond)}/s`,
      percentText(total.requests === 0 ? undefined : 1 - total.ok / total.requests),
      ...METRICS.flatMap(({ key }) => [total.latency[key].p50Ms, total.latency[key].p99Ms]).map((ms) =>
        durationText(ms ?? undefined),
      ),
      verdict.valid ? 'valid' : 'not valid',
    ]),
  );
}
