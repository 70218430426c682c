/**
 * Folds in float64: small dense products and solves, and products with the base's weights read in blocks of rows. What a
 * fold gives is rounded once, to float32. Long folds let the event loop turn. Used by importers.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';

import type { SiteRef } from '../core/model-config.js';
import type { DenseTensor } from '../core/terms.js';
import { addLeftProduct, addRowProducts } from './fold-kernels.js';
import type { BaseWeights } from './importer.js';
import { checkFolded, floatTensor, toFloats } from './tensor-values.js';

/** Multiplications between two turns of the event loop: some tens of milliseconds. */
const TURN_OPERATIONS = 2e7;

/** Counts work and lets the event loop turn when enough is done. */
export class Turns {
  #done = 0;

  async after(operations: number): Promise<void> {
    this.#done += operations;
    if (this.#done < TURN_OPERATIONS) return;
    this.#done = 0;
    await nextTurn();
  }
}

export function toDoubles(tensor: DenseTensor): Float64Array {
  return Float64Array.from(toFloats(tensor));
}

/** Rounds once; 'invalid_adapter' when a value is not finite in float32. `what` names the fold. */
export function rounded(what: string, shape: readonly number[], values: Float64Array): DenseTensor {
  return floatTensor(shape, checkFolded(what, Float32Array.from(values)));
}

/** a `[n, k]` times b `[k, m]`. */
export function product(a: Float64Array, b: Float64Array, n: number, k: number, m: number): Float64Array {
  const result = new Float64Array(n * m);
  for (let i = 0; i < n; i += 1) {
    for (let t = 0; t < k; t += 1) {
      const factor = a[i * k + t] as number;
      if (factor === 0) continue;
      for (let j = 0; j < m; j += 1)
        result[i * m + j] = (result[i * m + j] as number) + factor * (b[t * m + j] as number);
    }
  }
  return result;
}

/** The transpose of a `[rows, cols]` matrix. */
export function transposed(a: Float64Array, rows: number, cols: number): Float64Array {
  const result = new Float64Array(rows * cols);
  for (let i = 0; i < rows; i += 1) for (let j = 0; j < cols; j += 1) result[j * rows + i] = a[i * cols + j] as number;
  return result;
}

/** X with a X = b for a `[n, n]` and b `[n, m]`, by elimination with partial pivoting; both are overwritten. */
export function solve(a: Float64Array, b: Float64Array, n: number, m: number): Float64Array {
  for (let k = 0; k < n; k += 1) {
    let pivot = k;
    for (let i = k + 1; i < n; i += 1) {
      if (Math.abs(a[i * n + k] as number) > Math.abs(a[pivot * n + k] as number)) pivot = i;
    }
    swapRows(a, k, pivot, n);
    swapRows(b, k, pivot, m);
    for (let i = k + 1; i < n; i += 1) {
      const factor = (a[i * n + k] as number) / (a[k * n + k] as number);
      if (factor === 0) continue;
      for (let j = k; j < n; j += 1) a[i * n + j] = (a[i * n + j] as number) - factor * (a[k * n + j] as number);
      for (let j = 0; j < m; j += 1) b[i * m + j] = (b[i * m + j] as number) - factor * (b[k * m + j] as number);
    }
  }
  for (let i = n - 1; i >= 0; i -= 1) {
    for (let t = i + 1; t < n; t += 1) {
      const factor = a[i * n + t] as number;
      if (factor === 0) continue;
      for (let j = 0; j < m; j += 1) b[i * m + j] = (b[i * m + j] as number) - factor * (b[t * m + j] as number);
    }
    const pivot = a[i * n + i] as number;
    for (let j = 0; j < m; j += 1) b[i * m + j] = (b[i * m + j] as number) / pivot;
  }
  return b;
}

function swapRows(a: Float64Array, i: number, j: number, width: number): void {
  if (i === j) return;
  const row = a.slice(i * width, (i + 1) * width);
  a.copyWithin(i * width, j * width, (j + 1) * width);
  a.set(row, j * width);
}

/** Rows of the base's weight at once: about a megabyte. */
const BLOCK_VALUES = 2 ** 18;

/** W `[out, in]` of one linear: the rows of `parts`, one below the other. */
export interface BaseMatrix {
  readonly parts: readonly { readonly site: SiteRef; readonly firstRow: number; readonly rows: number }[];
  readonly out: number;
  readonly in: number;
}

/** Calls `visit` with blocks of rows of W, in order. */
export async function eachBaseBlock(
  base: BaseWeights,
  { parts, in: width }: BaseMatrix,
  operationsPerValue: number,
  visit: (block: Float32Array, firstRow: number, rows: number) => void,
): Promise<void> {
  const turns = new Turns();
  const step = Math.max(1, Math.floor(BLOCK_VALUES / width));
  for (const { site, firstRow, rows } of parts) {
    for (let row = 0; row < rows; row += step) {
      const count = Math.min(step, rows - row);
      visit(base.weight(site, row, count), firstRow + row, count);
      await turns.after(count * width * operationsPerValue);
    }
  }
}

/** X W for x `[k, out]`: `[k, in]`. */
export async function timesBase(
  base: BaseWeights,
  matrix: BaseMatrix,
  x: Float64Array,
  k: number,
): Promise<Float64Array> {
  const { out, in: width } = matrix;
  const result = new Float64Array(k * width);
  await eachBaseBlock(base, matrix, k, (block, first, rows) => {
    addLeftProduct(result, { data: x, k, stride: out, first }, block, { rows, width });
  });
  return result;
}

/** W Xᵀ for x `[k, in]`: `[out, k]`. */
export async function baseTimes(
  base: BaseWeights,
  matrix: BaseMatrix,
  x: Float64Array,
  k: number,
): Promise<Float64Array> {
  const { out, in: width } = matrix;
  const result = new Float64Array(out * k);
  await eachBaseBlock(base, matrix, k, (block, first, rows) => {
    addRowProducts(result.subarray(first * k), block, x, { n: rows, m: k, width, stride: k, from: 0, to: width });
  });
  return result;
}

/** b `[out]` of the module, zeros for a part without bias; undefined where no part has one. */
export function baseBias(base: BaseWeights, { parts, out }: BaseMatrix): Float64Array | undefined {
  const result = new Float64Array(out);
  let found = false;
  for (const { site, firstRow } of parts) {
    const bias = base.bias(site);
    if (bias === undefined) continue;
    result.set(bias, firstRow);
    found = true;
  }
  return found ? result : undefined;
}
