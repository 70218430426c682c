/** Writes an S²FT adapter folder (docs/formats/s2ft.md). Called by import-s2ft and by extract. */
import path from 'node:path';

import { f32ToBf16 } from '../../../core/half.js';
import { S2FT_PART, S2FT_VERSION } from '../../importers/s2ft.js';
import { writeAdapterFolder } from '../adapter-writer.js';
import type { WrittenTensor } from '../adapter-writer.js';
import type { ChannelDelta } from './difference.js';

/** Path of the module in the base's checkpoint → its rows or columns. */
export type S2ftDeltas = ReadonlyMap<string, ChannelDelta>;

export async function writeS2ftFolder(directory: string, basePath: string, deltas: S2ftDeltas): Promise<void> {
  const tensors: WrittenTensor[] = [];
  for (const [module, { side, index, values, dtype }] of deltas) {
    const name = `${module}.${S2FT_PART[side]}`;
    const count = index.length;
    tensors.push({ name: `${name}.index`, dtype: 'I32', shape: [count], data: index });
    const other = values.length / count;
    const shape = side === 'out' ? [count, other] : [other, count];
    const data = dtype === 'bf16' ? Uint16Array.from(values, f32ToBf16) : values;
    tensors.push({ name: `${name}.values`, dtype: dtype === 'bf16' ? 'BF16' : 'F32', shape, data });
  }
  const config = {
    peft_type: 'S2FT',
    s2ft_version: S2FT_VERSION,
    task_type: 'CAUSAL_LM',
    base_model_name_or_path: path.basename(path.resolve(basePath)),
  };
  await writeAdapterFolder(directory, config, tensors);
}

export function bytesOf(deltas: S2ftDeltas): number {
  let bytes = 0;
  for (const { index, values, dtype } of deltas.values()) {
    bytes += index.byteLength + values.length * (dtype === 'bf16' ? 2 : 4);
  }
  return bytes;
}
