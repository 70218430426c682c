/**
 * What the official openai client must see of any model: run against a tiny one (e2e-openai.test.ts) and against the
 * default one (e2e-default-model.test.ts).
 */
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import type { ChatCompletionChunk, ChatCompletionTokenLogprob } from 'openai/resources/chat/completions';
import { assertIdle, metric, until, type Stack } from './stack.js';

/** A greedy chat request of which the checks make their own. */
export interface ChatCase {
  readonly model: string;
  readonly messages: OpenAI.Chat.ChatCompletionMessageParam[];
  readonly max_completion_tokens: number;
  readonly logit_bias?: Record<string, number>;
  /** Bans words after they were said, for models that repeat themselves. */
  readonly frequency_penalty?: number;
}

/** Tokens of a KV page, as docs/operations.md has it. */
const PAGE_TOKENS = 16;

export async function checkStream({ client }: Stack, request: ChatCase): Promise<string> {
  const whole = await client.chat.completions.create({ ...request, temperature: 0 });
  const stream = await client.chat.completions.create({
    ...{ ...request, temperature: 0, stream: true, stream_options: { include_usage: true } },
  });
  const chunks: ChatCompletionChunk[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  const [first, ...rest] = chunks;
  assert.deepEqual(first?.choices[0]?.delta, { role: 'assistant', content: '' }, 'the role comes first');
  const last = rest.pop();
  const counts = ({
    prompt_tokens,
    completion_tokens,
    total_tokens,
  }: Partial<OpenAI.CompletionUsage> = {}): unknown => [...[prompt_tokens, completion_tokens, total_tokens]];
  assert.deepEqual(
    [last?.choices, counts(last?.usage ?? {})],
    [[], counts(whole.usage)],
    'the last chunk has the usage',
  );
  // The whole answer came first, so the stream finds the full pages of the same prompt.
  const { prompt_tokens: asked = 0, prompt_tokens_details: details } = last?.usage ?? {};
  assert.equal(details?.cached_tokens, Math.floor((asked - 1) / PAGE_TOKENS) * PAGE_TOKENS);
  for (const chunk of [first, ...rest]) assert.equal(chunk.usage, null);
  const content = whole.choices[0]?.message.content ?? '';
  assert.equal(rest.map(({ choices }) => choices[0]?.delta.content ?? '').join(''), content, 'streamed text');
  const reasons = rest.map(({ choices }) => choices[0]?.finish_reason ?? null);
  assert.deepEqual(
    reasons.filter((reason) => reason !== null),
    [whole.choices[0]?.finish_reason],
  );
  assert.notEqual(reasons.at(-1), null, 'the finish reason comes last');
  assert.equal(new Set(chunks.map(({ id }) => id)).size, 1);
  for (const { model } of chunks) assert.equal(model, request.model);
  return content;
}

/** Greedy tokens of the answer, its text, and their log-probabilities as the client sees them. */
async function scored({ client }: Stack, request: ChatCase) {
  const answer = await client.chat.completions.create({
    ...{ ...request, temperature: 0, logprobs: true, top_logprobs: 4 },
  });
  const choice = answer.choices[0];
  assert.ok(choice !== undefined);
  return { text: choice.message.content ?? '', tokens: choice.logprobs?.content ?? [], usage: answer.usage, choice };
}

/** `penalised`: the request changes logits, so that the best raw token need not be the chosen one. */
export async function checkLogprobs(stack: Stack, request: ChatCase, penalised = false): Promise<void> {
  const { text, tokens, usage, choice } = await scored(stack, request);
  assert.equal(tokens.length, usage?.completion_tokens, 'one entry a token');
  for (const token of tokens) {
    assert.equal(token.top_logprobs.length, 4);
    let mass = 0;
    token.top_logprobs.forEach(({ logprob }, i) => {
      mass += Math.exp(logprob);
      assert.ok(logprob <= (token.top_logprobs[i - 1]?.logprob ?? 0), 'the most probable come first');
    });
    assert.ok(mass <= 1 + 1e-5, `the best four have a mass of ${mass}`);
    const best = token.top_logprobs[0];
    if (!penalised)
      assert.deepEqual([token.token, token.logprob, token.bytes], [best?.token, best?.logprob, best?.bytes]);
  }
  // The token that ended the turn is listed; its text is not part of the answer.
  const shown = choice.finish_reason === 'stop' ? tokens.slice(0, -1) : tokens;
  assert.equal(textOf(shown), text, 'the bytes are those of the text');
}

function textOf(tokens: readonly ChatCompletionTokenLogprob[]): string {
  return Buffer.from(tokens.flatMap(({ bytes }) => bytes ?? [])).toString('utf8');
}

/** Two choices differ from each other, are the same on every call, and the first is that of n = 1. */
export async function checkSeeds({ client }: Stack, request: ChatCase): Promise<void> {
  const ask = async (n: number, seed: number): Promise<(string | null)[]> => {
    const answer = await client.chat.completions.create({ ...request, temperature: 1, n, seed });
    assert.deepEqual(
      answer.choices.map(({ index }) => index),
      Array.from({ length: n }, (_, i) => i),
    );
    return answer.choices.map(({ message }) => message.content);
  };
  const [first, second] = await ask(2, 7);
  assert.notEqual(first, second, 'each choice draws on its own');
  const [again, other] = await Promise.all([ask(2, 7), ask(2, 8)]);
  assert.deepEqual(again, [first, second], 'a seed repeats');
  assert.deepEqual(await ask(1, 7), [first], 'the first choice does not depend on n');
  assert.notDeepEqual(other, again, 'another seed, another answer');
}

/** A stop string that begins in one token and ends in the next. */
export async function checkStop(stack: Stack, request: ChatCase): Promise<void> {
  const { text, tokens } = await scored(stack, request);
  const { stop, at, used } = borderStop(text, tokens);
  const limited = { ...request, temperature: 0, stop: ['\u0001never', stop] };
  const answer = await stack.client.chat.completions.create(limited);
  assert.equal(answer.choices[0]?.message.content, text.slice(0, at), `stop at ${JSON.stringify(stop)}`);
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage?.completion_tokens, used, 'tokens past the stop are not counted');
  const stream = await stack.client.chat.completions.create({ ...limited, stream: true });
  let streamed = '';
  for await (const chunk of stream) streamed += chunk.choices[0]?.delta.content ?? '';
  assert.equal(streamed, text.slice(0, at), 'what is sent never runs past the stop');
  await assertIdle(stack);
}

