/** Writes GGUF files for tests of adapters, byte by byte: version 3, little endian, tensors of f32 or of a raw type. */
const STRING = 8;
const FLOAT32 = 6;
const UINT32 = 4;
const ARRAY = 9;
const ALIGNMENT = 32;

export interface GgufTestTensor {
  /** Row-major. */
  readonly shape: readonly number[];
  readonly values: readonly number[];
  /** ggml's number of the type; 0, float32, when absent. */
  readonly type?: number;
}

export type GgufTestValue = string | number | readonly number[];

/** Numbers are float32, lists are of uint32. */
export function ggufBytes(
  metadata: Readonly<Record<string, GgufTestValue>>,
  tensors: Readonly<Record<string, GgufTestTensor>>,
): Uint8Array {
  const parts: Buffer[] = [
    Buffer.from('GGUF'),
    u32(3),
    u64(Object.keys(tensors).length),
    u64(Object.keys(metadata).length),
  ];
  for (const [key, value] of Object.entries(metadata)) parts.push(text(key), ...valueOf(value));
  let offset = 0;
  for (const [name, { shape, values, type = 0 }] of Object.entries(tensors)) {
    parts.push(text(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(type), u64(offset));
    offset += padded(4 * values.length);
  }
  const header = Buffer.concat(parts);
  const data = Object.values(tensors).map(({ values }) => pad(Buffer.from(Float32Array.from(values).buffer)));
  return Buffer.concat([pad(header), ...data]);
}

function valueOf(value: GgufTestValue): Buffer[] {
  if (typeof value === 'string') return [u32(STRING), text(value)];
  if (typeof value === 'number') return [u32(FLOAT32), Buffer.from(Float32Array.of(value).buffer)];
  return [u32(ARRAY), u32(UINT32), u64(value.length), ...value.map(u32)];
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function text(value: string): Buffer {
  return Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);
}

function padded(size: number): number {
  return Math.ceil(size / ALIGNMENT) * ALIGNMENT;
}

function pad(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(padded(bytes.length) - bytes.length)]);
}
