import assert from 'node:assert/strict';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { test } from 'node:test';

import { ManyfoldError } from '../core/errors.js';
import { createInProcessEngine } from './in-process-engine.js';
import { FakeNative } from './testing/fake-native.js';
import {
  closeClean,
  collect,
  EOS,
  FAKE_MODEL,
  fakeCompile,
  loadAdapter,
  makeHarness,
  ManualClock,
  prompt,
  request,
  ROOMY,
  run,
  version,
  VOCAB,
} from './testing/harness.js';

test('a sequence streams its tokens and ends with its usage', async () => {
  const harness = makeHarness();
  const { events, tokens, last } = await run(harness.engine, request(prompt(20), { maxTokens: 5 }));
  assert.equal(tokens.length, 5);
  assert.deepEqual(
    events.map(({ type }) => type),
    ['token', 'token', 'token', 'token', 'token', 'done'],
  );
  assert.deepEqual(last, {
    type: 'done',
    reason: 'length',
    usage: { promptTokens: 20, completionTokens: 5, cachedTokens: 0 },
  });
  const stats = harness.engine.stats();
  assert.deepEqual([stats.steps, stats.promptTokens, stats.generationTokens, stats.stalledMs], [5, 20, 5, 0]);
  await closeClean(harness);
});

test('rows of one step share one batch, whatever their adapters', async () => {
  const harness = makeHarness();
  const adapters = [
    undefined,
    await loadAdapter(harness.engine, 1),
    await loadAdapter(harness.engine, 3),
    await loadAdapter(harness.engine, 4),
  ];
  const outcomes = await Promise.all(
    adapters.flatMap((adapter) =>
      [1, 2].map((salt) => run(harness.engine, request(prompt(9, salt), {}, adapter === undefined ? {} : { adapter }))),
    ),
  );
  assert.equal(harness.native.widest, 8);
  assert.equal(harness.native.steps, 8);
  assert.equal(new Set(outcomes.map(({ tokens }) => tokens.join())).size, 8);
  await closeClean(harness);
});

test('stop ids and eos end a sequence, with the id told; ignore_eos and min_tokens hold', async () => {
  const harness = makeHarness();
  const { engine } = harness;
  const free = await run(engine, request(prompt(6), { maxTokens: 30 }));
  const stopId = free.tokens[4] ?? -1;
  const first = free.tokens.indexOf(stopId);
  const stopped = await run(engine, request(prompt(6), { maxTokens: 30, stopTokenIds: [stopId] }));
  assert.deepEqual(stopped.tokens, free.tokens.slice(0, first + 1));
  assert.equal(stopped.last.type === 'done' && stopped.last.stopId, stopId);
  assert.equal(stopped.last.type === 'done' && stopped.last.reason, 'stop');

  const biased = {
    logitBias: Array.from({ length: VOCAB }, (_, id) => [id, id === EOS || id === 5 ? 0 : -100] as const),
  };
  const eos = await run(engine, request(prompt(6), { ...biased, ignoreEos: false, maxTokens: 200 }));
  assert.equal(eos.tokens.at(-1), EOS);
  assert.equal(eos.last.type === 'done' && eos.last.stopId, EOS);
  const later = await run(engine, request(prompt(6), { ...biased, ignoreEos: false, minTokens: 12, maxTokens: 200 }));
  assert.ok(later.tokens.length > 12);
  assert.ok(later.tokens.slice(0, 12).every((id) => id === 5));
  const past = await run(engine, request(prompt(6), { ...biased, maxTokens: 40 }));
  assert.equal(past.last.type === 'done' && past.last.reason, 'length');
  assert.ok(past.tokens.includes(EOS));
  await closeClean(harness);
});

test('the context length ends a sequence, prefix positions included', async () => {
  const harness = makeHarness({ maxModelLen: 40 });
  const adapter = await loadAdapter(harness.engine, 3);
  const plain = await run(harness.engine, request(prompt(30), { maxTokens: 100 }));
  assert.equal(plain.tokens.length, 10);
  assert.equal(plain.last.type === 'done' && plain.last.reason, 'length');
  assert.equal((await run(harness.engine, request(prompt(30), { maxTokens: 100 }, { adapter }))).tokens.length, 5);
  const tooLong = await run(harness.engine, request(prompt(35), {}, { adapter }));
  assert.equal(tooLong.last.type === 'failed' && tooLong.last.error.code, 'context_length_exceeded');
  await closeClean(harness);
});

