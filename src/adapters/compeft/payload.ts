/**
 * The packed bytes of a ComPEFT adapter: a directory of entries and one bit stream for all of them. The format, with every
 * rule that is checked here, is docs/formats/compeft.md. Called by the importer and by compress.ts.
 *
 * The decoder trusts nothing: names, shapes and counts are checked against the bytes that are there before anything is
 * allocated for them, and a stream has exactly one reading.
 */
import { BitReader, BitWriter } from './bitstream.js';
import { decodeUtf8, quoteName } from '../../checkpoint/strict-json.js';
import { wrongTensor } from '../tensor-values.js';
import { bestParameter, leastBits, MAX_PARAMETER, readPositions, writePositions } from './rice.js';
import type { SignedPositions } from './rice.js';

/** Name of the one tensor of the file, U8. */
export const PAYLOAD_TENSOR = 'compeft';
export const COMPEFT_VERSION = 1;
const MAGIC = [0x43, 0x50, 0x46, 0x54] as const;
const MAX_ENTRIES = 65_536;
const MAX_NAME_BYTES = 1024;
const MAX_DIMS = 2;
/** Positions are 32-bit. */
const MAX_SIZE = 2 ** 32 - 1;
const MEND =
  'The file is damaged or hostile; download it again, or compress the adapter again (docs/formats/compeft.md).';

/** 'ternary': positions with signs, each ± scale. 'index': a set of numbers. */
export interface PackedEntry {
  readonly name: string;
  readonly kind: 'ternary' | 'index';
  /** One or two sizes; positions are row-major. For 'index' and flat entries `[n]`, positions below n. */
  readonly shape: readonly number[];
  readonly count: number;
  /** Finite and above 0; 1 for 'index', 0 for an entry with no positions. */
  readonly scale: number;
}

export interface DirectoryEntry extends PackedEntry {
  readonly parameter: number;
}

export interface Payload {
  readonly entries: readonly DirectoryEntry[];
  readonly stream: Uint8Array;
}

/** The entry's name and its positions. */
export interface EntryToPack extends SignedPositions {
  readonly name: string;
  readonly shape: readonly number[];
  /** Of a ternary entry; absent: the positions are a set. */
  readonly scale?: number;
}

export function encodePayload(entries: readonly EntryToPack[]): Uint8Array {
  const sorted = [...entries].sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
  const out: number[] = [...MAGIC, COMPEFT_VERSION];
  const writer = new BitWriter();
  pushVarint(out, sorted.length);
  let before: Uint8Array = new Uint8Array(0);
  for (const entry of sorted) {
    const name = Buffer.from(entry.name);
    const parameter = bestParameter(entry.positions);
    pushName(out, name, before);
    out.push((entry.scale === undefined ? 0x80 : 0) | entry.shape.length);
    for (const size of entry.shape) pushVarint(out, size);
    pushVarint(out, entry.positions.length);
    if (entry.positions.length > 0) {
      out.push(parameter);
      if (entry.scale !== undefined) out.push(...new Uint8Array(new Float32Array([entry.scale]).buffer));
    }
    writePositions(writer, entry, parameter);
    before = name;
  }
  return Buffer.concat([Buffer.from(out), writer.finish()]);
}

function pushName(out: number[], name: Uint8Array, before: Uint8Array): void {
  let shared = 0;
  while (shared < name.length && shared < before.length && name[shared] === before[shared]) shared += 1;
  pushVarint(out, shared);
  pushVarint(out, name.length - shared);
  out.push(...name.subarray(shared));
}

/** Seven bits a byte, the lowest first; the high bit says that more follow. */
function pushVarint(out: number[], value: number): void {
  for (; value >= 128; value = Math.floor(value / 128)) out.push((value % 128) | 128);
  out.push(value);
}

/** Reads and checks the directory; nothing of the stream. Throws 'invalid_adapter'. */
export function readPayload(bytes: Uint8Array): Payload {
  const cursor = new Cursor(bytes);
  if (MAGIC.some((byte) => cursor.byte() !== byte)) throw damaged('the payload does not begin with "CPFT"');
  const version = cursor.byte();
  if (version !== COMPEFT_VERSION) throw damaged(`the payload has version ${version}, expected ${COMPEFT_VERSION}`);
  const count = cursor.varint();
  if (count > MAX_ENTRIES) throw damaged(`the directory has ${count} entries, at most ${MAX_ENTRIES} are allowed`);
  const entries: DirectoryEntry[] = [];
  let before: Uint8Array = new Uint8Array(0);
  for (let i = 0; i < count; i += 1) {
    before = cursor.name(before, i > 0);
    entries.push(readEntry(cursor, decodeUtf8(before, 'adapter_model.safetensors: an entry', 'invalid_adapter')));
  }
  const stream = cursor.rest();
  const least = entries.reduce(
    (sum, entry) => sum + entry.count * leastBits(entry.parameter, entry.kind === 'ternary'),
    0,
  );
  if (least > 8 * stream.length) {
    throw damaged(`the stream has ${8 * stream.length} bits, the counts of its directory need at least ${least}`);
  }
  return { entries, stream };
}

