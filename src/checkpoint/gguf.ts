/**
 * GGUF files, versions 2 and 3: the header only, read from the file as far as it goes and checked against the real
 * file size. Nothing in it is trusted: counts, lengths, nesting, offsets and alignment have limits, keys and names are
 * unique, tensors lie inside the file and apart. Called by open-checkpoint.
 */
import path from 'node:path';

import type { WeightDtype } from '../native/binding-types.js';
import type { GgufValue } from './checkpoint.js';
import { GGUF_LIMITS, GgufCursor, NeedMore } from './gguf-cursor.js';
import type { GgufLimits } from './gguf-cursor.js';
import { BLOCK_SHAPES, GGML_DTYPES, OTHER_GGML_TYPES } from './gguf-types.js';
import { openRegularFile, readRange } from './regular-file.js';
import { quoteName } from './strict-json.js';

export interface GgufTensor {
  readonly name: string;
  readonly dtype: WeightDtype;
  /** Row-major, so the reverse of the order in the file: [rows, cols] for a matrix. */
  readonly shape: readonly number[];
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
}

export interface GgufHeader {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

export const GGUF_MAGIC = 'GGUF';
const DEFAULT_ALIGNMENT = 32;
/** Holds the header of most models at once; a longer one makes the buffer grow. */
const FIRST_READ_BYTES = 16 << 20;

/** Opens a file, reads and checks its header, closes it. */
export async function readGguf(filePath: string, limits: GgufLimits = GGUF_LIMITS): Promise<GgufHeader> {
  const { handle, size } = await openRegularFile(filePath);
  try {
    const parser = new GgufParser(size, limits, path.basename(filePath));
    let wanted = FIRST_READ_BYTES;
    for (;;) {
      const length = Math.min(wanted, size, limits.maxHeaderBytes);
      const missing = parser.advance(await readRange(handle, 0, length));
      if (missing === 0) return parser.header();
      wanted = Math.max(2 * length, missing);
    }
  } finally {
    await handle.close();
  }
}

/** The same of bytes that hold the whole header (tests and the fuzzer). */
export function parseGguf(bytes: Uint8Array, fileSize: number, limits = GGUF_LIMITS, what = 'GGUF file'): GgufHeader {
  const parser = new GgufParser(fileSize, limits, what);
  const missing = parser.advance(bytes);
  if (missing > 0) parser.fail(`the header needs ${missing} bytes, the file has ${bytes.length}`);
  return parser.header();
}

interface RawTensor {
  readonly tensor: Omit<GgufTensor, 'offset'>;
  /** From the start of the data section. */
  readonly offset: bigint;
}

class GgufParser {
  private readonly cursor: GgufCursor;
  private version = 0;
  private tensorCount = -1;
  private metadataCount = -1;
  private readonly metadata = new Map<string, GgufValue>();
  private readonly raw = new Map<string, RawTensor>();

  constructor(
    fileSize: number,
    private readonly limits: GgufLimits,
    what: string,
  ) {
    this.cursor = new GgufCursor(fileSize, limits, what);
  }

  fail(problem: string, mend?: string): never {
    this.cursor.fail(problem, mend);
  }

  /** Parses on with a longer run of the file's first bytes. Returns 0 when done, else how many bytes are needed. */
  advance(bytes: Uint8Array): number {
    this.cursor.feed(bytes);
    for (;;) {
      const start = this.cursor.at;
      try {
        if (!this.item()) return 0;
      } catch (error) {
        if (!(error instanceof NeedMore)) throw error;
        this.cursor.at = start;
        return error.needed;
      }
    }
  }

  header(): GgufHeader {
    const alignment = this.alignment();
    const dataStart = Math.ceil(this.cursor.at / alignment) * alignment;
    const tensors = new Map<string, GgufTensor>();
    for (const [name, raw] of this.raw) tensors.set(name, this.place(raw, dataStart, alignment));
    this.checkOverlap([...tensors.values()]);
    return { version: this.version, metadata: this.metadata, tensors };
  }

  /** Reads the next item: the counts, then one metadata pair or one tensor at a time. False when there is none. */
  private item(): boolean {
    if (this.metadataCount < 0) this.counts();
    else if (this.metadata.size < this.metadataCount) this.pair();
    else if (this.raw.size < this.tensorCount) this.tensor();
    else return false;
    return true;
  }

