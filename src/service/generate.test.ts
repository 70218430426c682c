import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ManyfoldError } from '../core/errors.js';
import type { EngineRequest } from '../engine/port.js';
import type { GenerateCommand } from './commands.js';
import type { Generation, GenerationEvent, Usage } from './events.js';
import { completion, makeFixture, OUTPUT } from './testing/fixture.js';
import type { Fixture } from './testing/fixture.js';
import { TOY, toyIds } from './testing/toy-text.js';

const NEVER = new AbortController().signal;

function start(fixture: Fixture, command: GenerateCommand, signal: AbortSignal = NEVER): Promise<Generation> {
  return fixture.service.generate(command, { signal, record: fixture.record() });
}

async function collect(generation: Generation): Promise<GenerationEvent[]> {
  const events: GenerationEvent[] = [];
  for await (const event of generation.events) events.push(event);
  return events;
}

async function run(fixture: Fixture, command: GenerateCommand): Promise<GenerationEvent[]> {
  return collect(await start(fixture, command));
}

function textOf(events: readonly GenerationEvent[], choice = 0): string {
  return events.map((event) => (event.type === 'delta' && event.choice === choice ? event.text : '')).join('');
}

function usageOf(events: readonly GenerationEvent[]): Usage {
  const last = events.at(-1);
  assert.ok(last?.type === 'done' || last?.type === 'cancelled');
  return last.usage;
}

function finishOf(events: readonly GenerationEvent[], choice = 0): unknown[] {
  const done = events.flatMap((event) => (event.type === 'choice_done' && event.choice === choice ? [event] : []));
  assert.equal(done.length, 1);
  return [done[0]?.reason, done[0]?.stopReason];
}

async function refusal(promise: Promise<unknown>): Promise<ManyfoldError> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof ManyfoldError, String(error));
    return error;
  }
  return assert.fail('nothing was refused');
}

test('text, finish and usage of one choice; the stop id counts but has no text', async () => {
  const fixture = makeFixture({ answer: 'Grüße 🌍' });
  const events = await run(fixture, completion('Hi', { sampling: { maxTokens: 50 } }));
  assert.equal(textOf(events), 'Grüße 🌍');
  assert.deepEqual(finishOf(events), ['stop', null]);
  const tokens = toyIds('Grüße 🌍').length + 1;
  assert.deepEqual(usageOf(events), { promptTokens: 3, completionTokens: tokens, cachedTokens: 3 });
  for (const event of events) if (event.type === 'delta') assert.ok(!event.text.includes('�'));
  assert.equal(fixture.service.lifecycle.active, 0);
});

test('a stop string across token borders ends the text, the count and the engine sequence', async () => {
  const fixture = makeFixture({ answer: 'one two three four', automatic: true });
  const events = await run(
    fixture,
    completion('x', { output: { ...OUTPUT, stops: ['o th', 'zzz'] }, sampling: { maxTokens: 60 } }),
  );
  assert.equal(textOf(events), 'one tw');
  assert.deepEqual(finishOf(events), ['stop', 'o th']);
  assert.equal(usageOf(events).completionTokens, 'one two th'.length);
  assert.equal(fixture.engine.cancelled.length, 1);
  assert.equal(fixture.engine.running, 0);
});

test('include_stop_str_in_output keeps the stop string, and the text of a stop id', async () => {
  const include = { ...OUTPUT, includeStop: true };
  const withString = await run(
    makeFixture({ answer: 'one two three' }),
    completion('x', { output: { ...include, stops: ['two'] } }),
  );
  assert.equal(textOf(withString), 'one two');
  const fixture = makeFixture({ answer: () => [...toyIds('ab'), TOY.eot] });
  const withId = await run(fixture, completion('x', { output: { ...include, skipSpecialTokens: false } }));
  assert.equal(textOf(withId), 'ab<eot>');
});

test('text held back as a possible stop string comes out at the end', async () => {
  const fixture = makeFixture({ answer: 'abcSTO' });
  const events = await run(fixture, completion('x', { output: { ...OUTPUT, stops: ['STOP'] } }));
  assert.equal(textOf(events), 'abcSTO');
  assert.deepEqual(finishOf(events), ['stop', null]);
});

