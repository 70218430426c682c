import assert from 'node:assert/strict';
import { test } from 'node:test';

import { symmetricEigen } from './symmetric-eigen.js';

/** A symmetric matrix of pseudo-random values. */
function symmetric(n: number): Float64Array {
  const result = new Float64Array(n * n);
  let state = 7;
  for (let i = 0; i < n; i += 1) {
    for (let j = 0; j <= i; j += 1) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      result[i * n + j] = state / 2 ** 31 - 1;
      result[j * n + i] = result[i * n + j] as number;
    }
  }
  return result;
}

/** Largest entry of A v - λ v over all pairs, and of V Vᵀ - I. */
function errors(a: Float64Array, n: number, values: Float64Array, vectors: Float64Array): [number, number] {
  let [residual, skew] = [0, 0];
  for (let k = 0; k < n; k += 1) {
    for (let i = 0; i < n; i += 1) {
      let [product, dot] = [0, 0];
      for (let j = 0; j < n; j += 1) {
        product += (a[i * n + j] as number) * (vectors[k * n + j] as number);
        dot += (vectors[i * n + j] as number) * (vectors[k * n + j] as number);
      }
      residual = Math.max(residual, Math.abs(product - (values[k] as number) * (vectors[k * n + i] as number)));
      skew = Math.max(skew, Math.abs(dot - (i === k ? 1 : 0)));
    }
  }
  return [residual, skew];
}

test('eigenpairs of matrices of many sizes, ascending and orthonormal', async () => {
  for (const n of [1, 2, 3, 4, 7, 20, 65]) {
    const a = symmetric(n);
    const { values, vectors } = await symmetricEigen(a.slice(), n, { first: 0, count: n });
    const [residual, skew] = errors(a, n, values, vectors);
    assert.ok(residual < 1e-12 * n && skew < 1e-12 * n, `${n}: ${residual}, ${skew}`);
    assert.deepEqual(values, values.slice().sort());
  }
});

test('equal, zero and far apart eigenvalues', async () => {
  const n = 6;
  for (const diagonal of [
    [0, 0, 0, 0, 0, 0],
    [3, 3, 3, 3, 3, 3],
    [1e12, 1, 1, 1e-12, 0, -5],
  ]) {
    const a = new Float64Array(n * n);
    diagonal.forEach((value, i) => {
      a[i * n + i] = value;
    });
    const { values, vectors } = await symmetricEigen(a.slice(), n, { first: 0, count: n });
    const [residual, skew] = errors(a, n, values, vectors);
    assert.ok(residual <= 1e-15 * Math.max(...diagonal.map(Math.abs)) * 100 && skew < 1e-13, `${residual}, ${skew}`);
    assert.deepEqual(
      [...values],
      diagonal.slice().sort((x, y) => x - y),
    );
  }
  // u uᵀ has one eigenvalue |u|² and zeros.
  const u = Float64Array.from({ length: 9 }, (_, i) => i - 3);
  const rankOne = Float64Array.from({ length: 81 }, (_, i) => (u[Math.floor(i / 9)] as number) * (u[i % 9] as number));
  const { values, vectors } = await symmetricEigen(rankOne.slice(), 9, { first: 0, count: 9 });
  assert.ok(Math.abs((values[8] as number) - 69) < 1e-12 * 69);
  assert.ok(values.subarray(0, 8).every((value) => Math.abs(value) < 1e-12));
  const [residual, skew] = errors(rankOne, 9, values, vectors);
  assert.ok(residual < 1e-12 && skew < 1e-13, `${residual}, ${skew}`);
});

test('some vectors are those of all', async () => {
  const n = 24;
  const a = symmetric(n);
  const all = await symmetricEigen(a.slice(), n, { first: 0, count: n });
  const some = await symmetricEigen(a.slice(), n, { first: 20, count: 4 });
  for (let k = 0; k < 4; k += 1) {
    let dot = 0;
    for (let i = 0; i < n; i += 1)
      dot += (all.vectors[(20 + k) * n + i] as number) * (some.vectors[k * n + i] as number);
    assert.ok(Math.abs(Math.abs(dot) - 1) < 1e-12);
  }
});
