import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';

import { systemClock } from '../core/clock.js';
import { fetchFile } from './fetch-file.js';
import type { FetchContext, FetchRequest } from './fetch-file.js';
import type { ProgressReporter } from './progress.js';
import { FileServer } from './testing/file-server.js';

const BODY = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 7 + (i >> 8)) & 255));
const SHA256 = createHash('sha256').update(BODY).digest('hex');

let server: FileServer;
let other: FileServer;
let folder = '';
let target = '';
let notes: string[] = [];
let totals: (readonly [number | undefined, number])[] = [];
let waits: number[] = [];

before(async () => {
  server = await FileServer.start();
  other = await FileServer.start();
});
after(() => Promise.all([server.stop(), other.stop()]));
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'manyfold-fetch-'));
  target = path.join(folder, 'deep', 'model.bin');
  notes = [];
  totals = [];
  waits = [];
  for (const each of [server, other]) {
    each.requests.length = 0;
    each.faults.length = 0;
    each.redirects.clear();
    each.files.clear();
    each.files.set('/model.bin', { body: BODY, etag: '"v1"' });
  }
});
afterEach(() => rm(folder, { recursive: true }));

const progress: ProgressReporter = {
  start: ({ total, done }) => totals.push([total, done]),
  update: () => undefined,
  note: (line) => notes.push(line),
  finish: () => undefined,
};
const context = (change: Partial<FetchContext> = {}): FetchContext => ({
  clock: systemClock,
  progress,
  stallTimeoutMs: 2000,
  maxFailures: 3,
  sleep: (ms) => {
    waits.push(ms);
    return Promise.resolve();
  },
  ...change,
});
const request = (change: Partial<FetchRequest> = {}): FetchRequest => ({
  url: `${server.origin}/model.bin`,
  destination: target,
  maxBytes: 1e6,
  ...change,
});
const served = (): number[] => server.requests.map((seen) => seen.served);
const leftovers = async (): Promise<string[]> =>
  (await readdir(path.dirname(target)).catch(() => [])).filter((name) => name !== 'model.bin');
const assertWhole = async (): Promise<void> => {
  assert.ok(BODY.equals(await readFile(target)));
  assert.deepEqual(await leftovers(), []);
};

test('a file comes whole, is checked and leaves nothing beside it; once there it is not fetched again', async () => {
  await fetchFile(request({ size: BODY.length, sha256: SHA256.toUpperCase() }), context());
  await assertWhole();
  assert.deepEqual(totals, [[BODY.length, 0]]);
  await fetchFile(request({ size: BODY.length }), context());
  assert.equal(server.requests.length, 1);
});

test('a connection that breaks off twice is resumed, and no byte is served twice', async () => {
  server.faults.push({ cutAfter: 100_000 }, { cutAfter: 50_000 });
  await fetchFile(request({ sha256: SHA256 }), context());
  await assertWhole();
  const ranges = server.requests.map(({ range, ifRange }) => [range, ifRange]);
  const [first, second, third] = ranges;
  assert.deepEqual(first, [undefined, undefined]);
  assert.deepEqual([second?.[1], third?.[1]], ['"v1"', '"v1"']);
  const starts = ranges.slice(1).map(([range]) => Number(/[0-9]+/.exec(range ?? '')?.[0]));
  // What was served and not received before the cut is asked for again; what was received is not.
  assert.ok((starts[0] ?? 0) > 0 && (starts[0] ?? 0) <= 100_000 && (starts[1] ?? 0) <= (starts[0] ?? 0) + 50_000);
  assert.equal(served().at(-1), BODY.length - (starts[1] ?? 0));
  assert.deepEqual(waits, [500, 500]);
  assert.match(notes[0] ?? '', /trying again in 0\.5 s/);
});

test('a later process goes on where an earlier one stopped', async () => {
  server.faults.push({ cutAfter: 120_000 });
  await assert.rejects(fetchFile(request(), context({ maxFailures: 1 })), {
    code: 'download_failed',
    message: /1 times in a row\)\. .* are kept\. Check the network and start it again to go on from here/,
  });
  const kept = await leftovers();
  assert.equal(kept.length, 2);
  await fetchFile(request({ sha256: SHA256 }), context());
  await assertWhole();
  const start = Number(/[0-9]+/.exec(server.requests[1]?.range ?? '')?.[0]);
  assert.ok(start > 0 && start <= 120_000);
  assert.deepEqual(totals, [
    [BODY.length, 0],
    [BODY.length, start],
  ]);
  assert.deepEqual(served(), [120_000, BODY.length - start]);
});

