/** A seeded source of numbers and the mutations of byte strings that the fuzzers draw from it. */

/** Uniform numbers of 0 (inclusive) to 1 (exclusive); the same seed gives the same ones. */
export type Random = () => number;

/** Mulberry32: 32 bits of state are plenty for picking mutations. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A whole number of 0 to `below` - 1. */
export function pick(random: Random, below: number): number {
  return Math.floor(random() * below);
}

export function pickFrom<T>(random: Random, items: readonly [T, ...T[]]): T {
  return items[pick(random, items.length)] ?? items[0];
}

/** Lengths and counts at which arithmetic goes wrong. */
const INTEGERS: readonly [bigint, ...bigint[]] = [
  0n,
  1n,
  2n ** 15n,
  2n ** 31n - 1n,
  2n ** 31n,
  2n ** 32n - 1n,
  2n ** 32n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n - 1n,
  2n ** 63n,
  2n ** 64n - 1n,
];
const WORDS: readonly [string, ...string[]] = [
  '{',
  '}',
  '[',
  ']',
  '"',
  ',',
  ':',
  '-1',
  '1e999',
  'null',
  'true',
  '\\ud800',
  '"__proto__":1,',
  '\ufeff',
  '9007199254740993',
];

type Mutation = (bytes: Buffer, random: Random, other: Buffer) => Buffer;

const flipBit: Mutation = (bytes, random) => {
  const at = pick(random, bytes.length);
  bytes[at] = (bytes[at] ?? 0) ^ (1 << pick(random, 8));
  return bytes;
};

const setByte: Mutation = (bytes, random) => {
  bytes[pick(random, bytes.length)] = pick(random, 256);
  return bytes;
};

const setInteger: Mutation = (bytes, random) => {
  if (bytes.length < 8) return bytes;
  bytes.writeBigUInt64LE(pickFrom(random, INTEGERS), pick(random, bytes.length - 7));
  return bytes;
};

/** Near the present value: lengths that are off by a little. */
const nudgeInteger: Mutation = (bytes, random) => {
  if (bytes.length < 4) return bytes;
  const at = pick(random, bytes.length - 3);
  bytes.writeUInt32LE((bytes.readUInt32LE(at) + pick(random, 9) - 4) >>> 0, at);
  return bytes;
};

/** Replaces a run of decimal digits, as JSON has them. */
const setDigits: Mutation = (bytes, random) => {
  const text = bytes.toString('latin1');
  const runs = [...text.matchAll(/[0-9]+/g)];
  const run = runs[pick(random, runs.length)];
  if (run === undefined) return bytes;
  const digits = String(pickFrom(random, INTEGERS));
  return Buffer.from(text.slice(0, run.index) + digits + text.slice(run.index + run[0].length), 'latin1');
};

const cut: Mutation = (bytes, random) => bytes.subarray(0, pick(random, bytes.length));

const remove: Mutation = (bytes, random) => {
  const at = pick(random, bytes.length);
  return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + pick(random, 16))]);
};

const repeat: Mutation = (bytes, random) => {
  const at = pick(random, bytes.length);
  const end = at + 1 + pick(random, 64);
  return Buffer.concat([bytes.subarray(0, end), bytes.subarray(at, end), bytes.subarray(end)]);
};

const splice: Mutation = (bytes, random, other) => {
  const from = pick(random, other.length);
  const piece = other.subarray(from, from + 1 + pick(random, 64));
  const at = pick(random, bytes.length);
  return Buffer.concat([bytes.subarray(0, at), piece, bytes.subarray(at + pick(random, piece.length + 1))]);
};

const insertWord: Mutation = (bytes, random) => {
  const at = pick(random, bytes.length);
  return Buffer.concat([bytes.subarray(0, at), Buffer.from(pickFrom(random, WORDS)), bytes.subarray(at)]);
};

const MUTATIONS: readonly [Mutation, ...Mutation[]] = [
  flipBit,
  setByte,
  setInteger,
  nudgeInteger,
  setDigits,
  cut,
  remove,
  repeat,
  splice,
  insertWord,
];
const MAX_MUTATIONS = 4;
const MAX_BYTES = 1 << 16;

/** One to four mutations of `seed`; pieces of `other` may come in. */
export function mutate(seed: Uint8Array, other: Uint8Array, random: Random): Uint8Array {
  let bytes: Buffer = Buffer.from(seed);
  for (let left = 1 + pick(random, MAX_MUTATIONS); left > 0 && bytes.length > 0; left -= 1) {
    bytes = pickFrom(random, MUTATIONS)(bytes, random, Buffer.from(other));
  }
  return bytes.subarray(0, MAX_BYTES);
}
