import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManyfoldError } from '../../src/core/errors.js';
import { compareAdapters, compareRuns } from './compare-runs.js';
import { rateSample } from './compared-metrics.js';
import { comparisonWarnings } from './comparison-warnings.js';
import type { ComparedMetric, RunComparison } from './run-comparison.js';
import type { RunReport } from './run-report.js';
import { fixtureReport } from './testing/report-fixture.js';

const base = fixtureReport({ requests: 1200 });

function metric(
  { total }: Pick<RunComparison, 'total'>,
  name: ComparedMetric['metric'],
  statistic: ComparedMetric['statistic'],
): ComparedMetric {
  const found = total.find((one) => one.metric === name && one.statistic === statistic);
  assert.ok(found !== undefined, `${name} ${statistic}`);
  return found;
}

test('a run against itself shows no difference anywhere, and a warning that it is the same run', () => {
  const comparison = compareRuns(base, base);
  for (const { difference, interval, judgement } of [
    ...comparison.total,
    ...comparison.adapters.flatMap(({ metrics }) => metrics),
  ]) {
    assert.equal(difference, 0);
    assert.ok(interval === null || (interval.low <= 0 && interval.high >= 0));
    assert.match(judgement, /^(no clear difference|too few samples)$/);
  }
  assert.match(comparison.warnings.join(' '), /same run/);
});

test('a slower server is worse in every latency that has enough samples, and the intervals hold the truth', () => {
  const comparison = compareRuns(base, fixtureReport({ requests: 1200, seed: 2, slow: 1.3 }));
  assert.deepEqual(comparison.warnings, []);
  for (const statistic of ['mean', 'p50', 'p90'] as const) {
    for (const name of ['ttft', 'tpot', 'e2e'] as const) {
      const { judgement, before, interval } = metric(comparison, name, statistic);
      assert.equal(judgement, 'worse', `${name} ${statistic}`);
      assert.ok(interval !== null && interval.low < before * 0.4 && interval.high > before * 0.2);
    }
  }
  for (const statistic of ['mean', 'p50', 'p99'] as const) {
    assert.equal(metric(comparison, 'itl', statistic).judgement, 'worse', `itl ${statistic}`);
  }
  assert.equal(metric(comparison, 'ttft', 'p999').judgement, 'too few samples');
  assert.equal(metric(comparison, 'ttft', 'p999').interval, null);
});

test('percentiles of ITL are those of all gaps, within a bucket; a report without gaps has the mean only', () => {
  const comparison = compareRuns(base, fixtureReport({ requests: 1200, seed: 2 }));
  const gaps = base.requests
    .filter(({ phase, outcome }) => phase === 'measured' && outcome === 'ok')
    .flatMap(({ itl, pieces }) =>
      Array.from({ length: pieces - 1 }, (_, index) => (itl?.meanMs ?? NaN) * (index % 10 === 9 ? 1.3 : 1)),
    )
    .sort((one, other) => one - other);
  for (const [statistic, share] of [
    ['p50', 0.5],
    ['p99', 0.99],
  ] as const) {
    const exact = gaps[Math.ceil(share * gaps.length) - 1] ?? NaN;
    assert.ok(Math.abs(metric(comparison, 'itl', statistic).before / exact - 1) < 0.04, statistic);
  }
  const old: RunReport = {
    ...base,
    requests: base.requests.map((one) => ({ ...one, itl: one.itl === null ? null : { ...one.itl, bins: undefined } })),
  };
  const itl = compareRuns(old, base).total.filter(({ metric: name }) => name === 'itl');
  assert.deepEqual(
    itl.map(({ statistic }) => statistic),
    ['mean'],
  );
});

test('better and worse turn around when the runs do', () => {
  const other = fixtureReport({ requests: 1200, seed: 2, slow: 0.7, errorShare: 0.15 });
  const there = compareRuns(base, other);
  const back = compareRuns(other, base);
  assert.equal(metric(there, 'tpot', 'p50').judgement, 'better');
  assert.equal(metric(back, 'tpot', 'p50').judgement, 'worse');
  assert.equal(metric(there, 'errorShare', 'share').judgement, 'worse');
  assert.equal(metric(back, 'errorShare', 'share').judgement, 'better');
  assert.ok((metric(there, 'tpot', 'p50').change ?? 0) < -0.2);
});

test('runs of one server rarely differ: at most one figure in ten over many pairs', () => {
  let told = 0;
  let differing = 0;
  for (let seed = 10; seed < 22; seed += 1) {
    const comparison = compareRuns(fixtureReport({ seed }), fixtureReport({ seed: seed + 100 }));
    for (const { interval, judgement } of comparison.total) {
      if (interval === null) continue;
      told += 1;
      if (judgement === 'better' || judgement === 'worse') differing += 1;
    }
  }
  assert.ok(told > 100);
  assert.ok(differing / told < 0.1, `${differing} of ${told}`);
});

test('the same reports give the same comparison, number by number', () => {
  const other = fixtureReport({ requests: 1200, seed: 3 });
  assert.deepEqual(compareRuns(base, other), compareRuns(base, other));
});

