import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import type { ResolvedConfig } from '../config/resolved-config.js';
import type { CliContext } from './context.js';
import { runCli } from './program.js';
import { packageVersion } from './version.js';

interface Run {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly served: readonly ResolvedConfig[];
}

interface Given {
  readonly env?: Readonly<Record<string, string>>;
  /** Lines of stdin; then it ends. */
  readonly input?: string;
  readonly exitCode?: number;
}

function makeContext(argv: readonly string[], { env = {}, exitCode = 0 }: Given) {
  const served: ResolvedConfig[] = [];
  const streams = { stdin: new PassThrough(), stdout: new PassThrough(), stderr: new PassThrough() };
  const text = { stdout: '', stderr: '' };
  streams.stdout.setEncoding('utf8').on('data', (chunk: string) => (text.stdout += chunk));
  streams.stderr.setEncoding('utf8').on('data', (chunk: string) => (text.stderr += chunk));
  const context: CliContext = {
    argv,
    env,
    readFile: (path) => {
      throw new Error(`no file ${path}`);
    },
    ...streams,
    clock: { nowMs: () => 0, unixSeconds: () => 0 },
    serve: (config) => {
      served.push(config);
      return Promise.resolve(exitCode);
    },
    fetchModel: ({ model, revision }) => Promise.resolve(`cache/${model ?? 'default'}@${revision}`),
  };
  return { context, streams, text, served };
}

async function manyfold(argv: readonly string[], given: Given = {}): Promise<Run> {
  const { context, streams, text, served } = makeContext(argv, given);
  streams.stdin.end(given.input ?? '');
  const exitCode = await runCli(context);
  return { exitCode, ...text, served };
}

test('--version and --help', async () => {
  const version = await manyfold(['--version']);
  assert.equal(version.exitCode, 0);
  assert.match(version.stdout, new RegExp(`^manyfold ${packageVersion()} \\(Node v`));
  for (const argv of [[], ['--help'], ['help']]) {
    const help = await manyfold(argv);
    assert.equal(help.exitCode, 0);
    for (const word of ['serve', 'pull', 'chat', 'config', 'Examples:', 'MANYFOLD_MAX_NUM_SEQS']) {
      assert.ok(help.stdout.includes(word), `${argv.join(' ')}: ${word}`);
    }
  }
});

test('help of each command teaches its options', async () => {
  const serve = await manyfold(['serve', '--help']);
  assert.equal(serve.exitCode, 0);
  assert.deepEqual(serve.served, []);
  assert.match(serve.stdout, /--kv-bytes SIZE/);
  const pull = await manyfold(['pull', '--help']);
  assert.match(pull.stdout, /--revision REVISION/);
  assert.doesNotMatch(pull.stdout, /--kv-bytes/);
  assert.match((await manyfold(['chat', '--help'])).stdout, /\/adapter NAME/);
  assert.match((await manyfold(['config', 'print', '--help'])).stdout, /--origins/);
});

test('serve gets the resolved configuration and its exit code is ours', async () => {
  const run = await manyfold(['serve', './m.gguf', '--port', '9', '--adapter=a=./a'], { exitCode: 7 });
  assert.equal(run.exitCode, 7);
  const [config] = run.served;
  assert.equal(config?.model.model, './m.gguf');
  assert.equal(config.server.port, 9);
  assert.deepEqual(config.adapters.modules, [{ name: 'a', path: './a' }]);
  assert.equal(run.stderr, '');
});

test('pull prints the path', async () => {
  assert.equal((await manyfold(['pull', 'org/name', '--revision', 'v2'])).stdout, 'cache/org/name@v2\n');
  assert.equal((await manyfold(['pull'], { env: { MANYFOLD_PORT: '9' } })).stdout, 'cache/default@main\n');
});

