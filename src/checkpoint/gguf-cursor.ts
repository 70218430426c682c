/**
 * A place in the first bytes of a GGUF file, and the values that are read there. Everything is checked before it is
 * believed: lengths against limits, limits against the real file. Used by the header parser in gguf.
 */
import { isUtf8 } from 'node:buffer';

import { bug, ManyfoldError } from '../core/errors.js';
import type { GgufArray, GgufValue } from './checkpoint.js';
import {
  GGUF_ARRAY,
  GGUF_BOOL,
  GGUF_FLOAT32,
  GGUF_FLOAT64,
  GGUF_INT16,
  GGUF_INT32,
  GGUF_INT64,
  GGUF_INT8,
  GGUF_STRING,
  GGUF_UINT16,
  GGUF_UINT32,
  GGUF_UINT64,
  GGUF_UINT8,
  GGUF_VALUE_BYTES,
} from './gguf-types.js';

export interface GgufLimits {
  readonly maxHeaderBytes: number;
  readonly maxMetadata: number;
  readonly maxTensors: number;
  readonly maxArrayLength: number;
  readonly maxArrayDepth: number;
  readonly maxStringBytes: number;
  readonly maxNameBytes: number;
  readonly maxDims: number;
  readonly maxDim: number;
}

export const GGUF_LIMITS: GgufLimits = {
  maxHeaderBytes: 256 << 20,
  maxMetadata: 100_000,
  maxTensors: 100_000,
  maxArrayLength: 1_000_000,
  maxArrayDepth: 4,
  maxStringBytes: 10_000_000,
  maxNameBytes: 65_535,
  maxDims: 4,
  maxDim: 2 ** 32,
};

const MEND = 'The file is damaged or hostile; download it again, or convert the model again.';

/** Thrown when the bytes at hand end before `needed`; the item is read again with more. */
export class NeedMore extends Error {
  constructor(readonly needed: number) {
    super(`the header needs ${needed} bytes`);
  }
}

export class GgufCursor {
  private bytes: Buffer = Buffer.alloc(0);
  /** Bytes from the start of the file. */
  at = 0;

  constructor(
    readonly fileSize: number,
    readonly limits: GgufLimits,
    private readonly what: string,
  ) {}

  fail(problem: string, mend = MEND): never {
    throw new ManyfoldError('invalid_model', `${this.what}: ${problem}. ${mend}`);
  }