  private counts(): void {
    if (this.cursor.string(4, 4, 'magic') !== GGUF_MAGIC) this.fail(`the file does not start with '${GGUF_MAGIC}'`);
    const version = this.cursor.uint32();
    if (version !== 2 && version !== 3) {
      const swapped = version === 0x02000000 || version === 0x03000000;
      this.fail(`version is ${swapped ? 'big-endian' : version}, expected 2 or 3, little-endian`);
    }
    const tensors = this.cursor.uint64();
    const pairs = this.cursor.uint64();
    if (tensors > BigInt(this.limits.maxTensors)) this.cursor.tooMany('tensors', tensors, this.limits.maxTensors);
    if (pairs > BigInt(this.limits.maxMetadata)) this.cursor.tooMany('metadata pairs', pairs, this.limits.maxMetadata);
    this.version = version;
    this.tensorCount = Number(tensors);
    this.metadataCount = Number(pairs);
  }

  private pair(): void {
    const key = this.cursor.name('metadata key');
    const at = `metadata ${quoteName(key)}`;
    if (this.metadata.has(key)) this.fail(`${at} is given twice`);
    this.metadata.set(key, this.cursor.value(this.cursor.uint32(), at, 0));
  }

  private tensor(): void {
    const name = this.cursor.name('tensor name');
    const at = `tensor ${quoteName(name)}`;
    if (this.raw.has(name)) this.fail(`${at} is given twice`);
    const dimCount = this.cursor.uint32();
    if (dimCount > this.limits.maxDims) this.cursor.tooMany(`dimensions of ${at}`, dimCount, this.limits.maxDims);
    const shape: number[] = [];
    for (let i = 0; i < dimCount; i += 1) shape.unshift(this.dim(at));
    const type = this.cursor.uint32();
    const offset = this.cursor.uint64();
    const dtype = GGML_DTYPES.get(type) ?? this.unsupported(at, type);
    this.raw.set(name, { tensor: { name, dtype, shape, byteLength: this.byteSize(at, shape, dtype) }, offset });
  }

  private dim(at: string): number {
    const dim = this.cursor.uint64();
    if (dim < 1n || dim > BigInt(this.limits.maxDim)) {
      this.fail(`${at} has a dimension of ${dim}, expected 1 to ${this.limits.maxDim}`);
    }
    return Number(dim);
  }

  private unsupported(at: string, type: number): never {
    const name = OTHER_GGML_TYPES.get(type) ?? `number ${type}`;
    const supported = [...GGML_DTYPES.values()].map((dtype) => dtype.toUpperCase()).join(', ');
    return this.fail(
      `${at} has type ${name}, supported are ${supported}`,
      'Take another quantization of the model, or convert it to one of these.',
    );
  }

  private byteSize(at: string, shape: readonly number[], dtype: WeightDtype): number {
    const { values, bytes } = BLOCK_SHAPES[dtype];
    const row = shape.at(-1) ?? 1;
    if (row % values !== 0)
      this.fail(`${at} has rows of ${row} values, ${dtype.toUpperCase()} needs a multiple of ${values}`);
    let size = (row / values) * bytes;
    for (const dim of shape.slice(0, -1)) {
      size *= dim;
      if (size > Number.MAX_SAFE_INTEGER) this.fail(`${at} of shape [${shape.join(', ')}] has more than 2^53 bytes`);
    }
    return size;
  }

  private alignment(): number {
    const value = this.metadata.get('general.alignment') ?? DEFAULT_ALIGNMENT;
    if (typeof value !== 'number' || !(value > 0) || value > 2 ** 31 || !Number.isInteger(Math.log2(value))) {
      this.fail(`general.alignment is ${String(value)}, expected a power of two`);
    }
    return value;
  }

  private place(raw: RawTensor, dataStart: number, alignment: number): GgufTensor {
    const { tensor, offset } = raw;
    const at = `tensor ${quoteName(tensor.name)}`;
    if (offset % BigInt(alignment) !== 0n)
      this.fail(`${at} is at offset ${offset}, expected a multiple of ${alignment}`);
    const end = BigInt(dataStart) + offset + BigInt(tensor.byteLength);
    if (end > BigInt(this.cursor.fileSize)) {
      this.fail(`${at} ends at byte ${end}, after the end of the file at ${this.cursor.fileSize}`);
    }
    return { ...tensor, offset: dataStart + Number(offset) };
  }

  private checkOverlap(tensors: readonly GgufTensor[]): void {
    const ordered = [...tensors].sort((a, b) => a.offset - b.offset);
    let end = 0;
    for (const { name, offset, byteLength } of ordered) {
      if (offset < end)
        this.fail(`tensor ${quoteName(name)} at byte ${offset} overlaps the one before it, which ends at ${end}`);
      end = offset + byteLength;
    }
  }
}
