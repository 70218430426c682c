/** The default model through the whole stack, with the official openai client: a real model's answers. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { defaultModelPath } from './support/default-model.js';
import {
  abortStream,
  checkErrors,
  checkLogprobs,
  checkSeeds,
  checkStop,
  checkStream,
  type ChatCase,
} from './support/openai-checks.js';
import { writeRandomLora } from './support/random-lora.js';
import { assertIdle, startStack, type Stack } from './support/stack.js';

const BASE = 'SmolLM2-135M-Instruct';

let stack: Stack;
let adapters: string;
before(async () => {
  adapters = await mkdtemp(path.join(tmpdir(), 'manyfold-e2e-'));
  const flags = [
    '--adapter-dir',
    adapters,
    '--enable-runtime-lora',
    '--kv-bytes',
    '64MiB',
    '--max-model-len',
    '512',
    '--threads',
    '1',
  ];
  stack = await startStack(await defaultModelPath(), flags);
});
after(async () => {
  await stack.stop();
  await rm(adapters, { recursive: true });
});

function chat(content: string, max_completion_tokens: number): ChatCase {
  return { model: BASE, messages: [{ role: 'user', content }], max_completion_tokens };
}

test('the capital of France is Paris', async () => {
  const answer = await checkStream(stack, chat('What is the capital of France?', 24));
  assert.match(answer, /Paris/);
});

test('log-probabilities, seeds and stop strings', async () => {
  await checkLogprobs(stack, chat('What is the capital of France?', 24));
  await checkSeeds(stack, chat('Tell me a story.', 8));
  await checkStop(stack, chat('What is the capital of France?', 24));
});

test('errors', () => checkErrors(stack, chat('Hi', 4)));

test('a stream that the client leaves ends within two steps', async () => {
  const { steps, tokens } = await abortStream(stack, chat('Write a long story about the sea.', 300));
  assert.ok(steps <= 2, `${steps} more steps`);
  assert.ok(tokens < 100, `${tokens} tokens were made`);
});

test('an adapter of its own beside the base', async () => {
  const { config } = stack.composition.checkpoint;
  await writeRandomLora(path.join(adapters, 'tuned'), config, { rank: 4, seed: 3, sites: ['q', 'v'], stdB: 0.3 });
  const { url, client } = stack;
  const loaded = await fetch(`${url}/v1/load_lora_adapter`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', connection: 'close' },
    body: JSON.stringify({ lora_name: 'tuned', lora_path: 'tuned' }),
  });
  assert.equal(await loaded.text(), "Success: LoRA adapter 'tuned' added successfully.");
  const request = { ...chat('What is the capital of France?', 8), temperature: 0 };
  const tuned = (): Promise<string | null | undefined> =>
    client.chat.completions.create({ ...request, model: 'tuned' }).then(({ choices }) => choices[0]?.message.content);
  const base = (): Promise<string | null | undefined> =>
    client.chat.completions.create(request).then(({ choices }) => choices[0]?.message.content);
  const [own, plain] = [await tuned(), await base()];
  assert.match(plain ?? '', /Paris/);
  assert.notEqual(own, plain);
  assert.deepEqual(await Promise.all([tuned(), base(), tuned(), base()]), [own, plain, own, plain]);
});

for (const [name, prompt] of [
  ['emoji', '🎉🎊🎈🚀🎉🎊🎈🚀🎉🎊🎈🚀🎉🎊🎈🚀🎉🎊'],
  ['Chinese and Japanese', '东京、北京、東京、北京、东京、北京、東京、北京、东京、'],
] as const) {
  test(`${name}: no chunk of a stream cuts a character`, async () => {
    const request = { model: BASE, prompt, max_tokens: 32, temperature: 0 };
    const whole = await stack.client.completions.create(request);
    const text = whole.choices[0]?.text ?? '';
    const pieces: string[] = [];
    for await (const chunk of await stack.client.completions.create({ ...request, stream: true })) {
      const piece = chunk.choices[0]?.text ?? '';
      if (piece !== '') pieces.push(piece);
    }
    assert.equal(pieces.join(''), text);
    assert.ok(Buffer.byteLength(text) > 1.5 * text.length, `of many bytes a character: ${text}`);
    assert.ok(!text.slice(0, -1).includes('\uFFFD'), text);
    for (const piece of pieces.slice(0, -1)) assert.ok(!/\uFFFD|\p{Surrogate}/u.test(piece), piece);
  });
}

test('at the end nothing is left, and nothing was worth a warning', async () => {
  await assertIdle(stack);
  assert.deepEqual(stack.warnings, []);
});
