/**
 * Many adapters and the base in one batch over HTTP: every answer has the tokens and the log-probabilities, bit for
 * bit, that the same request gets alone, and the tokens that peft gets; whole, with prompts cut into small chunks, and
 * over a pool so small that sequences are preempted.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { complete, only, type CompletionChoice } from './support/api.js';
import { checkGreedy, GOLDENS, readGoldens, type GoldenCase } from './support/goldens.js';
import { assertIdle, metric, startStack, until, type Stack } from './support/stack.js';

const FOLDER = path.join(GOLDENS, 'models', 'llama-gqa');
const FLAGS = ['--adapter-dir', path.join(FOLDER, 'adapters'), '--threads', '1'];
const REQUESTS = 24;
/** More than the oracle's 32, so that sequences grow by several pages. */
const TOKENS = 96;

const { cases } = readGoldens(path.join(FOLDER, 'goldens'));

interface Request {
  readonly model: string;
  readonly prompt: readonly number[];
  /** Absent where the oracle was not asked. */
  readonly golden?: GoldenCase;
}

/** All golden cases (seven adapters and the base), then adapters on prompts of the base. */
function requests(): Request[] {
  const list: Request[] = cases.map((golden) => ({
    model: golden.adapter ?? 'llama-gqa',
    prompt: golden.prompt,
    golden,
  }));
  const adapters = [...new Set(cases.flatMap(({ adapter }) => adapter ?? []))];
  const prompts = cases.filter(({ adapter }) => adapter == null).map(({ prompt }) => prompt);
  for (let i = 0; list.length < REQUESTS; i++) {
    list.push({ model: adapters[i % adapters.length] ?? '', prompt: prompts[i % prompts.length] ?? [] });
  }
  assert.ok(adapters.length >= 6);
  return list;
}

async function ask({ url }: Pick<Stack, 'url'>, { model, prompt }: Request): Promise<CompletionChoice> {
  const sampling = { temperature: 0, max_tokens: TOKENS, ignore_eos: true, logprobs: 3 };
  const answer = await complete(url, { model, prompt, return_tokens_as_token_ids: true, ...sampling });
  assert.equal(answer.model, model);
  assert.equal(answer.usage?.completion_tokens, TOKENS);
  return only(answer);
}

async function alone(stack: Stack): Promise<CompletionChoice[]> {
  const answers: CompletionChoice[] = [];
  for (const request of requests()) answers.push(await ask(stack, request));
  return answers;
}

/** All requests in one batch: no step ends before the engine has every one of them. */
async function together({ gate, ...stack }: Stack): Promise<CompletionChoice[]> {
  const { engine } = stack.composition;
  gate.close();
  const answers = Promise.all(requests().map((request) => ask(stack, request)));
  await until(() => engine.stats().running + engine.stats().waiting === REQUESTS, 'all requests are in the engine');
  gate.open();
  return answers;
}

function assertSameAnswers(found: readonly CompletionChoice[], expected: readonly CompletionChoice[]): void {
  requests().forEach(({ model, prompt }, i) => {
    const what = `${model}, ${prompt.length} tokens`;
    assert.deepEqual(found[i]?.token_ids, expected[i]?.token_ids, `tokens of ${what}`);
    // Numbers survive JSON exactly, so equal here is equal in every bit.
    assert.deepEqual(found[i]?.logprobs, expected[i]?.logprobs, `log-probabilities of ${what}`);
  });
}

for (const dtype of ['f32', 'bf16']) {
  describe(`seven adapters and the base, ${dtype}`, () => {
    let reference: CompletionChoice[] = [];
    let stack: Stack;
    before(async () => {
      stack = await startStack(FOLDER, [...FLAGS, '--dtype', dtype]);
      reference = await alone(stack);
    });
    after(() => stack.stop());

    if (dtype === 'f32') {
      test('alone, the tokens are those of peft', () => {
        requests().forEach(({ golden, model, prompt }, i) => {
          if (golden === undefined) return;
          checkGreedy(golden, reference[i]?.token_ids?.slice(0, 32) ?? [], `${model}, ${prompt.length} tokens`);
        });
      });
    }

    test('24 requests at once', async () => {
      const before = stack.composition.native.counters();
      assertSameAnswers(await together(stack), reference);
      const { rows, steps } = stack.composition.native.counters();
      // The first request is alone in its first step; from then on they run together to their ends.
      assert.ok(steps - before.steps <= TOKENS + 10, `${steps - before.steps} steps`);
      assert.ok(rows - before.rows > REQUESTS * TOKENS);
      assert.equal(await metric(stack, 'vllm:num_preemptions_total'), 0);
      await assertIdle(stack);
    });

    test('prompts in chunks of seven tokens at most', async () => {
      const small = await startStack(FOLDER, [
        ...[...FLAGS, '--dtype', dtype, '--max-num-batched-tokens', '7', '--max-num-seqs', '7'],
      ]);
      try {
        assertSameAnswers(await together(small), reference);
        const { rows, steps } = small.composition.native.counters();
        assert.ok(rows <= 7 * steps, `${rows} rows in ${steps} steps`);
        await assertIdle(small);
      } finally {
        await small.stop();
      }
    });

    if (dtype === 'f32') {
      test('over a pool that cannot hold them', async () => {
        // 128 pages, where the requests need over 200 by their ends.
        const small = await startStack(FOLDER, [...FLAGS, '--dtype', dtype, '--kv-bytes', '1MiB']);
        try {
          assertSameAnswers(await together(small), reference);
          assert.ok((await metric(small, 'vllm:num_preemptions_total')) > 0, 'some were preempted');
          await assertIdle(small);
        } finally {
          await small.stop();
        }
      });
    }
  });
}