  /** Goes on with a longer run of the file's first bytes. */
  feed(bytes: Uint8Array): void {
    this.bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  tooMany(what: string, count: bigint | number, limit: number): never {
    this.fail(`${count} ${what}, at most ${limit} are allowed`);
  }

  value(type: number, at: string, depth: number): GgufValue {
    switch (type) {
      case GGUF_UINT8:
        return this.bytes.readUInt8(this.take(1));
      case GGUF_INT8:
        return this.bytes.readInt8(this.take(1));
      case GGUF_UINT16:
        return this.bytes.readUInt16LE(this.take(2));
      case GGUF_INT16:
        return this.bytes.readInt16LE(this.take(2));
      case GGUF_UINT32:
        return this.uint32();
      case GGUF_INT32:
        return this.bytes.readInt32LE(this.take(4));
      case GGUF_FLOAT32:
        return this.bytes.readFloatLE(this.take(4));
      case GGUF_BOOL:
        return this.bool(at);
      case GGUF_STRING:
        return this.text(at);
      case GGUF_ARRAY:
        return this.array(at, depth + 1);
      case GGUF_UINT64:
        return narrow(this.uint64());
      case GGUF_INT64:
        return narrow(this.bytes.readBigInt64LE(this.take(8)));
      case GGUF_FLOAT64:
        return this.bytes.readDoubleLE(this.take(8));
      default:
        return this.fail(`${at} has value type ${type}, which GGUF does not define`);
    }
  }

  private array(at: string, depth: number): GgufArray {
    if (depth > this.limits.maxArrayDepth) this.fail(`${at} nests arrays deeper than ${this.limits.maxArrayDepth}`);
    const type = this.uint32();
    const length = this.uint64();
    const limit = this.limits.maxArrayLength;
    if (length > BigInt(limit)) this.tooMany(`values in the array of ${at}`, length, limit);
    const elementBytes = GGUF_VALUE_BYTES[type];
    if (elementBytes === undefined) this.fail(`${at} is an array of type ${type}, which GGUF does not define`);
    const count = Number(length);
    // Checked before anything is allocated: the array must fit into the file even if every element is empty.
    this.require(count * elementBytes);
    switch (type) {
      case GGUF_STRING:
        return repeat(count, () => this.text(at));
      case GGUF_ARRAY:
        return repeat(count, () => this.array(at, depth + 1));
      case GGUF_BOOL:
        return repeat(count, () => this.bool(at));
      default:
        return this.numbers(type, count, elementBytes);
    }
  }

  private numbers(type: number, count: number, elementBytes: number): GgufArray {
    const start = this.take(count * elementBytes);
    // A copy, so that the elements are aligned and the header's buffer can go.
    const copy = Uint8Array.from(this.bytes.subarray(start, start + count * elementBytes)).buffer;
    switch (type) {
      case GGUF_UINT8:
        return new Uint8Array(copy);
      case GGUF_INT8:
        return new Int8Array(copy);
      case GGUF_UINT16:
        return new Uint16Array(copy);
      case GGUF_INT16:
        return new Int16Array(copy);
      case GGUF_UINT32:
        return new Uint32Array(copy);
      case GGUF_INT32:
        return new Int32Array(copy);
      case GGUF_FLOAT32:
        return new Float32Array(copy);
      case GGUF_FLOAT64:
        return new Float64Array(copy);
      case GGUF_UINT64:
        return narrowAll(new BigUint64Array(copy));
      case GGUF_INT64:
        return narrowAll(new BigInt64Array(copy));
      default:
        return bug(`GGUF array type ${type} has no reader`);
    }
  }

  private bool(at: string): boolean {
    const byte = this.bytes.readUInt8(this.take(1));
    if (byte > 1) this.fail(`${at} holds a boolean of value ${byte}, expected 0 or 1`);
    return byte === 1;
  }

  private text(at: string): string {
    return this.string(this.length(at, this.limits.maxStringBytes), 0, at);
  }

  name(what: string): string {
    return this.string(this.length(what, this.limits.maxNameBytes), 1, what);
  }

  /** Two 32-bit reads: a 64-bit one makes a bigint, which costs most of the time of a large vocabulary. */
  private length(at: string, limit: number): number {
    const low = this.uint32();
    const high = this.uint32();
    if (high !== 0 || low > limit) {
      this.fail(`${at} has a string of ${high * 2 ** 32 + low} bytes, at most ${limit} are allowed`);
    }
    return low;
  }

  string(length: number, least: number, at: string): string {
    if (length < least) this.fail(`${at} is empty`);
    const start = this.take(length);
    const text = this.bytes.toString('utf8', start, start + length);
    // The replacement character may be the text's own; only then are the bytes looked at again.
    if (text.includes('\ufffd') && !isUtf8(this.bytes.subarray(start, start + length))) {
      this.fail(`${at} holds a string that is not UTF-8`);
    }
    return text;
  }

  uint32(): number {
    return this.bytes.readUInt32LE(this.take(4));
  }

  uint64(): bigint {
    return this.bytes.readBigUInt64LE(this.take(8));
  }

  /** Moves past `length` bytes and returns where they begin. */
  private take(length: number): number {
    this.require(length);
    const start = this.at;
    this.at += length;
    return start;
  }

  private require(length: number): void {
    const end = this.at + length;
    if (end <= this.bytes.length) return;
    if (end > this.fileSize) this.fail(`the header runs past the end of the file at ${this.fileSize} bytes`);
    if (end > this.limits.maxHeaderBytes) this.fail(`the header is longer than ${this.limits.maxHeaderBytes} bytes`);
    throw new NeedMore(end);
  }
}

function repeat<T>(count: number, next: () => T): readonly T[] {
  const list: T[] = [];
  for (let i = 0; i < count; i += 1) list.push(next());
  return list;
}

function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}

function narrowAll(values: BigUint64Array | BigInt64Array): readonly number[] | readonly bigint[] {
  const list = Array.from<bigint>(values);
  return list.every((value) => Number.isSafeInteger(Number(value))) ? list.map(Number) : list;
}