test('stop strings are not looked for before min_tokens', async () => {
  const command = completion('x', { sampling: { minTokens: 4, maxTokens: 30 }, output: { ...OUTPUT, stops: ['a'] } });
  assert.equal(textOf(await run(makeFixture({ answer: 'banana' }), command)), 'bana' + 'n');
});

test('asked stop ids are told as stopReason, and hidden; special tokens show when asked for', async () => {
  const fixture = makeFixture({ answer: () => [...toyIds('ab'), TOY.bos, ...toyIds('c!'), ...toyIds('zz')] });
  const output = { ...OUTPUT, skipSpecialTokens: false };
  const events = await run(fixture, completion('x', { output, sampling: { stopTokenIds: [33] } }));
  assert.equal(textOf(events), 'ab<bos>c');
  assert.deepEqual(finishOf(events), ['stop', 33]);
});

test('end-of-turn ids join the stop ids unless end of sequence is ignored', async () => {
  const fixture = makeFixture();
  await run(fixture, completion('x', { sampling: { stopTokenIds: [7], maxTokens: 3 } }));
  await run(fixture, completion('x', { sampling: { stopTokenIds: [7], maxTokens: 3, ignoreEos: true } }));
  assert.deepEqual(fixture.engine.requests[0]?.sampling.stopTokenIds, [7, TOY.eot]);
  assert.deepEqual(fixture.engine.requests[1]?.sampling.stopTokenIds, [7]);
});

test('n choices of several prompts are numbered prompt by prompt and share a seed within a prompt', async () => {
  const fixture = makeFixture({
    answer: (request) => [...toyIds(`${request.promptIds.length}/${request.sampling.choice}`), TOY.eos],
  });
  const events = await run(
    fixture,
    completion('', { prompts: ['ab', [1, 2, 3, 4]], output: { ...OUTPUT, choices: 2 } }),
  );
  assert.deepEqual(
    [0, 1, 2, 3].map((choice) => textOf(events, choice)),
    ['3/0', '3/1', '4/0', '4/1'],
  );
  assert.equal(usageOf(events).promptTokens, 7);
  const seeds = fixture.engine.requests.map((request) => request.sampling.seed);
  assert.equal(seeds[0], seeds[1]);
  assert.notEqual(seeds[0], seeds[2]);
  assert.equal(new Set(fixture.engine.requests.map((request) => request.id)).size, 4);
  assert.equal(events.filter((event) => ['done', 'cancelled', 'failed'].includes(event.type)).length, 1);
});

test('defaults come from generation_config.json and are overridden by the request', async () => {
  const defaults = { temperature: 0.6, topK: 20, topP: 0.9, minP: 0.1, repetitionPenalty: 1.2, maxNewTokens: 9 };
  const fixture = makeFixture({ service: { defaults } });
  await run(fixture, completion('x'));
  await run(fixture, completion('x', { sampling: { temperature: 0, topK: -1, topP: 0.5, seed: 42, maxTokens: 12 } }));
  const [first, second] = fixture.engine.requests.map((request) => request.sampling);
  assert.equal(first?.temperature, 0.6);
  assert.equal(first?.topK, 20);
  assert.equal(first?.repetitionPenalty, 1.2);
  assert.equal(first?.maxTokens, 9);
  assert.deepEqual(
    [second?.temperature, second?.topK, second?.topP, second?.seed, second?.maxTokens],
    [0, 0, 0.5, 42, 12],
  );
});

