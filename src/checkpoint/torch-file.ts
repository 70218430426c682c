/**
 * The files of torch.save (since PyTorch 1.6: a zip of data.pkl and one member a storage), read without running anything.
 * Used by the converters of adapters.
 */
import { ManyfoldError } from '../core/errors.js';
import { Global, TorchStorage } from './pickle-globals.js';
import type { PickleValue, TorchTensor } from './pickle-globals.js';
import { readPickle } from './pickle.js';
import { SAFETENSORS_DTYPES } from './safetensors.js';
import { openStoredZip } from './stored-zip.js';
import type { StoredZip } from './stored-zip.js';

export interface TorchFile {
  /** What was saved. */
  readonly root: PickleValue;
  /** The tensor's elements, row-major, in a buffer of their own. */
  read(tensor: TorchTensor): Promise<Uint8Array>;
  close(): Promise<void>;
}

const PICKLE = /^([^/]+)\/data\.pkl$/;
const KEY = /^[A-Za-z0-9_.-]{1,128}$/;
const MAX_PICKLE_BYTES = 2 ** 30;

/** Throws 'invalid_adapter'. The caller closes it. `what` names the file in messages. */
export async function openTorchFile(filePath: string, what: string): Promise<TorchFile> {
  const zip = await openStoredZip(filePath);
  try {
    const fail = (problem: string): never => refuse(what, problem);
    const pickles = [...zip.sizes].filter(([name]) => PICKLE.test(name));
    const [name, size] = pickles[0] ?? fail('the archive has no data.pkl');
    const prefix = PICKLE.exec(name)?.[1] ?? '';
    if (pickles.length > 1 || size > MAX_PICKLE_BYTES) {
      fail(`expected one data.pkl of at most ${MAX_PICKLE_BYTES} bytes, found ${pickles.length}, of ${size} bytes`);
    }
    const order = await zip.read(`${prefix}/byteorder`);
    if (order !== undefined && Buffer.from(order).toString('latin1') !== 'little') fail('its numbers are big-endian');
    const bytes = (await zip.read(name)) ?? fail('data.pkl vanished');
    const persistent = (id: PickleValue): PickleValue => storageOf(id, prefix, zip, what);
    return new OpenTorchFile(readPickle(bytes, { what, persistent }), zip, what);
  } catch (error) {
    await zip.close();
    throw error;
  }
}

class OpenTorchFile implements TorchFile {
  constructor(
    readonly root: PickleValue,
    private readonly zip: StoredZip,
    private readonly what: string,
  ) {}

  async read({ storage, offset, shape, strides }: TorchTensor): Promise<Uint8Array> {
    const width = SAFETENSORS_DTYPES[storage.dtype];
    const count = shape.reduce((product, size) => product * size, 1);
    const [from, length] = isContiguous(shape, strides) ? [offset * width, count * width] : [];
    const bytes = (await this.zip.read(storage.key, from, length)) ?? refuse(this.what, `${storage.key} vanished`);
    if (length !== undefined) return bytes;
    const result = new Uint8Array(count * width);
    const index = shape.map(() => 0);
    let at = offset;
    for (let i = 0; i < count; i += 1) {
      for (let byte = 0; byte < width; byte += 1) result[i * width + byte] = bytes[at * width + byte] as number;
      // The next element in row-major order: the last dimension runs fastest.
      for (let dim = shape.length - 1; dim >= 0; dim -= 1) {
        index[dim] = (index[dim] as number) + 1;
        at += strides[dim] as number;
        if ((index[dim] as number) < (shape[dim] as number)) break;
        at -= (index[dim] as number) * (strides[dim] as number);
        index[dim] = 0;
      }
    }
    return result;
  }

  close(): Promise<void> {
    return this.zip.close();
  }
}

function isContiguous(shape: readonly number[], strides: readonly number[]): boolean {
  let step = 1;
  for (let dim = shape.length - 1; dim >= 0; dim -= 1) {
    if (strides[dim] !== step) return false;
    step *= shape[dim] as number;
  }
  return true;
}

/** ('storage', class, key, device, elements) */
function storageOf(id: PickleValue, prefix: string, zip: StoredZip, what: string): TorchStorage {
  const [tag, kind, key, , elements] = Array.isArray(id) ? id : [];
  const dtype = kind instanceof Global ? kind.dtype : undefined;
  if (tag !== 'storage' || dtype === undefined || typeof key !== 'string' || !KEY.test(key)) {
    return refuse(what, 'a persistent id is no storage of numbers');
  }
  const name = `${prefix}/data/${key}`;
  const size = zip.sizes.get(name);
  if (typeof elements !== 'number' || size !== elements * SAFETENSORS_DTYPES[dtype]) {
    return refuse(
      what,
      `storage ${key} claims ${typeof elements === 'number' ? elements : 'no'} elements of ${dtype} and has ${size ?? 'no'} bytes`,
    );
  }
  return new TorchStorage(name, dtype, elements);
}

function refuse(what: string, problem: string): never {
  const mend = 'The file is damaged, hostile or not from torch.save; download it again, or save it again with PyTorch.';
  throw new ManyfoldError('invalid_adapter', `${what}: ${problem}. ${mend}`);
}
