/** Tables of adapters: the most used ones in sight, the others folded. */
import { htmlTable, nameOf } from '../html-table.js';
import { adapterName } from '../labels.js';
import type { Child } from '../markup.js';
import { element } from '../markup.js';
import { countText, durationText, numberText, percentText } from '../number-text.js';
import type { AdapterAggregate } from '../run-report.js';

const IN_SIGHT = 20;
/** Rows of a page; summary.csv has all of them. */
const MOST_ROWS = 1000;
const COLUMNS = [
  'adapter',
  'requests',
  'share',
  'failed',
  'good',
  'tokens/s',
  'TTFT p50',
  'p95',
  'p99',
  'TPOT p50',
  'p99',
  'E2E p50',
  'p99',
].map((title) => ({ title }));

export function adapterTables(adapters: readonly AdapterAggregate[]): Child {
  const rest = adapters.slice(IN_SIGHT, MOST_ROWS);
  const left = adapters.length - Math.min(adapters.length, MOST_ROWS);
  return [
    element('div', { class: 'block scroll' }, table('Most requests first.', adapters.slice(0, IN_SIGHT))),
    rest.length === 0
      ? undefined
      : element(
          'details',
          {},
          element('summary', {}, `${countText(rest.length)} more adapters`),
          element('div', { class: 'block scroll long' }, table('The same, continued.', rest)),
        ),
    left === 0 ? undefined : element('p', { class: 'soft' }, `${countText(left)} further adapters are in summary.csv.`),
  ];
}

function table(caption: string, adapters: readonly AdapterAggregate[]): Child {
  return htmlTable(
    caption,
    COLUMNS,
    adapters.map(
      ({ adapter, requests, requestShare, ok, goodShare, outputTokensPerSecond, latency: { ttft, tpot, e2e } }) => [
        nameOf(adapterName(adapter)),
        countText(requests),
        percentText(requestShare),
        countText(requests - ok),
        percentText(goodShare),
        numberText(outputTokensPerSecond),
        ...[ttft.p50Ms, ttft.p95Ms, ttft.p99Ms, tpot.p50Ms, tpot.p99Ms, e2e.p50Ms, e2e.p99Ms].map((ms) =>
          durationText(ms ?? undefined),
        ),
      ],
    ),
  );
}
