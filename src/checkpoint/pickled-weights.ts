/**
 * Whole models saved by torch.save (pytorch_model.bin, one file or shards), read without running anything: for offline tools
 * alone, serving takes safetensors. Called by read-rows.
 */
import { stat } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import { exists, readJsonObject } from './huggingface-text.js';
import { TorchTensor } from './pickle-globals.js';
import { SAFETENSORS_DTYPES } from './safetensors.js';
import { isJsonObject, quoteName } from './strict-json.js';
import { openTorchFile } from './torch-file.js';
import type { TorchFile } from './torch-file.js';
import type { TensorSource } from './weight-map.js';

export const PICKLE_FILE = 'pytorch_model.bin';
const PICKLE_INDEX = 'pytorch_model.bin.index.json';
const SHARD_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.bin$/;
const MAX_SHARDS = 1000;
/** From here on the archive has another directory (zip64). */
const MAX_FILE_BYTES = 2 ** 32;

export interface PickledWeights {
  /** `offset` is the number of the tensor, not a place in a file. */
  readonly tensors: ReadonlyMap<string, TensorSource>;
  /** Bytes first .. first + count - 1 of the tensor with this number, row-major. */
  read(tensor: number, first: number, count: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** Undefined when the folder has no such file. The caller closes it. */
export async function openPickledWeights(folder: string): Promise<PickledWeights | undefined> {
  const shards = (await exists(path.join(folder, PICKLE_FILE))) ? [PICKLE_FILE] : await indexedShards(folder);
  if (shards === undefined) return undefined;
  const weights = new OpenPickles();
  try {
    for (const shard of shards) await weights.add(path.join(folder, shard), shard);
    return weights;
  } catch (error) {
    await weights.close();
    throw error;
  }
}

async function indexedShards(folder: string): Promise<string[] | undefined> {
  const index = await readJsonObject(folder, PICKLE_INDEX);
  if (index === undefined) return undefined;
  const map = index['weight_map'];
  const names = isJsonObject(map) ? [...new Set(Object.values(map))].sort() : [];
  return names.map((name) =>
    typeof name === 'string' && SHARD_NAME.test(name) && names.length <= MAX_SHARDS
      ? name
      : refuse(PICKLE_INDEX, 'weight_map does not name .bin files of this folder'),
  );
}

class OpenPickles implements PickledWeights {
  readonly tensors = new Map<string, TensorSource>();
  readonly #files: TorchFile[] = [];
  readonly #views: { readonly file: TorchFile; readonly tensor: TorchTensor }[] = [];
  /** The tensor that was read last: tools go through one after the other, some rows at a time. */
  #last: { readonly number: number; readonly bytes: Uint8Array } | undefined;

  async add(filePath: string, what: string): Promise<void> {
    const { size } = await stat(filePath).catch(() => refuse(what, 'it is not there or cannot be read'));
    if (size >= MAX_FILE_BYTES) refuse(what, `it has ${size} bytes, and pickles of 4 GiB and more are not read`);
    const file = await openTorchFile(filePath, what);
    this.#files.push(file);
    if (!(file.root instanceof Map)) refuse(what, 'it holds no dictionary of tensors');
    for (const [name, tensor] of file.root as Map<unknown, unknown>) {
      if (typeof name !== 'string') return refuse(what, 'a key is no name');
      if (!(tensor instanceof TorchTensor)) return refuse(what, `${quoteName(name)} is no tensor`);
      if (this.tensors.has(name)) refuse(what, `${quoteName(name)} stands in two files`);
      const { shape, storage } = tensor;
      const byteLength = shape.reduce((product, size) => product * size, SAFETENSORS_DTYPES[storage.dtype]);
      const source = { name, dtype: storage.dtype, shape, file: this.#files.length - 1, byteLength };
      this.tensors.set(name, { ...source, offset: this.#views.length });
      this.#views.push({ file, tensor });
    }
  }

  async read(number: number, first: number, count: number): Promise<Uint8Array> {
    const view = this.#views[number];
    if (view === undefined) throw new RangeError(`tensor ${number} of ${this.#views.length}`);
    if (this.#last?.number !== number) this.#last = { number, bytes: await view.file.read(view.tensor) };
    return this.#last.bytes.slice(first, first + count);
  }

  async close(): Promise<void> {
    this.#last = undefined;
    await Promise.all(this.#files.map((file) => file.close()));
  }
}

function refuse(what: string, problem: string): never {
  throw new ManyfoldError(
    'invalid_model',
    `${what}: ${problem}. Convert it with transformers: model.save_pretrained(folder), which writes safetensors.`,
  );
}
