/** Builds safetensors and GGUF files in memory, right ones and wrong ones, for tests and the fuzzer. */
import { GGUF_ARRAY, GGUF_BOOL, GGUF_FLOAT32, GGUF_STRING, GGUF_UINT32, GGUF_UINT64 } from '../gguf-types.js';
import { SAFETENSORS_DTYPES } from '../safetensors.js';
import type { SafetensorsDtype } from '../safetensors.js';

/** A file with this header, be it nonsense, and so many zero bytes of data. */
export function safetensorsBytes(header: string | Uint8Array, dataBytes = 0, lengthField?: bigint): Uint8Array {
  const json = typeof header === 'string' ? Buffer.from(header) : Buffer.from(header);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(lengthField ?? BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(dataBytes)]);
}

export interface TestTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Bytes of the tensor; zeros when absent. */
  readonly data?: Uint8Array;
}

/** A right file that holds the tensors in the order given. */
export function safetensorsFile(
  tensors: readonly TestTensor[],
  metadata?: Readonly<Record<string, string>>,
): Uint8Array {
  const entries: [string, unknown][] = metadata === undefined ? [] : [['__metadata__', metadata]];
  const data: Uint8Array[] = [];
  let end = 0;
  for (const { name, dtype, shape, data: given } of tensors) {
    const size = shape.reduce((product, dim) => product * dim, SAFETENSORS_DTYPES[dtype]);
    entries.push([name, { dtype, shape, data_offsets: [end, end + size] }]);
    data.push(given ?? new Uint8Array(size));
    end += size;
  }
  return Buffer.concat([safetensorsBytes(JSON.stringify(Object.fromEntries(entries))), ...data]);
}

/** A metadata value with its type; arrays hold values without a type of their own. */
export type TestValue =
  | { readonly type: number; readonly value: string | number | bigint | boolean }
  | {
      readonly type: typeof GGUF_ARRAY;
      readonly of: number;
      readonly items: readonly TestItem[];
      readonly count?: bigint;
    };
type TestItem = string | number | bigint | boolean | TestValue;

export interface TestGgufTensor {
  readonly name: string;
  /** In the file's order: columns first. */
  readonly dims: readonly (number | bigint)[];
  readonly type: number;
  readonly offset: number | bigint;
}

export interface TestGguf {
  readonly magic?: string;
  readonly version?: number;
  readonly tensorCount?: bigint;
  readonly metadataCount?: bigint;
  readonly metadata?: readonly (readonly [string, TestValue])[];
  readonly tensors?: readonly TestGgufTensor[];
  readonly alignment?: number;
  readonly data?: Uint8Array;
}

export const text = (value: string): TestValue => ({ type: GGUF_STRING, value });
export const uint32 = (value: number): TestValue => ({ type: GGUF_UINT32, value });
export const float32 = (value: number): TestValue => ({ type: GGUF_FLOAT32, value });
export const bool = (value: boolean): TestValue => ({ type: GGUF_BOOL, value });
export const texts = (items: readonly string[]): TestValue => ({ type: GGUF_ARRAY, of: GGUF_STRING, items });

export function ggufBytes(file: TestGguf): Uint8Array {
  const metadata = file.metadata ?? [];
  const tensors = file.tensors ?? [];
  const parts: Uint8Array[] = [Buffer.from(file.magic ?? 'GGUF', 'latin1'), number(GGUF_UINT32, file.version ?? 3)];
  parts.push(number(GGUF_UINT64, file.tensorCount ?? BigInt(tensors.length)));
  parts.push(number(GGUF_UINT64, file.metadataCount ?? BigInt(metadata.length)));
  for (const [key, value] of metadata) parts.push(string(key), number(GGUF_UINT32, value.type), encode(value));
  for (const { name, dims, type, offset } of tensors) {
    parts.push(string(name), number(GGUF_UINT32, dims.length), ...dims.map((dim) => number(GGUF_UINT64, dim)));
    parts.push(number(GGUF_UINT32, type), number(GGUF_UINT64, offset));
  }
  const header = Buffer.concat(parts);
  const alignment = file.alignment ?? 32;
  const padding = Math.ceil(header.length / alignment) * alignment - header.length;
  return Buffer.concat([header, Buffer.alloc(padding), file.data ?? new Uint8Array()]);
}

function encode(value: TestValue): Uint8Array {
  if (!('of' in value)) return scalar(value.type, value.value);
  const head = [number(GGUF_UINT32, value.of), number(GGUF_UINT64, value.count ?? BigInt(value.items.length))];
  return Buffer.concat([...head, ...value.items.map((item) => encodeItem(value.of, item))]);
}

function encodeItem(type: number, item: TestItem): Uint8Array {
  return typeof item === 'object' ? encode(item) : scalar(type, item);
}

function scalar(type: number, value: string | number | bigint | boolean): Uint8Array {
  return typeof value === 'string' ? string(value) : number(type, typeof value === 'boolean' ? Number(value) : value);
}

function string(value: string): Uint8Array {
  const bytes = Buffer.from(value);
  return Buffer.concat([number(GGUF_UINT64, bytes.length), bytes]);
}

function number(type: number, value: number | bigint): Uint8Array {
  const bytes = Buffer.alloc(8);
  switch (type) {
    case 0:
    case 7:
      bytes.writeUInt8(Number(value));
      return bytes.subarray(0, 1);
    case 1:
      bytes.writeInt8(Number(value));
      return bytes.subarray(0, 1);
    case 2:
      bytes.writeUInt16LE(Number(value));
      return bytes.subarray(0, 2);
    case 3:
      bytes.writeInt16LE(Number(value));
      return bytes.subarray(0, 2);
    case 5:
      bytes.writeInt32LE(Number(value));
      return bytes.subarray(0, 4);
    case 6:
      bytes.writeFloatLE(Number(value));
      return bytes.subarray(0, 4);
    case 10:
      bytes.writeBigUInt64LE(BigInt(value));
      return bytes;
    case 11:
      bytes.writeBigInt64LE(BigInt(value));
      return bytes;
    case 12:
      bytes.writeDoubleLE(Number(value));
      return bytes;
    default:
      bytes.writeUInt32LE(Number(value));
      return bytes.subarray(0, 4);
  }
}
