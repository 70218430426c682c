import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { durationText } from '../number-text.js';
import { linearScale, logScale, niceStep, timeScale } from './scale.js';

const label = (value: number): string => String(value);
const range = [0, 100] as const;
const value = fc.double({ min: -1e9, max: 1e9, noNaN: true });

test('a linear scale has few round ticks around any domain', () => {
  fc.assert(
    fc.property(value, value, (low, high) => {
      const scale = linearScale({ domain: [low, high], range, label });
      assert.ok(scale.ticks.length >= 2 && scale.ticks.length <= 12, `${scale.ticks.length} ticks`);
      assert.ok(scale.ticks.every(({ value: at }, index) => index === 0 || at > (scale.ticks[index - 1]?.value ?? 0)));
      for (const end of [low, high]) assert.ok(scale.at(end) >= 0 && scale.at(end) <= 100);
    }),
    {
      seed: 1,
      numRuns: 300,
      examples: [
        [0, 0],
        [5, 5],
        [-3, -3],
        [0, 1e-9],
        [3, 1],
      ],
    },
  );
});

test('ticks are 1, 2 or 5 times a power of ten and have no rounding error in their labels', () => {
  const { ticks, domain } = linearScale({ domain: [0, 0.83], range, label });
  assert.deepEqual(
    ticks.map((tick) => tick.label),
    ['0', '0.2', '0.4', '0.6', '0.8', '1'],
  );
  assert.deepEqual(domain, [0, 1]);
  assert.equal(niceStep(3), 5);
  assert.equal(niceStep(0.011), 0.02);
});

test('a logarithmic scale gives every decade the same width and holds what is not positive at its low end', () => {
  const scale = logScale({ domain: [1, 1000], range, label: durationText });
  assert.deepEqual(
    [1, 10, 100, 1000].map((at) => Math.round(scale.at(at) * 10) / 10),
    [0, 33.3, 66.7, 100],
  );
  assert.deepEqual(
    scale.ticks.filter(({ minor }) => !minor).map((tick) => tick.label),
    ['1 ms', '10 ms', '100 ms', '1 s'],
  );
  for (const low of [0, -5, NaN]) assert.equal(scale.at(low), 0);
  assert.equal(scale.at(1e9), 100);
});

test('a logarithmic scale covers any domain with ticks at both ends', () => {
  const positive = fc.double({ min: 1e-6, max: 1e9, noNaN: true });
  fc.assert(
    fc.property(positive, positive, (one, other) => {
      const [low, high] = [Math.min(one, other), Math.max(one, other)];
      const scale = logScale({ domain: [low, high], range, label });
      assert.ok(scale.domain[0] <= low * (1 + 1e-6) && scale.domain[1] >= high * (1 - 1e-6));
      assert.ok(scale.ticks.length >= 2);
    }),
    {
      seed: 2,
      numRuns: 300,
      examples: [
        [1, 1],
        [0.3, 0.3],
        [1e-6, 1e9],
      ],
    },
  );
});

test('an axis of time ends where the run ends, with steps that clocks have', () => {
  const { ticks, domain } = timeScale({ domain: [0, 100_000], range, label });
  assert.deepEqual(
    ticks.map((tick) => tick.value),
    [0, 15_000, 30_000, 45_000, 60_000, 75_000, 90_000],
  );
  assert.deepEqual(domain, [0, 100_000]);
});