test('every parameter out of range is refused by its name', async () => {
  const fixture = makeFixture();
  const cases: [string, GenerateCommand][] = [
    ['temperature', completion('x', { sampling: { temperature: -0.1 } })],
    ['temperature', completion('x', { sampling: { temperature: 1e300 } })],
    ['repetition_penalty', completion('x', { sampling: { repetitionPenalty: 1e300 } })],
    ['top_p', completion('x', { sampling: { topP: 0 } })],
    ['top_p', completion('x', { sampling: { topP: 1.5 } })],
    ['top_k', completion('x', { sampling: { topK: -2 } })],
    ['min_p', completion('x', { sampling: { minP: 2 } })],
    ['repetition_penalty', completion('x', { sampling: { repetitionPenalty: 0 } })],
    ['presence_penalty', completion('x', { sampling: { presencePenalty: 3 } })],
    ['frequency_penalty', completion('x', { sampling: { frequencyPenalty: -3 } })],
    ['logit_bias', completion('x', { sampling: { logitBias: [[99999, 1]] } })],
    ['logit_bias', completion('x', { sampling: { logitBias: [[1, 101]] } })],
    ['seed', completion('x', { sampling: { seed: 2 ** 60 } })],
    ['max_tokens', completion('x', { sampling: { maxTokens: 0 } })],
    ['max_tokens', completion('x', { sampling: { maxTokens: 600 } })],
    ['min_tokens', completion('x', { sampling: { minTokens: 20, maxTokens: 10 } })],
    ['stop_token_ids', completion('x', { sampling: { stopTokenIds: [-1] } })],
    ['n', completion('x', { output: { ...OUTPUT, choices: 9 } })],
    ['logprobs', completion('x', { output: { ...OUTPUT, logprobs: 21 } })],
    ['prompt_logprobs', completion('x', { output: { ...OUTPUT, promptLogprobs: 99 } })],
    ['stop', completion('x', { output: { ...OUTPUT, stops: [''] } })],
    ['stop', completion('x', { output: { ...OUTPUT, stops: ['y'.repeat(257)] } })],
    ['stop', completion('x', { output: { ...OUTPUT, stops: Array.from({ length: 17 }, String) } })],
    ['prompt', completion('', { addSpecialTokens: false })],
    ['prompt', completion('x', { prompts: [[1, TOY.vocabSize]] })],
    ['prompt', completion('y'.repeat(512))],
    ['prompt', completion('y'.repeat(2 ** 20 + 1))],
    ['prompt', completion('x', { prompts: Array.from({ length: 41 }, () => 'x') })],
    ['model', completion('x', { model: 'nobody' })],
  ];
  for (const [param, command] of cases) {
    const error = await refusal(start(fixture, command));
    assert.equal(error.param, param, error.message);
    assert.match(error.message, /\.$/);
    assert.ok(error.status === 400 || error.status === 404);
  }
  assert.equal(fixture.engine.requests.length, 0);
  assert.equal(fixture.service.lifecycle.active, 0);
});

test('values beyond the kernels’ types mean what they would mean without them', async () => {
  const fixture = makeFixture();
  await run(fixture, completion('x', { sampling: { topK: 1e12, topP: 1e-60, repetitionPenalty: 1e-60 } }));
  const sampling = fixture.engine.requests[0]?.sampling;
  assert.equal(sampling?.topK, 0);
  for (const value of [sampling?.topP, sampling?.repetitionPenalty]) assert.ok(Math.fround(value ?? 0) > 0);
});

test('refusals name the id, the value or the flag', async () => {
  const fixture = makeFixture({ limits: { promptBytes: 100 }, info: { maxModelLen: 20, kvPages: 2, pageTokens: 10 } });
  const cases: [RegExp, GenerateCommand][] = [
    [
      /'logit_bias' holds 99999, which is no token id: .*\/tokenize/,
      completion('x', { sampling: { logitBias: [[99999, 1]] } }),
    ],
    [/'logit_bias' of id 5 must be -100 to 100; 500 came/, completion('x', { sampling: { logitBias: [[5, 500]] } })],
    [/'prompt' holds 1\.5, which is no token id/, completion('x', { prompts: [[1.5]] })],
    [/1 to --max-n \(8\); 9 came/, completion('x', { output: { ...OUTPUT, choices: 9 } })],
    [/larger --max-prompt-bytes\./, completion('y'.repeat(101))],
    [/more --kv-bytes/, completion('y'.repeat(30))],
    [/larger --max-queue\./, completion('x', { prompts: Array.from({ length: 41 }, () => 'x') })],
  ];
  for (const [message, command] of cases) assert.match((await refusal(start(fixture, command))).message, message);
});

test('without a queue, what can run at once is served', async () => {
  const fixture = makeFixture({ answer: 'ab', automatic: false, info: { maxNumSeqs: 2, maxQueue: 0 } });
  const reading = collect(await start(fixture, completion('x', { prompts: ['a', 'b'] })));
  assert.equal((await refusal(start(fixture, completion('c')))).code, 'overloaded');
  for (let i = 0; i < 3; i += 1) fixture.engine.step();
  assert.equal((await reading).at(-1)?.type, 'done');
});

