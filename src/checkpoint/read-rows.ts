/**
 * The weights of a Hugging Face folder without its tokenizer, and rows of its tensors as float32, straight from the files:
 * for offline tools that compare whole models. Values are those of the file, without anything that serving does to
 * them. Used by adapters/convert.
 */
import { stat } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import { f16ToF32 } from '../core/half.js';
import { SITES } from '../core/model-config.js';
import type { ModelConfig, SiteRef } from '../core/model-config.js';
import type { WeightEntry } from '../native/binding-types.js';
import { readHuggingFaceConfig } from './huggingface-config.js';
import { exists, readJsonObject } from './huggingface-text.js';
import { INDEX_FILE, readTensors, SINGLE_FILE } from './open-folder.js';
import { openPickledWeights } from './pickled-weights.js';
import { openRegularFile, readRange } from './regular-file.js';
import { mapWeights } from './weight-map.js';
import type { TensorSource } from './weight-map.js';
import { huggingFaceHead, huggingFaceNaming } from './weight-names.js';

/** One tensor, `[rows, cols]`; norms and biases have one row. */
export interface RowReader {
  readonly rows: number;
  readonly cols: number;
  readonly dtype: 'f32' | 'f16' | 'bf16';
  /** Rows row0 .. row0 + count - 1, row-major, in an array of their own. */
  read(row0: number, count: number): Promise<Float32Array>;
}

export interface WeightReader {
  readonly config: ModelConfig;
  /** In forward order. */
  readonly weights: readonly WeightEntry[];
  /** Undefined where the model has no such tensor (a bias, or a head that is the embedding). */
  tensor(site: SiteRef, part?: 'weight' | 'bias'): RowReader | undefined;
  close(): Promise<void>;
}

const BYTES = { f32: 4, f16: 2, bf16: 2 } as const;

/** Throws 'invalid_model' naming what is wrong; for GGUF files too, whose values are not those of a training. */
export async function openWeights(folder: string): Promise<WeightReader> {
  const absolute = path.resolve(folder);
  const info = await stat(absolute).catch((cause: unknown) => {
    throw new ManyfoldError('invalid_model', `${absolute} does not exist or cannot be read. Check the path.`, {
      cause,
    });
  });
  const configJson = info.isDirectory() ? await readJsonObject(absolute, 'config.json') : undefined;
  if (configJson === undefined) {
    throw new ManyfoldError(
      'invalid_model',
      `${absolute} is no Hugging Face folder with config.json and F32, F16 or BF16 tensors. A GGUF file cannot take its ` +
        'place: its values are quantised or reordered, so every weight would differ from what the training began with. ' +
        'Give the folder that the GGUF file was made from.',
    );
  }
  const bytes = (await openPickled(absolute)) ?? (await openFiles(absolute));
  try {
    const names = new Set(bytes.tensors.keys());
    const model = readHuggingFaceConfig(configJson, huggingFaceHead(names) !== undefined);
    const weights = mapWeights(bytes.tensors, model, huggingFaceNaming(model.config, names));
    const entries = new Map(weights.map((entry) => [`${entry.layer} ${entry.site} ${entry.part}`, entry]));
    const tensor = ({ layer, site }: SiteRef, part: 'weight' | 'bias' = 'weight'): RowReader | undefined => {
      const entry = entries.get(`${layer} ${SITES[site]} ${part}`);
      return entry && rowReader(entry, bytes, absolute);
    };
    return { config: model.config, weights, tensor, close: () => bytes.close() };
  } catch (error) {
    await bytes.close();
    throw error;
  }
}

/** Bytes of a folder's tensors, whatever the container. */
interface TensorBytes {
  readonly tensors: ReadonlyMap<string, TensorSource>;
  read(entry: WeightEntry, first: number, count: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Undefined where the folder has safetensors, or no pickle either. */
async function openPickled(folder: string): Promise<TensorBytes | undefined> {
  for (const name of [SINGLE_FILE, INDEX_FILE]) if (await exists(path.join(folder, name))) return undefined;
  const pickled = await openPickledWeights(folder);
  return (
    pickled && {
      tensors: pickled.tensors,
      read: ({ offset }, first, count) => pickled.read(offset, first, count),
      close: () => pickled.close(),
    }
  );
}

async function openFiles(folder: string): Promise<TensorBytes> {
  const { files, tensors } = await readTensors(folder);
  const handles: FileHandle[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(handles.map((handle) => handle.close()));
  };
  try {
    for (const file of files) handles.push((await openRegularFile(file)).handle);
  } catch (error) {
    await close();
    throw error;
  }
  const read = ({ file, offset }: WeightEntry, first: number, count: number): Promise<Uint8Array> =>
    readRange(handles[file] as FileHandle, offset + first, count);
  return { tensors, read, close };
}

function rowReader(entry: WeightEntry, bytes: TensorBytes, folder: string): RowReader {
  const { rows, cols } = entry;
  const dtype = entry.dtype as keyof typeof BYTES;
  return {
    rows,
    cols,
    dtype,
    read: async (row0, count) => {
      const rowBytes = cols * BYTES[dtype];
      const found = await bytes.read(entry, row0 * rowBytes, count * rowBytes);
      if (found.length === count * rowBytes) return widen(found, dtype);
      throw new ManyfoldError(
        'invalid_model',
        `A file of ${folder} became shorter while it was read. Wait until it is written, then try again.`,
      );
    },
  };
}

/** Exact: every f16 and bf16 is a float32. */
function widen(bytes: Uint8Array, dtype: keyof typeof BYTES): Float32Array {
  const { buffer, byteOffset, byteLength } = bytes;
  if (dtype === 'f32') return new Float32Array(buffer, byteOffset, byteLength / 4);
  const halves = new Uint16Array(buffer, byteOffset, byteLength / 2);
  if (dtype === 'f16') return Float32Array.from(halves, f16ToF32);
  const values = new Float32Array(halves.length);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < halves.length; i += 1) bits[i] = (halves[i] as number) << 16;
  return values;
}
