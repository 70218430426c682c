/** A name moves to other weights while it is in use: who began before keeps the old ones, who comes after gets the new. */
import assert from 'node:assert/strict';
import { cp, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { chunksOf, post, postFailure, type Chunk } from './support/api.js';
import { GOLDENS, readGoldens } from './support/goldens.js';
import { greedy, GreedyReference, type Prompt } from './support/greedy-reference.js';
import { assertIdle, startStack, until, type Stack } from './support/stack.js';

const FOLDER = path.join(GOLDENS, 'models', 'llama-gqa');
const FLAGS = ['--dtype', 'f32', '--threads', '1'];
const TOKENS = 200;
/** Token ids, and a chat. */
const PROMPTS: readonly Prompt[] = [readGoldens(path.join(FOLDER, 'goldens')).cases[0]?.prompt ?? [], 'Is it there?'];

let stack: Stack;
let adapters: string;
before(async () => {
  adapters = await mkdtemp(path.join(tmpdir(), 'manyfold-e2e-'));
  stack = await startStack(FOLDER, [...FLAGS, '--adapter-dir', adapters, '--enable-runtime-lora']);
  // Only now, so that the start does not find and serve them.
  await cp(path.join(FOLDER, 'adapters'), path.join(adapters, 'from'), { recursive: true });
});
after(async () => {
  await stack.stop();
  await rm(adapters, { recursive: true });
});

async function load(name: string, folder: string, inPlace: boolean): Promise<void> {
  const body = { lora_name: name, lora_path: path.join('from', folder), load_inplace: inPlace };
  const response = await post(stack.url, '/v1/load_lora_adapter', body);
  assert.equal(await response.text(), `Success: LoRA adapter '${name}' added successfully.`);
}

interface Stream {
  readonly name: string;
  readonly prompt: number;
  readonly fingerprint: string;
  /** Reads on to the end; all tokens. */
  rest(): Promise<readonly number[]>;
}

/** Streams that have had their first tokens and are held there until the gate opens. */
async function beginAll(names: readonly string[]): Promise<Stream[]> {
  const { gate, composition } = stack;
  const { running, waiting } = composition.engine.stats();
  gate.close();
  const streams = Promise.all(names.map((name, i) => begin(name, i % 2)));
  const inside = (): number => composition.engine.stats().running + composition.engine.stats().waiting;
  await until(() => inside() === running + waiting + names.length, 'all streams are in the engine');
  gate.pass(12);
  return streams;
}

/** Resolves when the first token has come. */
async function begin(name: string, prompt: number): Promise<Stream> {
  const { route, body } = greedy(name, PROMPTS[prompt] ?? [], TOKENS);
  const response = await post(stack.url, route, { ...body, stream: true });
  assert.equal(response.status, 200);
  const chunks = chunksOf(response);
  const ids: number[] = [];
  let fingerprint = '';
  const read = (chunk: Chunk): void => {
    assert.ok(!('error' in chunk), JSON.stringify(chunk));
    assert.equal(chunk.model, name);
    assert.ok(fingerprint === '' || fingerprint === chunk.system_fingerprint, 'one version from first to last');
    fingerprint = chunk.system_fingerprint;
    ids.push(...(chunk.choices[0]?.token_ids ?? []));
  };
  while (ids.length === 0) {
    const next = await chunks.next();
    assert.ok(next.done !== true, 'the stream has tokens');
    read(next.value);
  }
  const rest = async (): Promise<readonly number[]> => {
    for await (const chunk of chunks) read(chunk);
    return ids;
  };
  return { name, prompt, fingerprint, rest };
}

test('a name is loaded again in place while streams run on it', async () => {
  const { engine, registry } = stack.composition;
  const reference = new GreedyReference(TOKENS);
  // The other adapter of the same streams, never moved, and the base.
  await load('steady', 'layer1-r16', false);
  await reference.add(stack.url, 'steady', PROMPTS);
  await reference.add(stack.url, 'llama-gqa', PROMPTS);
  await load('bot', 'qkvo-r8', false);
  const old = await reference.add(stack.url, 'bot', PROMPTS);
  const oldVersion = registry.resolve('bot')?.version;

  // Prepared ahead under a name of its own: the version is the content's, whatever it is called.
  await load('preview', 'patterns', false);
  const fresh = await reference.add(stack.url, 'preview', PROMPTS);
  const unloaded = await post(stack.url, '/v1/unload_lora_adapter', { lora_name: 'preview' });
  assert.equal(await unloaded.text(), "Success: LoRA adapter 'preview' removed successfully.");
  reference.assertDistinct(PROMPTS.length);
  assert.notEqual(old, fresh);

  const names = ['bot', 'steady', 'bot', 'llama-gqa', 'bot', 'bot'];
  const before = await beginAll(names);
  await load('bot', 'patterns', true);
  const retired = engine.stats().residentAdapters.find(({ version }) => version === oldVersion);
  assert.ok((retired?.leases ?? 0) > 0, 'streams of the old version still run');
  const after = await beginAll(names);
  stack.gate.open();

  for (const { name, fingerprint } of before) if (name === 'bot') assert.equal(fingerprint, old);
  for (const { name, fingerprint } of after) if (name === 'bot') assert.equal(fingerprint, fresh);
  for (const stream of [...before, ...after]) {
    assert.deepEqual(await stream.rest(), reference.of(stream.fingerprint, stream.prompt), stream.name);
  }
  assert.equal(
    engine.stats().residentAdapters.some(({ version }) => version === oldVersion),
    false,
    'the old one is gone',
  );
  await assertIdle(stack);
});

test('a name is unloaded while streams run on it', async () => {
  const reference = new GreedyReference(TOKENS);
  await load('leaving', 'all-r3-rslora', false);
  await reference.add(stack.url, 'leaving', PROMPTS);
  const streams = await beginAll(['leaving', 'leaving']);
  const response = await post(stack.url, '/v1/unload_lora_adapter', { lora_name: 'leaving' });
  assert.equal(response.status, 200, await response.text());
  await postFailure(stack.url, '/v1/completions', { model: 'leaving', prompt: 'x' }, 404);
  stack.gate.open();
  for (const stream of streams) assert.deepEqual(await stream.rest(), reference.of(stream.fingerprint, stream.prompt));
  await assertIdle(stack);
});

test('taken and unknown names are told apart', async () => {
  await load('taken', 'head-r8', false);
  const again = { lora_name: 'taken', lora_path: 'from/patterns' };
  assert.equal((await postFailure(stack.url, '/v1/load_lora_adapter', again, 400)).type, 'InvalidUserInput');
  assert.equal(
    (await postFailure(stack.url, '/v1/unload_lora_adapter', { lora_name: 'nobody' }, 404)).type,
    'NotFoundError',
  );
  const outside = { lora_name: 'outside', lora_path: '../../etc' };
  const failure = await postFailure(stack.url, '/v1/load_lora_adapter', outside, 400);
  assert.match(failure.message, /adapter folder|--adapter-dir/);
  assert.deepEqual(stack.warnings, []);
});
