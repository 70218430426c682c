/** Answers byte by byte, odd but allowed ones and broken ones: each has one outcome of the right kind. */
import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import type { AddressInfo, Server, Socket } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import type { Outcome, RunReport } from '../report/run-report.js';
import { runYaml } from '../testing/run-yaml.js';

const token = (text: string, finish: string | null = null): string =>
  `data: {"choices":[{"delta":{"content":"${text}"},"finish_reason":${finish === null ? 'null' : `"${finish}"`}}]}\n\n`;
const USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n';
const DONE = 'data: [DONE]\n\n';
const GOOD = token('a') + token('b', 'stop') + USAGE + DONE;
const HEAD = 'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n';

function chunked(text: string, extension = ''): string {
  return `transfer-encoding: chunked\r\n\r\n${Buffer.byteLength(text).toString(16)}${extension}\r\n${text}\r\n0\r\n\r\n`;
}

/** The bytes, or what is done with the socket. */
type Answer = string | Buffer | ((socket: Socket) => void);

interface Case {
  readonly answer: Answer;
  readonly outcome: Outcome;
  readonly pieces?: number;
  readonly text?: RegExp;
}

/** Bytes one by one until the socket is gone. */
function drip(socket: Socket, text: string, everyMs: number): void {
  let next = 0;
  const timer = setInterval(() => {
    if (socket.destroyed || next >= text.length) return clearInterval(timer);
    socket.write(text[next++] ?? '');
  }, everyMs);
}

/** The same text again and again until the socket is gone. */
function repeat(socket: Socket, text: string, everyMs: number): void {
  const timer = setInterval(() => (socket.destroyed ? clearInterval(timer) : socket.write(text)), everyMs);
}

const CASES: Readonly<Record<string, Case>> = {
  'http10-close': {
    answer: `HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n${GOOD}`,
    outcome: 'ok',
    pieces: 2,
  },
  'no-done-close': {
    answer: `HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n${token('a', 'stop')}`,
    outcome: 'ok',
    pieces: 1,
  },
  crlf: { answer: HEAD + chunked(GOOD.replaceAll('\n', '\r\n')), outcome: 'ok', pieces: 2 },
  comments: {
    answer: HEAD + chunked(`: hello\n\n${token('a')}: ping\n\n${token('b', 'stop')}retry: 5\nid: 7\n\n${USAGE}${DONE}`),
    outcome: 'ok',
    pieces: 2,
  },
  'chunk-extension': { answer: HEAD + chunked(GOOD, ';name=value'), outcome: 'ok', pieces: 2 },
  'upper-case-type': {
    answer: `HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=UTF-8\r\n${chunked(GOOD)}`,
    outcome: 'ok',
    pieces: 2,
  },
  'early-hints': {
    answer: `HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n${HEAD}${chunked(GOOD)}`,
    outcome: 'ok',
    pieces: 2,
  },
  'long-line': {
    answer: HEAD + chunked(token('x'.repeat(200_000)) + token('b', 'stop') + DONE),
    outcome: 'ok',
    pieces: 2,
  },
  'never-closes': { answer: (socket) => socket.write(`${HEAD}\r\n${GOOD}`), outcome: 'ok', pieces: 2 },
  gzip: {
    answer: Buffer.concat([Buffer.from(`${HEAD}content-encoding: gzip\r\nconnection: close\r\n\r\n`), gzipSync(GOOD)]),
    outcome: 'bad_answer',
    text: /packed \(gzip\)/,
  },
  'bad-chunk': { answer: `${HEAD}transfer-encoding: chunked\r\n\r\nzz\r\n`, outcome: 'bad_answer' },
  'short-body': { answer: `${HEAD}content-length: 9999\r\n\r\n${token('a')}`, outcome: 'stream_cut', pieces: 1 },
  'cut-event': {
    answer: `${HEAD}connection: close\r\n\r\n${token('a')}data: {"choi`,
    outcome: 'stream_cut',
    pieces: 1,
  },
  'huge-header': { answer: `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(300_000)}\r\n\r\n`, outcome: 'bad_answer' },
  'null-choices': { answer: HEAD + chunked('data: {"choices":null}\n\n'), outcome: 'bad_answer' },
  'json-array': { answer: HEAD + chunked('data: [1,2]\n\n'), outcome: 'bad_answer' },
  'odd-values': {
    answer:
      HEAD + chunked(`data: {"choices":[null],"usage":{"completion_tokens":1e300}}\n\n${token('a', 'stop')}${DONE}`),
    outcome: 'ok',
    pieces: 1,
  },
  'empty-200': { answer: 'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n', outcome: 'bad_answer' },
  'no-content': { answer: 'HTTP/1.1 204 No Content\r\n\r\n', outcome: 'bad_answer' },
  redirect: {
    answer: 'HTTP/1.1 307 Go\r\nlocation: http://198.51.100.7/\r\ncontent-length: 0\r\n\r\n',
    outcome: 'bad_answer',
    text: /redirects are not followed/,
  },
  unauthorized: { answer: 'HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n', outcome: 'client_error' },
  'retry-503': { answer: 'HTTP/1.1 503 Busy\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n', outcome: 'server_error' },
  'slow-head': { answer: (socket) => drip(socket, HEAD, 200), outcome: 'timeout_first_token' },
  'slow-event': { answer: (socket) => drip(socket, `${HEAD}\r\n${GOOD}`, 100), outcome: 'timeout_first_token' },
  'pings-only': {
    answer: (socket) => (socket.write(`${HEAD}\r\n${token('a')}`), repeat(socket, ': ping\n\n', 100)),
    outcome: 'timeout_idle',
    pieces: 1,
  },
  'empty-events': {
    answer: (socket) => (socket.write(`${HEAD}\r\n${token('a')}`), repeat(socket, token(''), 100)),
    outcome: 'timeout_total',
    pieces: 1,
  },
};

