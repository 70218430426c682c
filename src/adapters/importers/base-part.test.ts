/** Parts of base weights too large for all their singular vectors: the same as by all of them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { gramMatrix } from '../gram.js';
import { symmetricEigen } from '../symmetric-eigen.js';
import { baseOf } from '../testing/base.js';
import { partOfBase } from './base-part.js';

const [SMALL, LARGE, RANK] = [280, 300, 4];

function weightOf(count: number): Float32Array {
  let state = 5;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Uᵀ U W for the eigenvectors U `[rank, n]` of W Wᵀ. */
async function expected(w: Float32Array, part: 'largest' | 'smallest'): Promise<(i: number, j: number) => number> {
  const first = part === 'largest' ? SMALL - RANK : 0;
  const gram = await gramMatrix(w, SMALL, LARGE);
  const { vectors } = await symmetricEigen(gram, SMALL, { first, count: RANK });
  return (i, j) => {
    let sum = 0;
    for (let k = 0; k < RANK; k += 1) {
      let dot = 0;
      for (let t = 0; t < SMALL; t += 1) dot += (vectors[k * SMALL + t] as number) * (w[t * LARGE + j] as number);
      sum += (vectors[k * SMALL + i] as number) * dot;
    }
    return sum;
  };
}

for (const part of ['largest', 'smallest'] as const) {
  test(`the ${part} part of a wide and of a tall weight`, async () => {
    const wide = weightOf(SMALL * LARGE);
    const tall = Float32Array.from(wide, (_, at) => wide[(at % SMALL) * LARGE + Math.floor(at / SMALL)] as number);
    const wanted = await expected(wide, part);
    for (const [w, out, cols] of [
      [wide, SMALL, LARGE],
      [tall, LARGE, SMALL],
    ] as const) {
      const site = { layer: 0, site: 'up' } as const;
      const matrix = { parts: [{ site, firstRow: 0, rows: out }], out, in: cols };
      const base = baseOf(new Map([['0 up', { cols, data: w }]]));
      const { left, right } = await partOfBase(base, matrix, { part, rank: RANK, field: 'field', path: 'up' });
      for (const [i, j] of [
        [0, 0],
        [7, 290],
        [279, 13],
      ] as const) {
        const [row, col] = out === SMALL ? [i, j] : [j, i];
        let sum = 0;
        for (let k = 0; k < RANK; k += 1) {
          sum += (left[row * RANK + k] as number) * (right[k * cols + col] as number);
        }
        assert.ok(Math.abs(sum - wanted(i, j)) < 1e-9, `${out}: ${sum}, expected ${wanted(i, j)}`);
      }
    }
  });
}
