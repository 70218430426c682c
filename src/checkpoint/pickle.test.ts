/** Pickles and torch files: what data needs is read, and every hostile case is refused before anything is allocated or run. */
import assert from 'node:assert/strict';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { ManyfoldError } from '../core/errors.js';
import { TorchTensor } from './pickle-globals.js';
import type { PickleValue } from './pickle-globals.js';
import { readPickle } from './pickle.js';
import { openTorchFile } from './torch-file.js';
import { call, dict, global, int, list, op, pickle, tensor, text, tuple } from './testing/pickle-writer.js';
import { zipBytes } from './testing/zip.js';
import type { ZipEntry } from './testing/zip.js';

let root = '';
let files = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-pickle-'));
});
after(() => rm(root, { recursive: true, force: true }));

const read = (bytes: Uint8Array): PickleValue => readPickle(bytes, { what: 'x.bin', persistent: () => null });

function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    assert.ok(error instanceof ManyfoldError && error.code === 'invalid_adapter', String(error));
    return error.message;
  }
  return assert.fail('it should have been refused');
}

test('plain data is read: numbers of every width, strings, lists, tuples, dictionaries, notes', () => {
  const long = op(0x8a, Buffer.from([8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
  const double = op(0x47, Buffer.from([0x3f, 0xf8, 0, 0, 0, 0, 0, 0]));
  const value = read(
    pickle(
      dict({
        a: list(int(-7), op(0x4b, Buffer.from([200])), op(0x4d, Buffer.from([1, 1])), long, double),
        b: tuple(op(0x4e), op(0x88), op(0x89), text('é')),
        c: Buffer.concat([text('kept'), op(0x71, Buffer.from([5])), op(0x68, Buffer.from([5])), op(0x86)]),
      }),
    ),
  );
  assert.deepEqual(
    value,
    new Map<string, PickleValue>([
      ['a', [-7, 200, 257, -1, 1.5]],
      ['b', [null, true, false, 'é']],
      ['c', ['kept', 'kept']],
    ]),
  );
});

test("numpy's numbers, as old files have them among ints", () => {
  const dtype = Buffer.concat([
    call(global('numpy', 'dtype'), text('i8'), op(0x89), op(0x88)),
    tuple(int(3), text('<'), op(0x4e), op(0x4e), op(0x4e), int(-1), int(-1), int(0)),
    op(0x62),
  ]);
  const bytes = call(global('_codecs', 'encode'), text('\u00ff\u0001\0\0\0\0\0\0'), text('latin1'));
  for (const module of ['numpy.core.multiarray', 'numpy._core.multiarray']) {
    assert.equal(read(pickle(call(global(module, 'scalar'), dtype, bytes))), 511);
  }
  const big = Buffer.concat([call(global('numpy', 'dtype'), text('i8')), tuple(int(3), text('>')), op(0x62)]);
  assert.match(
    refusal(() => read(pickle(call(global('numpy.core.multiarray', 'scalar'), big, bytes)))),
    /byte order >/,
  );
  const short = call(global('_codecs', 'encode'), text('a'), text('latin1'));
  assert.match(
    refusal(() => read(pickle(call(global('numpy.core.multiarray', 'scalar'), dtype, short)))),
    /has 1 bytes/,
  );
});

test('a global that is not on the list is refused by name, whatever it is called with', () => {
  const names = [
    ['os', 'system'],
    ['builtins', 'eval'],
    ['torch', 'load'],
    ['torch._utils', '_rebuild_tensor'],
    ['__builtin__', 'getattr'],
    ['collections', 'OrderedDict.__reduce__'],
    ['', 'constructor'],
  ] as const;
  for (const [module, name] of names) {
    const message = refusal(() => read(pickle(call(global(module, name), text('echo')))));
    assert.ok(message.includes(`"${module}.${name}", which is not read because it could run code`), message);
    const stacked = pickle(text(module), text(name), op(0x93));
    assert.match(
      refusal(() => read(stacked)),
      /could run code/,
    );
  }
});

test('opcodes that make objects, run code or are unknown are refused', () => {
  // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, PERSID, REDUCE of a value, BUILD on a list, DUP, and none at all.
  for (const code of [0x69, 0x6f, 0x81, 0x92, 0x82, 0x50, 0x32, 0xff]) {
    assert.match(
      refusal(() => read(pickle(op(0x5d), op(code)))),
      /opcode 0x/,
    );
  }
  assert.match(
    refusal(() => read(pickle(op(0x5d), op(0x29), op(0x52)))),
    /no global/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x5d), op(0x7d), op(0x62)))),
    /sets the state/,
  );
  assert.match(
    refusal(() => read(pickle(call(global('torch', 'FloatStorage'))))),
    /only a name/,
  );
});

