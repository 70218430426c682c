import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { compareRuns } from './compare-runs.js';
import { renderComparison } from './comparison-table.js';
import type { RunReport } from './run-report.js';
import { renderTable } from './table.js';
import { HOSTILE_NAMES } from './testing/fixture-pages.js';
import { fixtureReport } from './testing/report-fixture.js';
import { displayWidth } from './text-table.js';

const PLAIN = { columns: 100, colour: false } as const;
const report = fixtureReport({ requests: 500 });

test('the verdict stands first; an invalid run says so before any figure', () => {
  const message = 'Only 80 % of the asked rate was achieved. Ask for less.';
  const invalid: RunReport = {
    ...report,
    verdict: {
      valid: false,
      findings: [
        { kind: 'too_few', severity: 'warning', message: 'Too few.' },
        { kind: 'achieved_rate', severity: 'invalid', message },
      ],
    },
  };
  const lines = renderTable(invalid, PLAIN).split('\n');
  assert.equal(lines[0], 'Run NOT VALID');
  assert.equal(lines[1], `  invalid achieved_rate: ${message}`);
  assert.equal(lines[2], '  warning too_few: Too few.');
  assert.equal(renderTable(report, PLAIN).split('\n')[0], 'Run VALID');
});

test('totals, latencies, adapters, errors, client and server are all there', () => {
  const table = renderTable(report, PLAIN);
  const { total } = report;
  assert.match(
    table,
    new RegExp(`requests +${total.requests} measured, ${total.ok} ok, ${total.requests - total.ok} failed; warm-up 20`),
  );
  assert.match(table, /goodput .*TTFT ≤ 400 ms, TPOT ≤ 60 ms, E2E ≤ 8000 ms/);
  for (const name of ['TTFT', 'TPOT', 'ITL', 'E2E', 'send delay'])
    assert.match(table, new RegExp(`\n  ${name} +[\\d.]+ m?s`));
  assert.match(table, /\n  support +\d+ /);
  assert.match(table, /\n  \(base model\) +\d+ /);
  assert.match(table, /\n  rate_limited +\d+ +[\d.]+ % +upstream closed/);
  assert.match(table, /The client was not the limit/);
  assert.match(table, /disagreement on output tokens: client 14\u00a0000 tokens, server 14\u00a0900 tokens/);
});

test('adapters beyond the first ten share a line', () => {
  const adapters = Array.from({ length: 25 }, (_, index) => `tenant-${index}`);
  const many = fixtureReport({ requests: 2000, adapters });
  const rows = renderTable(many, PLAIN)
    .split('\n')
    .filter((line) => line.startsWith('  tenant-'));
  assert.equal(rows.length, 10);
  assert.match(renderTable(many, PLAIN), /and 15 more: \d+ requests, \d+ failed, TTFT p50 [\d.]+ ms to [\d.]+ ms/);
});

test('no line is wider than the terminal and no name can command it', () => {
  const name = fc.oneof(fc.constantFrom(...HOSTILE_NAMES), fc.string({ unit: 'binary', minLength: 1, maxLength: 150 }));
  fc.assert(
    fc.property(
      fc.array(name, { minLength: 1, maxLength: 4 }),
      fc.integer({ min: 60, max: 160 }),
      (adapters, columns) => {
        const hostile = fixtureReport({
          requests: 40,
          adapters,
          errorShare: 0.3,
          errorText: adapters[0] ?? '',
          name: adapters[0] ?? '',
        });
        const table = renderTable(hostile, { columns, colour: false });
        assert.doesNotMatch(table, /[^\P{Cc}\n]/u);
        for (const line of table.split('\n'))
          assert.ok(displayWidth(line) <= Math.min(100, columns), `${displayWidth(line)}: ${line}`);
      },
    ),
    {
      seed: 12,
      numRuns: 60,
      examples: [
        [[...HOSTILE_NAMES], 60],
        [['a'], 100],
      ],
    },
  );
});

test('colour adds escapes and nothing else', () => {
  const coloured = renderTable(report, { columns: 100, colour: true });
  assert.notEqual(coloured, renderTable(report, PLAIN));
  assert.equal(coloured.replace(/\p{Cc}\[\d+m/gu, ''), renderTable(report, PLAIN));
});

test('runs without requests, server or SLO have tables too', () => {
  const none = fixtureReport({ requests: 0, warmup: 0, withServer: false });
  const slo = { ttftMs: null, tpotMs: null, itlP99Ms: null, e2eMs: null };
  const table = renderTable(
    { ...none, workload: { ...none.workload, slo, askedPerSecond: null, concurrency: 4 } },
    PLAIN,
  );
  assert.match(table, /no SLO was set/);
  assert.match(table, /no readable \/metrics/);
  assert.match(table, /closed loop, 4 at once/);
  assert.doesNotMatch(table, /NaN|undefined|null/);
});

test('a comparison names both runs, warns first, and keeps to its width', () => {
  const hostile = { requests: 400, adapters: [...HOSTILE_NAMES] };
  const comparison = compareRuns(
    fixtureReport(hostile),
    fixtureReport({ ...hostile, seed: 2, traceSeed: 8, slow: 1.5, name: '\u001b[2J' }),
  );
  const table = renderComparison(comparison, PLAIN);
  assert.match(table, /^before: fixture \(run-1\).*\nafter: {2}.*\(run-2\)/);
  assert.match(table, /warning: The runs sent different requests/);
  assert.match(table, /TTFT p50 +[\d.]+ ms +[\d.]+ ms +\+[\d.]+ % +\+[\d.]+ ms to \+[\d.]+ ms {2}worse/);
  assert.match(table, /would look different by chance alone/);
  assert.doesNotMatch(table, /[^\P{Cc}\n]/u);
  for (const line of table.split('\n')) assert.ok(displayWidth(line) <= 100, line);
});
