/** Differences that an adapter holds exactly: whole rows or columns (S²FT), or single values (SFT). Called by extract. */
import path from 'node:path';

import { f32ToBf16 } from '../../../core/half.js';
import { writeAdapterFolder } from '../adapter-writer.js';
import type { WrittenTensor } from '../adapter-writer.js';
import type { ModelPair } from '../model-pair.js';
import { changedColumns, changedRows, differenceOf } from '../s2ft/difference.js';
import type { ChannelDelta } from '../s2ft/difference.js';
import { bytesOf, writeS2ftFolder } from '../s2ft/s2ft-folder.js';
import { isMatrix } from './change.js';
import type { Change, ExtractOptions, HeldChange, Written } from './change.js';
import { sparseDelta } from './scan.js';

export async function writeS2ft(
  changes: readonly Change[],
  _pair: ModelPair,
  { base, out, progress }: ExtractOptions,
): Promise<Written> {
  const deltas = new Map<string, ChannelDelta>();
  const held: HeldChange[] = [];
  let inexact = 0;
  for (const [i, change] of changes.entries()) {
    progress?.(`taking ${change.name}`, i, changes.length);
    const { rows, cols, changedRows: ofRows, changedCols: ofCols } = change.scan;
    const byRows = ofRows * cols <= ofCols * rows;
    const take = byRows ? changedRows : changedColumns;
    const order = Int32Array.from({ length: byRows ? rows : cols }, (_, at) => at);
    const delta = await take({ base: change.base, checkpoint: change.tuned }, order, 'auto');
    if (delta === undefined) continue;
    deltas.set(change.module, delta);
    inexact += delta.inexact;
    held.push(exactly(change, `${delta.index.length} ${byRows ? 'rows' : 'columns'}`, delta.largestError));
  }
  await writeS2ftFolder(out, base, deltas);
  return { held, inexact, bytes: bytesOf(deltas) };
}

function exactly({ name, scan: { largest } }: Change, as: string, largestError: number): HeldChange {
  return { name, as, relativeError: largestError / largest, largestError };
}

/**
 * peft_type SFT (the keys of AlanAnsell/peft) for matrices, embedding and head; norms and biases as a whole. The names are
 * those of the base's own parameters, so that a tied head follows its embedding.
 */
export async function writeSft(
  changes: readonly Change[],
  { model, tunedModel }: ModelPair,
  { base, out, progress }: ExtractOptions,
): Promise<Written> {
  const tensors: WrittenTensor[] = [];
  const held: HeldChange[] = [];
  let inexact = 0;
  for (const [i, change] of changes.entries()) {
    progress?.(`taking ${change.name}`, i, changes.length);
    const key = `base_model.model.${change.module}`;
    if (!isMatrix(change)) {
      const values = await change.tuned.read(0, 1);
      tensors.push({ name: `base_model.model.${change.name}`, dtype: 'F32', shape: [values.length], data: values });
      held.push({ name: change.name, as: 'a whole vector', relativeError: 0, largestError: 0 });
      continue;
    }
    const count = change.scan.differing;
    // Rows that the fine-tune alone has are no part of the difference.
    const part = { ...change.base, rows: change.scan.rows };
    const delta = await sparseDelta(part, change.tuned, count);
    const {
      dtype,
      values,
      inexact: off,
      largestError,
    } = differenceOf(delta.base, delta.tuned, {
      goal: change.tuned.dtype,
      value: 'auto',
    });
    inexact += off;
    const bf16 = dtype === 'bf16';
    tensors.push(
      {
        name: `${key}.sft_delta.values`,
        dtype: bf16 ? 'BF16' : 'F32',
        shape: [count],
        data: bf16 ? Uint16Array.from(values, f32ToBf16) : values,
      },
      { name: `${key}.sft_delta.indices`, shape: [count], ...flatIndices(delta.indices, change) },
    );
    held.push(exactly(change, `${count} values`, largestError));
  }
  const tied = model.tiedHead && tunedModel.tiedHead;
  const config = {
    peft_type: 'SFT',
    ...(tied ? { format: 'composable-sft' } : {}),
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: path.basename(path.resolve(base)),
    dtype: 'float32',
  };
  await writeAdapterFolder(out, config, tensors);
  return { held, inexact, bytes: tensors.reduce((sum, { data }) => sum + data.byteLength, 0) };
}

/** int32 as far as it reaches, like the library. */
function flatIndices(indices: Float64Array, { scan: { rows, cols } }: Change): Pick<WrittenTensor, 'dtype' | 'data'> {
  if (rows * cols < 2 ** 31) return { dtype: 'I32', data: Int32Array.from(indices) };
  return { dtype: 'I64', data: BigInt64Array.from(indices, BigInt) };
}
