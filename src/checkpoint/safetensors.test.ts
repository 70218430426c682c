import assert from 'node:assert/strict';
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import fc from 'fast-check';

import { ManyfoldError } from '../core/errors.js';
import {
  ADAPTER_LIMITS,
  openSafetensors,
  parseSafetensorsHeader,
  SAFETENSORS_DTYPES,
  WEIGHT_LIMITS,
} from './safetensors.js';
import type { SafetensorsDtype } from './safetensors.js';
import { safetensorsBytes, safetensorsFile } from './testing/container-bytes.js';

let folder = '';
before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'manyfold-safetensors-'));
});
after(() => rm(folder, { recursive: true }));

const parse = (bytes: Uint8Array): ReturnType<typeof parseSafetensorsHeader> =>
  parseSafetensorsHeader(bytes, bytes.length, WEIGHT_LIMITS, 'x.safetensors');

test('a right header gives its tensors with absolute offsets, and its metadata', () => {
  const file = safetensorsFile(
    [
      { name: 'a', dtype: 'F32', shape: [2, 3] },
      { name: 'scalar', dtype: 'BF16', shape: [] },
      { name: 'none', dtype: 'F32', shape: [4, 0] },
      { name: '__proto__', dtype: 'U8', shape: [1] },
    ],
    { format: 'pt' },
  );
  const header = parse(file);
  const start = file.length - 27;
  assert.deepEqual(header.tensors.get('a'), { name: 'a', dtype: 'F32', shape: [2, 3], offset: start, byteLength: 24 });
  assert.equal(header.tensors.get('scalar')?.byteLength, 2);
  assert.deepEqual(header.tensors.get('none')?.shape, [4, 0]);
  assert.equal(header.tensors.get('__proto__')?.offset, start + 26);
  assert.equal(header.tensors.get('constructor'), undefined);
  assert.equal(header.metadata.get('format'), 'pt');
});

/** A header of one tensor, from the parts that are wrong. */
const one = (entry: string, data = 4): Uint8Array => safetensorsBytes(`{"x": ${entry}}`, data);
const two = (a: string, b: string, data: number): Uint8Array =>
  safetensorsBytes(
    `{"a":{"dtype":"U8","shape":[4],"data_offsets":${a}},"b":{"dtype":"U8","shape":[4],"data_offsets":${b}}}`,
    data,
  );
const HOSTILE: readonly (readonly [string, Uint8Array, RegExp])[] = [
  ['no length', Buffer.alloc(5), /expected at least 8 bytes of header length, the file has 5/],
  ['length 1', safetensorsBytes('{}', 0, 1n), /header length is 1, expected 2 to 2/],
  ['length past the end', safetensorsBytes('{}', 0, 3n), /header length is 3, expected 2 to 2/],
  ['length 2^64 - 1', safetensorsBytes('{}', 0, 2n ** 64n - 1n), /header length is 18446744073709551615/],
  ['first byte', safetensorsBytes(' {}'), /does not start with '\{'/],
  ['not UTF-8', safetensorsBytes(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), /header: expected UTF-8 text/],
  ['no JSON', safetensorsBytes('{"x"}'), /header: expected ':' at line 1, column 5/],
  ['too deep', one('{"dtype":"U8","shape":[[[1]]],"data_offsets":[0,1]}'), /nested deeper than 4/],
  [
    'duplicate tensor',
    safetensorsBytes(
      '{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      1,
    ),
    /found the key "x" twice/,
  ],
  [
    'duplicate field',
    one('{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,4]}'),
    /found the key "dtype" twice/,
  ],
  ['metadata number', safetensorsBytes('{"__metadata__":{"a":1}}'), /__metadata__ "a" is not a string/],
  ['metadata list', safetensorsBytes('{"__metadata__":[]}'), /__metadata__ is not an object/],
  ['entry list', one('[]'), /tensor "x": expected an object with dtype, shape and data_offsets/],
  [
    'unknown field',
    one('{"dtype":"F32","shape":[1],"data_offsets":[0,4],"scale":1}'),
    /tensor "x": unknown key "scale"/,
  ],
  [
    'dtype F8_NEW',
    one('{"dtype":"F8_NEW","shape":[4],"data_offsets":[0,4]}'),
    /tensor "x": dtype is "F8_NEW", expected one of BOOL/,
  ],
  ['dtype of the prototype', one('{"dtype":"toString","shape":[4],"data_offsets":[0,4]}'), /dtype is "toString"/],
  ['no dtype', one('{"shape":[4],"data_offsets":[0,4]}'), /tensor "x": dtype is missing/],
  ['no shape', one('{"dtype":"F32","data_offsets":[0,4]}'), /tensor "x": shape is missing, expected an array/],
  [
    'negative dim',
    one('{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}'),
    /tensor "x": shape holds -1, expected an integer/,
  ],
  ['fraction', one('{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}'), /shape holds 1.5/],
  ['past 2^53', one('{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,4]}'), /shape holds 9007199254740992/],
  ['string dim', one('{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}'), /shape holds "1"/],
  [
    'nine dims',
    one('{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}'),
    /shape has 9 entries, at most 8/,
  ],
  ['product', one('{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}'), /has more than 2\^53 bytes/],
  [
    'product then zero',
    one('{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}'),
    /more than 2\^53/,
  ],
  [
    'offsets of three',
    one('{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}'),
    /data_offsets has 3 entries, at most 2/,
  ],
  [
    'offsets of one',
    one('{"dtype":"F32","shape":[1],"data_offsets":[0]}'),
    /data_offsets are \[0\], expected \[begin, end\]/,
  ],
  ['backward', one('{"dtype":"F32","shape":[1],"data_offsets":[4,0]}'), /data_offsets are \[4,0\]/],
  ['span', one('{"dtype":"F32","shape":[2],"data_offsets":[0,4]}'), /span 4 bytes, shape \[2\] of F32 needs 8/],
  ['past the data', one('{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'), /ends 4 bytes after the end of the file/],
  ['overlap', two('[0,4]', '[2,6]', 6), /tensor "b": data begins at 2, inside the tensor before it, which ends at 4/],
  ['same range', two('[0,4]', '[0,4]', 4), /tensor "b": data begins at 0, inside the tensor before it/],
  ['hole', two('[0,4]', '[6,10]', 10), /tensor "b": data begins at 6, leaving a hole after 4/],
  ['hole at the start', two('[4,8]', '[8,12]', 12), /tensor "a": data begins at 4, leaving a hole after 0/],
  ['trailing bytes', two('[0,4]', '[4,8]', 9), /the last tensor ends 1 bytes before the end of the file/],
  ['trailing, no tensor', safetensorsBytes('{}', 3), /ends 3 bytes before the end/],
  [
    'zero-size inside another',
    safetensorsBytes(
      '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"z":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}}',
      4,
    ),
    /tensor "z": data begins at 2, inside the tensor before it/,
  ],
  [
    'zero-size with bytes',
    one('{"dtype":"U8","shape":[0],"data_offsets":[0,4]}'),
    /span 4 bytes, shape \[0\] of U8 needs 0/,
  ],
  [
    'long name',
    safetensorsBytes(`{"${'n'.repeat(1025)}":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}`),
    /the name has 1025 characters/,
  ],
];

