/** Small matrices in float64, written plainly, and what a set of terms makes of a weight: references for tests of folds. */
import assert from 'node:assert/strict';

import type { SiteRef } from '../../core/model-config.js';
import type { Term } from '../../core/terms.js';
import { toFloats } from '../tensor-values.js';
import { dense } from './base.js';

/** Rows of numbers. */
export type Matrix = readonly (readonly number[])[];

export function matrix(rows: number, cols: number, at: (i: number, j: number) => number): Matrix {
  return Array.from({ length: rows }, (_, i) => Array.from({ length: cols }, (__, j) => at(i, j)));
}

export const zeros = (rows: number, cols: number): Matrix => matrix(rows, cols, () => 0);
export const identity = (n: number): Matrix => matrix(n, n, (i, j) => (i === j ? 1 : 0));
export const diagonal = (values: readonly number[]): Matrix =>
  matrix(values.length, values.length, (i, j) => (i === j ? (values[i] as number) : 0));
export const entry = (a: Matrix, i: number, j: number): number => a[i]?.[j] ?? assert.fail(`no entry (${i}, ${j})`);
export const transpose = (a: Matrix): Matrix => matrix(a[0]?.length ?? 0, a.length, (i, j) => entry(a, j, i));
export const scaled = (a: Matrix, factor: number): Matrix => a.map((row) => row.map((value) => factor * value));
export const sum = (a: Matrix, b: Matrix): Matrix => a.map((row, i) => row.map((value, j) => value + entry(b, i, j)));

export function times(first: Matrix, ...others: readonly Matrix[]): Matrix {
  return others.reduce((a, b) => {
    assert.equal(a[0]?.length, b.length, 'the sizes of a product');
    return matrix(a.length, b[0]?.length ?? 0, (i, j) =>
      b.reduce((total, row, k) => total + entry(a, i, k) * (row[j] as number), 0),
    );
  }, first);
}

/** By Gauss and Jordan. */
export function inverted(a: Matrix): Matrix {
  const n = a.length;
  const work = a.map((row, i) => [...row, ...(identity(n)[i] as number[])]);
  for (let k = 0; k < n; k += 1) {
    const order = work.map((_, i) => i).slice(k);
    const pivot = order.reduce(
      (best, i) => (Math.abs(entry(work, i, k)) > Math.abs(entry(work, best, k)) ? i : best),
      k,
    );
    [work[k], work[pivot]] = [work[pivot] as number[], work[k] as number[]];
    const top = (work[k] as number[]).map((value) => value / entry(work, k, k));
    for (let i = 0; i < n; i += 1) {
      const factor = entry(work, i, k);
      work[i] = i === k ? top : (work[i] as number[]).map((value, j) => value - factor * (top[j] as number));
    }
  }
  return work.map((row) => row.slice(n));
}

/** Multiples of 1/16 between -1 and 1, another list for each seed: sums of some of their products are exact in float32. */
export function sixteenths(seed: number, count: number): number[] {
  let state = seed * 7919 + 12345;
  return Array.from({ length: count }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return ((state >>> 16) % 33) / 16 - 1;
  });
}

export function shaped(values: readonly number[] | Float64Array | Float32Array, rows: number, cols: number): Matrix {
  assert.equal(values.length, rows * cols);
  return matrix(rows, cols, (i, j) => values[i * cols + j] as number);
}

/** Largest difference in units of the largest entry. */
export function distance(found: Matrix, wanted: Matrix): number {
  assert.deepEqual([found.length, found[0]?.length], [wanted.length, wanted[0]?.length], 'the same shape');
  const largest = Math.max(...wanted.flat().map(Math.abs));
  return Math.max(...wanted.flatMap((row, i) => row.map((value, j) => Math.abs(entry(found, i, j) - value)))) / largest;
}

export interface Stage {
  readonly gather?: Uint32Array;
  readonly shape: readonly number[];
  readonly values: Float64Array | Float32Array;
}

/** The matrix of a chain of block-diagonal maps of `width` values. */
export function chainMatrix(stages: readonly Stage[], output: Uint32Array | undefined, width: number): Matrix {
  const columns = identity(width).map((start) => {
    let state: readonly number[] = start;
    for (const { gather, shape, values } of stages) {
      const [nb = 0, p = 0, q = 0] = shape;
      const before = state;
      const input = gather === undefined ? before : [...gather].map((from) => before[from] as number);
      assert.equal(input.length, nb * q, 'the input of a stage');
      state = Array.from({ length: nb * p }, (_, at) => {
        const block = Math.floor(at / p);
        return input
          .slice(block * q, (block + 1) * q)
          .reduce((total, x, j) => total + (values[at * q + j] as number) * x, 0);
      });
    }
    const last = state;
    return output === undefined ? last : [...output].map((from) => last[from] as number);
  });
  return transpose(columns);
}

/** W' and c of y = W' x + b + c, for the terms of one site on a weight W `[out, in]`. */
export function effective(
  terms: readonly Term[],
  site: SiteRef,
  weight: Matrix,
): { weight: Matrix; shift: readonly number[] } {
  const own = terms.filter((term) => term.site.site === site.site && term.site.layer === site.layer);
  const [out, width] = [weight.length, weight[0]?.length ?? 0];
  let base = weight;
  let delta = zeros(out, width);
  let shift = new Array<number>(out).fill(0);
  for (const term of own) {
    switch (term.kind) {
      case 'lowrank': {
        const [a, b] = [dense(term.a), dense(term.b)].map((tensor) =>
          shaped(toFloats(tensor), tensor.shape[0] as number, tensor.shape[1] as number),
        ) as [Matrix, Matrix];
        delta = sum(delta, scaled(times(b, a), term.scale));
        break;
      }
      case 'blockdiag': {
        const stages = term.stages.map(({ gather, blocks }) => ({
          shape: blocks.shape,
          values: toFloats(blocks),
          ...(gather === undefined ? {} : { gather }),
        }));
        const map = chainMatrix(stages, term.output, term.placement === 'post' ? out : width);
        if (term.placement === 'additive') delta = sum(delta, scaled(map, term.scale));
        else base = term.placement === 'pre' ? times(base, map) : times(map, base);
        break;
      }
      case 'diag':
        if (term.g !== undefined) base = times(diagonal([...term.g]), base);
        if (term.c !== undefined) shift = shift.map((value, i) => value + (term.c?.[i] as number));
        assert.equal(term.h, undefined, 'no importer of this group scales the input');
        break;
      case 'sparse': {
        const values = toFloats(dense(term.values));
        const { rowStart, columns, scale } = term;
        delta = delta.map((row, i) => {
          const changed = [...row];
          for (let k = rowStart[i] as number; k < (rowStart[i + 1] as number); k += 1) {
            const column = columns[k] as number;
            changed[column] = (changed[column] as number) + scale * (values[k] as number);
          }
          return changed;
        });
        break;
      }
      default:
        assert.fail(`no importer of this group makes a ${term.kind} term`);
    }
  }
  return { weight: sum(base, delta), shift };
}
