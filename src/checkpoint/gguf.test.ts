import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import fc from 'fast-check';

import { ManyfoldError } from '../core/errors.js';
import { parseGguf, readGguf } from './gguf.js';
import type { GgufHeader } from './gguf.js';
import { GGUF_LIMITS } from './gguf-cursor.js';
import { bool, float32, ggufBytes, text, texts, uint32 } from './testing/container-bytes.js';
import type { TestGguf, TestGgufTensor, TestValue } from './testing/container-bytes.js';

let folder = '';
before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'manyfold-gguf-'));
});
after(() => rm(folder, { recursive: true }));

const parse = (file: TestGguf, limits = GGUF_LIMITS): GgufHeader => {
  const bytes = ggufBytes(file);
  return parseGguf(bytes, bytes.length, limits, 'x.gguf');
};
const array = (of: number, items: readonly (number | bigint | boolean)[]): TestValue => ({ type: 9, of, items });
const F32_4: TestGgufTensor = { name: 't', dims: [4], type: 0, offset: 0 };

test('values of every type come back', () => {
  const { metadata, version } = parse({
    version: 2,
    metadata: [
      ['u8', { type: 0, value: 255 }],
      ['i8', { type: 1, value: -128 }],
      ['u16', { type: 2, value: 65535 }],
      ['i16', { type: 3, value: -32768 }],
      ['u32', uint32(2 ** 32 - 1)],
      ['i32', { type: 5, value: -5 }],
      ['f32', float32(0.5)],
      ['bool', bool(true)],
      ['text', text('é�中')],
      ['u64', { type: 10, value: 2n ** 53n - 1n }],
      ['big', { type: 10, value: 2n ** 64n - 1n }],
      ['i64', { type: 11, value: -7n }],
      ['f64', { type: 12, value: 0.1 }],
      ['texts', texts(['', 'a'])],
      ['bools', array(7, [true, false])],
      ['ints', array(5, [-1, 2])],
      ['longs', array(10, [1n, 2n])],
      ['bigs', array(11, [1n, -(2n ** 62n)])],
      ['nested', { type: 9, of: 9, items: [texts(['x']), array(0, [3])] }],
    ],
  });
  assert.equal(version, 2);
  const expected: [string, unknown][] = [
    ['u8', 255],
    ['i8', -128],
    ['u16', 65535],
    ['i16', -32768],
    ['u32', 2 ** 32 - 1],
    ['i32', -5],
    ['f32', 0.5],
    ['bool', true],
    ['text', 'é�中'],
    ['u64', 2 ** 53 - 1],
    ['big', 2n ** 64n - 1n],
    ['i64', -7],
    ['f64', 0.1],
    ['texts', ['', 'a']],
    ['bools', [true, false]],
    ['ints', Int32Array.of(-1, 2)],
    ['longs', [1, 2]],
    ['bigs', [1n, -(2n ** 62n)]],
    ['nested', [['x'], Uint8Array.of(3)]],
  ];
  assert.deepEqual([...metadata], expected);
});

test('tensors come row-major with absolute offsets, behind any alignment', () => {
  const { tensors } = parse({
    metadata: [['general.alignment', uint32(64)]],
    alignment: 64,
    tensors: [
      { name: 'm', dims: [64, 3], type: 3, offset: 0 },
      { name: 'v', dims: [2], type: 30, offset: 128 },
    ],
    data: Buffer.alloc(132),
  });
  const m = tensors.get('m');
  assert.deepEqual([m?.dtype, m?.shape, m?.byteLength], ['q4_1', [3, 64], 120]);
  assert.equal((m?.offset ?? 1) % 64, 0);
  assert.equal(tensors.get('v')?.offset, (m?.offset ?? 0) + 128);
});

