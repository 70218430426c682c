import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { seededRandom } from '../../workload/random.js';
import { blockLength, designEffect } from './block-length.js';
import type { Sample, Statistic } from './bootstrap.js';
import { differenceInterval, mean, observed, quantile, resampleRuns } from './bootstrap.js';
import { newcombeInterval, normalQuantile, wilsonInterval } from './proportion.js';

type Random = () => number;
const normal = (random: Random): number => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
const exponential = (random: Random): number => -Math.log(1 - random());
const series = (n: number, draw: (index: number) => number): Float64Array =>
  Float64Array.from({ length: n }, (_, index) => draw(index));

/** First-order autoregression with unit variance: each value keeps `memory` of the one before. */
function dependent(n: number, memory: number, random: Random): Float64Array {
  let value = normal(random);
  return series(n, () => (value = memory * value + Math.sqrt(1 - memory ** 2) * normal(random)));
}

function intervalOf(
  one: Float64Array,
  other: Float64Array,
  statistic: Statistic,
  options: { block?: number; paired?: boolean; seed?: number } = {},
) {
  const { block = Math.max(blockLength(one), blockLength(other)), paired = false, seed = 1 } = options;
  const columns = [{ samples: [{ values: one }, { values: other }] as const, statistics: [statistic] }];
  const [draws] = resampleRuns(columns, { paired, block, replicates: 300, random: seededRandom(seed) });
  return differenceInterval(draws?.[0][0] ?? new Float64Array(), draws?.[1][0] ?? new Float64Array(), 0.95);
}

test('figures of a whole sample are the plain ones', () => {
  const sample: Sample = { values: Float64Array.of(5, NaN, 1, 3, 2, 4) };
  assert.equal(observed(sample, mean), 3);
  assert.deepEqual(
    [0.01, 0.2, 0.5, 0.99, 1].map((share) => observed(sample, quantile(share))),
    [1, 1, 3, 5, 5],
  );
  assert.equal(observed({ values: Float64Array.of(1, 4), mass: Float64Array.of(3, 1) }, mean), 1.75);
  assert.ok(Number.isNaN(observed({ values: Float64Array.of(NaN) }, mean)));
});