for (const [name, bytes, message] of HOSTILE) {
  test(`a hostile header is refused: ${name}`, () => {
    assert.throws(() => parse(bytes), { name: 'ManyfoldError', code: 'invalid_model', message });
    assert.throws(() => parse(bytes), /^ManyfoldError: x\.safetensors: /);
  });
}

test('limits of adapters are their own, and so is the code', () => {
  const header = `{${' '.repeat(ADAPTER_LIMITS.maxHeaderBytes)}}`;
  const bytes = safetensorsBytes(header);
  assert.equal(parse(bytes).tensors.size, 0);
  assert.throws(() => parseSafetensorsHeader(bytes, bytes.length, ADAPTER_LIMITS), {
    code: 'invalid_adapter',
    message: /header length is 4000002, expected 2 to 4000000/,
  });
  const many = safetensorsFile([
    { name: 'a', dtype: 'U8', shape: [1] },
    { name: 'b', dtype: 'U8', shape: [1] },
  ]);
  assert.throws(
    () => parseSafetensorsHeader(many, many.length, { ...ADAPTER_LIMITS, maxTensors: 1 }),
    /lists 2 tensors, at most 1/,
  );
});

const dtypes = fc.constantFrom(...(Object.keys(SAFETENSORS_DTYPES) as SafetensorsDtype[]));
const shapes = fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 });

test('any set of tensors comes back as written; any cut or shifted byte range is refused', () => {
  const tensors = fc.uniqueArray(fc.record({ name: fc.string({ maxLength: 8 }), dtype: dtypes, shape: shapes }), {
    selector: (tensor) => tensor.name,
    maxLength: 6,
  });
  fc.assert(
    fc.property(tensors, fc.nat(), (list, cut) => {
      const named = list.filter(({ name }) => name !== '__metadata__');
      const file = safetensorsFile(named);
      const header = parse(file);
      assert.deepEqual([...header.tensors.keys()].sort(), named.map(({ name }) => name).sort());
      for (const { name, dtype, shape } of named) {
        assert.deepEqual([header.tensors.get(name)?.dtype, header.tensors.get(name)?.shape], [dtype, shape]);
      }
      const shorter = file.subarray(0, cut % file.length);
      assert.throws(() => parse(shorter), ManyfoldError);
      assert.throws(() => parse(Buffer.concat([file, Buffer.alloc(1)])), ManyfoldError);
    }),
  );
});

test('an open file gives each tensor’s bytes, also behind a header of odd length', async () => {
  const file = path.join(folder, 'right.safetensors');
  const data = Buffer.from(Float32Array.of(1, 2, 3).buffer);
  // One character more than a multiple of eight, so that no tensor is aligned in the file.
  await writeFile(file, safetensorsFile([{ name: 'w', dtype: 'F32', shape: [3], data }], { pad: 'abc' }));
  const opened = await openSafetensors(file, WEIGHT_LIMITS);
  try {
    const bytes = await opened.read('w');
    assert.deepEqual([...new Float32Array(bytes.buffer)], [1, 2, 3]);
    await assert.rejects(opened.read('v'), /expected a tensor "v", the file has none of that name/);
    await truncate(file, 20);
    await assert.rejects(opened.read('w'), /tensor "w": the file became shorter while it was read/);
  } finally {
    await opened.close();
  }
});

test('what is not a readable file is refused by path', async () => {
  const absent = path.join(folder, 'absent.safetensors');
  await assert.rejects(openSafetensors(absent, WEIGHT_LIMITS), {
    code: 'invalid_model',
    message: /absent\.safetensors cannot be read/,
  });
  await assert.rejects(openSafetensors(folder, ADAPTER_LIMITS), {
    code: 'invalid_adapter',
    message: /expected a regular file/,
  });
  const short = path.join(folder, 'short.safetensors');
  await writeFile(short, '1234');
  await assert.rejects(openSafetensors(short, WEIGHT_LIMITS), /short\.safetensors: expected at least 8 bytes/);
});
