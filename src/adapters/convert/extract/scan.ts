/** Where a fine-tune differs from its base: numbers for one tensor, in one pass. Called by extract. */
import type { RowReader } from '../../../checkpoint/read-rows.js';
import { ManyfoldError } from '../../../core/errors.js';
import { chunks } from '../s2ft/permutation.js';

export interface Scan {
  readonly rows: number;
  readonly cols: number;
  /** Values, rows and columns that differ. */
  readonly differing: number;
  readonly changedRows: number;
  readonly changedCols: number;
  /** max|Δ|. */
  readonly largest: number;
}

/** Rows that only one side has (an appended vocabulary) are left out. */
export async function scan(base: RowReader, tuned: RowReader): Promise<Scan> {
  const { cols } = base;
  const rows = Math.min(base.rows, tuned.rows);
  const columns = new Uint8Array(cols);
  let [differing, changedRows, largest] = [0, 0, 0];
  for await (const { row0, count, values } of chunks({ ...base, rows })) {
    const others = await tuned.read(row0, count);
    for (let start = 0; start < values.length; start += cols) {
      const before = differing;
      for (let j = 0; j < cols; j += 1) {
        const difference = (others[start + j] as number) - (values[start + j] as number);
        if (difference === 0) continue;
        if (!Number.isFinite(difference)) throw notFinite();
        differing += 1;
        columns[j] = 1;
        largest = Math.max(largest, Math.abs(difference));
      }
      if (differing > before) changedRows += 1;
    }
  }
  return { rows, cols, differing, changedRows, changedCols: columns.reduce((sum, flag) => sum + flag, 0), largest };
}

function notFinite(): ManyfoldError {
  return new ManyfoldError(
    'invalid_model',
    'The fine-tune or its base holds NaN or infinity, expected finite weights. ' +
      'The training diverged or a file is damaged; use an earlier checkpoint.',
  );
}

/** The single values that differ, flat and row-major (SFT). */
export async function sparseDelta(
  base: RowReader,
  tuned: RowReader,
  count: number,
): Promise<{ readonly indices: Float64Array; readonly base: Float32Array; readonly tuned: Float32Array }> {
  const indices = new Float64Array(count);
  const [ours, theirs] = [new Float32Array(count), new Float32Array(count)];
  let found = 0;
  for await (const { row0, count: rows, values } of chunks(base)) {
    const others = await tuned.read(row0, rows);
    for (let i = 0; i < values.length; i += 1) {
      if (values[i] === others[i]) continue;
      indices[found] = row0 * base.cols + i;
      ours[found] = values[i] as number;
      theirs[found] = others[i] as number;
      found += 1;
    }
  }
  return { indices, base: ours, tuned: theirs };
}
