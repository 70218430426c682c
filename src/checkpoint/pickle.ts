/**
 * Python pickles as plain data, for the files that torch.save writes. Nothing is ever run: the opcodes that build data are
 * carried out on plain values, the few globals of pickle-globals.ts stand for a value each, and any other opcode or global is
 * refused by name. Lengths are checked against the bytes that are there. Used by torch-file.
 */
import { ManyfoldError } from '../core/errors.js';
import { applyGlobal, Global, NumpyDtype } from './pickle-globals.js';
import type { PickleKey, PickleValue } from './pickle-globals.js';
import { decodeUtf8, quoteName } from './strict-json.js';

export interface PickleOptions {
  /** Names the file in messages. */
  readonly what: string;
  /** The value that a persistent id stands for (torch: a storage). */
  persistent(id: PickleValue): PickleValue;
}

/** Values that one pickle may make; a list of indices of a large adapter has some millions. */
const MAX_OPERATIONS = 2 ** 28;

/** Reads one pickle, from its first byte to its last. Throws 'invalid_adapter'. */
export function readPickle(bytes: Uint8Array, options: PickleOptions): PickleValue {
  return new Machine(bytes, options).run();
}

const MARK = Symbol('mark');
type Slot = PickleValue | typeof MARK;

class Machine {
  readonly #view: DataView;
  readonly #stack: Slot[] = [];
  readonly #memo = new Map<number, PickleValue>();
  #at = 0;
  #result: PickleValue | undefined;