/** Reads whole requests and answers each as its `model` says. */
function serve(socket: Socket): void {
  let text = '';
  socket.on('error', () => undefined); // The client goes away on purpose.
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
    const end = text.indexOf('\r\n\r\n');
    const length = Number(/content-length: (\d+)/i.exec(text)?.[1] ?? 0);
    if (end < 0 || text.length < end + 4 + length) return;
    const name = /"model":"([^"]+)"/.exec(text)?.[1] ?? '';
    text = '';
    const answer = CASES[name]?.answer ?? 'HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\n{}';
    if (typeof answer === 'function') answer(socket);
    else socket.end(answer);
  });
}

describe('answers byte by byte', () => {
  let server: Server;
  let report: RunReport;
  const sockets = new Set<Socket>();

  before(async () => {
    server = createServer((socket) => {
      sockets.add(socket);
      serve(socket);
    });
    await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address() as AddressInfo;
    const names = Object.keys(CASES);
    report = await runYaml(`name: raw
target: { url: 'http://127.0.0.1:${port}', dialect: vllm }
arrivals: { kind: constant, rate: 20, requests: ${names.length} }
adapters: { kind: distinct, names: [${names.join(', ')}] }
output: { tokens: 2 }
limits: { first-token-timeout: 2, idle-timeout: 2, total-timeout: 5, drain: 10 }
`);
  });
  after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });

  for (const [name, { outcome, pieces = 0, text }] of Object.entries(CASES)) {
    test(`${name}: ${outcome}`, () => {
      const [record, ...rest] = report.requests.filter(({ adapter }) => adapter === name);
      assert.deepEqual([record?.outcome, record?.pieces, rest], [outcome, pieces, []], record?.errorText ?? '');
      if (text !== undefined) assert.match(record?.errorText ?? '', text);
      assert.ok((record?.outputTokens ?? Infinity) <= 2);
    });
  }
});
