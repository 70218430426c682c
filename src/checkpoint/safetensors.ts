/**
 * Safetensors files, of base models and of adapters: a header parser that trusts nothing (sizes are checked against
 * the real file, products against 2^53, offsets against one another) and a reader of single tensors. Called by
 * open-checkpoint and by the adapter importers.
 */
import type { FileHandle } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import type { ErrorCode } from '../core/errors.js';
import { openRegularFile, readRange } from './regular-file.js';
import { decodeUtf8, isJsonObject, parseJsonStrict, quoteName } from './strict-json.js';
import type { JsonObject, JsonValue } from './strict-json.js';

/** Bytes of one element of each dtype that a header may name. */
export const SAFETENSORS_DTYPES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
} as const;
export type SafetensorsDtype = keyof typeof SAFETENSORS_DTYPES;

export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  /** Row-major; [] is a single value. */
  readonly shape: readonly number[];
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
}

export interface SafetensorsFile extends SafetensorsHeader {
  readonly path: string;
  /** The tensor's bytes, little-endian and row-major, in a buffer of their own. */
  read(name: string): Promise<Uint8Array>;
  close(): Promise<void>;
}

export interface SafetensorsLimits {
  readonly maxHeaderBytes: number;
  readonly maxTensors: number;
  readonly maxDims: number;
  readonly maxNameLength: number;
  /** Code of refusals: who gave the file. */
  readonly code: ErrorCode;
}

/** For base models, which the operator chose. */
export const WEIGHT_LIMITS: SafetensorsLimits = {
  maxHeaderBytes: 100_000_000,
  maxTensors: 65_536,
  maxDims: 8,
  maxNameLength: 1024,
  code: 'invalid_model',
};

/** For adapters, which may come from strangers. */
export const ADAPTER_LIMITS: SafetensorsLimits = {
  ...WEIGHT_LIMITS,
  maxHeaderBytes: 4_000_000,
  code: 'invalid_adapter',
};

const LENGTH_BYTES = 8;
/** Object of tensors, a tensor, its arrays; one more than needed, so that the message can name what is wrong. */
const MAX_DEPTH = 4;
const MEND = 'The file is damaged or hostile; download it again, or write it again with safetensors.';

/**
 * Checks the header at the start of `bytes` (which must hold all of it) against the file's size. `what` names the
 * file in messages.
 */
export function parseSafetensorsHeader(
  bytes: Uint8Array,
  fileSize: number,
  limits: SafetensorsLimits,
  what = 'safetensors file',
): SafetensorsHeader {
  return new HeaderParser(limits, what).parse(bytes, fileSize);
}