  constructor(
    private readonly bytes: Uint8Array,
    private readonly options: PickleOptions,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): PickleValue {
    for (let count = 0; this.#result === undefined; count += 1) {
      if (count > MAX_OPERATIONS) this.fail(`the pickle has more than ${MAX_OPERATIONS} operations`);
      const opcode = this.unsigned(1);
      const operation = OPERATIONS.get(opcode);
      if (operation === undefined) {
        this.fail(`the pickle has opcode 0x${opcode.toString(16).padStart(2, '0')}, which no plain data needs`);
      }
      operation(this);
    }
    if (this.#at !== this.bytes.length) this.fail(`${this.bytes.length - this.#at} bytes follow the end of the pickle`);
    if (this.#stack.length > 0) this.fail('the pickle leaves values behind');
    return this.#result;
  }

  fail(problem: string): never {
    const mend =
      'Only tensors, dictionaries, lists, numbers and strings are read; save the tensors alone with torch.save, or write ' +
      'them with safetensors.';
    throw new ManyfoldError('invalid_adapter', `${this.options.what}: ${problem}. ${mend}`);
  }

  take(length: number): Uint8Array {
    if (length > this.bytes.length - this.#at) {
      this.fail(`the pickle is cut off: ${length} bytes at ${this.#at} of ${this.bytes.length} are missing`);
    }
    this.#at += length;
    return this.bytes.subarray(this.#at - length, this.#at);
  }

  unsigned(width: 1 | 2 | 4 | 8): number {
    const at = this.#at;
    this.take(width);
    if (width === 1) return this.#view.getUint8(at);
    if (width === 2) return this.#view.getUint16(at, true);
    if (width === 4) return this.#view.getUint32(at, true);
    const value = this.#view.getBigUint64(at, true);
    if (value > BigInt(this.bytes.length)) this.fail(`a length of ${value} bytes is more than the file has`);
    return Number(value);
  }

  signed32(): number {
    const at = this.#at;
    this.take(4);
    return this.#view.getInt32(at, true);
  }

  double(): number {
    const at = this.#at;
    this.take(8);
    return this.#view.getFloat64(at, false);
  }

  /** LONG1: little-endian two's complement. */
  long(): number {
    const bytes = this.take(this.unsigned(1));
    if (bytes.length > 8) this.fail(`a number has ${bytes.length} bytes, at most 8 are read`);
    let value = 0n;
    for (const [i, byte] of bytes.entries()) value |= BigInt(byte) << BigInt(8 * i);
    const signed = Number(BigInt.asIntN(8 * bytes.length, value));
    if (!Number.isSafeInteger(signed)) this.fail('a number is larger than 2^53');
    return signed;
  }

  text(length: number): string {
    return decodeUtf8(this.take(length), `${this.options.what}: a string`, 'invalid_adapter');
  }

  line(): string {
    const end = this.bytes.indexOf(0x0a, this.#at);
    if (end === -1) this.fail('the pickle is cut off within a name');
    const text = this.text(end - this.#at);
    this.#at += 1;
    return text;
  }

  push(value: Slot): void {
    this.#stack.push(value);
  }

  pop(): PickleValue {
    const value = this.#stack.pop();
    if (value === undefined || value === MARK) this.fail('the pickle takes a value that is not there');
    return value;
  }

  top(): PickleValue {
    const value = this.#stack.at(-1);
    if (value === undefined || value === MARK) this.fail('the pickle takes a value that is not there');
    return value;
  }

  /** The values above the last mark, which is taken away. */
  popMark(): PickleValue[] {
    const mark = this.#stack.lastIndexOf(MARK);
    if (mark === -1) this.fail('the pickle takes a mark that is not there');
    const values = this.#stack.splice(mark);
    return values.slice(1) as PickleValue[];
  }

  tuple(count: number): void {
    const values: PickleValue[] = [];
    for (let i = 0; i < count; i += 1) values.unshift(this.pop());
    this.push(values);
  }

  put(index: number): void {
    this.#memo.set(index, this.top());
  }

  memoize(): void {
    this.put(this.#memo.size);
  }

  get(index: number): void {
    const value = this.#memo.get(index);
    if (value === undefined) this.fail(`the pickle reads note ${index}, which it never wrote`);
    this.push(value);
  }

  global(module: string, name: string): void {
    const found = Global.find(`${module}.${name}`);
    if (found === undefined) {
      this.fail(`the pickle names ${quoteName(`${module}.${name}`)}, which is not read because it could run code`);
    }
    this.push(found);
  }

  stackGlobal(): void {
    const [name, module] = [this.pop(), this.pop()];
    if (typeof name !== 'string' || typeof module !== 'string') this.fail('a global has no name');
    this.global(module, name);
  }

  reduce(): void {
    const [args, callee] = [this.pop(), this.pop()];
    if (!(callee instanceof Global) || !Array.isArray(args)) this.fail('the pickle calls something that is no global');
    this.push(applyGlobal(callee, args, (problem) => this.fail(problem)));
  }

  /** State of an object: numpy's byte order counts, attributes of a dictionary do not. */
  build(): void {
    const state = this.pop();
    const target = this.top();
    if (target instanceof NumpyDtype && Array.isArray(state)) return target.setState(state, (p) => this.fail(p));
    if (target instanceof Map && state instanceof Map) return;
    this.fail('the pickle sets the state of something that has none');
  }

  append(values: readonly PickleValue[]): void {
    const list = this.top();
    if (!Array.isArray(list)) this.fail('the pickle appends to something that is no list');
    for (const value of values) list.push(value);
  }

  setItems(items: readonly PickleValue[]): void {
    const map = this.top();
    if (!(map instanceof Map) || items.length % 2 !== 0)
      this.fail('the pickle sets an item of something without items');
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i];
      if (typeof key !== 'string' && typeof key !== 'number') this.fail('a key is neither string nor number');
      if (map.has(key)) this.fail(`the key ${quoteName(String(key))} stands twice`);
      map.set(key, items[i + 1] as PickleValue);
    }
  }

  persistent(): void {
    this.push(this.options.persistent(this.pop()));
  }

  stop(): void {
    this.#result = this.pop();
  }
}

/** What data needs, of protocols 2 to 5. */
const OPERATIONS: ReadonlyMap<number, (machine: Machine) => void> = new Map<number, (machine: Machine) => void>([
  [0x80, (m) => m.unsigned(1)], // PROTO
  [0x95, (m) => m.unsigned(8)], // FRAME
  [0x2e, (m) => m.stop()], // STOP
  [0x28, (m) => m.push(MARK)], // MARK
  [0x4e, (m) => m.push(null)], // NONE
  [0x88, (m) => m.push(true)], // NEWTRUE
  [0x89, (m) => m.push(false)], // NEWFALSE
  [0x4a, (m) => m.push(m.signed32())], // BININT
  [0x4b, (m) => m.push(m.unsigned(1))], // BININT1
  [0x4d, (m) => m.push(m.unsigned(2))], // BININT2
  [0x8a, (m) => m.push(m.long())], // LONG1
  [0x47, (m) => m.push(m.double())], // BINFLOAT
  [0x58, (m) => m.push(m.text(m.unsigned(4)))], // BINUNICODE
  [0x8c, (m) => m.push(m.text(m.unsigned(1)))], // SHORT_BINUNICODE
  [0x8d, (m) => m.push(m.text(m.unsigned(8)))], // BINUNICODE8
  [0x43, (m) => m.push(m.take(m.unsigned(1)))], // SHORT_BINBYTES
  [0x42, (m) => m.push(m.take(m.unsigned(4)))], // BINBYTES
  [0x7d, (m) => m.push(new Map<PickleKey, PickleValue>())], // EMPTY_DICT
  [0x5d, (m) => m.push([])], // EMPTY_LIST
  [0x29, (m) => m.push([])], // EMPTY_TUPLE
  [0x85, (m) => m.tuple(1)], // TUPLE1
  [0x86, (m) => m.tuple(2)], // TUPLE2
  [0x87, (m) => m.tuple(3)], // TUPLE3
  [0x74, (m) => m.push(m.popMark())], // TUPLE
  [0x61, (m) => m.append([m.pop()])], // APPEND
  [0x65, (m) => m.append(m.popMark())], // APPENDS
  [0x73, (m) => m.setItems([m.pop(), m.pop()].reverse())], // SETITEM
  [0x75, (m) => m.setItems(m.popMark())], // SETITEMS
  [0x71, (m) => m.put(m.unsigned(1))], // BINPUT
  [0x72, (m) => m.put(m.unsigned(4))], // LONG_BINPUT
  [0x94, (m) => m.memoize()], // MEMOIZE
  [0x68, (m) => m.get(m.unsigned(1))], // BINGET
  [0x6a, (m) => m.get(m.unsigned(4))], // LONG_BINGET
  [0x63, (m) => m.global(m.line(), m.line())], // GLOBAL
  [0x93, (m) => m.stackGlobal()], // STACK_GLOBAL
  [0x52, (m) => m.reduce()], // REDUCE
  [0x62, (m) => m.build()], // BUILD
  [0x51, (m) => m.persistent()], // BINPERSID
]);