test('log-probabilities come with each token, and once for the prompt', async () => {
  const harness = makeHarness({ maxEntries: 16 });
  const { events, last } = await run(
    harness.engine,
    request(prompt(40), { logprobs: 2, promptLogprobs: 3, maxTokens: 2 }),
  );
  assert.deepEqual(
    events.map(({ type }) => type),
    ['prompt_logprobs', 'token', 'token', 'done'],
  );
  const [scores, token] = events;
  assert.ok(scores?.type === 'prompt_logprobs' && token?.type === 'token' && last.type === 'done');
  assert.equal(scores.positions.length, 39);
  assert.ok(
    scores.positions.every(
      ({ rank, topIds, topLogprobs }) => rank >= 1 && topIds.length === 3 && topLogprobs.length === 3,
    ),
  );
  assert.deepEqual(token.logprobs?.topLogprobs.map(Math.abs), [0, 1]);

  const scored = await run(harness.engine, request(prompt(40), { promptLogprobs: 3, maxTokens: 0 }));
  assert.deepEqual(
    scored.events.map(({ type }) => type),
    ['prompt_logprobs', 'done'],
  );
  assert.deepEqual(scored.events[0], scores);
  assert.deepEqual(scored.last, {
    type: 'done',
    reason: 'length',
    usage: { promptTokens: 40, completionTokens: 0, cachedTokens: 0 },
  });
  const one = await run(harness.engine, request([7], { promptLogprobs: 0, maxTokens: 0 }));
  assert.deepEqual(one.events[0], { type: 'prompt_logprobs', positions: [] });
  assert.deepEqual(
    (await run(harness.engine, request([7], { maxTokens: 0 }))).events.map(({ type }) => type),
    ['done'],
  );
  await closeClean(harness);
});

test('a submission with emitted tokens continues as if it had never been interrupted', async () => {
  const harness = makeHarness();
  const sampling = {
    temperature: 0.7,
    seed: 2 ** 40 + 5,
    choice: 2,
    frequencyPenalty: 0.5,
    repetitionPenalty: 1.2,
    maxTokens: 10,
    promptLogprobs: 0,
  };
  const whole = await run(harness.engine, request(prompt(18), sampling));
  for (const cut of [1, 4, 9]) {
    const rest = await run(harness.engine, request(prompt(18), sampling, { emittedIds: whole.tokens.slice(0, cut) }));
    assert.deepEqual(rest.tokens, whole.tokens.slice(cut));
    // What was interrupted finds its own pages.
    const [restUsage, wholeUsage] = [rest.last, whole.last].map((last) => last.type === 'done' && last.usage);
    assert.deepEqual({ ...restUsage, cachedTokens: 0 }, wholeUsage);
    assert.equal(
      rest.events.some(({ type }) => type === 'prompt_logprobs'),
      false,
    );
  }
  const { steps } = harness.native;
  const over = await run(harness.engine, request(prompt(18), sampling, { emittedIds: whole.tokens }));
  assert.deepEqual(over.events, [whole.last]);
  const stopped = await run(harness.engine, request(prompt(18), { stopTokenIds: [9] }, { emittedIds: [1, 9] }));
  assert.equal(stopped.last.type === 'done' && stopped.last.stopId, 9);
  assert.equal(harness.native.steps, steps, 'what had ended costs no step');
  await closeClean(harness);
});

test('a cancelled sequence ends within one step and is absent from the next plan', async () => {
  const harness = makeHarness({ maxNumSeqs: 2 });
  const { engine, native } = harness;
  const running = request(prompt(10), { maxTokens: 100 });
  const waiting = [request(prompt(10), { maxTokens: 100 }), request(prompt(10), { maxTokens: 100 })];
  const outcomes = [running, ...waiting].map((one) => run(engine, one));
  for (let turn = 0; turn < 8; turn += 1) await nextTurn();
  engine.cancel(running.id);
  for (const { id } of waiting) engine.cancel(id);
  const { steps } = native;
  const ends = await Promise.all(outcomes);
  assert.ok(native.steps <= steps + 1);
  assert.deepEqual(
    ends.map(({ last }) => last.type),
    ['cancelled', 'cancelled', 'cancelled'],
  );
  const [first] = ends;
  assert.equal(first?.last.type === 'cancelled' && first.last.usage.completionTokens, first?.tokens.length);
  engine.cancel(running.id);
  await closeClean(harness);
});

