/** comparison.html: two runs side by side, every difference with its interval. */
import { htmlTable, nameOf } from '../html-table.js';
import { adapterName } from '../labels.js';
import type { Child } from '../markup.js';
import { element, fragment } from '../markup.js';
import { changeText, chanceNote, intervalText, metricName, valueText } from '../metric-text.js';
import { countText } from '../number-text.js';
import { changeFigure } from '../plot/change-figure.js';
import type { ComparedMetric, RunComparison } from '../run-comparison.js';
import { plainText } from '../text-table.js';
import type { Section } from './page.js';
import { facts, navigation, page, sections } from './page.js';

export function comparisonPage(comparison: RunComparison): string {
  const { before, after } = comparison;
  const parts = comparisonSections(comparison);
  return page({
    title: `${plainText(before.run.name)} against ${plainText(after.run.name)}: load tests compared`,
    header: fragment(
      element('h1', {}, 'Two runs side by side'),
      facts([
        ['before', runText(before)],
        ['after', runText(after)],
      ]),
      banner(comparison),
      navigation(parts),
    ),
    main: sections(parts),
    footer: element(
      'p',
      {},
      `Written by Manyfold ${after.run.versions.manyfold}. This file loads nothing from elsewhere.`,
    ),
  });
}

function runText({ run, verdict }: RunComparison['before']): Child {
  const validity = element(
    'span',
    { class: `tag ${verdict.valid ? 'good-text' : 'bad'}` },
    verdict.valid ? 'valid' : 'not valid',
  );
  return [`${plainText(run.name)} (${run.id}), ${run.startedAt}, ${run.targetUrl}, `, validity];
}

function banner({ warnings, total }: RunComparison): Child {
  const count = (judgement: ComparedMetric['judgement']): number =>
    total.filter((metric) => metric.judgement === judgement).length;
  const summary = `${total.length} figures of the whole run: ${count('better')} better, ${count('worse')} worse, ${count('no clear difference')} with no clear difference, ${count('too few samples')} with too few samples.`;
  return element(
    'div',
    { class: `banner ${warnings.length > 0 ? 'warn' : ''}`, role: 'note' },
    element('strong', {}, summary),
    warnings.length === 0
      ? undefined
      : element(
          'ul',
          {},
          warnings.map((warning) => element('li', {}, warning)),
        ),
  );
}

function comparisonSections(comparison: RunComparison): readonly Section[] {
  const { total, adapters } = comparison;
  return [
    {
      id: 'total',
      title: 'Whole run',
      body: [
        element('div', { class: 'figures' }, changeFigure(total)),
        element('div', { class: 'block scroll' }, metricTable('', total)),
      ],
    },
    {
      id: 'adapters',
      title: 'Adapters',
      body:
        adapters.length === 0
          ? element('p', {}, 'No adapter has enough requests in both runs to be compared alone.')
          : [
              element(
                'p',
                {},
                `The ${countText(adapters.length)} most used adapters that both runs have with at least 50 requests, 20 at most.`,
              ),
              adapters.map(({ adapter, metrics }, index) =>
                element(
                  'details',
                  index < 5 ? { open: true } : {},
                  element('summary', {}, nameOf(adapterName(adapter)), adapterSummary(metrics)),
                  element('div', { class: 'block scroll' }, metricTable('', metrics)),
                ),
              ),
            ],
    },
    { id: 'method', title: 'How the intervals are made', body: method(comparison) },
  ];
}

function adapterSummary(metrics: readonly ComparedMetric[]): string {
  const clear = metrics.filter(({ judgement }) => judgement === 'better' || judgement === 'worse');
  if (clear.length === 0) return ' no clear difference';
  return ` ${clear.map((metric) => `${metricName(metric)} ${metric.judgement}`).join(', ')}`;
}

function metricTable(caption: string, metrics: readonly ComparedMetric[]): Child {
  // The judgement stands where a phone shows it without scrolling.
  const columns = ['figure', 'judgement', 'before', 'after', 'change', 'difference is within'];
  return htmlTable(
    caption,
    columns.map((title) => ({ title })),
    metrics.map((metric) => [
      metricName(metric),
      judgementTag(metric),
      valueText(metric.before, metric.unit),
      valueText(metric.after, metric.unit),
      changeText(metric),
      intervalText(metric),
    ]),
  );
}

function judgementTag({ judgement }: ComparedMetric): Child {
  if (judgement === 'better') return element('span', { class: 'tag good-text' }, '▲ better');
  if (judgement === 'worse') return element('span', { class: 'tag bad' }, '▼ worse');
  return element('span', { class: 'soft' }, judgement);
}

function method(comparison: RunComparison): Child {
  return fragment(
    element('p', {}, chanceNote(comparison)),
    element(
      'p',
      {},
      'Latencies and rates: percentile intervals of a circular block bootstrap (Politis and Romano 1992) over requests in schedule order, ',
      'with the block length of Politis and White (2004, corrected 2009), so that requests which were slow together count as such. ',
      'Runs of one trace are resampled in pairs. Failed requests: the score interval of Newcombe (1998), with the number of requests divided by the design effect.',
    ),
    element(
      'p',
      {},
      'A percentile has an interval only when both runs have ten or more values beyond it; ITL is compared by its mean, because a report keeps a summary of each request’s gaps.',
    ),
  );
}
