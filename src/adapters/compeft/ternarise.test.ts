import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ternarise } from './ternarise.js';

const A = Float32Array.of(0.1, -0.2, 0.3, -0.4, 0.5);
const B = Float32Array.of(3, -3, 0, 1, 2);

test('Algorithm 1 keeps int(d·k) + 1 values and scales them by α standard deviations', () => {
  const [found] = ternarise([A], 'tensor', { density: 0.4, alpha: 2 });
  assert.deepEqual(found?.positions, Uint32Array.of(2, 3, 4));
  assert.deepEqual(found?.negative, Uint8Array.of(0, 1, 0));
  const mean = A.reduce((sum, x) => sum + x, 0) / 5;
  const sigma = Math.sqrt(A.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 4);
  assert.equal(found?.scale, Math.fround(2 * sigma));
});

test('equal values at the threshold are all kept, zeros never are', () => {
  const [found] = ternarise([B], 'tensor', { density: 0.05, alpha: 1 });
  assert.deepEqual(found?.positions, Uint32Array.of(0, 1));
  const [all] = ternarise([B], 'tensor', { density: 1, alpha: 1 });
  assert.deepEqual(all?.positions, Uint32Array.of(0, 1, 3, 4));
});

test('scope global has one threshold and one scale, and can empty a tensor of small values', () => {
  const [small, large] = ternarise([A, B], 'global', { density: 0.3, alpha: 1 });
  assert.deepEqual([small?.positions.length, small?.scale], [0, 0]);
  assert.deepEqual(large?.positions, Uint32Array.of(0, 1, 3, 4));
  const values = [...A, ...B];
  const mean = values.reduce((sum, x) => sum + x, 0) / 10;
  assert.equal(large?.scale, Math.fround(Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 9)));
  const separate = ternarise([A, B], 'tensor', { density: 0.3, alpha: 1 });
  assert.deepEqual(
    separate.map(({ positions }) => positions.length),
    [2, 2],
  );
});

test('alpha auto is the mean magnitude of the kept values, not their signed mean', () => {
  const [found] = ternarise([B], 'tensor', { density: 0.4, alpha: 'auto' });
  assert.deepEqual(found?.positions, Uint32Array.of(0, 1, 4));
  assert.equal(found?.scale, Math.fround(8 / 3));
});

test('values that are all equal, or all zero, leave nothing: their deviation is 0', () => {
  for (const value of [0, 0.25]) {
    const [found] = ternarise([new Float32Array(4).fill(value)], 'tensor', { density: 0.5, alpha: 1 });
    assert.deepEqual([found?.positions.length, found?.scale], [0, 0]);
  }
});