const pair = (key: string, value: TestValue): TestGguf => ({ metadata: [[key, value]] });
const tensor = (change: Partial<TestGgufTensor>): TestGguf => ({
  tensors: [{ ...F32_4, ...change }],
  data: Buffer.alloc(64),
});
const deep = (depth: number): TestValue => ({
  type: 9,
  of: depth === 0 ? 0 : 9,
  items: depth === 0 ? [1] : [deep(depth - 1)],
});
const HOSTILE: readonly (readonly [string, TestGguf, RegExp])[] = [
  ['magic', { magic: 'GGML' }, /does not start with 'GGUF'/],
  ['version 1', { version: 1 }, /version is 1, expected 2 or 3/],
  ['version 4', { version: 4 }, /version is 4, expected 2 or 3/],
  ['big-endian', { version: 0x03000000 }, /version is big-endian/],
  ['tensor count', { tensorCount: 2n ** 63n }, /9223372036854775808 tensors, at most 100000 are allowed/],
  ['pair count', { metadataCount: 100_001n }, /100001 metadata pairs, at most 100000/],
  ['counts past the end', { metadataCount: 5n, alignment: 1 }, /the header runs past the end of the file/],
  ['value type', pair('k', { type: 13, value: 1 }), /metadata "k" has value type 13, which GGUF does not define/],
  ['array type', pair('k', { type: 9, of: 13, items: [] }), /metadata "k" is an array of type 13/],
  ['boolean 2', pair('k', { type: 7, value: 2 }), /metadata "k" holds a boolean of value 2/],
  [
    'duplicate key',
    {
      metadata: [
        ['k', uint32(1)],
        ['k', uint32(1)],
      ],
    },
    /metadata "k" is given twice/,
  ],
  ['empty key', pair('', uint32(1)), /metadata key is empty/],
  [
    'array length',
    pair('k', { type: 9, of: 0, items: [], count: 2n ** 40n }),
    /1099511627776 values in the array of metadata "k", at most 1000000/,
  ],
  [
    'array past the end',
    pair('k', { type: 9, of: 12, items: [], count: 1_000_000n }),
    /the header runs past the end of the file/,
  ],
  [
    'string array past the end',
    pair('k', { type: 9, of: 8, items: [], count: 999_999n }),
    /the header runs past the end/,
  ],
  ['nesting', pair('k', deep(4)), /metadata "k" nests arrays deeper than 4/],
  ['alignment 0', pair('general.alignment', uint32(0)), /general\.alignment is 0, expected a power of two/],
  ['alignment 24', pair('general.alignment', uint32(24)), /general\.alignment is 24/],
  ['alignment text', pair('general.alignment', text('32')), /general\.alignment is 32, expected a power/],
  ['duplicate tensor', { tensors: [F32_4, F32_4], data: Buffer.alloc(64) }, /tensor "t" is given twice/],
  ['five dims', tensor({ dims: [1, 1, 1, 1, 1] }), /5 dimensions of tensor "t", at most 4/],
  ['dim 0', tensor({ dims: [4, 0] }), /tensor "t" has a dimension of 0, expected 1 to 4294967296/],
  ['dim 2^33', tensor({ dims: [2n ** 33n] }), /tensor "t" has a dimension of 8589934592/],
  [
    'product',
    tensor({ dims: [2n ** 32n, 2n ** 32n] }),
    /tensor "t" of shape \[4294967296, 4294967296\] has more than 2\^53 bytes/,
  ],
  [
    'type Q2_K',
    tensor({ dims: [256], type: 10 }),
    /tensor "t" has type Q2_K, supported are F32, F16, Q4_0.*BF16\. Take another quantization/,
  ],
  ['type 99', tensor({ type: 99 }), /tensor "t" has type number 99/],
  ['row', tensor({ dims: [33], type: 8 }), /tensor "t" has rows of 33 values, Q8_0 needs a multiple of 32/],
  ['unaligned', tensor({ offset: 8 }), /tensor "t" is at offset 8, expected a multiple of 32/],
  ['past the end', tensor({ offset: 64 }), /tensor "t" ends at byte \d+, after the end of the file at \d+/],
  ['offset 2^64', tensor({ offset: 2n ** 64n - 32n }), /tensor "t" ends at byte 1844674407370955\d+, after the end/],
  ['size', tensor({ dims: [17] }), /tensor "t" ends at byte/],
  [
    'overlap',
    {
      tensors: [
        { ...F32_4, dims: [16] },
        { ...F32_4, name: 'u', offset: 32 },
      ],
      data: Buffer.alloc(64),
    },
    /tensor "u" at byte \d+ overlaps/,
  ],
  ['tensor name', tensor({ name: '' }), /tensor name is empty/],
];

