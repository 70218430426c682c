/** report.html: one run on one page, the verdict first. */
import { sloTexts } from '../labels.js';
import type { Child } from '../markup.js';
import { element, fragment } from '../markup.js';
import { countText, durationText, numberText, percentText } from '../number-text.js';
import { adapterFigures } from '../plot/adapter-figures.js';
import { clientFigure } from '../plot/client-figure.js';
import { latencyFigures, percentileTable } from '../plot/latency-figures.js';
import { loadFigures } from '../plot/load-figures.js';
import { timelineFigure } from '../plot/timeline-figure.js';
import type { RunReport } from '../run-report.js';
import { errorKinds } from '../table.js';
import { plainText } from '../text-table.js';
import { adapterTables } from './adapter-tables.js';
import type { Section } from './page.js';
import { navigation, page, sections } from './page.js';
import { clientFacts, definitions, errorTable, repetition, serverFacts } from './run-parts.js';

export function runPage(report: RunReport): string {
  const parts = runSections(report);
  return page({
    title: `${plainText(report.run.name)}: load test, ${report.verdict.valid ? 'valid' : 'not valid'}`,
    header: fragment(heading(report), banner(report), cards(report), navigation(parts)),
    main: sections(parts),
    footer: element(
      'p',
      {},
      `Written by Manyfold ${report.run.versions.manyfold}. Run ${report.run.id}. This file loads nothing from elsewhere.`,
    ),
  });
}

function runSections(report: RunReport): readonly Section[] {
  const figures = (...children: Child[]): Child => element('div', { class: 'figures' }, children);
  const block = (child: Child): Child => element('div', { class: 'block scroll' }, child);
  return [
    {
      id: 'latency',
      title: 'Latency',
      body: [block(percentileTable(report.total.latency)), figures(latencyFigures(report.total))],
    },
    { id: 'load', title: 'Load and throughput', body: figures(loadFigures(report)) },
    { id: 'timeline', title: 'Time line', body: figures(timelineFigure(report)) },
    {
      id: 'adapters',
      title: 'Adapters',
      body:
        report.adapters.length === 0
          ? element('p', {}, 'No request was measured.')
          : [figures(adapterFigures(report.adapters)), adapterTables(report.adapters)],
    },
    { id: 'errors', title: 'Errors', body: errorTable(report, block) },
    { id: 'server', title: 'Server, by its own word', body: serverFacts(report, block) },
    { id: 'client', title: 'Client', body: [clientFacts(report), figures(clientFigure(report))] },
    { id: 'repeat', title: 'How to repeat this run', body: repetition(report) },
    { id: 'definitions', title: 'What the words mean', body: definitions() },
  ];
}

function heading({ run, workload }: RunReport): Child {
  return fragment(
    element('h1', {}, plainText(run.name)),
    element(
      'p',
      { class: 'soft' },
      `${run.targetUrl} (${run.dialect}), ${run.startedAt}, ${durationText(run.durationMs)}`,
    ),
    element('p', {}, workload.description),
  );
}

/** The verdict in words; colour only repeats it. */
export function banner({ verdict, workload }: Pick<RunReport, 'verdict' | 'workload'>): Child {
  const tone = !verdict.valid ? 'bad' : verdict.findings.length > 0 ? 'warn' : 'good';
  const order = [...verdict.findings].sort(
    (one, other) => Number(other.severity === 'invalid') - Number(one.severity === 'invalid'),
  );
  const summary = verdict.valid
    ? workload.achievedShare === null
      ? 'The run is valid.'
      : `The run is valid: ${percentText(workload.achievedShare)} of the asked rate was achieved.`
    : 'The run is not valid. Its figures must not be quoted.';
  return element(
    'div',
    { class: `banner ${tone}`, role: 'note' },
    element('strong', {}, summary),
    order.length === 0
      ? undefined
      : element(
          'ul',
          {},
          order.map(({ kind, severity, message }) =>
            element(
              'li',
              {},
              element(
                'span',
                { class: `tag ${severity === 'invalid' ? 'bad' : 'warn'}` },
                `${severity}, ${kind.replaceAll('_', ' ')}: `,
              ),
              message,
            ),
          ),
        ),
  );
}

function cards(report: RunReport): Child {
  const { total, workload } = report;
  const failed = total.requests - total.ok;
  const slo = sloTexts(report);
  const entries: readonly (readonly [title: string, value: string, more: string])[] = [
    ['Requests', countText(total.requests), `${countText(total.ok)} ok, ${countText(failed)} failed`],
    [
      'Rate completed',
      `${numberText(workload.completedPerSecond)}/s`,
      workload.askedPerSecond === null
        ? `closed loop, ${countText(workload.concurrency ?? undefined)} at once`
        : `asked ${numberText(workload.askedPerSecond)}/s`,
    ],
    [
      'Output tokens',
      `${numberText(total.outputTokensPerSecond)}/s`,
      `${numberText(total.totalTokensPerSecond)}/s with prompts`,
    ],
    [
      'Goodput',
      slo.length === 0 ? 'no SLO' : `${numberText(total.goodputPerSecond)}/s`,
      slo.length === 0 ? 'the scenario sets none' : `${percentText(total.goodShare)} with ${slo.join(', ')}`,
    ],
    [
      'TTFT, median',
      durationText(total.latency.ttft.p50Ms ?? undefined),
      `p99 ${durationText(total.latency.ttft.p99Ms ?? undefined)}`,
    ],
    [
      'TPOT, median',
      durationText(total.latency.tpot.p50Ms ?? undefined),
      `p99 ${durationText(total.latency.tpot.p99Ms ?? undefined)}`,
    ],
    [
      'E2E, median',
      durationText(total.latency.e2e.p50Ms ?? undefined),
      `p99 ${durationText(total.latency.e2e.p99Ms ?? undefined)}`,
    ],
    [
      'Failed',
      percentText(total.requests === 0 ? undefined : failed / total.requests),
      errorKinds(total)[0]?.[0].replaceAll('_', ' ') ?? 'no error',
    ],
  ];
  return element(
    'div',
    { class: 'cards' },
    entries.map(([title, value, more]) =>
      element('dl', { class: 'card' }, element('dt', {}, title), element('dd', {}, value), element('dd', {}, more)),
    ),
  );
}
