import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';

import { systemClock } from '../core/clock.js';
import { pullModel } from './hub.js';
import type { PullOptions } from './hub.js';
import { parseModelReference, selectFiles } from './model-reference.js';
import type { ModelReference } from './model-reference.js';
import { silentProgress } from './progress.js';
import { FileServer } from './testing/file-server.js';

const COMMIT = 'c0ffee'.padEnd(40, '0');
let server: FileServer;
let cacheDir = '';
let notes: string[] = [];
before(async () => {
  server = await FileServer.start();
});
after(() => server.stop());
beforeEach(async () => {
  cacheDir = await mkdtemp(path.join(tmpdir(), 'manyfold-hub-'));
  notes = [];
  server.files.clear();
  server.faults.length = 0;
  server.requests.length = 0;
});
afterEach(() => rm(cacheDir, { recursive: true }));

const options = (): PullOptions => ({
  endpoint: `${server.origin}/`,
  cacheDir,
  token: 'secret',
  clock: systemClock,
  progress: { ...silentProgress, note: (line) => notes.push(line) },
  stallTimeoutMs: 2000,
  maxFailures: 2,
  sleep: () => Promise.resolve(),
});
const reference = (text: string): ModelReference => parseModelReference(text) ?? assert.fail(text);

/** Puts a repository on the server. */
function publish(files: Readonly<Record<string, string>>, id = 'me/model', revision = 'main'): void {
  const siblings = Object.entries(files).map(([rfilename, text]) => {
    const sha256 = createHash('sha256').update(text).digest('hex');
    const large = rfilename.endsWith('.safetensors') || rfilename.endsWith('.gguf');
    return { rfilename, size: text.length, ...(large ? { lfs: { sha256, size: text.length } } : {}) };
  });
  const listing = Buffer.from(JSON.stringify({ sha: COMMIT, siblings }));
  server.files.set(`/api/models/${id}/revision/${revision}`, { body: listing });
  for (const [name, text] of Object.entries(files)) {
    server.files.set(`/${id}/resolve/${COMMIT}/${name}`, { body: Buffer.from(text), etag: `"${name}"` });
  }
}

const FOLDER = {
  'README.md': 'read',
  'config.json': '{}',
  'tokenizer.json': '{"t":1}',
  'chat_template.jinja': 'x',
  'model.safetensors': 'weights',
  'pytorch_model.bin': 'pickle',
  'onnx/model.safetensors': 'other',
};

test('a folder of safetensors: what is needed and nothing else, by commit, with the token', async () => {
  publish(FOLDER);
  const folder = await pullModel(reference('me/model'), options());
  assert.equal(folder, path.join(cacheDir, 'models', 'me', 'model', COMMIT));
  assert.deepEqual((await readdir(folder)).sort(), [
    'chat_template.jinja',
    'config.json',
    'model.safetensors',
    'tokenizer.json',
  ]);
  assert.ok(server.requests.every(({ authorization }) => authorization === 'Bearer secret'));
  const before = server.requests.length;
  assert.equal(await pullModel(reference('me/model'), options()), folder);
  assert.equal(server.requests.length, before + 1);
});

test('a sharded model: the shards that the index names, which it may not place elsewhere', async () => {
  const index = (shard: string): string => JSON.stringify({ weight_map: { a: 'model-1.safetensors', b: shard } });
  const { 'model.safetensors': _single, ...rest } = FOLDER;
  const shards = { 'model-1.safetensors': 'one', 'model-2.safetensors': 'two', 'spare.safetensors': 'no' };
  publish({ ...rest, ...shards, 'model.safetensors.index.json': index('model-2.safetensors') });
  const folder = await pullModel(reference('me/model@main'), options());
  const names = await readdir(folder);
  assert.ok(
    names.includes('model-1.safetensors') &&
      names.includes('model-2.safetensors') &&
      !names.includes('spare.safetensors'),
  );
  publish({ ...rest, ...shards, 'model.safetensors.index.json': index('../x.safetensors') }, 'me/hostile');
  await assert.rejects(
    pullModel(reference('me/hostile'), options()),
    /names a file that is no plain \.safetensors name/,
  );
  publish({ ...rest, ...shards, 'model.safetensors.index.json': index('gone.safetensors') }, 'me/gone');
  await assert.rejects(
    pullModel(reference('me/gone'), options()),
    /names gone\.safetensors, which the repository does not have/,
  );
});

