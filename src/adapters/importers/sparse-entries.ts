/**
 * Single entries of a weight's difference → SPARSE terms. Files list entries in any order, by row and column or by a flat
 * row-major index; the term has them by row, with columns ascending. Called by the importers of sparse methods.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { DenseTensor, SparseTerm } from '../../core/terms.js';
import { wrongTensor } from '../tensor-values.js';
import type { LinearTensors } from './linear-tensors.js';

/** Entries of one weight `[out, in]`: entry i stands at row rows[i] and column columns[i]. */
export interface Entries {
  readonly rows: Uint32Array;
  readonly columns: Uint32Array;
}

/** Flat row-major indices → rows and columns. `name` is the tensor that holds them. */
export function entriesOfFlat(name: string, flat: Float64Array, out: number, width: number): Entries {
  const rows = new Uint32Array(flat.length);
  const columns = new Uint32Array(flat.length);
  for (let i = 0; i < flat.length; i += 1) {
    const index = flat[i] as number;
    if (!(index >= 0 && index < out * width)) throw outside(name, index, `0 to ${out * width - 1}`);
    rows[i] = Math.floor(index / width);
    columns[i] = index % width;
  }
  return { rows, columns };
}

/** A `[2, nnz]` list of rows, then of columns. */
export function entriesOfPairs(name: string, pairs: Float64Array, out: number, width: number): Entries {
  const count = pairs.length / 2;
  const check = (from: number, size: number): Uint32Array => {
    const list = pairs.subarray(from, from + count);
    for (const index of list) if (!(index >= 0 && index < size)) throw outside(name, index, `0 to ${size - 1}`);
    return Uint32Array.from(list);
  };
  return { rows: check(0, out), columns: check(count, width) };
}

/** One term a part of the module; parts without entries have none. values are `[nnz]`, in the order of the entries. */
export function sparseTerms(module: LinearTensors, entries: Entries, values: DenseTensor, scale: number): SparseTerm[] {
  const { path, out, parts } = module;
  // Two stable passes, by column and then by row, leave every row's columns in ascending order.
  const byColumn = stableOrder(entries.columns, identity(entries.columns.length), module.in);
  const order = stableOrder(entries.rows, byColumn.order, out);
  refuseDuplicates(path, entries, order.order);
  return parts.flatMap(({ site, firstRow, rows }) => {
    const first = order.starts[firstRow] as number;
    const last = order.starts[firstRow + rows] as number;
    if (first === last) return [];
    const own = order.order.subarray(first, last);
    const rowStart = order.starts.slice(firstRow, firstRow + rows + 1).map((start) => start - first);
    const columns = own.map((i) => entries.columns[i] as number);
    return [{ kind: 'sparse', site, rowStart, columns, values: picked(values, own), scale }];
  });
}

function identity(count: number): Uint32Array {
  return Uint32Array.from({ length: count }, (_, i) => i);
}

/** `order` sorted by key (each below `bound`), equal keys left as they are; key k stands at starts[k] .. starts[k + 1] - 1. */
function stableOrder(
  keys: Uint32Array,
  order: Uint32Array,
  bound: number,
): { readonly order: Uint32Array; readonly starts: Uint32Array } {
  const starts = new Uint32Array(bound + 1);
  for (const key of keys) starts[key + 1] = (starts[key + 1] as number) + 1;
  for (let k = 0; k < bound; k += 1) starts[k + 1] = (starts[k + 1] as number) + (starts[k] as number);
  const next = starts.slice();
  const sorted = new Uint32Array(order.length);
  for (const i of order) {
    const key = keys[i] as number;
    const place = next[key] as number;
    sorted[place] = i;
    next[key] = place + 1;
  }
  return { order: sorted, starts };
}

function refuseDuplicates(path: string, { rows, columns }: Entries, order: Uint32Array): void {
  for (let k = 1; k < order.length; k += 1) {
    const [before, here] = [order[k - 1] as number, order[k] as number];
    if (rows[before] !== rows[here] || columns[before] !== columns[here]) continue;
    throw wrongTensor(
      `the indices of ${quoteName(path)} name row ${rows[here]}, column ${columns[here]} twice`,
      'Whether the values add or replace each other cannot be known; save the adapter again with every index once.',
    );
  }
}

function picked(values: DenseTensor, order: Uint32Array): DenseTensor {
  const shape = [1, order.length];
  if (values.dtype === 'f32') {
    return { dtype: 'f32', shape, data: Float32Array.from(order, (i) => values.data[i] as number) };
  }
  return { dtype: values.dtype, shape, data: Uint16Array.from(order, (i) => values.data[i] as number) };
}

function outside(name: string, index: number, range: string): Error {
  return wrongTensor(
    `${quoteName(name)} holds index ${index}, expected ${range}`,
    'The adapter was trained for another base, or the file is damaged.',
  );
}
