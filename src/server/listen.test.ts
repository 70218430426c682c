import assert from 'node:assert/strict';
import { connect } from 'node:net';
import type { Socket } from 'node:net';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { listen } from './listen.js';
import type { ListenOptions, RunningServer } from './listen.js';
import { CHAT, makeApp, until } from './testing/client.js';
import type { AppFixture, AppFixtureOptions } from './testing/client.js';

async function serve(
  t: TestContext,
  options: AppFixtureOptions = {},
  socket: Partial<ListenOptions> = {},
): Promise<AppFixture & { server: RunningServer }> {
  const fixture = makeApp(options);
  const server = await listen(fixture.app, fixture.service.lifecycle, { host: '127.0.0.1', port: 0, ...socket });
  t.after(() => server.drain(0));
  return { ...fixture, server };
}

function open(t: TestContext, server: RunningServer): Socket {
  const socket = connect(server.port, '127.0.0.1');
  socket.on('error', () => undefined);
  t.after(() => socket.destroy());
  return socket;
}

function rawPost(path: string, body: object): string {
  const json = JSON.stringify(body);
  return `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ${json.length}\r\n\r\n${json}`;
}

function received(socket: Socket): { text: string; ended: boolean } {
  const seen = { text: '', ended: false };
  socket.on('data', (data: Buffer) => (seen.text += data.toString()));
  socket.on('close', () => (seen.ended = true));
  return seen;
}

function postJson(server: RunningServer, path: string, body: object): Promise<Response> {
  const headers = { 'content-type': 'application/json' };
  return fetch(server.url + path, { method: 'POST', headers, body: JSON.stringify(body) });
}

test('a stream over a socket, and the connection is used again', async (t) => {
  const { server } = await serve(t, { answer: 'Hello' });
  const response = await postJson(server, '/v1/chat/completions', { ...CHAT, stream: true });
  assert.equal(response.headers.get('content-type'), 'text/event-stream; charset=utf-8');
  assert.ok((await response.text()).endsWith('data: [DONE]\n\n'));
  assert.equal((await fetch(`${server.url}/health`)).status, 200);
});

for (const stream of [true, false]) {
  test(`a socket that closes cancels the engine (stream: ${stream})`, async (t) => {
    const { server, engine, service, log } = await serve(t, {
      answer: () => Array.from({ length: 300 }, () => 65),
      automatic: false,
    });
    const socket = open(t, server);
    socket.write(rawPost('/v1/chat/completions', { ...CHAT, stream }));
    await until(() => engine.running === 1);
    engine.step();
    socket.destroy();
    await until(() => engine.cancelled.length > 0);
    engine.step();
    assert.equal(engine.running, 0);
    await until(() => log.some((line) => line['msg'] === 'request'));
    assert.equal(log.find((line) => line['msg'] === 'request')?.['outcome'], 'cancelled');
    assert.equal(service.lifecycle.active, 0);
  });
}

test('a client that does not read holds its own stream back and nobody else', async (t) => {
  const total = 60_000;
  const { server, service, engine } = await serve(t, {
    answer: () => Array.from({ length: total }, () => 65),
    automatic: false,
    info: { maxModelLen: total + 100 },
  });
  const slow = open(t, server);
  slow.pause();
  slow.write(rawPost('/v1/completions', { prompt: 'x', stream: true, max_tokens: total }));
  await until(() => engine.running === 1);
  for (let i = 0; i < total; i += 1) engine.step();
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(service.lifecycle.active, 1, 'about 10 MB of frames cannot all be in the socket');
  assert.equal((await fetch(`${server.url}/v1/models`)).status, 200);
  const seen = received(slow);
  slow.resume();
  await until(() => seen.text.endsWith('data: [DONE]\n\n\r\n0\r\n\r\n'));
  assert.equal([...seen.text.matchAll(/"text":"A"/g)].length, total);
});

test('slow senders are cut off with a sentence', async (t) => {
  const limits = { headersTimeoutMs: 60, requestTimeoutMs: 60, checkEveryMs: 20 };
  const { server, engine } = await serve(t, {}, limits);
  const headers = open(t, server);
  const body = open(t, server);
  const [fromHeaders, fromBody] = [received(headers), received(body)];
  headers.write('POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-a: ');
  body.write(
    'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{',
  );
  await until(() => fromHeaders.ended && fromBody.ended);
  assert.match(fromHeaders.text, /^HTTP\/1.1 408 [\s\S]*did not arrive in time/);
  assert.match(fromBody.text, /408/);
  assert.equal(engine.requests.length, 0);
});