test('a quantile of any sample is its nearest rank', () => {
  fc.assert(
    fc.property(
      fc.array(fc.double({ min: 0, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 40 }),
      fc.integer({ min: 1, max: 999 }),
      (values, permille) => {
        const sorted = [...values].sort((one, other) => one - other);
        const rank = Math.max(1, Math.ceil((permille * values.length) / 1000));
        assert.equal(observed({ values: Float64Array.from(values) }, quantile(permille / 1000)), sorted[rank - 1]);
      },
    ),
    {
      seed: 21,
      numRuns: 300,
      examples: [
        [[1], 999],
        [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 900],
      ],
    },
  );
});

/** The quantile of values that each stand there so many times, by writing them all down and sorting. */
function sortedQuantile(values: readonly number[], times: readonly number[], share: number): number {
  const all = values.flatMap((value, index) =>
    Number.isNaN(value) ? [] : Array<number>(times[index] ?? 0).fill(value),
  );
  all.sort((one, other) => one - other);
  return all[Math.ceil(share * all.length - 1e-9) - 1] ?? NaN;
}

test('every replicate of means and quantiles is that of the resample written down and sorted', () => {
  const random = seededRandom(31);
  for (const n of [1, 7, 255, 256, 257, 2000]) {
    for (const block of [1, 5, 40]) {
      const values = series(n, () => (random() < 0.1 ? NaN : Math.round(200 * exponential(random)) / 10));
      const mass = series(n, () => Math.floor(random() * 4));
      // The same draws once more: the numbers 0 … n − 1 with one marked at a time would be slow, so draws are copied.
      const beginnings: number[] = [];
      const recorded = seededRandom(5);
      const options = {
        block,
        replicates: 20,
        paired: true,
        random: () => (beginnings.push(recorded()), beginnings.at(-1) ?? 0),
      };
      const statistics = [mean, quantile(0.5), quantile(0.01), quantile(0.99)];
      const [draws] = resampleRuns([{ samples: [{ values }, { values, mass }], statistics }], options);
      const perReplicate = Math.ceil(n / block);
      for (let replicate = 0; replicate < 20; replicate += 1) {
        const times = Array<number>(n).fill(0);
        let left = n;
        for (const begin of beginnings.slice(replicate * perReplicate, (replicate + 1) * perReplicate)) {
          for (let step = 0; step < Math.min(block, left); step += 1) times[(Math.floor(begin * n) + step) % n]! += 1;
          left -= block;
        }
        const weighed = times.map((count, index) => count * (mass[index] ?? 0));
        for (const [run, counts] of [times, weighed].entries()) {
          const of = draws?.[run as 0 | 1] ?? [];
          for (const [place, share] of [
            [1, 0.5],
            [2, 0.01],
            [3, 0.99],
          ] as const) {
            assert.equal(of[place]?.[replicate], sortedQuantile([...values], counts, share), `n ${n}, block ${block}`);
          }
          const present = counts.map((count, index) => (Number.isNaN(values[index]) ? 0 : count));
          const sum = present.reduce(
            (total, count, index) => total + (count > 0 ? count * (values[index] ?? 0) : 0),
            0,
          );
          const wanted = sum / present.reduce((total, count) => total + count, 0);
          const got = of[0]?.[replicate] ?? NaN;
          assert.ok(Object.is(got, wanted) || Math.abs(got - wanted) < 1e-9 * Math.abs(wanted) || wanted === got);
        }
      }
    }
  }
});

test('independent values need no blocks, dependent ones longer blocks the longer they remember', () => {
  const random = seededRandom(4);
  const typical = (memory: number): number => {
    const lengths = Array.from({ length: 20 }, () => blockLength(dependent(1000, memory, random)));
    return lengths.sort((one, other) => one - other)[10] ?? 0;
  };
  const [none, some, much] = [typical(0), typical(0.5), typical(0.9)];
  assert.ok(none <= 4, `independent: ${none}`);
  assert.ok(some > none && much > 2 * some, `${none}, ${some}, ${much}`);
  assert.equal(blockLength(new Float64Array(100).fill(3)), 1);
  assert.equal(blockLength(Float64Array.of(1, 2, 3)), 1);
});

test('the design effect of an autoregression is near (1 + r) / (1 − r)', () => {
  const random = seededRandom(5);
  const effects = Array.from({ length: 20 }, () => {
    const values = dependent(5000, 0.6, random);
    return designEffect(values, blockLength(values));
  });
  const average = effects.reduce((sum, effect) => sum + effect, 0) / effects.length;
  assert.ok(average > 2.8 && average < 4.2, String(average));
  assert.equal(designEffect(new Float64Array(50).fill(1), 5), 1);
});

/** Share of intervals that hold the true difference, 0, between two runs of one distribution. */
function coverage(
  statistic: Statistic,
  draw: (random: Random) => Float64Array,
  options: { block?: number } = {},
): number {
  const runs = 200;
  let held = 0;
  for (let run = 0; run < runs; run += 1) {
    const random = seededRandom(1000 + run);
    const interval = intervalOf(draw(random), draw(random), statistic, { ...options, seed: run });
    if (interval !== null && interval.low <= 0 && interval.high >= 0) held += 1;
  }
  return held / runs;
}

test('intervals at 95 % hold the truth in about 95 of 100 pairs of independent runs', () => {
  const draw = (random: Random): Float64Array => series(300, () => exponential(random));
  for (const [name, statistic] of [
    ['mean', mean],
    ['p50', quantile(0.5)],
    ['p90', quantile(0.9)],
  ] as const) {
    const share = coverage(statistic, draw);
    assert.ok(share >= 0.91 && share <= 0.99, `${name}: ${share}`);
  }
});

test('for dependent runs blocks keep the promise that single draws break', () => {
  const draw = (random: Random): Float64Array => dependent(600, 0.7, random);
  const blocks = coverage(mean, draw);
  const singles = coverage(mean, draw, { block: 1 });
  assert.ok(singles < 0.75, `single draws: ${singles}`);
  assert.ok(blocks >= 0.88, `blocks: ${blocks}`);
  const median = coverage(quantile(0.5), draw);
  assert.ok(median >= 0.86, `median: ${median}`);
});

test('pairing shows a difference that the spread between requests would hide', () => {
  const random = seededRandom(7);
  const one = series(300, () => exponential(random));
  const other = one.map((value) => value * 1.05);
  const paired = intervalOf(one, other, mean, { paired: true });
  const single = intervalOf(one, other, mean);
  assert.ok(paired !== null && single !== null);
  assert.ok(paired.low > 0 && single.low < 0, `${paired.low}, ${single.low}`);
});

test('resamples repeat with their seed, refuse what cannot be paired, and say when there is nothing', () => {
  const values = series(50, (index) => index);
  const change = values.map((value) => value + 3);
  assert.deepEqual(intervalOf(values, change, mean, { seed: 3 }), intervalOf(values, change, mean, { seed: 3 }));
  assert.throws(() => intervalOf(values, values.subarray(1), mean, { paired: true }), RangeError);
  assert.equal(intervalOf(values, new Float64Array(50).fill(NaN), mean), null);
});

test('the normal quantile is that of the tables', () => {
  for (const [p, z] of [
    [0.5, 0],
    [0.975, 1.959964],
    [0.995, 2.575829],
    [0.0001, -3.719016],
  ] as const) {
    assert.ok(Math.abs(normalQuantile(p) - z) < 1e-5, `${p}`);
  }
});

test('score intervals are those that Newcombe prints for his examples', () => {
  const close = (found: number, printed: number): void =>
    assert.ok(Math.abs(found - printed) < 6e-5, `${found}, ${printed}`);
  const of = (count: number, n: number) => ({ share: count / n, effectiveCount: n });
  const examples = [
    [of(48, 80), of(56, 70), 0.0524, 0.3339],
    [of(3, 10), of(9, 10), 0.1705, 0.809],
    [of(0, 10), of(10, 10), 0.6075, 1],
  ] as const;
  for (const [before, after, low, high] of examples) {
    const interval = newcombeInterval(before, after, 0.95);
    close(interval.low, low);
    close(interval.high, high);
  }
  const none = wilsonInterval(of(0, 100), 1.959964);
  close(none.low, 0);
  close(none.high, 0.037);
});