test('a GGUF file by quantization, by name, or because it is the only one', async () => {
  publish({ 'm-Q4_K_M.gguf': 'k', 'm-IQ4_K_M.gguf': 'i', 'm-Q8_0.gguf': 'q', 'README.md': '' });
  const file = await pullModel(reference('me/model:q4_k_m'), options());
  assert.equal(path.basename(file), 'm-Q4_K_M.gguf');
  assert.equal(await readFile(file, 'utf8'), 'k');
  assert.equal(path.basename(await pullModel(reference('me/model:m-Q8_0.gguf'), options())), 'm-Q8_0.gguf');
  await assert.rejects(pullModel(reference('me/model'), options()), {
    code: 'download_failed',
    message: /several GGUF files\. Name one: me\/model:m-Q4_K_M\.gguf, /,
  });
  await assert.rejects(pullModel(reference('me/model:Q2_K'), options()), /has no GGUF file for Q2_K/);
  publish({ 'only.gguf': 'o' }, 'me/one');
  assert.equal(path.basename(await pullModel(reference('me/one'), options())), 'only.gguf');
  publish({ 'big-00001-of-00002.gguf': 'o' }, 'me/split');
  await assert.rejects(pullModel(reference('me/split'), options()), /is one part of several/);
  publish({ 'pytorch_model.bin': 'p', 'config.json': '{}' }, 'me/pickle');
  await assert.rejects(pullModel(reference('me/pickle'), options()), /Pickle files \(\.bin, \.pt\) are never read/);
});

test('a shard that breaks off is resumed and checked against the hub’s hash', async () => {
  const weights = 'w'.repeat(200_000);
  publish({ ...FOLDER, 'model.safetensors': weights });
  server.faults.push(undefined, undefined, undefined, undefined, { cutAfter: 150_000 });
  const folder = await pullModel(reference('me/model'), options());
  assert.equal(await readFile(path.join(folder, 'model.safetensors'), 'utf8'), weights);
  assert.match(server.requests.at(-1)?.range ?? '', /^bytes=[1-9]/);
  publish({ ...FOLDER, 'model.safetensors': 'right' }, 'me/damaged');
  server.files.set(`/me/damaged/resolve/${COMMIT}/model.safetensors`, { body: Buffer.from('wrong') });
  await assert.rejects(pullModel(reference('me/damaged'), options()), /SHA-256 is/);
});

test('without the hub the copy of last time serves; without a copy the mend is told', async () => {
  await assert.rejects(pullModel(reference('me/absent'), options()), /answered 404\. Check the model's name/);
  publish(FOLDER);
  const folder = await pullModel(reference('me/model'), options());
  server.faults.push({ status: 503 }, { status: 503 });
  assert.equal(await pullModel(reference('me/model'), options()), folder);
  assert.match(notes.at(-1) ?? '', /answered 503; using the copy of me\/model that was downloaded before/);
  server.faults.push({ status: 503 }, { status: 503 });
  await assert.rejects(
    pullModel(reference('me/model@v2'), options()),
    /answered 503\. Check the network and the endpoint/,
  );
});

test('a listing that is none is refused', async () => {
  const set = (json: string): unknown =>
    server.files.set('/api/models/me/model/revision/main', { body: Buffer.from(json) });
  for (const [json, message] of [
    ['<html>', /the listing of me\/model has no commit/],
    ['{"sha": "../../x", "siblings": []}', /has no commit/],
    ['{"sha": "abc"}', /has no list of files/],
  ] as const) {
    set(json);
    await assert.rejects(pullModel(reference('me/model'), options()), { code: 'download_failed', message });
  }
  set('{"sha": "abc", "siblings": [{"rfilename": "../config.json"}, {"rfilename": "/etc/model.gguf"}, 7]}');
  await assert.rejects(
    pullModel(reference('me/model'), options()),
    /has neither config\.json with safetensors nor a GGUF file/,
  );
});

test('references', () => {
  assert.deepEqual(parseModelReference('a/b'), { id: 'a/b', file: undefined, revision: 'main' });
  assert.deepEqual(parseModelReference('a/b-1.5:Q8_0@refs/pr/3'), {
    id: 'a/b-1.5',
    file: 'Q8_0',
    revision: 'refs/pr/3',
  });
  for (const text of ['a', 'a/b/c', '../b', './b', '/a/b', 'a/..', 'a/b@x/../y', 'a/b:', 'a b/c', 'a/b:x/y']) {
    assert.equal(parseModelReference(text), undefined, text);
  }
  const both = ['config.json', 'model.safetensors', 'model.safetensors.index.json', 'x.gguf'].map((name) => ({
    name,
    size: 1,
    sha256: undefined,
  }));
  const { files, index, open } = selectFiles(both, reference('a/b'));
  assert.deepEqual([files.map(({ name }) => name), index, open], [['config.json', 'model.safetensors'], false, '']);
});
