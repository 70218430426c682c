import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import OpenAI from 'openai';
import { listen } from './listen.js';
import { makeApp, until } from './testing/client.js';
import type { AppFixture, AppFixtureOptions } from './testing/client.js';

const MESSAGES = [{ role: 'user' as const, content: 'Hi' }];

async function connected(t: TestContext, options: AppFixtureOptions = {}): Promise<AppFixture & { client: OpenAI }> {
  const fixture = makeApp({ apiKeys: ['key'], ...options });
  const server = await listen(fixture.app, fixture.service.lifecycle, { host: '127.0.0.1', port: 0 });
  t.after(() => server.drain(0));
  return { ...fixture, client: new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'key', maxRetries: 0 }) };
}

test('chat, with the request id', async (t) => {
  const { client } = await connected(t, { answer: 'Hello' });
  const answer = await client.chat.completions.create({ model: 'toy', messages: MESSAGES });
  assert.equal(answer.choices[0]?.message.content, 'Hello');
  assert.equal(answer.choices[0]?.finish_reason, 'stop');
  assert.equal(answer.usage?.prompt_tokens_details?.cached_tokens, 3);
  assert.match(answer._request_id ?? '', /^[A-Za-z0-9._-]{1,128}$/);
});

test('stream, with usage', async (t) => {
  const { client } = await connected(t, { answer: 'Grüße' });
  const stream = await client.chat.completions.create({
    ...{ model: 'toy', messages: MESSAGES, stream: true, stream_options: { include_usage: true } },
  });
  let text = '';
  const ids = new Set<string>();
  let total = 0;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    ids.add(chunk.id);
    total = chunk.usage?.total_tokens ?? total;
  }
  assert.deepEqual([text, ids.size, total], ['Grüße', 1, 28]);
});

test('logprobs in both forms', async (t) => {
  const { client } = await connected(t, { answer: 'ab' });
  const chat = await client.chat.completions.create({
    model: 'toy',
    messages: MESSAGES,
    logprobs: true,
    top_logprobs: 2,
  });
  const content = chat.choices[0]?.logprobs?.content ?? [];
  assert.deepEqual(
    content.map((token) => token.token),
    ['a', 'b', '<eos>'],
  );
  assert.deepEqual(
    content[0]?.top_logprobs.map((token) => token.bytes),
    [[97], [98]],
  );
  const completion = await client.completions.create({ model: 'toy', prompt: 'x', logprobs: 1, max_tokens: 2 });
  assert.deepEqual(completion.choices[0]?.logprobs?.tokens, ['a', 'b']);
});

test('errors arrive as the classes of the client', async (t) => {
  const { client } = await connected(t);
  await assert.rejects(client.chat.completions.create({ model: 'nobody', messages: MESSAGES }), (error: unknown) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.param, 'model');
    return true;
  });
  await assert.rejects(
    client.chat.completions.create({ model: 'toy', messages: MESSAGES, temperature: -1 }),
    OpenAI.BadRequestError,
  );
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: 'wrong', maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});

test('a failure in mid-stream throws instead of ending as a success', async (t) => {
  const { client } = await connected(t, { answer: 'abc', failAfter: 2 });
  const stream = await client.chat.completions.create({ model: 'toy', messages: MESSAGES, stream: true });
  let text = '';
  const reading = async (): Promise<void> => {
    for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
  };
  await assert.rejects(reading(), /The fake engine broke/);
  assert.equal(text, 'ab');
});

test('an overloaded server is tried again after the time it names', async (t) => {
  const { client, engine } = await connected(t, {
    answer: 'ok',
    service: { entropy: { id: () => 'f'.repeat(32), seed: () => 1, jitter: () => 0 } },
  });
  engine.capacity = 0;
  setTimeout(() => (engine.capacity = 10), 100);
  const patient = new OpenAI({ baseURL: client.baseURL, apiKey: 'key', maxRetries: 1 });
  const answer = await patient.chat.completions.create({ model: 'toy', messages: MESSAGES });
  assert.equal(answer.choices[0]?.message.content, 'ok');
  assert.equal(engine.requests.length, 2);
});

test('abort reaches the engine', async (t) => {
  const { client, engine, service } = await connected(t, {
    answer: () => Array.from({ length: 300 }, () => 65),
    automatic: false,
  });
  const stream = await client.chat.completions.create({ model: 'toy', messages: MESSAGES, stream: true });
  engine.step();
  for await (const chunk of stream) if (chunk.choices[0]?.delta.content === 'A') break;
  stream.controller.abort();
  await until(() => engine.cancelled.length === 1);
  engine.step();
  await until(() => service.lifecycle.active === 0);
  assert.equal(engine.running, 0);
});

test('models are listed and fetched by their id', async (t) => {
  const { client, service } = await connected(t);
  await service.manageAdapters.load({ name: 'org/a', path: 'a', inPlace: false });
  const ids: string[] = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, ['toy', 'toy-alias', 'org/a']);
  assert.equal((await client.models.retrieve('org/a')).id, 'org/a');
  const answer = await client.chat.completions.create({ model: 'org/a', messages: MESSAGES });
  assert.equal(answer.model, 'org/a');
});

test('many streams at once, some of them left, leave nothing behind', async (t) => {
  const { client, engine, service } = await connected(t, {
    answer: 'some words to say',
    info: { maxNumSeqs: 64, maxQueue: 64 },
  });
  const one = async (i: number): Promise<string> => {
    const stream = await client.chat.completions.create({ model: 'toy', messages: MESSAGES, stream: true });
    let text = '';
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      if (i % 3 === 0 && text.length > i % 7) break;
    }
    return text;
  };
  const texts = await Promise.all(Array.from({ length: 60 }, (_, i) => one(i)));
  texts.forEach((text, i) => assert.ok(i % 3 === 0 || text === 'some words to say'));
  await until(() => service.lifecycle.active === 0 && engine.running === 0);
});