test('what makes a comparison unfair is said', () => {
  const { workload, verdict, run } = base;
  const cases: readonly (readonly [Partial<RunReport>, RegExp])[] = [
    [{ trace: { ...base.trace, sha256: 'other' } }, /sent different requests/],
    [{ workload: { ...workload, askedPerSecond: 40 } }, /asked rates differ: 20\/s and 40\/s/],
    [{ workload: { ...workload, loop: 'closed', concurrency: 4 } }, /One loop was open, the other closed/],
    [{ workload: { ...workload, slo: { ...workload.slo, ttftMs: 1 } } }, /SLO differ/],
    [
      { verdict: { valid: false, findings: [{ kind: 'interrupted', severity: 'invalid', message: 'x' }] } },
      /is not valid \(interrupted\)/,
    ],
    [
      { verdict: { ...verdict, findings: [{ kind: 'unknown_tokens', severity: 'warning', message: 'x' }] } },
      /only pieces of the stream/,
    ],
    [{ run: { ...run, id: 'b', machine: { ...run.machine, cpuCount: 64 } } }, /different machines/],
  ];
  for (const [change, expected] of cases) {
    const after = { ...base, run: { ...run, id: 'b' }, ...change };
    assert.match(comparisonWarnings(base, after).join('\n'), expected);
  }
});

test('adapters are compared alone where both runs have enough of them, at 99 %', () => {
  const comparison = compareRuns(
    base,
    fixtureReport({ requests: 1200, seed: 2, slow: 1.3, adapters: ['support', 'legal', null, 'new'] }),
  );
  assert.deepEqual(
    comparison.adapters.map(({ adapter }) => adapter),
    ['support', 'legal', null],
  );
  for (const { metrics } of comparison.adapters) {
    assert.equal(metrics.find(({ metric: name }) => name === 'tpot')?.judgement, 'worse');
    for (const { interval } of metrics) assert.ok(interval === null || interval.confidence === 0.99);
  }
});

test('empty and tiny runs are compared without a crash and without a judgement', () => {
  const none = fixtureReport({ requests: 0, warmup: 0 });
  const comparison = compareRuns(none, fixtureReport({ requests: 5, warmup: 0, seed: 2 }));
  for (const { metric: name, judgement } of comparison.total) {
    if (name !== 'requestsPerSecond' && !name.endsWith('PerSecond')) assert.equal(judgement, 'too few samples');
  }
  assert.match(comparison.warnings.join(' '), /is not valid/);
  assert.deepEqual(compareRuns(none, none).adapters, []);
});

test('two adapters of one run are compared without rates, and unknown names are refused', () => {
  const slower = {
    ...base,
    requests: base.requests.map((request) =>
      request.adapter === 'legal' && request.firstTokenAtMs !== null
        ? { ...request, firstTokenAtMs: request.firstTokenAtMs + 60 }
        : request,
    ),
  };
  const comparison = compareAdapters(slower, 'support', 'legal');
  assert.equal(metric(comparison, 'ttft', 'p50').judgement, 'worse');
  assert.ok(comparison.total.every(({ statistic }) => statistic !== 'rate'));
  assert.deepEqual([comparison.before.run.name, comparison.after.run.name], ['fixture, support', 'fixture, legal']);
  assert.deepEqual(comparison.warnings, []);
  assert.equal(compareAdapters(base, null, 'sales').before.run.name, 'fixture, (base model)');
  assert.throws(
    () => compareAdapters(base, 'support', 'absent'),
    (error: unknown) =>
      error instanceof ManyfoldError && error.message.includes("no request of adapter 'absent', but of support"),
  );
});

test('the figures compared are those of the reports', () => {
  const comparison = compareRuns(base, fixtureReport({ requests: 1200, seed: 3 }));
  const { latency } = base.total;
  for (const [name, statistic, expected] of [
    ['ttft', 'mean', latency.ttft.meanMs],
    ['ttft', 'p999', latency.ttft.p999Ms],
    ['tpot', 'p90', latency.tpot.p90Ms],
    ['e2e', 'p99', latency.e2e.p99Ms],
    ['requestsPerSecond', 'rate', base.total.requestsPerSecond],
    ['goodputPerSecond', 'rate', base.total.goodputPerSecond],
    ['errorShare', 'share', 1 - base.total.ok / base.total.requests],
  ] as const) {
    const found = metric(comparison, name, statistic).before;
    assert.ok(Math.abs(found - (expected ?? 0)) < 1e-9 * found, `${name} ${statistic}: ${found}, ${expected}`);
  }
  for (const rate of ['requestsPerSecond', 'outputTokensPerSecond', 'goodputPerSecond'] as const) {
    const { before, interval } = metric(compareRuns(base, base), rate, 'rate');
    assert.ok(interval !== null && interval.high < before, `${rate}: the interval is of a difference, not of the rate`);
    const { values } = rateSample(base, rate);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    assert.ok(Math.abs(mean - before) < 1e-9 * before, `${rate}: ${mean}, ${before}`);
  }
});