test('what is no HTTP, and headers beyond the limit, get an envelope', async (t) => {
  const { server } = await serve(t);
  const cases: [string, RegExp][] = [
    ['\x16\x03\x01nonsense\r\n\r\n', /^HTTP\/1.1 400 /],
    [`GET / HTTP/1.1\r\nhost: localhost\r\nx-big: ${'a'.repeat(20_000)}\r\n\r\n`, /^HTTP\/1.1 431 /],
    ['GET /\\evil HTTP/1.1\r\nhost: local host\r\n\r\n', /^HTTP\/1.1 400 /],
  ];
  for (const [bytes, status] of cases) {
    const socket = open(t, server);
    const seen = received(socket);
    socket.write(bytes);
    await until(() => seen.text.includes('"error"'));
    assert.match(seen.text, status);
    assert.equal(/"code":(\d+)/.exec(seen.text)?.[1], seen.text.slice(9, 12));
  }
});

test('a body beyond the limit is refused while it is still being sent', async (t) => {
  const { server } = await serve(t, { limits: { bodyBytes: 1000 } });
  const socket = open(t, server);
  const seen = received(socket);
  socket.write(
    'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n',
  );
  socket.write(`7d0\r\n${'x'.repeat(2000)}\r\n`);
  await until(() => seen.text.includes('"error"'));
  assert.match(seen.text, /^HTTP\/1.1 413 /);
});

test('a client that leaves in the middle of its body is no bug', async (t) => {
  const { server, log, engine } = await serve(t);
  const socket = open(t, server);
  socket.write(
    'POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{',
  );
  await new Promise((resolve) => setTimeout(resolve, 20));
  socket.destroy();
  await until(() => log.some((line) => line['msg'] === 'request'));
  assert.deepEqual(
    log.map((line) => [line['status'], line['error']]),
    [[400, 'invalid_request']],
  );
  assert.equal(engine.requests.length, 0);
});

test('drain: not ready, new work refused, the stream finishes, then the server is gone', async (t) => {
  const { server, engine } = await serve(t, { answer: 'Hello', automatic: false });
  const response = await postJson(server, '/v1/chat/completions', { ...CHAT, stream: true });
  engine.step();
  const draining = server.drain(10_000);
  assert.equal((await fetch(`${server.url}/readyz`)).status, 503);
  assert.equal((await fetch(`${server.url}/livez`)).status, 200);
  const refused = await postJson(server, '/v1/chat/completions', CHAT);
  assert.equal(refused.status, 503);
  assert.ok(refused.headers.get('retry-after'));
  assert.equal(refused.headers.get('x-llm-d-request-dropped-reason'), 'rejected-shutting-down');
  for (let i = 0; i < 5; i += 1) engine.step();
  const text = await response.text();
  assert.match(text, /"finish_reason":"stop"/);
  assert.ok(text.endsWith('data: [DONE]\n\n'));
  await draining;
  await assert.rejects(fetch(`${server.url}/livez`));
});

test('when the time is over, streams end with an error event', async (t) => {
  const { server, engine } = await serve(t, { answer: 'Hello', automatic: false });
  const response = await postJson(server, '/v1/chat/completions', { ...CHAT, stream: true });
  engine.step();
  const draining = server.drain(20);
  await until(() => engine.cancelled.length > 0);
  engine.step();
  assert.match(await response.text(), /"error":\{"message":"The server is shutting down[^\n]*"code":503\}\}\n\n$/);
  await draining;
});

test('a second drain ends at once, whatever the engine does', async (t) => {
  const { server, engine } = await serve(t, { answer: 'Hello', automatic: false });
  const response = await postJson(server, '/v1/chat/completions', { ...CHAT, stream: true });
  engine.step();
  const draining = server.drain(600_000);
  await Promise.all([server.drain(0), draining]);
  await assert.rejects(response.text());
});

test('a taken port is told with the flag', async (t) => {
  const { server, app, service } = await serve(t);
  const again = listen(app, service.lifecycle, { host: '127.0.0.1', port: server.port });
  await assert.rejects(again, /port \d+: another program uses it\. Choose another with --host and --port\.$/);
});
