/**
 * /v1/completions as scoring harnesses use it (prompts as token ids, echo with log-probabilities), against raw logits
 * of the engine and the oracle's; and /tokenize and /detokenize.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { complete, only, postFailure, postJson, type CompletionChoice } from './support/api.js';
import { forcedLogits, loadAdapterFolder, openTestEngine, type TestEngine } from './support/engine.js';
import { caseRows, GOLDENS, readGoldens, type GoldenCase } from './support/goldens.js';
import { NO_TERMS, TestSequence } from './support/plan.js';
import { assertIdle, startStack, type Stack } from './support/stack.js';

const FOLDER = path.join(GOLDENS, 'models', 'llama-gqa');
const BASE = 'llama-gqa';
/** Of log-probabilities that float32 rounds in two different orders. */
const CLOSE = 2e-5;

const goldens = readGoldens(path.join(FOLDER, 'goldens'));

let stack: Stack;
let engine: TestEngine;
before(async () => {
  stack = await startStack(FOLDER, [
    '--dtype',
    'f32',
    '--threads',
    '1',
    '--adapter-dir',
    path.join(FOLDER, 'adapters'),
  ]);
  engine = await openTestEngine(await openCheckpoint(FOLDER));
});
after(async () => {
  engine.engine.dispose();
  await stack.stop();
});

function idsOf({ prompt, greedy }: GoldenCase): number[] {
  return [...prompt, ...greedy.slice(0, 32)];
}

function modelOf({ adapter }: GoldenCase): string {
  return adapter ?? BASE;
}

/** What lm-evaluation-harness sends for its log-likelihood tasks. */
async function score(model: string, prompts: readonly (readonly number[])[]): Promise<CompletionChoice[]> {
  const shape = { max_tokens: 1, temperature: 0, logprobs: 1, echo: true, seed: 1234 };
  const { choices } = await complete(stack.url, { model, prompt: prompts, ...shape });
  assert.deepEqual(
    choices.map(({ index }) => index),
    prompts.map((_, i) => i),
  );
  return [...choices];
}

/** Log-softmax of a row at an id, in double precision. */
function logSoftmax(logits: Float32Array, id: number): number {
  const max = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - max);
  return (logits[id] ?? NaN) - max - Math.log(sum);
}

async function rawLogits(golden: GoldenCase): Promise<Float32Array[]> {
  const { adapter } = golden;
  const terms = adapter == null ? NO_TERMS : await loadAdapterFolder(engine, path.join(FOLDER, 'adapters', adapter));
  const [rows] = await forcedLogits(engine, [new TestSequence(idsOf(golden), { terms })]);
  if (terms.handle !== 0) engine.engine.freeTerms(terms.handle);
  return rows ?? [];
}

test('echoed log-probabilities are the log-softmax of the logits, for the base and every adapter', async () => {
  for (const golden of goldens.cases) {
    const ids = idsOf(golden);
    const [choice] = await score(modelOf(golden), [ids]);
    const logprobs = choice?.logprobs?.token_logprobs ?? [];
    const what = `${modelOf(golden)}, ${golden.prompt.length} tokens`;
    assert.equal(logprobs.length, ids.length + 1, 'all of the prompt, and the one token that was asked for');
    assert.equal(logprobs[0], null, 'the first token follows nothing');
    const rows = await rawLogits(golden);
    rows.forEach((row, i) => {
      if (i + 1 === ids.length) return;
      const expected = logSoftmax(row, ids[i + 1] ?? -1);
      assert.ok(Math.abs((logprobs[i + 1] ?? NaN) - expected) < CLOSE, `${what}, position ${i + 1}`);
    });
  }
});

test("echoed log-probabilities are the oracle's wherever it noted the logit", async () => {
  let compared = 0;
  for (const golden of goldens.cases) {
    const ids = idsOf(golden);
    const [choice] = await score(modelOf(golden), [ids]);
    caseRows(goldens, golden).forEach((row, i) => {
      const id = ids[i + 1];
      if (id === undefined || id % row.stride !== row.first) return;
      const expected = (row.values[(id - row.first) / row.stride] ?? NaN) - row.logSumExp;
      // The goldens hold logits in steps of max|logit| / 32767.
      const tolerance = row.maxAbs * 1.2e-4;
      const found = choice?.logprobs?.token_logprobs[i + 1] ?? NaN;
      assert.ok(Math.abs(found - expected) < tolerance, `${modelOf(golden)}, position ${i + 1}: ${found}, ${expected}`);
      compared++;
    });
  }
  assert.ok(compared >= 40, `${compared} positions were compared`);
});

test('what a harness makes of it: sums over the continuation, and whether it is the greedy one', async () => {
  const golden = goldens.cases.find(({ adapter }) => adapter === 'patterns');
  assert.ok(golden !== undefined);
  const context = golden.prompt.length;
  const greedy = [...golden.prompt, ...golden.greedy.slice(0, 8)];
  const other = [...greedy.slice(0, -1), (greedy.at(-1) ?? 0) === 50 ? 51 : 50];
  const choices = await score('patterns', [greedy, other]);
  const [best, second] = choices.map(({ logprobs }) => {
    const own = logprobs?.token_logprobs.slice(context, -1) ?? [];
    const tokens = logprobs?.tokens.slice(context, -1) ?? [];
    const tops = logprobs?.top_logprobs.slice(context, -1) ?? [];
    const isGreedy = tokens.every((token, i) => tops[i]?.[token] === Math.max(...Object.values(tops[i] ?? {})));
    return { sum: own.reduce<number>((sum, value) => sum + (value ?? NaN), 0), count: own.length, isGreedy };
  });
  assert.deepEqual([best?.count, best?.isGreedy], [8, true]);
  assert.deepEqual([second?.count, second?.isGreedy], [8, false]);
  assert.ok((best?.sum ?? NaN) > (second?.sum ?? NaN));
});

