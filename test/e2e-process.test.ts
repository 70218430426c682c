/** `manyfold serve` as a process: what it prints, how it refuses to start, how it ends. */
import assert from 'node:assert/strict';
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { chunksOf, complete, only, post, postFailure, type Chunk, type CompletionAnswer } from './support/api.js';
import { GOLDENS, readGoldens } from './support/goldens.js';
import { runManyfold } from './support/serve-command.js';
import { startServer, type ServerProcess } from './support/server-process.js';
import { openaiClient } from './support/stack.js';

const FOLDER = path.join(GOLDENS, 'models', 'llama-gqa');
const GOOD = path.join(FOLDER, 'adapters', 'qkvo-r8');

let adapters: string;
before(async () => {
  adapters = await mkdtemp(path.join(tmpdir(), 'manyfold-e2e-'));
  await cp(path.join(FOLDER, 'adapters', 'head-r8'), path.join(adapters, 'team', 'good'), { recursive: true });
  await mkdir(path.join(adapters, 'team', 'bad'));
  await writeFile(path.join(adapters, 'team', 'bad', 'adapter_config.json'), '{"peft_type": "LORA", "r": 8}');
});
after(() => rm(adapters, { recursive: true }));

async function serve(args: readonly string[], body: (server: ServerProcess) => Promise<void>): Promise<void> {
  const server = await startServer({ args: [FOLDER, '--dtype', 'f32', ...args] });
  try {
    await body(server);
  } finally {
    await server.stop('SIGKILL');
  }
}

/** What the server has printed, once it has printed this. */
async function printed(server: ServerProcess, pattern: RegExp): Promise<string> {
  for (let i = 0; !pattern.test(server.output()); i++) {
    assert.ok(i < 200, `${pattern} was not printed in:\n${server.output()}`);
    await sleep(25);
  }
  return server.output();
}

function status(server: ServerProcess, route: string, headers: Record<string, string> = {}): Promise<number> {
  return fetch(server.url + route, { headers: { connection: 'close', ...headers } }).then(async (response) => {
    await response.arrayBuffer();
    return response.status;
  });
}

interface OpenStream {
  /** Reads on to the end of the stream. */
  rest(): Promise<Chunk[]>;
}

/** A stream that is far larger than what sockets hold, so that it stays open until it is read. */
async function openStream(server: ServerProcess): Promise<OpenStream> {
  const response = await post(server.url, '/v1/completions', {
    ...{
      model: 'llama-gqa',
      prompt: 'The',
      stream: true,
      n: 8,
      max_tokens: 240,
      ignore_eos: true,
      logprobs: 20,
      seed: 1,
    },
  });
  assert.equal(response.status, 200);
  const chunks = chunksOf(response);
  await chunks.next();
  const rest = async (): Promise<Chunk[]> => {
    const list: Chunk[] = [];
    for await (const chunk of chunks) list.push(chunk);
    return list;
  };
  return { rest };
}

function answers(chunks: readonly Chunk[]): CompletionAnswer[] {
  return chunks.map((chunk) => {
    assert.ok(!('error' in chunk), JSON.stringify(chunk));
    return chunk;
  });
}

