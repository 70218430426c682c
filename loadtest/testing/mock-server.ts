/**
 * A server of the OpenAI, LoRAX and llama-server protocols with known latencies and faults, in a process of its own so that it
 * shares no event loop with the client under test: `node dist/loadtest/testing/mock-server.js '{"ttftMs":…}'`. Prints
 * its port as one line of JSON and serves until it is killed. start-mock.ts starts it.
 */
import { createServer } from 'node:http';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { answerFault } from './mock-faults.js';
import { mockMetrics } from './mock-metrics.js';
import { evenPoint, FAULTS, quantileOf } from './mock-options.js';
import type { Fault, MockEntry, MockOptions } from './mock-options.js';
import { protocolOf } from './mock-protocol.js';
import type { MockRequest } from './mock-protocol.js';

const options = JSON.parse(process.argv[2] ?? '{}') as MockOptions;
const log: (MockEntry & { pieceAt: number[]; endAt: number | null })[] = [];
const totals = { running: 0, waiting: 0, promptTokens: 0, outputTokens: 0, done: 0, ttftSeconds: 0 };
const queue: (() => void)[] = [];
let itlIndex = 0;

function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

function at(timeMs: number, work: () => void): void {
  setTimeout(work, Math.max(0, timeMs - monotonicMs()));
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks).toString('utf8');
}

function freezeOnce(): void {
  const { stall } = options;
  if (stall === undefined || log.length !== 1) return;
  // The sleep holds the only thread: nothing is read, written or accepted meanwhile.
  setTimeout(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, stall.forMs), stall.afterMs);
}

async function generate(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const receivedAt = monotonicMs();
  const asked = protocolOf(request.url ?? '', await readBody(request));
  const { adapter, prompt, maxTokens } = asked;
  const entry = { adapter, prompt, maxTokens, path: request.url ?? '', receivedAt, pieceAt: [], endAt: null };
  const index = log.push(entry) - 1;
  freezeOnce();
  const start = (): void => {
    totals.running++;
    response.once('close', () => {
      totals.running--;
      queue.shift()?.();
    });
    const fault = FAULTS.find((name) => name === adapter);
    const begin = options.slots === undefined ? receivedAt : Math.max(receivedAt, monotonicMs());
    if (fault !== undefined && answerFault(fault, request, response)) return;
    stream({ asked, response, index, begin, fault });
  };
  if (options.slots === undefined || totals.running < options.slots) return start();
  totals.waiting++;
  queue.push(() => {
    totals.waiting--;
    start();
  });
}

interface Job {
  readonly asked: MockRequest;
  readonly response: ServerResponse;
  readonly index: number;
  readonly begin: number;
  readonly fault: Fault | undefined;
}

/** Headers at once, tokens at their times. All times are counted from the begin, so that lateness does not add up. */
function stream({ asked, response, index, begin, fault }: Job): void {
  const entry = log[index];
  if (entry === undefined) return;
  const share = evenPoint(index);
  let due = begin + quantileOf(options.ttftMs, share);
  let token = 0;
  const headers = { 'content-type': 'text/event-stream', server: 'mock' };
  const write = (text: string): void => {
    if (fault !== 'fault-split') return void response.write(text);
    for (let from = 0; from < text.length; from += 3) response.write(text.slice(from, from + 3));
  };
  const next = (): void => {
    if (response.destroyed) return;
    if (token === 0) response.writeHead(200, headers);
    const piece = asked.piece(token, token === asked.maxTokens - 1);
    entry.pieceAt.push(monotonicMs());
    write(piece);
    token++;
    totals.outputTokens += options.tokenLie ?? 1;
    if (token === 1) totals.ttftSeconds += (monotonicMs() - entry.receivedAt) / 1000;
    if (fault === 'fault-cut' && token === 3) return void setTimeout(() => response.destroy(), 20);
    if (fault === 'fault-clean-end' && token === 3) return void response.end();
    if (fault === 'fault-hang-middle' && token === 3) return;
    if (token < asked.maxTokens) {
      due += quantileOf(options.itlMs, evenPoint(itlIndex++));
      return at(due, next);
    }
    totals.done++;
    totals.promptTokens += asked.promptTokens;
    entry.endAt = monotonicMs();
    write(asked.end(fault !== 'fault-no-usage'));
    response.end();
  };
  at(due, next);
}

function answer(request: IncomingMessage, response: ServerResponse): void {
  const json = (value: unknown): void => {
    response.writeHead(200, { 'content-type': 'application/json', server: 'mock' }).end(JSON.stringify(value));
  };
  if (request.method === 'POST') {
    generate(request, response).catch((error: unknown) => {
      response.writeHead(400).end(String(error));
    });
    return;
  }
  switch (request.url) {
    case '/v1/models': {
      const adapters = (options.adapters ?? []).map((id) => ({ id, parent: 'base' }));
      return json({ object: 'list', data: [{ id: 'base' }, ...adapters] });
    }
    case '/lora-adapters':
      return json((options.adapters ?? []).map((name, id) => ({ id, path: `adapters/${name}.gguf`, scale: 1 })));
    case '/version':
      return json({ version: '0.0.1' });
    case '/metrics':
      return void response.end(mockMetrics({ ...totals, adapters: options.adapters ?? [] }));
    case '/mock/log':
      return json(log);
    default:
      return void response.writeHead(404).end('{}');
  }
}

const server = createServer({ keepAliveTimeout: 30_000 }, answer);
server.listen(0, '127.0.0.1', () => {
  process.stdout.write(`${JSON.stringify({ port: (server.address() as AddressInfo).port })}\n`);
});