test('echo without new tokens, and with text', async () => {
  const prompt = 'The request is there and the user is in the system.';
  const none = only(await complete(stack.url, { model: BASE, prompt, echo: true, max_tokens: 0, logprobs: 2 }));
  assert.equal(none.text, prompt);
  assert.equal(none.finish_reason, 'length');
  assert.deepEqual(none.token_ids, []);
  const { tokens, token_logprobs: logprobs, text_offset: offsets, top_logprobs: tops } = none.logprobs ?? assert.fail();
  assert.equal(tokens.join(''), prompt);
  assert.equal(tokens.length, none.prompt_token_ids?.length);
  assert.equal(logprobs.length, tokens.length);
  tokens.forEach((token, i) => {
    assert.equal(prompt.slice(offsets[i], (offsets[i] ?? 0) + token.length), token, `offset of token ${i}`);
    if (i === 0) return assert.equal(tops[i], null);
    assert.equal(tops[i]?.[token], logprobs[i]);
    assert.ok(Object.keys(tops[i] ?? {}).length >= 2);
  });

  const more = only(
    await complete(stack.url, { model: BASE, prompt, echo: true, max_tokens: 4, temperature: 0, logprobs: 0 }),
  );
  const plain = only(await complete(stack.url, { model: BASE, prompt, max_tokens: 4, temperature: 0 }));
  assert.equal(more.text, prompt + plain.text);
  assert.deepEqual(more.token_ids, plain.token_ids);
  assert.deepEqual(
    more.logprobs?.token_logprobs.slice(0, tokens.length),
    logprobs,
    'other tokens change nothing before',
  );
  assert.equal(more.logprobs?.text_offset[tokens.length], prompt.length, 'new text begins where the prompt ends');
});

test('token ids in and out: alone, in arrays, as token_id:N', async () => {
  const [first, second] = goldens.cases;
  assert.ok(first !== undefined && second !== undefined);
  const sampling = { model: BASE, max_tokens: 6, temperature: 0, ignore_eos: true };
  const one = only(await complete(stack.url, { ...sampling, prompt: first.prompt }));
  assert.deepEqual(one.token_ids, first.greedy.slice(0, 6));
  assert.deepEqual(one.prompt_token_ids, first.prompt);
  const { choices, usage } = await complete(stack.url, { ...sampling, prompt: [first.prompt, second.prompt], n: 2 });
  assert.deepEqual(
    choices.map(({ index }) => index),
    [0, 1, 2, 3],
  );
  const greedy = [first, first, second, second].map((golden) => golden.greedy.slice(0, 6));
  assert.deepEqual(
    choices.map(({ token_ids }) => token_ids),
    greedy,
  );
  assert.equal(usage?.prompt_tokens, first.prompt.length + second.prompt.length);
  assert.equal(usage.completion_tokens, 24);
  const named = only(
    await complete(stack.url, { ...sampling, prompt: first.prompt, logprobs: 2, return_tokens_as_token_ids: true }),
  );
  assert.deepEqual(
    named.logprobs?.tokens,
    first.greedy.slice(0, 6).map((id) => `token_id:${id}`),
  );
  for (const [i, top] of (named.logprobs?.top_logprobs ?? []).entries()) {
    assert.equal(top?.[`token_id:${first.greedy[i]}`], named.logprobs?.token_logprobs[i]);
    for (const key of Object.keys(top ?? {})) assert.match(key, /^token_id:\d+$/);
  }
  const wrong = await postFailure(stack.url, '/v1/completions', { model: BASE, prompt: [5, 320] }, 400);
  assert.equal(wrong.param, 'prompt');
});

test('tokenize and detokenize', async () => {
  const text = 'The user’s request: 東京 🎉 naïve\n\tand “more”.';
  const {
    tokens,
    count,
    max_model_len: length,
    token_strs: strings,
  } = await postJson<{
    tokens: number[];
    count: number;
    max_model_len: number;
    token_strs: string[];
  }>(stack.url, '/tokenize', { model: 'qkvo-r8', prompt: text, return_token_strs: true });
  assert.deepEqual([count, length, strings.length], [tokens.length, 256, tokens.length]);
  const back = await postJson<{ prompt: string }>(stack.url, '/detokenize', { model: BASE, tokens });
  assert.equal(back.prompt, text);
  const completion = only(await complete(stack.url, { model: BASE, prompt: text, max_tokens: 1 }));
  assert.deepEqual(completion.prompt_token_ids, tokens, 'a completion sees the same ids');
  assert.equal((await postFailure(stack.url, '/detokenize', { model: BASE, tokens: [-1] }, 400)).param, 'tokens');
});

test('at the end nothing is left', () => assertIdle(stack));
