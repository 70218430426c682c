import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { fixtureReport } from '../testing/report-fixture.js';
import { groups, highest, mergeSlices, middle, phaseBands, serverLine, serverRate } from './slices.js';

const report = fixtureReport({ requests: 1000 });

test('merging keeps every count and the highest level, and covers the same time', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 100 }), (limit) => {
      const merged = mergeSlices(report.timeline, limit);
      assert.ok(merged.length <= limit);
      const sum = (slices: typeof merged): number =>
        slices.reduce((total, { pieces, sent }) => total + pieces + sent, 0);
      assert.equal(sum(merged), sum(report.timeline));
      assert.equal(
        highest(merged.map(({ inFlightMax }) => inFlightMax)),
        highest(report.timeline.map(({ inFlightMax }) => inFlightMax)),
      );
      assert.equal(merged[0]?.fromMs, report.timeline[0]?.fromMs);
      assert.equal(merged.at(-1)?.toMs, report.timeline.at(-1)?.toMs);
    }),
    { seed: 6, numRuns: 60, examples: [[1], [7]] },
  );
});

test('a spike of the server survives the merge', () => {
  const samples = (report.server?.samples ?? []).map((sample, index) => ({
    ...sample,
    waiting: index === 17 ? 99 : 0,
  }));
  assert.equal(highest(serverLine(samples, ({ waiting }) => waiting, 5).map(([, y]) => y)), 99);
});

test('totals become rates; a total that falls back is a gap, not a negative rate', () => {
  const [sample] = report.server?.samples ?? [];
  assert.ok(sample !== undefined);
  const totals = [0, 100, 300, 10, 60].map((outputTokens, index) => ({ ...sample, atMs: index * 500, outputTokens }));
  assert.deepEqual(
    serverRate(totals, ({ outputTokens }) => outputTokens),
    [
      [0, null],
      [500, 200],
      [1000, 400],
      [1500, null],
      [2000, 100],
    ],
  );
  assert.deepEqual(
    serverRate([], ({ outputTokens }) => outputTokens),
    [],
  );
});

test('helpers treat nothing as nothing', () => {
  assert.equal(highest([null, null]), null);
  assert.equal(middle([null]), null);
  assert.equal(middle([3, null, 1, 2]), 2);
  assert.deepEqual(groups([], 5), []);
  assert.deepEqual(groups([1, 2, 3], 2), [[1, 2], [3]]);
});

test('warm-up and drain are shaded when there were any', () => {
  const { workload, run } = report;
  const drained = { ...report, run: { ...run, durationMs: workload.measuredToMs + 500 } };
  assert.deepEqual(phaseBands(drained), [
    { from: 0, to: workload.measuredFromMs, label: 'warm-up' },
    { from: workload.measuredToMs, to: workload.measuredToMs + 500, label: 'drain' },
  ]);
  assert.deepEqual(phaseBands(fixtureReport({ requests: 0, warmup: 0 })), []);
});