test('a seed of its own for every negative one; -1 is random', async () => {
  const fixture = makeFixture();
  for (const seed of [-1, -2, -2]) await run(fixture, completion('x', { sampling: { seed } }));
  const seeds = fixture.engine.requests.map((request) => request.sampling.seed);
  assert.ok(seeds.every((seed) => Number.isSafeInteger(seed) && seed >= 0));
  assert.equal(seeds[1], seeds[2]);
  assert.notEqual(seeds[0], seeds[1]);
});

test('log-probabilities: bytes, candidates, offsets in characters, the stop id included', async () => {
  const fixture = makeFixture({ answer: 'aé!' });
  const events = await run(fixture, completion('x', { output: { ...OUTPUT, logprobs: 2, returnTokenIds: true } }));
  const tokens = events.flatMap((event) => (event.type === 'delta' ? event.tokens : []));
  assert.deepEqual(
    tokens.map((token) => token.id),
    [97, 0xc3, 0xa9, 33, TOY.eos],
  );
  assert.deepEqual(
    tokens.map((token) => token.offset),
    [0, 1, 1, 2, 3],
  );
  assert.deepEqual([...(tokens[1]?.bytes ?? [])], [0xc3]);
  assert.deepEqual(
    tokens[0]?.top.map((candidate) => candidate.id),
    [97, 98],
  );
  assert.deepEqual(
    events.flatMap((event) => (event.type === 'delta' ? event.ids : [])),
    [97, 0xc3, 0xa9, 33, TOY.eos],
  );
});

test('echo puts the prompt and its log-probabilities first; echo of no tokens gives the prompt alone', async () => {
  const fixture = makeFixture({ answer: 'no' });
  const output = { ...OUTPUT, logprobs: 1 };
  const events = await run(fixture, completion('hé', { echo: true, output, sampling: { maxTokens: 1 } }));
  assert.equal(textOf(events), 'hén');
  const tokens = events.flatMap((event) => (event.type === 'delta' ? event.tokens : []));
  assert.deepEqual(
    tokens.map((token) => token.id),
    [TOY.bos, 104, 0xc3, 0xa9, 110],
  );
  assert.deepEqual(
    tokens.map((token) => token.logprob === undefined),
    [true, false, false, false, false],
  );
  assert.deepEqual(
    tokens.map((token) => token.offset),
    [0, 0, 1, 1, 2],
  );
  const alone = await run(fixture, completion('hé', { echo: true, output, sampling: { maxTokens: 0 } }));
  assert.equal(textOf(alone), 'hé');
  assert.equal(usageOf(alone).completionTokens, 0);
  assert.equal(alone.flatMap((event) => (event.type === 'delta' ? event.tokens : [])).length, 4);
});

test('a client that leaves ends every sequence within one step and leaves nothing behind', async () => {
  const fixture = makeFixture({ answer: () => Array.from({ length: 400 }, () => 65), automatic: false });
  const client = new AbortController();
  const command = completion('x', { output: { ...OUTPUT, choices: 3 }, sampling: { maxTokens: 300 } });
  const generation = await start(fixture, command, client.signal);
  const reading = collect(generation);
  fixture.engine.step();
  fixture.engine.step();
  client.abort();
  fixture.engine.step();
  const events = await reading;
  assert.equal(events.at(-1)?.type, 'cancelled');
  assert.equal(usageOf(events).completionTokens, 6);
  assert.equal(fixture.engine.running, 0);
  assert.equal(fixture.service.lifecycle.active, 0);
});

test('a client that left before the submission costs the engine nothing', async () => {
  const fixture = makeFixture();
  const events = await collect(await start(fixture, completion('x'), AbortSignal.abort()));
  assert.deepEqual(
    events.map((event) => event.type),
    ['cancelled'],
  );
  assert.equal(fixture.engine.requests.length, 0);
  assert.equal(fixture.service.lifecycle.active, 0);
});