/** Opens a regular file, reads and checks its header. The caller closes it. */
export async function openSafetensors(filePath: string, limits: SafetensorsLimits): Promise<SafetensorsFile> {
  const what = path.basename(filePath);
  const { handle, size } = await openRegularFile(filePath, limits.code);
  try {
    const parser = new HeaderParser(limits, what);
    const headerBytes = parser.headerLength(await readRange(handle, 0, LENGTH_BYTES), size);
    const header = parser.parse(await readRange(handle, 0, LENGTH_BYTES + headerBytes), size);
    return new OpenSafetensors(filePath, handle, header, parser);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

class OpenSafetensors implements SafetensorsFile {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;

  constructor(
    readonly path: string,
    private readonly handle: FileHandle,
    header: SafetensorsHeader,
    private readonly parser: HeaderParser,
  ) {
    this.metadata = header.metadata;
    this.tensors = header.tensors;
  }

  async read(name: string): Promise<Uint8Array> {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) this.parser.fail(`expected a tensor ${quoteName(name)}, the file has none of that name`);
    const bytes = await readRange(this.handle, tensor.offset, tensor.byteLength);
    if (bytes.length !== tensor.byteLength) {
      this.parser.fail(`tensor ${quoteName(name)}: the file became shorter while it was read`);
    }
    return bytes;
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

class HeaderParser {
  constructor(
    private readonly limits: SafetensorsLimits,
    private readonly what: string,
  ) {}

  fail(problem: string): never {
    throw new ManyfoldError(this.limits.code, `${this.what}: ${problem}. ${MEND}`);
  }

  /** The header's length in bytes, checked against limit and file. */
  headerLength(prefix: Uint8Array, fileSize: number): number {
    if (prefix.length < LENGTH_BYTES) {
      this.fail(`expected at least ${LENGTH_BYTES} bytes of header length, the file has ${prefix.length}`);
    }
    const length = new DataView(prefix.buffer, prefix.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
    const room = Math.min(this.limits.maxHeaderBytes, fileSize - LENGTH_BYTES);
    if (length < 2n || length > BigInt(room)) {
      this.fail(
        `header length is ${length}, expected 2 to ${room} (limit ${this.limits.maxHeaderBytes}, file ${fileSize})`,
      );
    }
    return Number(length);
  }

  parse(bytes: Uint8Array, fileSize: number): SafetensorsHeader {
    const length = this.headerLength(bytes, fileSize);
    const json = bytes.subarray(LENGTH_BYTES, LENGTH_BYTES + length);
    if (json.length < length) this.fail(`header is ${length} bytes, only ${json.length} could be read`);
    if (json[0] !== 0x7b) this.fail("the header does not start with '{'");
    const what = `${this.what}: header`;
    const text = decodeUtf8(json, what, this.limits.code);
    const header = parseJsonStrict(text, { maxDepth: MAX_DEPTH, what, code: this.limits.code });
    if (!isJsonObject(header)) this.fail('the header is not an object');
    return this.entries(header, LENGTH_BYTES + length, fileSize);
  }

  private entries(header: JsonObject, dataStart: number, fileSize: number): SafetensorsHeader {
    const names = Object.keys(header).filter((name) => name !== '__metadata__');
    if (names.length > this.limits.maxTensors) {
      this.fail(`the header lists ${names.length} tensors, at most ${this.limits.maxTensors} are allowed`);
    }
    const tensors = names.map((name) => this.tensor(name, header[name] as JsonValue, dataStart));
    this.checkLayout(tensors, dataStart, fileSize);
    return {
      metadata: this.metadata(header['__metadata__']),
      tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])),
    };
  }

  private metadata(value: JsonValue | undefined): ReadonlyMap<string, string> {
    const metadata = new Map<string, string>();
    if (value === undefined) return metadata;
    if (!isJsonObject(value)) this.fail('__metadata__ is not an object');
    for (const [key, text] of Object.entries(value)) {
      if (typeof text !== 'string') this.fail(`__metadata__ ${quoteName(key)} is not a string`);
      metadata.set(key, text);
    }
    return metadata;
  }

  private tensor(name: string, value: JsonValue, dataStart: number): SafetensorsTensor {
    const at = `tensor ${quoteName(name)}`;
    if (name.length > this.limits.maxNameLength) {
      this.fail(`${at}: the name has ${name.length} characters, at most ${this.limits.maxNameLength} are allowed`);
    }
    if (!isJsonObject(value)) this.fail(`${at}: expected an object with dtype, shape and data_offsets`);
    const { dtype, shape, data_offsets: offsets, ...others } = value;
    const unknown = Object.keys(others)[0];
    if (unknown !== undefined) this.fail(`${at}: unknown key ${quoteName(unknown)}`);
    if (typeof dtype !== 'string' || !Object.hasOwn(SAFETENSORS_DTYPES, dtype)) {
      const known = Object.keys(SAFETENSORS_DTYPES).join(', ');
      this.fail(`${at}: dtype is ${this.show(dtype)}, expected one of ${known}`);
    }
    const known = dtype as SafetensorsDtype;
    const dims = this.integers(`${at}: shape`, shape, this.limits.maxDims);
    const range = this.integers(`${at}: data_offsets`, offsets, 2);
    const [begin, end] = range;
    if (begin === undefined || end === undefined || begin > end) {
      this.fail(`${at}: data_offsets are ${this.show(offsets)}, expected [begin, end] with begin <= end`);
    }
    const needed = this.byteSize(at, dims, SAFETENSORS_DTYPES[known]);
    if (end - begin !== needed) {
      this.fail(`${at}: data_offsets span ${end - begin} bytes, shape ${this.show(shape)} of ${known} needs ${needed}`);
    }
    return { name, dtype: known, shape: dims, offset: dataStart + begin, byteLength: needed };
  }

  private integers(at: string, value: JsonValue | undefined, maxLength: number): number[] {
    if (!Array.isArray(value)) this.fail(`${at} is ${this.show(value)}, expected an array`);
    const items: readonly JsonValue[] = value;
    if (items.length > maxLength) this.fail(`${at} has ${items.length} entries, at most ${maxLength} are allowed`);
    return items.map((item) => {
      if (typeof item !== 'number' || !Number.isSafeInteger(item) || item < 0) {
        this.fail(`${at} holds ${this.show(item)}, expected an integer of 0 to 2^53 - 1`);
      }
      return item;
    });
  }

  private byteSize(at: string, shape: readonly number[], elementBytes: number): number {
    let size = elementBytes;
    for (const dim of shape) {
      size *= dim;
      if (size > Number.MAX_SAFE_INTEGER) this.fail(`${at}: shape ${this.show(shape)} has more than 2^53 bytes`);
    }
    return size;
  }

  /** Tensors must follow one another from the first byte of data to the last of the file. */
  private checkLayout(tensors: readonly SafetensorsTensor[], dataStart: number, fileSize: number): void {
    const ordered = [...tensors].sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
    let next = dataStart;
    for (const { name, offset, byteLength } of ordered) {
      const at = `tensor ${quoteName(name)}: data begins at ${offset - dataStart}`;
      if (offset < next) this.fail(`${at}, inside the tensor before it, which ends at ${next - dataStart}`);
      if (offset > next) this.fail(`${at}, leaving a hole after ${next - dataStart}`);
      next = offset + byteLength;
      if (next > fileSize) this.fail(`${at} and ends ${next - fileSize} bytes after the end of the file`);
    }
    if (next !== fileSize) this.fail(`the last tensor ends ${fileSize - next} bytes before the end of the file`);
  }

  private show(value: JsonValue | undefined): string {
    return value === undefined ? 'missing' : (JSON.stringify(value) ?? '').slice(0, 80);
  }
}