test('pickles that are cut off, lie about lengths or miscount their stack are refused', () => {
  const good = pickle(dict({ a: text('abc') }));
  for (let length = 0; length < good.length; length += 1) {
    assert.match(
      refusal(() => read(good.subarray(0, length))),
      /cut off/,
    );
  }
  assert.match(
    refusal(() => read(Buffer.concat([good, Buffer.from([0])]))),
    /1 bytes follow/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x58, Buffer.from([255, 255, 255, 255]))))),
    /cut off: 4294967295 bytes/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x8d, Buffer.alloc(8, 0xff))))),
    /is more than the file has/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x8a, Buffer.from([9, ...new Uint8Array(9)]))))),
    /at most 8/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x8a, Buffer.from([8, ...new Uint8Array(7).fill(255), 127]))))),
    /larger than 2\^53/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x74)))),
    /a mark that is not there/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x6a, Buffer.alloc(4, 1))))),
    /which it never wrote/,
  );
  assert.match(
    refusal(() => read(pickle(int(1), int(2)))),
    /leaves values behind/,
  );
  assert.match(
    refusal(() => read(pickle(op(0x7d), op(0x28), op(0x5d), int(1), op(0x75)))),
    /neither string nor number/,
  );
  const twice = pickle(op(0x7d), op(0x28), text('a'), int(1), text('a'), int(2), op(0x75));
  assert.match(
    refusal(() => read(twice)),
    /"a" stands twice/,
  );
});

const FLOATS = { kind: 'FloatStorage', key: '0', elements: 6 };
const DATA = new Uint8Array(Float32Array.from([1, 2, 3, 4, 5, 6]).buffer);

async function torchFile(entries: readonly ZipEntry[]): Promise<string> {
  const file = path.join(root, `f${(files += 1)}.bin`);
  await writeFile(file, zipBytes(entries));
  return file;
}

const archive = (root_: Buffer, ...more: readonly ZipEntry[]): ZipEntry[] => [
  { name: 'archive/data.pkl', data: pickle(root_) },
  { name: 'archive/data/0', data: DATA },
  ...more,
];

async function refusedFile(entries: readonly ZipEntry[]): Promise<string> {
  try {
    const file = await openTorchFile(await torchFile(entries), 'x.bin');
    await file.close();
  } catch (error) {
    assert.ok(error instanceof ManyfoldError && error.code === 'invalid_adapter', String(error));
    return error.message;
  }
  return assert.fail('it should have been refused');
}

test('tensors of a torch file: whole, a part, and transposed', async () => {
  const root_ = dict({
    whole: tensor(FLOATS, 0, [2, 3], [3, 1]),
    row: tensor(FLOATS, 3, [3], [1]),
    transposed: tensor(FLOATS, 0, [3, 2], [1, 3]),
    empty: tensor(FLOATS, 0, [0], [1]),
  });
  const file = await openTorchFile(await torchFile(archive(root_)), 'x.bin');
  try {
    assert.ok(file.root instanceof Map);
    const values = new Map<string, number[]>();
    for (const [name, value] of file.root) {
      assert.ok(value instanceof TorchTensor);
      values.set(String(name), [...new Float32Array((await file.read(value)).buffer)]);
    }
    assert.deepEqual(Object.fromEntries(values), {
      whole: [1, 2, 3, 4, 5, 6],
      row: [4, 5, 6],
      transposed: [1, 4, 2, 5, 3, 6],
      empty: [],
    });
  } finally {
    await file.close();
  }
});

test('tensors and storages that claim more than is there are refused', async () => {
  const outside = /does not fit its storage of 6 elements/;
  assert.match(await refusedFile(archive(tensor(FLOATS, 1, [2, 3], [3, 1]))), outside);
  assert.match(await refusedFile(archive(tensor(FLOATS, 0, [2, 3], [4, 1]))), outside);
  // A stride of 0 makes a terabyte out of one number.
  assert.match(await refusedFile(archive(tensor(FLOATS, 0, [1 << 20, 1 << 20], [0, 0]))), outside);
  assert.match(await refusedFile(archive(tensor(FLOATS, -1, [1], [1]))), /no whole offset/);
  assert.match(await refusedFile(archive(tensor(FLOATS, 0, [-2], [1]))), /holds no whole number/);
  assert.match(await refusedFile(archive(tensor(FLOATS, 0, [1, 1], [1]))), /as many strides/);
  const large = { ...FLOATS, elements: 1 << 30 };
  assert.match(
    await refusedFile(archive(tensor(large, 0, [1], [1]))),
    /claims 1073741824 elements of F32 and has 24 bytes/,
  );
  for (const key of ['1', '../data.pkl', 'a/b', '']) {
    assert.match(await refusedFile(archive(tensor({ ...FLOATS, key }, 0, [1], [1]))), /(no bytes|is no storage)/);
  }
});