test('a reader that leaves cancels its sequence', async () => {
  const harness = makeHarness();
  for await (const event of harness.engine.submit(request(prompt(10), { maxTokens: 100 }))) {
    if (event.type === 'token') break;
  }
  for (let turn = 0; turn < 4; turn += 1) await nextTurn();
  assert.equal(harness.engine.stats().running, 0);
  await closeClean(harness);
});

test('a full queue refuses with the time that the measured rate gives', async () => {
  const harness = makeHarness({ maxNumSeqs: 1, maxQueue: 2 });
  const { engine, clock } = harness;
  harness.native.beforeStep = () => void (clock.ms += 1000);
  const outcomes = [1, 2, 3].map(() => run(engine, request(prompt(4), { maxTokens: 2 })));
  const refused = (): ManyfoldError => {
    try {
      engine.submit(request(prompt(4)));
    } catch (error) {
      if (error instanceof ManyfoldError) return error;
    }
    return assert.fail('the queue took one more');
  };
  assert.equal(refused().code, 'overloaded');
  assert.equal(refused().retryAfterSeconds, 1);
  await outcomes[0];
  const more = run(engine, request(prompt(4), { maxTokens: 2 }));
  // One sequence in two seconds, and three before a newcomer.
  assert.equal(refused().retryAfterSeconds, 6);
  await Promise.all([...outcomes, more]);
  await closeClean(harness);
});

test('requests that native code would refuse never reach a step', async () => {
  const harness = makeHarness();
  const { engine } = harness;
  const bad = [
    request([]),
    request([VOCAB]),
    request([1.5]),
    request([1], {}, { emittedIds: [-1] }),
    request([1], { temperature: Number.NaN }),
    request([1], { temperature: 1e39 }),
    request([1], { topP: 0 }),
    request([1], { topP: 1e-50 }),
    request([1], { topK: 1.5 }),
    request([1], { minP: 2 }),
    request([1], { repetitionPenalty: 0 }),
    request([1], { presencePenalty: Infinity }),
    request([1], { seed: -1 }),
    request([1], { maxTokens: -1 }),
    request([1], { stopTokenIds: [VOCAB] }),
    request([1], { logitBias: [[VOCAB, 1]] }),
    request([1], { logitBias: [[1, Number.NaN]] }),
  ];
  for (const one of bad) {
    const { last } = await run(engine, one);
    assert.equal(last.type === 'failed' && last.error.code, 'invalid_request', JSON.stringify(one));
    assert.match(last.type === 'failed' ? last.error.message : '', /expected .* found .*\. Correct/);
  }
  const twice = request(prompt(4));
  const [first, second] = [run(engine, twice), run(engine, twice)];
  assert.equal((await first).last.type, 'done');
  const repeated = (await second).last;
  assert.equal(repeated.type === 'failed' && repeated.error.code, 'bug');
  assert.equal(harness.native.steps, 8);
  await closeClean(harness);
});

test('a step that fails ends the sequences in it, and the engine goes on', async () => {
  const harness = makeHarness({ maxNumSeqs: 2 });
  const { engine, native } = harness;
  const adapter = await loadAdapter(engine, 1);
  native.beforeStep = () => {
    if (native.steps === 3) {
      native.beforeStep = () => undefined;
      throw new Error('the device is gone');
    }
  };
  const outcomes = await Promise.all([
    run(engine, request(prompt(4), { maxTokens: 10 }, { adapter })),
    run(engine, request(prompt(4), { maxTokens: 10 })),
    run(engine, request(prompt(4), { maxTokens: 10 })),
  ]);
  assert.deepEqual(
    outcomes.map(({ last }) => last.type),
    ['failed', 'failed', 'done'],
  );
  const [{ last } = assert.fail()] = outcomes;
  assert.equal(last.type === 'failed' && last.error.code, 'engine_failure');
  assert.match(last.type === 'failed' ? last.error.message : '', /the device is gone/);
  await closeClean(harness);
});

