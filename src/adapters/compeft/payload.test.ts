import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import fc from 'fast-check';
import { ManyfoldError } from '../../core/errors.js';
import { encodePayload, readPayload, readStream } from './payload.js';
import type { EntryToPack, PackedEntry } from './payload.js';
import { fromPlanes, planeRows, toPlanes } from './planes.js';
import { bestParameter } from './rice.js';
import type { SignedPositions } from './rice.js';

/** A ternary matrix by its values -1, 0 and 1. */
function entryOf(name: string, shape: readonly number[], values: readonly number[], scale = 0.5): EntryToPack {
  const kept = [...values.entries()].filter(([, value]) => value !== 0);
  const positions = Uint32Array.from(kept, ([at]) => at);
  return { name, shape, positions, negative: Uint8Array.from(kept, ([, value]) => (value < 0 ? 1 : 0)), scale };
}

function decode(bytes: Uint8Array): [PackedEntry, SignedPositions][] {
  const payload = readPayload(bytes);
  return [...readStream(payload)].map((positions, i) => [payload.entries[i] as PackedEntry, positions]);
}

const names = fc.uniqueArray(fc.string({ minLength: 1, maxLength: 30, unit: 'grapheme' }), {
  minLength: 1,
  maxLength: 6,
});
const matrices = fc
  .record({
    rows: fc.integer({ min: 1, max: 9 }),
    cols: fc.integer({ min: 1, max: 80 }),
    density: fc.constantFrom(0, 0.02, 0.1, 0.5, 1),
  })
  .chain(({ rows, cols, density }) =>
    fc.record({
      shape: fc.constant([rows, cols] as const),
      values: fc.array(
        fc
          .tuple(fc.double({ min: 0, max: 1, noNaN: true }), fc.boolean())
          .map(([u, sign]) => (u >= density ? 0 : sign ? 1 : -1)),
        { minLength: rows * cols, maxLength: rows * cols },
      ),
      scale: fc.double({ min: 1e-30, max: 1e30, noNaN: true }).map(Math.fround),
    }),
  );

test('encode, decode and planes give back every sign, shape and scale, bit for bit', () => {
  fc.assert(
    fc.property(names, fc.array(matrices, { minLength: 6, maxLength: 6 }), (given, drawn) => {
      const entries = given.map((name, i) => {
        const { shape, values, scale } = drawn[i] as (typeof drawn)[number];
        return entryOf(name, shape, values, scale);
      });
      const bytes = encodePayload(entries);
      const found = decode(bytes);
      assert.equal(found.length, entries.length);
      for (const [entry, positions] of found) {
        const source = entries.find(({ name }) => name === entry.name) ?? assert.fail(`no entry ${entry.name}`);
        assert.deepEqual(entry.shape, source.shape);
        assert.equal(entry.scale, source.positions.length === 0 ? 0 : source.scale);
        assert.deepEqual(positions, { positions: source.positions, negative: source.negative });
        const planes = toPlanes(positions, entry.shape as [number, number], entry.scale);
        assert.deepEqual(fromPlanes(planes), positions);
        planes.positive.forEach((word, i) => assert.equal(word & (planes.negative[i] as number), 0));
      }
      const again = found.map(([entry, positions]) => ({ ...entry, ...positions }));
      assert.deepEqual(encodePayload(again), bytes);
    }),
    { numRuns: 200 },
  );
});

test('counting bits of planes gives the integer dot product of two ternary tensors', () => {
  const bits = (word: number): number => word.toString(2).replaceAll('0', '').length;
  fc.assert(
    fc.property(matrices, fc.integer({ min: 1, max: 1000 }), ({ shape, values }, seed) => {
      const others = values.map((_, i) => ((i * seed) % 3) - 1);
      const [a, b] = [values, others].map((of) => toPlanes(entryOf('x', shape, of), [shape[0], shape[1]], 1));
      assert.ok(a !== undefined && b !== undefined);
      const common = (one: Uint32Array, two: Uint32Array): number =>
        one.reduce((sum, word, i) => sum + bits((word & (two[i] ?? 0)) >>> 0), 0);
      const same = common(a.positive, b.positive) + common(a.negative, b.negative);
      const opposite = common(a.positive, b.negative) + common(a.negative, b.positive);
      const dot = values.reduce<number>((sum, value, i) => sum + value * (others[i] ?? 0), 0);
      assert.equal(same - opposite, dot);
    }),
    { numRuns: 100 },
  );
});

test('rows of planes are rows of the matrix', () => {
  const values = Array.from({ length: 4 * 40 }, (_, i) => [0, 1, -1, 0, 0][(i * 7) % 5] as number);
  const entry = entryOf('x', [4, 40], values);
  const part = planeRows(toPlanes(entry, [4, 40], 1), 1, 2);
  const expected = entryOf('x', [2, 40], values.slice(40, 120));
  assert.deepEqual(fromPlanes(part), { positions: expected.positions, negative: expected.negative });
});

test('an index and a flat tensor that reaches to the last 32-bit position', () => {
  const index = { name: 'a', shape: [2 ** 32 - 1], positions: Uint32Array.of(0, 5, 2 ** 32 - 2) };
  const flat = {
    name: 'b',
    shape: [2 ** 32 - 1],
    positions: Uint32Array.of(2 ** 32 - 2),
    negative: Uint8Array.of(1),
    scale: 2,
  };
  const [[first, members], [second, values]] = decode(encodePayload([flat, index])) as [
    [PackedEntry, SignedPositions],
    [PackedEntry, SignedPositions],
  ];
  assert.equal(first.kind, 'index');
  assert.deepEqual(members, { positions: index.positions });
  assert.equal(second.scale, 2);
  assert.deepEqual(values, { positions: flat.positions, negative: flat.negative });
});