test('a failure of one sequence ends the request once and cancels the others', async () => {
  const fixture = makeFixture({ answer: 'abcdef', failAfter: 2 });
  const events = await run(fixture, completion('x', { output: { ...OUTPUT, choices: 2 } }));
  const last = events.at(-1);
  assert.equal(last?.type === 'failed' ? last.error.code : '', 'engine_failure');
  assert.equal(events.filter((event) => event.type === 'failed').length, 1);
  assert.equal(fixture.service.lifecycle.active, 0);
});

test('an engine that ends or cancels by itself is a failure, not a silent end', async () => {
  const fixture = makeFixture({ answer: 'abcdef', automatic: false });
  const reading = collect(await start(fixture, completion('x')));
  fixture.engine.step();
  await fixture.engine.close();
  const last = (await reading).at(-1);
  assert.equal(last?.type === 'failed' ? last.error.code : '', 'engine_failure');
});

for (const refuse of ['submit', 'stream'] as const) {
  test(`a refusal at ${refuse} is thrown, with an estimate of when to come back`, async () => {
    const fixture = makeFixture({ refuse });
    const error = await refusal(start(fixture, completion('x', { output: { ...OUTPUT, choices: 2 } })));
    assert.equal(error.code, 'overloaded');
    assert.ok((error.retryAfterSeconds ?? 0) >= 1);
    assert.equal(fixture.service.lifecycle.active, 0);
  });
}

test('a full queue refuses before any work; the estimate follows queue and pace', async () => {
  const fixture = makeFixture({ answer: 'ab', automatic: false, info: { maxNumSeqs: 2, maxQueue: 4 } });
  const held = await start(fixture, completion('x', { prompts: ['a', 'b', 'c', 'd'] }));
  fixture.clock.ms = 30_000;
  const reading = collect(held);
  for (let i = 0; i < 4; i += 1) fixture.engine.step();
  await reading;
  const again = await start(fixture, completion('x', { prompts: ['a', 'b', 'c', 'd'] }));
  const more = await start(fixture, completion('x', { prompts: ['a', 'b'] }));
  const error = await refusal(start(fixture, completion('z'.repeat(100))));
  assert.equal(error.code, 'overloaded');
  // Places have been held by sequences of 30 s (the first guess hardly counts): five waiting over two places, 75 s at most.
  assert.ok(
    (error.retryAfterSeconds ?? 0) > 60 && (error.retryAfterSeconds ?? 0) < 75,
    String(error.retryAfterSeconds),
  );
  const both = [collect(again), collect(more)];
  for (let i = 0; i < 4; i += 1) fixture.engine.step();
  await Promise.all(both);
});

test('chat renders, adds the generation prompt, and fills the context by default', async () => {
  const fixture = makeFixture();
  const chat = {
    messages: [{ role: 'user', content: 'Hi' }],
    ...{
      addGenerationPrompt: true,
      continueFinalMessage: false,
      addSpecialTokens: false,
      templateArgs: { tone: 'dry' },
    },
  };
  const command: GenerateCommand = { kind: 'chat', chat, sampling: {}, output: OUTPUT, stream: false };
  await run(fixture, command);
  const request = fixture.engine.requests[0] as EngineRequest;
  const prompt = '{"tone":"dry"}user: Hi\nassistant: ';
  assert.deepEqual(request.promptIds, toyIds(prompt));
  assert.equal(request.sampling.maxTokens, 512 - prompt.length);
});

test('what the engine was asked survives structuredClone unchanged', async () => {
  const fixture = makeFixture();
  await run(fixture, completion('x', { cacheSalt: 'tenant', sampling: { logitBias: [[5, -100]] } }));
  const request = fixture.engine.requests[0];
  assert.deepEqual(structuredClone(request), request);
  assert.equal(request?.cacheSalt, 'tenant');
});

test('work that runs when the shutdown is over ends with an error that says so', async () => {
  const fixture = makeFixture({ answer: 'abcdef', automatic: false });
  const reading = collect(await start(fixture, completion('x')));
  const idle = fixture.service.lifecycle.drain();
  assert.equal((await refusal(start(fixture, completion('y')))).code, 'shutting_down');
  fixture.service.lifecycle.stopAll();
  fixture.engine.step();
  const last = (await reading).at(-1);
  assert.equal(last?.type === 'failed' ? last.error.code : '', 'shutting_down');
  await idle;
});