test('archives with names that leave their folder, compression, lies or no pickle are refused', async () => {
  const data = Buffer.from('x');
  for (const name of ['../evil', 'a/../../evil', '/etc/evil', 'a\\b', 'C:evil', 'a//b', '']) {
    assert.match(await refusedFile(archive(int(1), { name, data })), /no plain relative path/);
  }
  assert.match(await refusedFile(archive(int(1), { name: 'archive/data/0', data })), /two members are named/);
  assert.match(await refusedFile(archive(int(1), { name: 'b', data, method: 8 })), /compressed or encrypted/);
  assert.match(
    await refusedFile(archive(int(1), { name: 'b', data, claimedSize: 4_000_000_000 })),
    /claims 4000000000/,
  );
  assert.match(await refusedFile([{ name: 'a', data }]), /has no data.pkl/);
  assert.match(await refusedFile(archive(int(1), { name: 'b/data.pkl', data })), /expected one data.pkl/);
  const order = { name: 'archive/byteorder', data: Buffer.from('big') };
  assert.match(await refusedFile(archive(int(1), order)), /big-endian/);
  const bytes = zipBytes(archive(int(1)));
  for (const length of [0, 10, bytes.length - 1]) {
    const file = path.join(root, `cut${length}`);
    await writeFile(file, bytes.subarray(0, length));
    await assert.rejects(openTorchFile(file, 'x.bin'), /no zip archive, or it is cut off/);
  }
});

/** Values of the tensor `whole` of a file. */
async function wholeOf(file: string): Promise<number[]> {
  const opened = await openTorchFile(file, 'x.bin');
  try {
    const value = opened.root instanceof Map ? opened.root.get('whole') : undefined;
    assert.ok(value instanceof TorchTensor);
    return [...new Float32Array((await opened.read(value)).buffer)];
  } finally {
    await opened.close();
  }
}

test('archives whose sizes are in zip64 records, and one beyond 4 GiB', async () => {
  const entries = archive(dict({ whole: tensor(FLOATS, 0, [6], [1]) }));
  const file = path.join(root, 'zip64');
  await writeFile(file, zipBytes(entries, { zip64: true }));
  assert.deepEqual(await wholeOf(file), [1, 2, 3, 4, 5, 6]);
  // A hole of 4 GiB before the first member, which takes no space on the disk.
  const hole = 2 ** 32 + 4096;
  const handle = await open(path.join(root, 'large'), 'w');
  try {
    const bytes = zipBytes(entries, { zip64: true, offset: hole });
    await handle.write(bytes, 0, bytes.length, hole);
  } finally {
    await handle.close();
  }
  assert.deepEqual(await wholeOf(path.join(root, 'large')), [1, 2, 3, 4, 5, 6]);
});

test('zip64 records that are missing, point elsewhere or claim too much are refused', async () => {
  const good = zipBytes(archive(int(1)), { zip64: true });
  const ends = { locator: good.length - 42, record: good.length - 98 };
  const field = good.indexOf(Buffer.from([1, 0, 24, 0]));
  const cases: readonly (readonly [string, (bytes: Buffer) => void, RegExp])[] = [
    ['locator', (bytes) => bytes.writeUInt32LE(0, ends.locator), /nothing says where that is/],
    ['place', (bytes) => bytes.writeBigUInt64LE(BigInt(good.length), ends.locator + 8), /no zip64 record at/],
    ['far', (bytes) => bytes.writeBigUInt64LE(2n ** 60n, ends.locator + 8), /a zip64 record holds 1152921504606846976/],
    ['record', (bytes) => bytes.writeUInt32LE(0, ends.record), /no zip64 record at/],
    ['count', (bytes) => bytes.writeBigUInt64LE(10n ** 9n, ends.record + 32), /1000000000 members.*does not fit/],
    ['offset', (bytes) => bytes.writeBigUInt64LE(2n ** 40n, ends.record + 48), /does not fit the file/],
    ['field', (bytes) => bytes.writeUInt16LE(2, field), /has no zip64 field/],
    ['short', (bytes) => bytes.writeUInt16LE(8, field + 2), /has no zip64 field/],
    ['size', (bytes) => bytes.writeBigUInt64LE(2n ** 33n, field + 4), /compressed or encrypted/],
    [
      'sizes',
      (bytes) => {
        bytes.writeBigUInt64LE(2n ** 33n, field + 4);
        bytes.writeBigUInt64LE(2n ** 33n, field + 12);
      },
      /claims 8589934592 bytes/,
    ],
  ];
  for (const [name, spoil, message] of cases) {
    const bytes = Buffer.from(good);
    spoil(bytes);
    const file = path.join(root, `zip64-${name}`);
    await writeFile(file, bytes);
    await assert.rejects(openTorchFile(file, 'x.bin'), message, name);
  }
  const small = path.join(root, 'only-an-end');
  await writeFile(small, good.subarray(good.length - 22));
  await assert.rejects(openTorchFile(small, 'x.bin'), /nothing says where that is/);
});