test('what a killed process left is taken up, what a live one writes is not', async () => {
  server.faults.push({ cutAfter: 120_000 });
  await assert.rejects(fetchFile(request(), context({ maxFailures: 1 })));
  const kept = (await leftovers()).find((name) => !name.endsWith('.json')) ?? '';
  const { hostname } = await import('node:os');
  const host = hostname().replaceAll(/[^A-Za-z0-9]/g, '_');
  const dir = path.dirname(target);
  const bytes = await readFile(path.join(dir, kept));
  await rm(path.join(dir, kept));
  // Process 1 lives as long as the machine; no process has the other number.
  await writeFile(path.join(dir, `${kept}-${host}-1-1`), bytes);
  await fetchFile(request(), context());
  assert.equal(server.requests[1]?.range, undefined);
  await rm(target);
  await writeFile(path.join(dir, `${kept}.json`), JSON.stringify({ url: request().url, validator: '"v1"' }));
  await writeFile(path.join(dir, `${kept}-${host}-4194999-1`), bytes);
  await fetchFile(request(), context());
  assert.equal(server.requests[2]?.range, `bytes=${bytes.length}-`);
});

test('a file that changed in between begins anew, whether the server heeds If-Range or not', async () => {
  for (const ignoresIfRange of [false, true]) {
    server.faults.push({ cutAfter: 120_000 });
    await assert.rejects(fetchFile(request(), context({ maxFailures: 1 })));
    const changed = Buffer.from(BODY).reverse();
    server.files.set('/model.bin', { body: changed, etag: '"v2"', ignoresIfRange });
    await fetchFile(request(), context());
    assert.ok(changed.equals(await readFile(target)));
    assert.deepEqual(await leftovers(), []);
    await rm(target);
    server.files.set('/model.bin', { body: BODY, etag: '"v1"' });
  }
});

test('without range support, or without anything to recognise the file by, it begins anew', async () => {
  const kinds = [{ etag: '"v1"', ignoresRange: true }, { etag: undefined }, { etag: 'W/"weak"' }];
  for (const kind of kinds) {
    server.files.set('/model.bin', { body: BODY, ...kind });
    server.faults.push({ cutAfter: 120_000 });
    await fetchFile(request(), context());
    await assertWhole();
    assert.equal(served().at(-1), BODY.length);
    await rm(target);
  }
  // A date is enough to recognise it, and so is a hash.
  server.files.set('/model.bin', { body: BODY, lastModified: 'Mon, 01 Jan 2024 00:00:00 GMT' });
  server.faults.push({ cutAfter: 120_000 });
  await fetchFile(request(), context());
  assert.ok((served().at(-1) ?? 0) < BODY.length);
  await rm(target);
  server.files.set('/model.bin', { body: BODY });
  server.faults.push({ cutAfter: 120_000 });
  await fetchFile(request({ sha256: SHA256 }), context());
  assert.ok((served().at(-1) ?? 0) < BODY.length);
  await assertWhole();
});

test('a wrong hash is refused; when an earlier run’s part may be the reason, once again from the beginning', async () => {
  await assert.rejects(fetchFile(request({ sha256: '0'.repeat(64) }), context()), {
    code: 'download_failed',
    message: new RegExp(`SHA-256 is ${SHA256}, expected 0{64}`),
  });
  assert.deepEqual(await leftovers(), []);
  server.faults.push({ cutAfter: 120_000 });
  await assert.rejects(fetchFile(request(), context({ maxFailures: 1 })));
  const kept = path.join(path.dirname(target), (await leftovers()).find((name) => !name.endsWith('.json')) ?? '');
  const bytes = await readFile(kept);
  bytes[5] = (bytes[5] ?? 0) ^ 1;
  await writeFile(kept, bytes);
  await fetchFile(request({ sha256: SHA256 }), context());
  await assertWhole();
  assert.ok(notes.some((note) => note.includes('the part of an earlier run does not fit')));
});

test('a part that is whole already is only checked', async () => {
  server.files.set('/model.bin', { body: BODY, etag: '"v1"', chunked: true });
  server.faults.push({ cutAfter: BODY.length });
  await assert.rejects(fetchFile(request(), context({ maxFailures: 1 })));
  const before = server.requests.length;
  await fetchFile(request({ size: BODY.length, sha256: SHA256 }), context());
  assert.equal(server.requests.length, before);
  await assertWhole();
  await rm(target);
  server.faults.push({ cutAfter: BODY.length });
  await fetchFile(request(), context());
  assert.equal(server.requests.at(-1)?.range, `bytes=${BODY.length}-`);
  await assertWhole();
});