test('mistakes end with code 2 and one message', async () => {
  const flag = await manyfold(['serve', '--prot', '9']);
  assert.equal(flag.exitCode, 2);
  assert.equal(flag.stderr, 'manyfold: There is no flag --prot. Did you mean --port? See --help for all flags.\n');
  const command = await manyfold(['srve']);
  assert.equal(command.exitCode, 2);
  assert.match(command.stderr, /unknown command 'srve'[^]*Did you mean serve/);
  const file = await manyfold(['serve', '--config', 'none.yaml']);
  assert.match(file.stderr, /--config none\.yaml cannot be read: no file none\.yaml/);
  const pull = await manyfold(['pull', '--port', '1']);
  assert.match(pull.stderr, /--port has no meaning for this command/);
  const temperature = await manyfold(['chat', '--temperature', 'hot']);
  assert.equal(temperature.exitCode, 2);
  assert.match(temperature.stderr, /number of 0 to 2/);
});

test('config print and check', async () => {
  const print = await manyfold(['config', 'print', '--origins', '--port', '9'], { env: { MANYFOLD_SEED: '3' } });
  assert.equal(print.exitCode, 0);
  assert.match(print.stdout, /^port: 9 +# --port$/m);
  assert.match(print.stdout, /^seed: 3 +# MANYFOLD_SEED$/m);
  assert.doesNotMatch((await manyfold(['config', 'print'])).stdout, /# default/);
  assert.equal((await manyfold(['config', 'check', '--adapter', 'a=./src'])).stdout, 'The configuration is good.\n');
  const paths = ['--adapter', 'a=./none', '--chat-template', './src', './none.gguf'];
  const check = await manyfold(['config', 'check', ...paths]);
  assert.equal(check.exitCode, 2);
  assert.match(check.stderr, /--adapter a: \.\/none does not exist/);
  assert.match(check.stderr, /--chat-template: \.\/src is a folder, but a file is expected/);
  assert.match(check.stderr, /--model: \.\/none\.gguf does not exist/);
});

interface Asked {
  readonly model: string;
  readonly messages: readonly { readonly role: string; readonly content: string }[];
  readonly temperature?: number;
}

/** A server that answers with the model's name and the last message, in two chunks; some words make it fail. */
async function withChatServer(work: (url: string, asked: Asked[]) => Promise<void>): Promise<void> {
  const asked: Asked[] = [];
  const server: Server = createServer((request, response) => void answer(request, response, asked));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  try {
    await work(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, asked);
  } finally {
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  }
}

async function answer(request: IncomingMessage, response: ServerResponse, asked: Asked[]): Promise<void> {
  if (request.headers.authorization !== 'Bearer k') {
    response.writeHead(401).end(JSON.stringify({ error: { message: 'No such key.' } }));
    return;
  }
  if (request.url === '/v1/models') {
    const data = ['base', 'support', 'legal'].map((id) => ({ id, parent: id === 'base' ? null : 'base' }));
    response.end(JSON.stringify({ object: 'list', data }));
    return;
  }
  let text = '';
  for await (const chunk of request.setEncoding('utf8')) text += String(chunk);
  const body = JSON.parse(text) as Asked;
  asked.push(body);
  const last = body.messages.at(-1)?.content ?? '';
  const send = (data: unknown): void => void response.write(`data: ${JSON.stringify(data)}\n\n`);
  const delta = (content: string): void => send({ choices: [{ delta: { content }, finish_reason: null }] });
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  response.write(': keep-alive\n\n');
  delta(`${body.model}: `);
  if (last === 'wait') return;
  if (last === 'fail') send({ error: { message: 'The engine fell over.' } });
  else if (last !== 'cut') {
    delta(`\u001b[31m${last}`);
    send({ choices: [{ delta: {}, finish_reason: 'stop' }] });
    send({ choices: [], usage: { completion_tokens: 2 } });
    response.write('data: [DONE]\n\n');
  }
  response.end();
}

test('chat with a pipe: lines in, answers out', async () => {
  await withChatServer(async (url, asked) => {
    const input = 'one\n"""\ntwo\nlines\n"""\n/adapter legal\nthree\n/reset\nfour\\\n';
    const argv = [
      'chat',
      '--url',
      url,
      '--adapter',
      'support',
      '--api-key',
      'k',
      '--system',
      'Be kind.',
      '--temperature',
      '0',
    ];
    const run = await manyfold(argv, { input });
    assert.equal(run.stderr, '');
    assert.equal(run.exitCode, 0);
    // The escape character of the answer is gone, so that it cannot paint the terminal.
    assert.equal(run.stdout, 'support: [31mone\nsupport: [31mtwo\nlines\nlegal: [31mthree\nlegal: [31mfour\n');
    assert.deepEqual(
      asked.map(({ messages }) => messages.length),
      [2, 4, 6, 2],
    );
    assert.deepEqual(asked[1]?.messages.slice(0, 3), [
      { role: 'system', content: 'Be kind.' },
      { role: 'user', content: 'one' },
      { role: 'assistant', content: 'support: \u001b[31mone' },
    ]);
    assert.equal(asked[0]?.temperature, 0);
  });
});

test('chat with a pipe: the first failure ends it with code 1', async () => {
  await withChatServer(async (url, asked) => {
    const env = { MANYFOLD_API_KEY: 'k' };
    const failing = await manyfold(['chat', '--url', url], { env, input: 'fail\nnever asked\n' });
    assert.equal(failing.exitCode, 1);
    assert.equal(failing.stderr, 'The engine fell over.\n');
    assert.equal(asked.length, 1);
    const cut = await manyfold(['chat', '--url', url], { env, input: 'cut\n' });
    assert.equal(cut.exitCode, 1);
    assert.match(cut.stderr, /The answer broke off/);
    const listed = await manyfold(['chat', '--url', url], { env, input: '/adapter\n/adaptr\n' });
    assert.equal(listed.stdout, '* base\n  support\n  legal\n');
    assert.match(listed.stderr, /Did you mean \/adapter\?/);
  });
});

test('chat: no server, no key, no such adapter', async () => {
  const nobody = await manyfold(['chat', '--url', 'http://127.0.0.1:1'], { input: 'x\n' });
  assert.equal(nobody.exitCode, 1);
  assert.match(nobody.stderr, /No server answers at http:\/\/127\.0\.0\.1:1\. Start one with 'manyfold serve'/);
  await withChatServer(async (url) => {
    const keyless = await manyfold(['chat', '--url', url], { input: 'x\n' });
    assert.match(keyless.stderr, /No such key\. Give the key with --api-key KEY/);
    const unknown = await manyfold(['chat', '--url', url, '--api-key', 'k', '--adapter', 'suport']);
    assert.match(unknown.stderr, /no adapter 'suport'\. Did you mean support\? It has: base, support, legal/);
    assert.equal(unknown.exitCode, 1);
  });
  const address = await manyfold(['chat', '--url', 'localhost']);
  assert.equal(address.exitCode, 2);
  assert.match(address.stderr, /--url expects an address/);
});

/** Resolves when the text has come; the test runner's own time limit ends a wait that never does. */
async function until(stream: PassThrough, holds: () => boolean): Promise<void> {
  while (!holds()) await once(stream, 'data');
}

test('chat in a terminal: Ctrl-C stops an answer and the chat goes on', async () => {
  await withChatServer(async (url, asked) => {
    const { context, streams, text } = makeContext(['chat', '--url', url, '--api-key', 'k'], {});
    Object.assign(streams.stdin, { isTTY: true });
    Object.assign(streams.stdout, { isTTY: true });
    const running = runCli(context);
    await until(streams.stdout, () => text.stdout.includes('> '));
    streams.stdin.write('wait\r');
    await until(streams.stdout, () => text.stdout.includes('base: '));
    streams.stdin.write('\u0003');
    await until(streams.stdout, () => text.stdout.includes('[stopped; the exchange is forgotten]'));
    streams.stdin.write('hello\r');
    await until(streams.stdout, () => text.stdout.includes('[2 tokens, 0.0 s, stop]'));
    streams.stdin.write('/exit\r');
    assert.equal(await running, 0);
    assert.deepEqual(asked[1]?.messages, [{ role: 'user', content: 'hello' }]);
    assert.equal(text.stderr, '');
  });
});
