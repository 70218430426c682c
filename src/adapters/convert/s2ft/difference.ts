/**
 * Whole rows or columns in which a checkpoint differs from its base, once its channels are put back into the base's
 * order. Differences are taken in float64 and rounded once to float32. Called by import-s2ft and by extract.
 */
import type { RowReader } from '../../../checkpoint/read-rows.js';
import { bug, ManyfoldError } from '../../../core/errors.js';
import { roundTo } from '../round-to.js';
import type { FloatType } from '../round-to.js';
import { chunks } from './permutation.js';

export type ValueType = 'auto' | 'bf16' | 'f32';

export interface ChannelDelta {
  readonly side: 'in' | 'out';
  /** Channels of the base, ascending. */
  readonly index: Int32Array;
  readonly dtype: 'bf16' | 'f32';
  /** As they are written: `[k, in]` of rows, `[out, k]` of columns. */
  readonly values: Float32Array;
  /** Weights that base + value, rounded to the checkpoint's type, does not give back, and the largest such error. */
  readonly inexact: number;
  readonly largestError: number;
}

export interface Compared {
  readonly base: RowReader;
  readonly checkpoint: RowReader;
}

/** For each row of the base the one of the checkpoint. */
function inverse(order: Int32Array): Int32Array {
  const places = new Int32Array(order.length);
  order.forEach((from, to) => {
    places[from] = to;
  });
  return places;
}

/** Undefined when no row differs. `order[i]` is the base's row that is row i of the checkpoint. */
export async function changedRows(
  pair: Compared,
  order: Int32Array,
  type: ValueType,
): Promise<ChannelDelta | undefined> {
  const { cols } = pair.base;
  const places = inverse(order);
  const trained = await pair.checkpoint.read(0, pair.checkpoint.rows);
  const index: number[] = [];
  const parts: Float32Array[] = [];
  const goals: Float32Array[] = [];
  for await (const { row0, count, values } of chunks(pair.base)) {
    for (let i = 0; i < count; i += 1) {
      const own = values.subarray(i * cols, (i + 1) * cols);
      const at = (places[row0 + i] as number) * cols;
      const goal = trained.subarray(at, at + cols);
      if (own.every((value, j) => value === goal[j])) continue;
      index.push(row0 + i);
      parts.push(own.slice());
      goals.push(goal);
    }
  }
  if (index.length === 0) return undefined;
  return deltaOf('out', index, concat(parts), concat(goals), { goal: pair.checkpoint.dtype, value: type });
}

/** Undefined when no column differs. `order[j]` is the base's column that is column j of the checkpoint. */
export async function changedColumns(
  pair: Compared,
  order: Int32Array,
  type: ValueType,
): Promise<ChannelDelta | undefined> {
  const { rows, cols } = pair.base;
  const places = inverse(order);
  const differs = new Uint8Array(cols);
  for await (const { row0, count, values } of chunks(pair.base)) {
    const trained = await pair.checkpoint.read(row0, count);
    for (let start = 0; start < count * cols; start += cols) {
      for (let j = 0; j < cols; j += 1) {
        if (values[start + j] !== trained[start + (places[j] as number)]) differs[j] = 1;
      }
    }
  }
  const index = Array.from(differs.keys()).filter((j) => differs[j] === 1);
  if (index.length === 0) return undefined;
  const own = new Float32Array(rows * index.length);
  const goals = new Float32Array(rows * index.length);
  for await (const { row0, count, values } of chunks(pair.base)) {
    const trained = await pair.checkpoint.read(row0, count);
    for (let i = 0; i < count; i += 1) {
      index.forEach((j, k) => {
        own[(row0 + i) * index.length + k] = values[i * cols + j] as number;
        goals[(row0 + i) * index.length + k] = trained[i * cols + (places[j] as number)] as number;
      });
    }
  }
  return deltaOf('in', index, own, goals, { goal: pair.checkpoint.dtype, value: type });
}

function concat(parts: readonly Float32Array[]): Float32Array {
  const cols = parts[0]?.length ?? 0;
  const all = new Float32Array(parts.length * cols);
  parts.forEach((part, i) => {
    all.set(part, i * cols);
  });
  return all;
}

function deltaOf(
  side: 'in' | 'out',
  index: readonly number[],
  base: Float32Array,
  goals: Float32Array,
  types: { goal: FloatType; value: ValueType },
): ChannelDelta {
  return { side, index: Int32Array.from(index), ...differenceOf(base, goals, types) };
}

/**
 * goals - base in the type that is asked for; 'auto' is bf16 where that loses nothing, else float32. The difference of
 * two bf16 numbers is a float32 unless one of them is some 2^16 times the other; what is lost is counted.
 */
export function differenceOf(
  base: Float32Array,
  goals: Float32Array,
  types: { goal: FloatType; value: ValueType },
): Pick<ChannelDelta, 'dtype' | 'values' | 'inexact' | 'largestError'> {
  const values = goals.map((goal, i) => goal - (base[i] ?? bug('arrays of two lengths')));
  if (!values.every(Number.isFinite)) {
    throw new ManyfoldError(
      'invalid_model',
      'The difference of the two checkpoints holds NaN or infinity, expected finite values. ' +
        'The training diverged or a file is damaged; use an earlier checkpoint.',
    );
  }
  const fits = types.value !== 'f32' && values.every((value) => roundTo('bf16', value) === value);
  const dtype = types.value === 'bf16' || (types.value === 'auto' && fits) ? 'bf16' : 'f32';
  let inexact = 0;
  let largestError = 0;
  for (let i = 0; i < values.length; i += 1) {
    const value = roundTo(dtype, values[i] as number);
    const goal = goals[i] as number;
    values[i] = value;
    const sum = (base[i] as number) + value;
    if (roundTo(types.goal, Math.fround(sum)) === goal) continue;
    inexact += 1;
    largestError = Math.max(largestError, Math.abs(sum - goal));
  }
  return { dtype, values, inexact, largestError };
}

export interface Residual {
  readonly differing: number;
  /** max|Δ|. */
  readonly largest: number;
}

/**
 * Where nothing may differ. `order[i]` is the base's row that is row i of the checkpoint (identity when absent); rows
 * beyond those of either side are left out.
 */
export async function residualOf(pair: Compared, order?: Int32Array): Promise<Residual> {
  const { cols } = pair.base;
  const all = order === undefined ? undefined : await pair.base.read(0, pair.base.rows);
  let differing = 0;
  let largest = 0;
  for await (const { row0, count, values } of chunks({
    ...pair.checkpoint,
    rows: Math.min(pair.base.rows, pair.checkpoint.rows),
  })) {
    const own = all ?? (await pair.base.read(row0, count));
    for (let i = 0; i < values.length; i += 1) {
      const col = i % cols;
      const row = (i - col) / cols;
      const at = order === undefined ? i : (order[row0 + row] as number) * cols + col;
      if (values[i] === own[at]) continue;
      differing += 1;
      largest = Math.max(largest, Math.abs((values[i] as number) - (own[at] as number)));
    }
  }
  return { differing, largest };
}
