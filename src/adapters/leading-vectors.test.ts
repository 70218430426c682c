/** Lanczos, Gram matrices and Cholesky solves against the eigenvectors of the whole matrix. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Turns } from './fold.js';
import { choleskyFactor, gramMatrix, solveCholesky } from './gram.js';
import { leadingVectors } from './leading-vectors.js';
import type { Operator } from './leading-vectors.js';
import { symmetricEigen } from './symmetric-eigen.js';

function noise(count: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

function operatorOf(matrix: Float64Array, n: number): Operator {
  return {
    n,
    apply: (x, count) => {
      const result = new Float64Array(count * n);
      for (let k = 0; k < count; k += 1) {
        for (let i = 0; i < n; i += 1) {
          let sum = 0;
          for (let j = 0; j < n; j += 1) sum += (matrix[i * n + j] as number) * (x[k * n + j] as number);
          result[k * n + i] = sum;
        }
      }
      return Promise.resolve(result);
    },
  };
}

const diagonal = (values: readonly number[]): Float64Array => {
  const matrix = new Float64Array(values.length ** 2);
  values.forEach((value, i) => {
    matrix[i * values.length + i] = value;
  });
  return matrix;
};

/** The part of each row of a, `[count, n]`, that lies outside of the space of the rows of b. */
function outside(a: Float64Array, b: Float64Array, count: number, n: number): number {
  let worst = 0;
  for (let k = 0; k < count; k += 1) {
    const rest = a.slice(k * n, (k + 1) * n);
    for (let other = 0; other < count; other += 1) {
      const unit = b.subarray(other * n, (other + 1) * n);
      const dot = rest.reduce((sum, value, i) => sum + value * (unit[i] as number), 0);
      for (let i = 0; i < n; i += 1) rest[i] = (rest[i] as number) - dot * (unit[i] as number);
    }
    worst = Math.max(worst, Math.hypot(...rest));
  }
  return worst;
}

test('the Gram matrix of every shape', async () => {
  for (const [n, width] of [
    [1, 1],
    [3, 5],
    [9, 1030],
    [18, 513],
  ] as const) {
    const s = noise(n * width, n);
    const gram = await gramMatrix(s, n, width);
    for (let i = 0; i < n; i += 1) {
      for (let j = 0; j < n; j += 1) {
        let sum = 0;
        for (let k = 0; k < width; k += 1) sum += (s[i * width + k] as number) * (s[j * width + k] as number);
        assert.ok(Math.abs((gram[i * n + j] as number) - sum) < 1e-11, `${n} ${i} ${j}`);
      }
    }
  }
});

test('Cholesky: solves, and no factor of a matrix that is not positive definite', async () => {
  for (const n of [1, 2, 5, 23]) {
    const gram = await gramMatrix(noise(n * 40, 3), n, 40);
    const factor = (await choleskyFactor(gram, n)) ?? assert.fail('positive definite');
    const b = Float64Array.from(noise(2 * n, 9));
    const x = b.slice();
    await solveCholesky(factor, n, x, new Turns());
    const back = await operatorOf(gram, n).apply(x, 2);
    assert.ok(back.every((value, i) => Math.abs(value - (b[i] as number)) < 1e-11));
  }
  assert.equal(await choleskyFactor(diagonal([1, 0, 2]), 3), undefined);
  const flat = await gramMatrix(noise(8 * 4, 5), 8, 4);
  assert.equal(await choleskyFactor(flat, 8), undefined);
});

test('the leading vectors span what those of the whole matrix span', async () => {
  const [n, count] = [300, 7];
  const gram = await gramMatrix(noise(n * 340, 11), n, 340);
  const found = (await leadingVectors(operatorOf(gram, n), count)) ?? assert.fail('it converges');
  const all = await symmetricEigen(gram.slice(), n, { first: n - count, count });
  for (let k = 0; k <= count; k += 1) {
    const wanted = all.values[n - 1 - k] as number;
    assert.ok(Math.abs((found.values[k] as number) - wanted) < 1e-7 * wanted, `value ${k}`);
  }
  assert.ok(outside(found.vectors, all.vectors, count, n) < 1e-9);
});

test('a matrix of low rank: the search goes on in the space that is left', async () => {
  const n = 80;
  const values = Array.from({ length: n }, (_, i) => (i < 6 ? 10 - i : 0));
  const found = (await leadingVectors(operatorOf(diagonal(values), n), 3)) ?? assert.fail('it converges');
  assert.deepEqual(
    [...found.values].map((value) => Number(value.toFixed(9))),
    [10, 9, 8, 7],
  );
});

test('equal values may hide another one, and too few rows give nothing', async () => {
  const n = 120;
  const six = Array.from({ length: n }, (_, i) => (i < 6 ? 9 : 8 / (i + 1)));
  assert.equal(await leadingVectors(operatorOf(diagonal(six), n), 7), undefined);
  assert.equal(await leadingVectors(operatorOf(diagonal([3, 2, 1]), 3), 1), undefined);
});
