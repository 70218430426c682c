import assert from 'node:assert/strict';
import { test } from 'node:test';

import { randomNumbers } from '../../testing/model-folder.js';
import { jacobiEigen } from './jacobi.js';
import { lowRank } from './low-rank.js';
import type { RowStream } from './low-rank.js';

function streamOf(rows: number, cols: number, data: Float32Array): RowStream {
  return {
    rows,
    cols,
    stream: async function* () {
      for (let row0 = 0; row0 < rows; row0 += 7) {
        const count = Math.min(7, rows - row0);
        yield { row0, count, values: data.slice(row0 * cols, (row0 + count) * cols) };
      }
    },
  };
}

const random = randomNumbers(1);
const noise = (count: number): Float64Array => Float64Array.from({ length: count }, () => 2 * random() - 1);

function product(left: Float64Array, right: Float64Array, rows: number, rank: number, cols: number): Float32Array {
  return Float32Array.from({ length: rows * cols }, (_, at) => {
    let sum = 0;
    for (let k = 0; k < rank; k += 1)
      sum += (left[Math.floor(at / cols) * rank + k] as number) * (right[k * cols + (at % cols)] as number);
    return sum;
  });
}

test('Jacobi: the eigenvalues of a matrix built from them, in order, with orthonormal vectors', () => {
  const n = 9;
  const half = noise(n * n);
  const matrix = Float64Array.from({ length: n * n }, (_, at) => {
    let sum = 0;
    for (let k = 0; k < n; k += 1)
      sum += (half[Math.floor(at / n) * n + k] as number) * (half[(at % n) * n + k] as number);
    return sum;
  });
  const { values, vectors } = jacobiEigen(matrix.slice(), n);
  for (let k = 0; k < n; k += 1) {
    if (k > 0) assert.ok((values[k - 1] as number) >= (values[k] as number));
    for (let i = 0; i < n; i += 1) {
      let image = 0;
      let dot = 0;
      for (let j = 0; j < n; j += 1) {
        image += (matrix[i * n + j] as number) * (vectors[j * n + k] as number);
        dot += (vectors[j * n + k] as number) * (vectors[j * n + i] as number);
      }
      assert.ok(Math.abs(image - (values[k] as number) * (vectors[i * n + k] as number)) < 1e-12);
      assert.ok(Math.abs(dot - (i === k ? 1 : 0)) < 1e-12);
    }
  }
});

test('a product of rank 3 is found as such, whatever rank is allowed', async () => {
  for (const [rows, cols] of [
    [40, 25],
    [25, 40],
    [5, 60],
    [60, 4],
  ] as const) {
    const delta = product(noise(rows * 3), noise(3 * cols), rows, 3, cols);
    for (const most of [3, 8, 64]) {
      const { rank, relativeError, largestError, left, right } = await lowRank(streamOf(rows, cols, delta), most);
      assert.ok(rank >= 3 && rank <= Math.min(most, 4), `rank ${rank}`);
      assert.ok(relativeError < 1e-6 && largestError < 1e-5, `${relativeError} ${largestError}`);
      assert.deepEqual([left.length, right.length], [rows * rank, rank * cols]);
    }
  }
});

test('of a full matrix the best rank-k part is taken: its error is that of the singular values left out', async () => {
  const [rows, cols] = [30, 30];
  // Orthogonal by construction: a diagonal of known singular values, its columns moved.
  const sizes = Array.from({ length: rows }, (_, i) => 0.7 ** i);
  const delta = new Float32Array(rows * cols);
  sizes.forEach((size, i) => {
    delta[i * cols + ((i * 7) % cols)] = size;
  });
  const total = Math.hypot(...sizes);
  for (const most of [1, 4, 10]) {
    const { rank, relativeError } = await lowRank(streamOf(rows, cols, delta), most);
    assert.equal(rank, most);
    const best = Math.hypot(...sizes.slice(most)) / total;
    assert.ok(relativeError >= best * (1 - 1e-6) && relativeError < best * 1.001, `${relativeError}, best ${best}`);
  }
});

test('the same difference gives the same bits', async () => {
  const delta = product(noise(12 * 5), noise(5 * 9), 12, 5, 9);
  const [first, second] = [await lowRank(streamOf(12, 9, delta), 2), await lowRank(streamOf(12, 9, delta), 2)];
  assert.deepEqual(first, second);
});