for (const [name, file, message] of HOSTILE) {
  test(`a hostile header is refused: ${name}`, () => {
    assert.throws(() => parse(file), { name: 'ManyfoldError', code: 'invalid_model', message });
    assert.throws(() => parse(file), /^ManyfoldError: x\.gguf: /);
  });
}

test('strings have limits and must be UTF-8', () => {
  const bytes = ggufBytes(pair('key', text('abc')));
  bytes.set([0xff], bytes.indexOf(0x61));
  assert.throws(() => parseGguf(bytes, bytes.length), /metadata "key" holds a string that is not UTF-8/);
  const limits = { ...GGUF_LIMITS, maxStringBytes: 2, maxNameBytes: 3 };
  assert.throws(() => parse(pair('key', text('abc')), limits), /metadata "key" has a string of 3 bytes, at most 2/);
  assert.throws(() => parse(pair('keys', text('a')), limits), /metadata key has a string of 4 bytes, at most 3/);
  const long = ggufBytes(pair('key', text('abc')));
  new DataView(long.buffer, long.byteOffset).setUint32(24 + 4, 1, true);
  assert.throws(() => parseGguf(long, long.length), /metadata key has a string of 4294967299 bytes/);
});

test('every prefix of a file is refused as cut, never otherwise', () => {
  const whole = ggufBytes({
    metadata: [
      ['a', texts(['x', 'y'])],
      ['b', array(5, [1])],
    ],
    tensors: [F32_4],
    data: Buffer.alloc(16),
  });
  for (let length = 0; length < whole.length; length += 1) {
    const cut = whole.subarray(0, length);
    assert.throws(() => parseGguf(cut, length), /runs past the end of the file|ends at byte \d+, after the end/);
  }
});

test('a header longer than the first read is read on from where it was cut', async () => {
  const file = path.join(folder, 'long.gguf');
  const items = Array.from({ length: 2500 }, (_, i) => `${i} `.repeat(2000));
  await writeFile(
    file,
    ggufBytes({
      metadata: [
        ['a', uint32(7)],
        ['tokens', texts(items)],
        ['z', bool(true)],
      ],
      tensors: [F32_4],
      data: Buffer.alloc(16),
    }),
  );
  const { metadata, tensors } = await readGguf(file);
  assert.equal(metadata.get('a'), 7);
  assert.deepEqual(metadata.get('tokens'), items);
  assert.equal(metadata.get('z'), true);
  assert.equal(tensors.size, 1);
  await assert.rejects(
    readGguf(file, { ...GGUF_LIMITS, maxHeaderBytes: 20 << 20 }),
    /the header is longer than 20971520 bytes/,
  );
  await assert.rejects(readGguf(folder), /expected a regular file/);
});

test('any metadata comes back; any flipped byte gives a header or a ManyfoldError', () => {
  const value = fc.oneof(
    fc.string({ maxLength: 6 }).map(text),
    fc.nat().map(uint32),
    fc.boolean().map(bool),
    fc.array(fc.string({ maxLength: 3 }), { maxLength: 3 }).map(texts),
  );
  const pairs = fc.uniqueArray(fc.tuple(fc.string({ minLength: 1, maxLength: 6 }), value), {
    selector: ([key]) => key,
    maxLength: 5,
  });
  fc.assert(
    fc.property(pairs, fc.nat(), fc.nat(255), (metadata, at, byte) => {
      const file = { metadata, tensors: [F32_4], data: Buffer.alloc(16) };
      const known = metadata.every(([key]) => key !== 'general.alignment');
      if (known)
        assert.deepEqual(
          [...parse(file).metadata.keys()],
          metadata.map(([key]) => key),
        );
      const bytes = ggufBytes(file);
      bytes[at % bytes.length] = byte;
      try {
        assert.ok(parseGguf(bytes, bytes.length).tensors.size <= 1);
      } catch (error) {
        assert.ok(error instanceof ManyfoldError, String(error));
      }
    }),
    { numRuns: 300 },
  );
});