function readEntry(cursor: Cursor, name: string): DirectoryEntry {
  const at = `entry ${quoteName(name)}`;
  const form = cursor.byte();
  const kind = (form & 0x80) !== 0 ? 'index' : 'ternary';
  const dims = form & 0x7f;
  if (dims < 1 || dims > (kind === 'index' ? 1 : MAX_DIMS)) {
    throw damaged(`${at} has form byte ${form}, expected 1 or 2 (sizes of a ternary tensor) or 129 (an index)`);
  }
  const shape = Array.from({ length: dims }, () => cursor.varint());
  const size = shape.reduce((product, dim) => product * dim, 1);
  if (size < 1 || size > MAX_SIZE)
    throw damaged(`${at} has shape [${shape.join(', ')}], expected 1 to ${MAX_SIZE} values`);
  const count = cursor.varint();
  if (count > size) throw damaged(`${at} has ${count} non-zeros, its shape [${shape.join(', ')}] has ${size} values`);
  if (count === 0) return { name, kind, shape, count, parameter: 0, scale: 0 };
  const parameter = cursor.byte();
  if (parameter > MAX_PARAMETER) throw damaged(`${at} has parameter ${parameter}, at most ${MAX_PARAMETER} is allowed`);
  const scale = kind === 'index' ? 1 : cursor.float32();
  if (!Number.isFinite(scale) || scale <= 0)
    throw damaged(`${at} has scale ${scale}, expected a finite number above 0`);
  return { name, kind, shape, count, parameter, scale };
}

/**
 * The positions of each entry in turn. The caller may only then allocate for them what their shapes need. Throws when the
 * stream breaks a rule, also at its end: fewer than 8 bits may be left, all zero.
 */
export function* readStream({ entries, stream }: Payload): Generator<SignedPositions, void> {
  const reader = new BitReader(stream);
  for (const { name, kind, shape, count, parameter } of entries) {
    const size = shape.reduce((product, dim) => product * dim, 1);
    const found = readPositions(reader, { count, parameter, signed: kind === 'ternary', size });
    if (typeof found === 'string') throw damaged(`entry ${quoteName(name)}: ${found}`);
    yield found;
  }
  const left = reader.bitsLeft;
  if (left >= 8 || reader.read(left) !== 0) {
    throw damaged(`${left} bits follow the last position, expected less than 8, all of them zero`);
  }
}

class Cursor {
  #at = 0;

  constructor(private readonly bytes: Uint8Array) {}

  byte(): number {
    const value = this.bytes[this.#at];
    if (value === undefined) throw damaged('the payload ends inside its directory');
    this.#at += 1;
    return value;
  }

  /** At most 2^53; the shortest form only. */
  varint(): number {
    let value = 0;
    for (let factor = 1; factor < 2 ** 49; factor *= 128) {
      const byte = this.byte();
      value += (byte & 127) * factor;
      if (byte >= 128) continue;
      if (byte === 0 && factor > 1) break;
      return value;
    }
    throw damaged('a number of the directory is longer than it need be');
  }

  float32(): number {
    const bytes = Uint8Array.from({ length: 4 }, () => this.byte());
    return new DataView(bytes.buffer).getFloat32(0, true);
  }

  /** Behind `before` in the order of bytes, which also makes every name unique. */
  name(before: Uint8Array, ordered: boolean): Uint8Array {
    const shared = this.varint();
    const length = this.varint();
    if (shared > before.length || shared + length > MAX_NAME_BYTES) {
      throw damaged(`a name shares ${shared} bytes of ${before.length} and has ${length} of its own`);
    }
    const name = Buffer.concat([before.subarray(0, shared), Uint8Array.from({ length }, () => this.byte())]);
    if (name.length === 0 || (ordered && Buffer.compare(before, name) >= 0)) {
      throw damaged('the names of the directory do not ascend');
    }
    return name;
  }

  rest(): Uint8Array {
    return this.bytes.subarray(this.#at);
  }
}

function damaged(problem: string): Error {
  return wrongTensor(problem, MEND);
}
