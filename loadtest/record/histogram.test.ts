import assert from 'node:assert/strict';
import { test } from 'node:test';
import { exponential, normal, seededRandom } from '../workload/random.js';
import type { Random } from '../workload/random.js';
import { LatencyHistogram } from './histogram.js';

const SHARES = [0.001, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1];

function fill(values: Iterable<number>): LatencyHistogram {
  const histogram = new LatencyHistogram();
  for (const value of values) histogram.add(value);
  return histogram;
}

const SOURCES: Readonly<Record<string, (random: Random) => number>> = {
  uniform: (random) => 1 + 99 * random(),
  exponential: (random) => 20 * exponential(random),
  lognormal: (random) => Math.exp(3 + 2 * normal(random)),
  'two humps far apart': (random) => (random() < 0.99 ? 0.5 + random() : 60_000 + 1000 * random()),
  'microseconds to hours': (random) => 1e-3 * Math.exp(22 * random()),
};

for (const [name, source] of Object.entries(SOURCES)) {
  test(`percentiles are within 0.5 % of the exact ones: ${name}`, () => {
    const random = seededRandom(9);
    const values = Array.from({ length: 30_000 }, () => source(random));
    const histogram = fill(values);
    const sorted = values.toSorted((left, right) => left - right);
    for (const share of SHARES) {
      const exact = sorted[Math.ceil(share * sorted.length) - 1] ?? NaN;
      const error = Math.abs((histogram.percentile(share) ?? NaN) / exact - 1);
      assert.ok(error <= 0.00501, `p${share * 100}: ${error}`);
    }
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const { meanMs, minMs, maxMs, standardDeviationMs } = histogram.summary(0);
    assert.ok(Math.abs((meanMs ?? 0) / mean - 1) < 1e-9);
    assert.equal(minMs, sorted[0]);
    assert.equal(maxMs, sorted.at(-1));
    const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
    assert.ok(Math.abs((standardDeviationMs ?? 0) / Math.sqrt(variance) - 1) < 1e-6);
  });
}

test('bins hold every value once, in order, however many are asked for', () => {
  const random = seededRandom(2);
  const histogram = fill([0, 0, ...Array.from({ length: 5000 }, () => 30 * exponential(random))]);
  for (const maxBins of [1, 7, 100, 10_000]) {
    const { bins, count } = histogram.summary(maxBins);
    assert.equal(
      bins.reduce((sum, bin) => sum + bin.count, 0),
      count,
    );
    assert.ok(bins.length <= maxBins + 1, 'one more for values of zero');
    for (const [index, bin] of bins.entries()) {
      assert.ok(bin.toMs > bin.fromMs && bin.fromMs >= (bins[index - 1]?.toMs ?? 0));
    }
  }
  assert.deepEqual(histogram.summary(0).bins, []);
});

test('nothing, one value, and zeros', () => {
  const empty = new LatencyHistogram().summary(10);
  assert.deepEqual([empty.count, empty.p50Ms, empty.meanMs, empty.bins], [0, null, null, []]);
  const one = fill([12.5]).summary(10);
  assert.deepEqual([one.p50Ms, one.p999Ms, one.minMs, one.maxMs, one.standardDeviationMs], [12.5, 12.5, 12.5, 12.5, 0]);
  const zeros = fill([0, 0, 0, 5]);
  assert.deepEqual([zeros.percentile(0.5), zeros.percentile(1), zeros.summary(4).minMs], [0, 5, 0]);
  assert.equal(fill([-3]).percentile(0.5), 0, 'a clock that went back is no negative latency');
});