test('sizes are held to: what the server says, what is known, what is allowed, what is free', async () => {
  const refused = async (
    change: Partial<FetchRequest>,
    message: RegExp,
    more: Partial<FetchContext> = {},
  ): Promise<void> => {
    await assert.rejects(fetchFile(request(change), context(more)), { code: 'download_failed', message });
    assert.deepEqual(await leftovers(), []);
  };
  await refused({ size: 5 }, /model\.bin has 300000 bytes on the server, expected 5/);
  await refused({ maxBytes: 299_999 }, /has 300000 bytes, at most 299999 are allowed/);
  await refused({}, /needs 300 kB more, .* has 1\.0 MB free\. Free some space, or set another cache folder/, {
    freeBytes: () => Promise.resolve(1_000_000),
  });
  server.files.set('/model.bin', { body: BODY, chunked: true });
  await refused({ maxBytes: 1000 }, /model\.bin is longer than 1000 bytes/);
  await refused({ size: 1000 }, /model\.bin is longer than 1000 bytes/);
  server.files.set('/model.bin', { body: BODY, headers: { 'content-encoding': 'gzip' } });
  await refused({}, /comes encoded as gzip/);
});

test('statuses: later ones are tried again as the server asks, final ones are told with their mend', async () => {
  server.faults.push({ status: 503 }, { status: 429, headers: { 'retry-after': '7' } });
  await fetchFile(request(), context());
  assert.deepEqual(waits, [500, 7000]);
  await rm(target);
  const cases: readonly (readonly [number, RegExp])[] = [
    [401, /answered 401\. Give a token that may read it/],
    [403, /answered 403\. Give a token/],
    [404, /answered 404\. Check the model's name, revision and file/],
    [410, /answered 410\. Check the endpoint/],
  ];
  for (const [status, message] of cases) {
    server.faults.push({ status });
    await assert.rejects(fetchFile(request(), context()), { code: 'download_failed', message });
  }
  server.faults.push({ status: 500 }, { status: 500 }, { status: 500 });
  await assert.rejects(fetchFile(request(), context()), /answered 500 \(3 times in a row\)/);
});

test('redirects are followed, and a token stays with the origin that it was given for', async () => {
  server.redirects.set('/start', `${other.origin}/model.bin`);
  server.redirects.set('/near', '/model.bin');
  const headers = { authorization: 'Bearer secret' };
  await fetchFile(request({ url: `${server.origin}/start`, headers }), context());
  assert.equal(server.requests[0]?.authorization, 'Bearer secret');
  assert.equal(other.requests[0]?.authorization, undefined);
  await rm(target);
  await fetchFile(request({ url: `${server.origin}/near`, headers }), context());
  assert.equal(server.requests.at(-1)?.authorization, 'Bearer secret');
  server.redirects.set('/round', '/round');
  await rm(target);
  await assert.rejects(
    fetchFile(request({ url: `${server.origin}/round` }), context()),
    /redirects more than 10 times/,
  );
  server.redirects.set('/file', 'file:///etc/hostname');
  await assert.rejects(
    fetchFile(request({ url: `${server.origin}/file` }), context()),
    /file: addresses cannot be downloaded from/,
  );
  await assert.rejects(fetchFile(request({ url: 'no address' }), context()), /is not an address/);
});

test('silence ends an attempt, a refused connection is told, a stop is a stop', async () => {
  server.faults.push({ stall: true });
  server.files.set('/model.bin', { body: BODY, etag: '"v1"' });
  await fetchFile(request({ size: BODY.length }), context({ stallTimeoutMs: 300 }));
  await assertWhole();
  await rm(target);
  await assert.rejects(
    fetchFile(request({ url: 'http://127.0.0.1:1/x' }), context()),
    /127\.0\.0\.1:1: .*ECONNREFUSED.* \(3 times in a row\)/,
  );
  const stop = new AbortController();
  server.faults.push({ stall: true });
  const running = fetchFile(request(), context({ signal: stop.signal, stallTimeoutMs: 60_000 }));
  setTimeout(() => stop.abort(), 100);
  await assert.rejects(running, { code: 'download_failed', message: /The download was stopped/ });
  assert.ok((await leftovers()).length > 0);
});

test('two downloads of one file at once both end with the whole file', async () => {
  await Promise.all([
    fetchFile(request({ sha256: SHA256 }), context()),
    fetchFile(request({ sha256: SHA256 }), context()),
  ]);
  await assertWhole();
});

test('a disk that cannot be written is told with its mend', async () => {
  await writeFile(path.join(folder, 'deep'), 'a file where the folder should be');
  await assert.rejects(fetchFile(request(), context()), {
    code: 'download_failed',
    message: /model\.bin cannot be written .*Check the cache folder and its permissions/,
  });
  await rm(path.join(folder, 'deep'));
  await mkdir(target, { recursive: true });
  await assert.rejects(
    fetchFile(request(), context()),
    /model\.bin cannot be written \(EISDIR|model\.bin cannot be written \(ENOTEMPTY/,
  );
});