describe('a server that runs', { concurrency: true }, () => {
  test('prints what it loaded and a curl that works, and ends in order on SIGTERM', async () => {
    await serve(['--adapter', `mine=${GOOD}`, '--adapter-dir', adapters], async (server) => {
      const table = await printed(server, /Try it:\s+curl .*\n/);
      assert.match(table, /model +llama-gqa/);
      assert.match(table, /weights +f32/);
      assert.match(table, /adapter +mine {2}sha256:[0-9a-f]{12}/);
      assert.match(table, /adapter +team\/good {2}sha256:/);
      assert.match(table, /refused +team\/bad: .*adapter_config\.json|refused +team\/bad: .*adapter_model/);

      const curl = /curl (\S+) -H 'content-type: application\/json' -d '(.*)'\n/.exec(table);
      assert.equal(curl?.[1], `${server.url}/v1/chat/completions`);
      const pasted = await post(curl[1], '', JSON.parse(curl[2] ?? '') as object);
      assert.equal(pasted.status, 200, await pasted.text());
      const ids: string[] = [];
      for await (const { id } of openaiClient(server.url).models.list()) ids.push(id);
      assert.deepEqual(ids, ['llama-gqa', 'mine', 'team/good']);
      for (const route of ['/livez', '/readyz', '/health']) assert.equal(await status(server, route), 200);

      const stream = await openStream(server);
      const ended = server.stop('SIGTERM');
      await printed(server, /SIGTERM: no new requests/);
      assert.equal(await status(server, '/readyz'), 503);
      assert.equal(await status(server, '/livez'), 200, 'it lives as long as streams run');
      await postFailure(server.url, '/v1/completions', { model: 'llama-gqa', prompt: 'x' }, 503);
      const chunks = answers(await stream.rest());
      const reasons = chunks.flatMap(({ choices }) => choices[0]?.finish_reason ?? []);
      assert.deepEqual(
        reasons,
        Array.from({ length: 8 }, () => 'length'),
        'the stream ran to its end',
      );
      assert.equal(await ended, 0);
      assert.match(server.output(), /"route":"\/v1\/completions","status":200/, 'a log line a request');
    });
  });

  test('a second signal ends it at once', async () => {
    await serve(['--shutdown-timeout', '600'], async (server) => {
      const stream = await openStream(server);
      const ended = server.stop('SIGINT');
      await printed(server, /SIGINT: no new requests/);
      process.kill(server.pid, 'SIGINT');
      const late = sleep(10_000, 'late', { ref: false });
      assert.equal(await Promise.race([ended, late]), 0);
      await assert.rejects(stream.rest(), 'the stream did not end as if it were whole');
    });
  });

  test('when the time is over, streams are told', async () => {
    await serve(['--shutdown-timeout', '0.2'], async (server) => {
      const stream = await openStream(server);
      const ended = server.stop();
      await printed(server, /SIGTERM: no new requests/);
      await sleep(300);
      const last = (await stream.rest()).at(-1);
      assert.ok(last !== undefined && 'error' in last, 'the last chunk is the error');
      assert.match(last.error.message, /shutting down/);
      assert.equal(await ended, 0);
    });
  });

  test('asks for an API key when it has one, and keeps it to itself', async () => {
    await serve(['--api-key', 'first-secret', '--api-key', 'second-secret'], async (server) => {
      const table = await printed(server, /Try it:\s+curl .*\n/);
      assert.match(table, /API keys +2/);
      for (const route of ['/livez', '/readyz', '/health', '/version']) assert.equal(await status(server, route), 200);
      assert.equal(await status(server, '/v1/models'), 401);
      assert.equal(await status(server, '/v1/models', { authorization: 'Bearer first-secre' }), 401);
      for (const key of ['first-secret', 'second-secret']) {
        assert.equal(await status(server, '/v1/models', { authorization: `Bearer ${key}` }), 200);
        const chat = { model: 'llama-gqa', messages: [{ role: 'user' as const, content: 'Hi' }], max_tokens: 2 };
        assert.ok(await openaiClient(server.url, key).chat.completions.create(chat));
      }
      assert.doesNotMatch(server.output(), /first-secret|second-secret/);
      const taken = await runManyfold(['serve', FOLDER, '--port', String(server.port)]);
      assert.notEqual(taken.code, 0);
      assert.match(taken.output, new RegExp(`port ${server.port}.*another program uses it.*--port`));
    });
  });

  test('answers as the oracle does', async () => {
    await serve(['--adapter', `mine=${GOOD}`], async (server) => {
      const golden = readGoldens(path.join(FOLDER, 'goldens')).cases.find(({ adapter }) => adapter === 'qkvo-r8');
      const { prompt = [], greedy = [] } = golden ?? {};
      const sampling = { temperature: 0, max_tokens: greedy.length, ignore_eos: true };
      const answer = await complete(server.url, { model: 'mine', prompt, ...sampling });
      assert.deepEqual(only(answer).token_ids, greedy);
    });
  });
});

describe('a server that must not start', { concurrency: 2 }, () => {
  /** Ends with a code that is not 0, having said why and not having served. */
  async function refused(args: readonly string[], ...reasons: readonly RegExp[]): Promise<void> {
    const { code, output } = await runManyfold(['serve', FOLDER, ...args]);
    assert.ok(code !== null && code !== 0, `exit code ${code}:\n${output}`);
    for (const reason of reasons) assert.match(output, reason);
    assert.doesNotMatch(output, /Try it/);
    assert.doesNotMatch(output, /^ {4}at /m, 'a message, not a stack');
  }

  test('adapters that cannot be served: all reasons at once', async () => {
    const nowhere = path.join(adapters, 'nowhere');
    const wrong = path.join(GOLDENS, 'models', 'gemma3', 'adapters', 'head-r8');
    const flags = [`bad=${path.join(adapters, 'team', 'bad')}`, `fine=${GOOD}`, `gone=${nowhere}`, `foreign=${wrong}`];
    await refused(
      flags.flatMap((flag) => ['--adapter', flag]),
      /3 adapters of --adapter cannot be served/,
      /bad=/,
      /gone=.*Nothing lies at/,
      /foreign=/,
    );
  });

  test('an adapter by a name that cannot be', () => refused(['--adapter', `a:b=${GOOD}`], /--adapter expects/));

  test('an unknown flag, with the one that was meant', () =>
    refused(['--max-num-seq', '4'], /--max-num-seq\b/, /--max-num-seqs/));

  test('a value out of range', () => refused(['--port', '70000'], /--port expects.*70000/));

  test('a wider bind without a key', () => refused(['--host', '0.0.0.0'], /--host 0\.0\.0\.0.*no API key/));

  test('a KV pool that cannot hold one sequence', () =>
    refused(['--kv-bytes', '1MiB', '--max-model-len', '100000'], /--max-model-len 100000/));

  test('a model that is none', async () => {
    const { code, output } = await runManyfold(['serve', path.join(adapters, 'team'), '--port', '0']);
    assert.ok(code !== null && code !== 0);
    assert.match(output, /config\.json/);
    assert.doesNotMatch(output, /^ {4}at /m);
  });
});
