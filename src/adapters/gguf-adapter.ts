/**
 * A GGUF file of an adapter as config and tensors: its metadata become the config, and its F32, F16 and BF16 tensors are
 * those of a safetensors file. Called by adapter-container.
 */
import { parseGguf } from '../checkpoint/gguf.js';
import type { GgufHeader } from '../checkpoint/gguf.js';
import { GGUF_LIMITS } from '../checkpoint/gguf-cursor.js';
import type { GgufValue } from '../checkpoint/checkpoint.js';
import { openRegularFile, readRange } from '../checkpoint/regular-file.js';
import type { SafetensorsTensor } from '../checkpoint/safetensors.js';
import { quoteName } from '../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../checkpoint/strict-json.js';
import { ManyfoldError } from '../core/errors.js';
import type { TensorFile } from './adapter-container.js';

/** Adapters may come from strangers: their header is small. */
const LIMITS = { ...GGUF_LIMITS, maxHeaderBytes: 4_000_000, maxStringBytes: 1_000_000, maxNameBytes: 1024 };
const DTYPES: ReadonlyMap<string, 'F32' | 'F16' | 'BF16'> = new Map([
  ['f32', 'F32'],
  ['f16', 'F16'],
  ['bf16', 'BF16'],
]);

export interface GgufAdapter extends TensorFile {
  readonly config: JsonObject;
}

/** Opens a regular file and checks its header. The caller closes it. */
export async function openGgufAdapter(filePath: string, what: string): Promise<GgufAdapter> {
  const { handle, size } = await openRegularFile(filePath, 'invalid_adapter');
  try {
    const header = parse(await readRange(handle, 0, Math.min(size, LIMITS.maxHeaderBytes)), size, what);
    const tensors = new Map([...header.tensors].map(([name, tensor]) => [name, tensorOf(name, tensor, what)]));
    const read = async (name: string): Promise<Uint8Array> => {
      const tensor = tensors.get(name);
      const bytes = tensor && (await readRange(handle, tensor.offset, tensor.byteLength));
      if (bytes !== undefined && bytes.length === tensor?.byteLength) return bytes;
      throw new ManyfoldError(
        'invalid_adapter',
        `${what}: tensor ${quoteName(name)} is not there, or the file became shorter. Download it again.`,
      );
    };
    return { config: configOf(header.metadata), tensors, read, close: () => handle.close() };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

function parse(bytes: Uint8Array, size: number, what: string): GgufHeader {
  try {
    return parseGguf(bytes, size, LIMITS, what);
  } catch (cause) {
    // The parser is that of models; here the adapter is at fault.
    if (cause instanceof ManyfoldError) throw new ManyfoldError('invalid_adapter', cause.message, { cause });
    throw cause;
  }
}

function tensorOf(
  name: string,
  tensor: {
    readonly dtype: string;
    readonly shape: readonly number[];
    readonly offset: number;
    readonly byteLength: number;
  },
  what: string,
): SafetensorsTensor {
  const dtype = DTYPES.get(tensor.dtype);
  if (dtype !== undefined) return { ...tensor, name, dtype };
  throw new ManyfoldError(
    'invalid_adapter',
    `${what}: ${quoteName(name)} is ${tensor.dtype}, expected f32, f16 or bf16: a quantised factor is not what was trained. ` +
      'Convert the adapter again with --outtype f16.',
  );
}

function configOf(metadata: ReadonlyMap<string, GgufValue>): JsonObject {
  return Object.fromEntries([...metadata].map(([key, value]) => [key, jsonOf(value)]));
}

function jsonOf(value: GgufValue): JsonValue {
  if (typeof value === 'bigint') return String(value);
  if (typeof value === 'number') return Number.isFinite(value) ? value : String(value);
  if (typeof value !== 'object') return value;
  return Array.from(value as ArrayLike<GgufValue>, jsonOf);
}
