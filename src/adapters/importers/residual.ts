/**
 * Methods that begin by taking their principal part out of the base weight and save what is left (SORSA, CorDA): the
 * residual replaces W, so its difference from the served W is a term. It is the part that was taken out, of rank r, where the
 * file has the residual in full precision: one LOWRANK term, found by crosses of rows and columns and checked entry by
 * entry. Where rounding has made it dense it is kept whole, one block of an additive BLOCKDIAG term.
 */
import { bug } from '../../core/errors.js';
import type { Term } from '../../core/terms.js';
import { additiveTerms } from '../block-chain.js';
import { eachBaseBlock, rounded, Turns } from '../fold.js';
import type { ImportContext } from '../importer.js';
import { checkFolded, floatTensor, rowsOf } from '../tensor-values.js';
import type { FoldBudget, LinearTensors } from './linear-tensors.js';

/** Largest error of the LOWRANK form in units of max|W|: some roundings to float32. */
const TOLERANCE = 1e-6;

/** Terms for (residual - W) x; `residual` `[out, in]` becomes the difference. */
export async function residualTerms(
  { base }: ImportContext,
  module: LinearTensors,
  residual: Float32Array,
  rank: number,
  budget: FoldBudget,
): Promise<Term[]> {
  let largest = 0;
  await eachBaseBlock(base, module, 1, (block, firstRow) => {
    const from = firstRow * module.in;
    for (let i = 0; i < block.length; i += 1) {
      const weight = block[i] as number;
      largest = Math.max(largest, Math.abs(weight));
      residual[from + i] = (residual[from + i] as number) - weight;
    }
  });
  checkFolded(`the residual of ${module.path} minus the base's weight`, residual);
  if (residual.every((value) => value === 0)) return [];
  const cross = await crosses(residual, module, rank, TOLERANCE * largest);
  if (cross === undefined) {
    budget.take(residual.length, module.path);
    const blocks = floatTensor([1, module.out, module.in], residual);
    return additiveTerms(module, [{ blocks }], undefined, 1);
  }
  const what = `the difference from the residual of ${module.path}`;
  const count = cross.rows.length / module.in;
  const a = rounded(what, [count, module.in], cross.rows);
  const b = rounded(what, [module.out, count], cross.columns);
  return module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a,
    b: rowsOf(b, firstRow, rows),
    scale: 1,
  }));
}

interface Crosses {
  /** `[r, in]`. */
  readonly rows: Float64Array;
  /** `[out, r]`. */
  readonly columns: Float64Array;
}

/** Factors of rank at most `rank` that give `matrix` within `tolerance`, or nothing (Bebendorf 2000). */
export async function crosses(
  matrix: Float32Array,
  { out, in: width }: Pick<LinearTensors, 'out' | 'in'>,
  rank: number,
  tolerance: number,
): Promise<Crosses | undefined> {
  const turns = new Turns();
  const rows: Float64Array[] = [];
  const columns: Float64Array[] = [];
  const rowOf = (i: number): Float64Array => {
    const row = Float64Array.from(matrix.subarray(i * width, (i + 1) * width));
    rows.forEach((other, k) => subtract(row, other, columns[k]?.[i] ?? bug('a cross without a column')));
    return row;
  };
  const columnOf = (j: number): Float64Array => {
    const column = Float64Array.from({ length: out }, (_, i) => matrix[i * width + j] as number);
    columns.forEach((other, k) => subtract(column, other, rows[k]?.[j] ?? bug('a cross without a row')));
    return column;
  };
  let start = Math.floor(largestAt(matrix) / width);
  for (let k = 0; k < Math.min(rank, out, width); k += 1) {
    // The largest entry of a row, of its column, and of that one's row again: a pivot that is large in both.
    const column = columnOf(largestAt(rowOf(start)));
    const row = rowOf(largestAt(column));
    const at = largestAt(row);
    const pivot = row[at] as number;
    if (Math.abs(pivot) <= tolerance / 4) break;
    const next = columnOf(at).map((value) => value / pivot);
    rows.push(row);
    columns.push(next);
    start = nextStart(next, columns.length);
    await turns.after(4 * (k + 1) * (out + width));
  }
  for (let i = 0; i < out; i += 1) {
    if (rowOf(i).some((value) => !(Math.abs(value) <= tolerance))) return undefined;
    await turns.after(width * rows.length);
  }
  const count = rows.length;
  const result = { rows: new Float64Array(count * width), columns: new Float64Array(out * count) };
  rows.forEach((row, k) => result.rows.set(row, k * width));
  columns.forEach((column, k) => column.forEach((value, i) => (result.columns[i * count + k] = value)));
  return result;
}

/** Another row than the pivots', whose entry of the column is 1: the largest that is not. */
function nextStart(column: Float64Array, step: number): number {
  let best = step % column.length;
  let size = 0;
  column.forEach((value, i) => {
    if (Math.abs(value) > size && value !== 1) [best, size] = [i, Math.abs(value)];
  });
  return best;
}

function subtract(target: Float64Array, other: Float64Array, factor: number): void {
  if (factor === 0) return;
  for (let i = 0; i < target.length; i += 1) target[i] = (target[i] as number) - factor * (other[i] as number);
}

function largestAt(values: Float32Array | Float64Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i += 1) {
    if (Math.abs(values[i] as number) > Math.abs(values[best] as number)) best = i;
  }
  return best;
}
