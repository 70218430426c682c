/** The official openai client against a tiny model with its adapters, through the whole stack. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { complete, only, postJson } from './support/api.js';
import { GOLDENS } from './support/goldens.js';
import {
  abortStream,
  checkErrors,
  checkLogprobs,
  checkSeeds,
  checkStop,
  checkStream,
  type ChatCase,
} from './support/openai-checks.js';
import { assertIdle, startStack, type Stack } from './support/stack.js';

const FOLDER = path.join(GOLDENS, 'models', 'llama-gqa');
const ADAPTERS = ['all-r3-rslora', 'embed-r3', 'head-r8', 'layer1-r16', 'patterns', 'qkvo-r8', 'regex-mlp-r1'];

let stack: Stack;
before(async () => {
  stack = await startStack(FOLDER, [
    '--dtype',
    'f32',
    '--threads',
    '1',
    '--adapter-dir',
    path.join(FOLDER, 'adapters'),
  ]);
});
after(() => stack.stop());

/** Bans every token but those of plain ASCII, so that the random model's text can be read. */
function asciiOnly(): Record<string, number> {
  const file = JSON.parse(readFileSync(path.join(FOLDER, 'tokenizer.json'), 'utf8')) as {
    model: { vocab: Record<string, number> };
  };
  const banned = Object.entries(file.model.vocab).filter(([text, id]) => id < 4 || !/^Ġ?[!-~]+$/.test(text));
  return Object.fromEntries(banned.map(([, id]) => [String(id), -100]));
}

function chat(model: string): ChatCase {
  const messages = [{ role: 'user' as const, content: `Which request is the last of ${model}?` }];
  return { model, messages, max_completion_tokens: 40, logit_bias: asciiOnly() };
}

test('models: the base first, then the adapters, each by its id', async () => {
  const ids: string[] = [];
  for await (const model of stack.client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ['llama-gqa', ...ADAPTERS]);
  for (const id of ids) assert.equal((await stack.client.models.retrieve(id)).id, id);
});

for (const model of ['llama-gqa', 'qkvo-r8', 'head-r8']) {
  test(`chat with ${model} is the completion of the rendered conversation`, async () => {
    const request = chat(model);
    const answer = await stack.client.chat.completions.create({ ...request, temperature: 0 });
    const { messages, max_completion_tokens: max_tokens, logit_bias } = request;
    const { tokens } = await postJson<{ tokens: number[] }>(stack.url, '/tokenize', { model, messages });
    const sampling = { temperature: 0, max_tokens, logit_bias };
    const completion = only(await complete(stack.url, { model, prompt: tokens, ...sampling }));
    assert.equal(answer.choices[0]?.message.content, completion.text);
    assert.match(completion.text, /^[ -~]{20,}$/);
    assert.equal(answer.usage?.prompt_tokens, tokens.length);
  });

  test(`stream, log-probabilities, seeds and stop strings of ${model}`, async () => {
    const request = chat(model);
    await checkStream(stack, request);
    await checkLogprobs(stack, request, true);
    await checkSeeds(stack, request);
    await checkStop(stack, request);
  });
}

test('without a bias the greedy tokens are the most probable ones', async () => {
  const { logit_bias: _, ...request } = chat('patterns');
  const answer = await stack.client.chat.completions.create({
    ...{ ...request, temperature: 0, logprobs: true, top_logprobs: 4 },
  });
  for (const token of answer.choices[0]?.logprobs?.content ?? []) {
    assert.deepEqual([token.logprob, token.bytes], [token.top_logprobs[0]?.logprob, token.top_logprobs[0]?.bytes]);
  }
});

test('errors', () => checkErrors(stack, chat('llama-gqa')));

test('a stream that the client leaves ends in the engine', async () => {
  const request = { ...chat('qkvo-r8'), n: 8, max_completion_tokens: 150 };
  stack.gate.slow(1);
  const { steps, tokens } = await abortStream(stack, request);
  stack.gate.slow(0);
  assert.ok(steps < 20, `${steps} more steps`);
  assert.ok(tokens < 8 * 150, `${tokens} tokens were made`);
});

test('at the end nothing is left, and nothing was worth a warning', async () => {
  await assertIdle(stack);
  assert.deepEqual(stack.warnings, []);
});