interface BorderStop {
  readonly stop: string;
  /** Where it begins in the text. */
  readonly at: number;
  /** Tokens up to its end. */
  readonly used: number;
}

function borderStop(text: string, tokens: readonly ChatCompletionTokenLogprob[]): BorderStop {
  let end = 0;
  for (let i = 0; i + 1 < tokens.length; i++) {
    end += tokens[i]?.token.length ?? 0;
    const stop = text.slice(end - 1, end + 1);
    // Late enough that text is sent before it, and nowhere earlier.
    if (i > 2 && /^[ -~]{2}$/.test(stop) && text.indexOf(stop) === end - 1) return { stop, at: end - 1, used: i + 2 };
  }
  return assert.fail(`no border of ${JSON.stringify(text)} makes a stop string`);
}

/**
 * Leaves a stream after its first text. Returns the steps that the engine still did, and the tokens that it made in
 * all.
 */
export async function abortStream(
  stack: Stack,
  request: ChatCase & { n?: number },
): Promise<{ steps: number; tokens: number }> {
  const { engine } = stack.composition;
  const aborted = (): Promise<number> => metric(stack, 'vllm:request_success_total', 'finished_reason="abort"');
  const abortedBefore = await aborted();
  const before = engine.stats();
  const controller = new AbortController();
  const stream = await stack.client.chat.completions.create(
    { ...request, temperature: 0, stream: true },
    { signal: controller.signal },
  );
  let steps = 0;
  for await (const chunk of stream) {
    if ((chunk.choices[0]?.delta.content ?? '') === '') continue;
    steps = engine.stats().steps;
    controller.abort();
  }
  await until(() => engine.stats().running === 0, 'the engine has nothing to do');
  const after = engine.stats();
  await assertIdle(stack);
  assert.equal(await aborted(), abortedBefore + 1);
  return { steps: after.steps - steps, tokens: after.generationTokens - before.generationTokens };
}

export async function checkErrors(stack: Stack, request: ChatCase): Promise<void> {
  const { client } = stack;
  const refused = async (fields: object, param: string): Promise<void> => {
    await assert.rejects(client.chat.completions.create({ ...request, ...fields }), (error: unknown) => {
      assert.ok(error instanceof OpenAI.BadRequestError, String(error));
      assert.equal(error.param, param);
      return true;
    });
  };
  await refused({ temperature: -1 }, 'temperature');
  await refused({ top_p: 0 }, 'top_p');
  await refused({ logprobs: true, top_logprobs: 21 }, 'top_logprobs');
  await refused({ max_completion_tokens: 0 }, 'max_completion_tokens');
  await refused({ n: 9 }, 'n');
  await refused({ messages: [] }, 'messages');
  await refused({ stop: [''] }, 'stop');
  await refused({ response_format: { type: 'json_object' } }, 'response_format.type');
  const long = { role: 'user', content: 'word '.repeat(stack.composition.engine.info.maxModelLen) };
  await refused({ messages: [long] }, 'messages');
  await assert.rejects(client.chat.completions.create({ ...request, model: 'nobody' }), (error: unknown) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.param, 'model');
    return true;
  });
  await assert.rejects(client.models.retrieve('nobody'), OpenAI.NotFoundError);
  assert.equal(await metric(stack, 'vllm:num_requests_running'), 0);
}