test('the parameter has the fewest bits, and density 0.1 takes the paper’s 0.576 bits a value', () => {
  const values = pseudoRandom(100_000).map((u) => (u < 0.05 ? 1 : u < 0.1 ? -1 : 0));
  const entry = entryOf('x', [100, 1000], values);
  assert.equal(bestParameter(entry.positions), 3);
  const bits = (8 * encodePayload([entry]).length) / values.length;
  assert.ok(Math.abs(bits - 0.576) < 0.01, `${bits} bits a value`);
});

function pseudoRandom(count: number): number[] {
  let state = 1;
  return Array.from({ length: count }, () => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) / 2 ** 32);
}

describe('a payload that breaks a rule is refused before anything is allocated for it', () => {
  const head = [0x43, 0x50, 0x46, 0x54, 1];
  /** One ternary entry `a` of [2, 3] with one position. */
  const entry = (
    change: Partial<Record<'shape' | 'count' | 'parameter' | 'scale' | 'form', readonly number[]>> = {},
  ): number[] => [
    ...[0, 1, 0x61],
    ...(change.form ?? [2]),
    ...(change.shape ?? [2, 3]),
    ...(change.count ?? [1]),
    ...(change.parameter ?? [0]),
    ...(change.scale ?? [0, 0, 0x80, 0x3f]),
  ];
  const cases: readonly (readonly [string, readonly number[], RegExp])[] = [
    ['other magic', [0x43, 0x50, 0x46, 0x55, 1, 0], /does not begin with "CPFT"/],
    ['other version', [0x43, 0x50, 0x46, 0x54, 2, 0], /version 2, expected 1/],
    ['an end inside the directory', [...head, 2, ...entry()], /ends inside its directory/],
    ['many entries', [...head, 0xff, 0xff, 0x7f], /has 2097151 entries, at most 65536/],
    ['a long number', [...head, 0x81, 0x00], /longer than it need be/],
    ['an endless number', [...head, ...Array.from({ length: 20 }, () => 0xff)], /longer than it need be/],
    ['no name', [...head, 1, 0, 0, 2, 1, 1, 0], /do not ascend/],
    ['a shared name before any', [...head, 1, 3, 0], /shares 3 bytes of 0/],
    ['a long name', [...head, 1, 0, 0xff, 0x7f], /has 16383 of its own/],
    ['the same name twice', [...head, 2, ...entry(), 1, 0, 2, 1, 1, 0, 0b00], /do not ascend/],
    ['a name that is no text', [...head, 1, 0, 1, 0xff, 2, 1, 1, 0], /expected UTF-8/],
    ['an unknown form', [...head, 1, ...entry({ form: [3], shape: [1, 1, 1] })], /has form byte 3/],
    ['an index of two sizes', [...head, 1, ...entry({ form: [130] })], /has form byte 130/],
    ['an empty shape', [...head, 1, ...entry({ shape: [0, 3] })], /shape \[0, 3\]/],
    [
      'a huge shape',
      [...head, 1, ...entry({ shape: [0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0x7f] })],
      /expected 1 to 4294967295/,
    ],
    ['more non-zeros than values', [...head, 1, ...entry({ count: [7] }), 0, 0], /has 7 non-zeros/],
    ['a large parameter', [...head, 1, ...entry({ parameter: [31] }), 0], /parameter 31, at most 30/],
    ['scale NaN', [...head, 1, ...entry({ scale: [0, 0, 0xc0, 0x7f] }), 0], /scale NaN/],
    ['scale infinity', [...head, 1, ...entry({ scale: [0, 0, 0x80, 0x7f] }), 0], /scale Infinity/],
    ['scale 0', [...head, 1, ...entry({ scale: [0, 0, 0, 0] }), 0], /scale 0/],
    ['scale below 0', [...head, 1, ...entry({ scale: [0, 0, 0x80, 0xbf] }), 0], /scale -1/],
    [
      'counts that the stream cannot hold',
      [...head, 1, ...entry({ count: [6] }), 0],
      /has 8 bits, the counts .* at least 12/,
    ],
    ['a unary bomb', [...head, 1, ...entry(), 0xff, 0xff, 0xff], /behind the last of 6 values/],
    [
      'a position behind the tensor',
      [...head, 1, ...entry({ parameter: [3] }), 0b01110],
      /behind the last of 6 values/,
    ],
    [
      'a stream that ends early',
      [...head, 1, ...entry({ parameter: [0], count: [2] }), 0b00011111],
      /or the stream ends/,
    ],
    ['bits that are left', [...head, 1, ...entry(), 0b10000000], /expected less than 8, all of them zero/],
    ['bytes that are left', [...head, 1, ...entry(), 0, 0], /14 bits follow/],
  ];
  for (const [name, bytes, message] of cases) {
    test(name, () => {
      assert.throws(
        () => decode(Uint8Array.from(bytes)),
        (error) => error instanceof ManyfoldError && error.code === 'invalid_adapter' && message.test(error.message),
      );
    });
  }

  test('the same without a fault', () => {
    const [[found, positions]] = decode(Uint8Array.from([...head, 1, ...entry(), 0b101])) as [
      [PackedEntry, SignedPositions],
    ];
    assert.deepEqual([found.name, found.shape, found.scale], ['a', [2, 3], 1]);
    assert.deepEqual(positions, { positions: Uint32Array.of(1), negative: Uint8Array.of(1) });
  });
});
