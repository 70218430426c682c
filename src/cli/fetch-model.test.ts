import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { loadConfig } from '../config/load-config.js';
import type { ModelSettings } from '../config/resolved-config.js';
import { fetchModel } from './fetch-model.js';

const output = new PassThrough().resume();

function settings(...argv: string[]): ModelSettings {
  return loadConfig(argv, {}, () => assert.fail('no file is read')).model;
}

test('a path of this machine is taken as it is', async () => {
  assert.equal(await fetchModel(settings('./package.json'), output), path.resolve('package.json'));
  assert.equal(await fetchModel(settings('--model', 'src/cli'), output), path.resolve('src/cli'));
});

test('what is neither a path nor an id is refused', async () => {
  await assert.rejects(
    fetchModel(settings('./none.gguf'), output),
    /neither a file or folder of this machine nor a hub id/,
  );
  await assert.rejects(fetchModel(settings('a/b@v1', '--revision', 'v2'), output), /name two revisions/);
});

test('a hub id is downloaded from the endpoint, at its revision, with the token', async () => {
  const content = 'not really a model';
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(`${request.url} ${request.headers.authorization}`);
    const lfs = { size: content.length, sha256: createHash('sha256').update(content).digest('hex') };
    const listing = { sha: 'c0ffee', siblings: [{ rfilename: 'tiny.gguf', lfs }] };
    response.end(request.url?.startsWith('/api/') === true ? JSON.stringify(listing) : content);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const cache = await mkdtemp(path.join(tmpdir(), 'manyfold-fetch-'));
  try {
    const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const flags = ['--hub-endpoint', endpoint, '--cache-dir', cache, '--hub-token', 'k'];
    const file = await fetchModel(settings('owner/tiny', '--revision', 'v2', ...flags), output);
    assert.equal(await readFile(file, 'utf8'), content);
    assert.ok(file.startsWith(cache));
    assert.deepEqual(asked, [
      '/api/models/owner/tiny/revision/v2?blobs=true Bearer k',
      '/owner/tiny/resolve/c0ffee/tiny.gguf Bearer k',
    ]);
    assert.equal(await fetchModel(settings('owner/tiny@v2', ...flags), output), file);
  } finally {
    server.closeAllConnections();
    server.close();
    await rm(cache, { recursive: true, force: true });
  }
});