test('a sequence whose logits cannot be sampled fails alone', async () => {
  const harness = makeHarness();
  const banned = { logitBias: Array.from({ length: VOCAB }, (_, id) => [id, -100] as const) };
  const [bad, good] = await Promise.all([
    run(harness.engine, request(prompt(4), banned)),
    run(harness.engine, request(prompt(4))),
  ]);
  assert.equal(bad?.last.type === 'failed' && bad.last.error.code, 'engine_failure');
  assert.equal(good?.last.type, 'done');
  await closeClean(harness);
});

test('a prompt whose logits are not finite fails alone, also when it is only scored', async () => {
  const harness = makeHarness();
  harness.native.scoresFail = true;
  const [bad, good] = await Promise.all([
    run(harness.engine, request(prompt(4), { promptLogprobs: 1 })),
    run(harness.engine, request(prompt(4))),
  ]);
  assert.equal(bad?.last.type === 'failed' && bad.last.error.code, 'engine_failure');
  assert.equal(good?.last.type, 'done');
  await closeClean(harness);
});

test('the stall is the time since a step ended while there is work', async () => {
  const harness = makeHarness();
  const { engine, clock } = harness;
  let stalled = 0;
  harness.native.beforeStep = () => {
    clock.ms += 500;
    stalled = engine.stats().stalledMs;
  };
  await run(engine, request(prompt(4), { maxTokens: 2 }));
  assert.equal(stalled, 500);
  clock.ms += 9000;
  assert.equal(engine.stats().stalledMs, 0);
  await closeClean(harness);
});

test('close cancels what runs and waits, frees everything, and refuses what comes after', async () => {
  const harness = makeHarness({ maxNumSeqs: 1 });
  const { engine, native } = harness;
  const adapter = await loadAdapter(engine, 1);
  const outcomes = [1, 2].map(() => run(engine, request(prompt(4), { maxTokens: 100 }, { adapter })));
  for (let turn = 0; turn < 4; turn += 1) await nextTurn();
  const loading = loadAdapter(engine, 2);
  const closing = engine.close();
  assert.equal(engine.close(), closing);
  assert.throws(
    () => engine.submit(request(prompt(4))),
    (error) => error instanceof ManyfoldError && error.code === 'shutting_down',
  );
  await assert.rejects(loading);
  await assert.rejects(engine.load({ version: version(1), directory: '/' }), /shutting down/);
  await closing;
  assert.deepEqual(
    (await Promise.all(outcomes)).map(({ last }) => last.type),
    ['cancelled', 'cancelled'],
  );
  assert.equal(native.info().termSets, 0);
  assert.ok(native.disposed);
});

test('a pool that cannot hold the longest sequence is refused at the start', () => {
  const limits = { ...ROOMY, kvPages: 2, maxModelLen: 33 };
  const native = new FakeNative({ ...limits, vocabSize: VOCAB });
  const make = (): unknown =>
    createInProcessEngine({
      native,
      model: FAKE_MODEL,
      baseFingerprint: 'f',
      eosTokenIds: [],
      dtype: 'f32',
      limits,
      adapterLimits: { maxRank: 8, maxBytes: 1e6 },
      clock: new ManualClock(),
      compile: async ({ version: adapter }) => fakeCompile(adapter),
    });
  assert.throws(make, /holds 32 tokens, one sequence may have 33\. Raise --kv-bytes or lower --max-model-len/);
});

test('preemption recomputes: a pool too small for both gives the tokens of a large one', async () => {
  const large = makeHarness();
  const requests = [1, 2, 3].map((salt) =>
    request(prompt(20, salt), { maxTokens: 60, temperature: 1, seed: salt, promptLogprobs: 1 }),
  );
  const expected = await Promise.all(requests.map((one) => run(large.engine, one)));
  assert.equal(large.engine.stats().preemptions, 0);
  await closeClean(large);
  const small = makeHarness({ kvPages: 7, maxModelLen: 96 });
  const found = await Promise.all(requests.map((one) => collect(small.engine.submit(one))));
  assert.ok(small.engine.stats().preemptions > 0);
  assert.deepEqual(found, expected);
  assert.equal(small.engine.stats().promptTokens, 60, 'prompt tokens that are computed again count once');
  await closeClean(small);
});
