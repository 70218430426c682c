/**
 * Random traffic over tiny pools against the same requests alone: whatever arrives when, is cancelled, preempted, cut
 * into chunks or interrupted and continued, every sequence has the tokens that it has alone, and nothing is left over.
 */
import assert from 'node:assert/strict';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { test } from 'node:test';
import fc from 'fast-check';

import type { SamplingParams } from '../core/sampling.js';
import type { EngineLimits } from './in-process-engine.js';
import { closeClean, EOS, loadAdapter, makeHarness, request, run, version, VOCAB } from './testing/harness.js';
import type { EngineEvent } from './port.js';
import type { Harness, Outcome } from './testing/harness.js';

const MAX_MODEL_LEN = 60;
const ADAPTERS = [1, 2, 3, 4, 5, 6] as const;

interface Traffic {
  readonly promptIds: readonly number[];
  readonly sampling: Partial<SamplingParams>;
  /** 0 is the base. */
  readonly adapter: number;
  readonly salt: number;
  /** Turns of the event loop before it is submitted. */
  readonly delay: number;
  /** Turns after which it is cancelled; undefined: never. */
  readonly cancelAfter: number | undefined;
  /** Output tokens that an earlier submission gave out. */
  readonly emitted: number;
}

const token = fc.nat(VOCAB - 1);
/** Beginnings that prompts have in common, so that pages are reused; one has the invocation of adapter 6 in it. */
const BEGINNINGS: readonly (readonly number[])[] = [
  Array.from({ length: 17 }, (_, i) => i + 1),
  Array.from({ length: 20 }, (_, i) => VOCAB - 1 - i),
];
const sampling: fc.Arbitrary<Partial<SamplingParams>> = fc.record({
  temperature: fc.constantFrom(0, 0.8),
  repetitionPenalty: fc.constantFrom(1, 1, 1.3),
  frequencyPenalty: fc.constantFrom(0, 0, 0.5),
  presencePenalty: fc.constantFrom(0, 0, -0.5),
  logitBias: fc.constantFrom(
    [],
    [[7, 2.5]] as const,
    [
      [7, -100],
      [8, 1],
    ] as const,
  ),
  seed: fc.constantFrom(1, 2 ** 33 + 1),
  choice: fc.nat(1),
  maxTokens: fc.oneof(fc.nat(8), fc.integer({ min: 20, max: 45 })),
  minTokens: fc.constantFrom(0, 0, 5),
  ignoreEos: fc.constantFrom(true, true, false),
  stopTokenIds: fc.constantFrom([], [], [4], [11, 12]),
  logprobs: fc.constantFrom(0, 3),
});
const traffic: fc.Arbitrary<Traffic> = fc.record({
  promptIds: fc.oneof(
    fc.array(token, { minLength: 1, maxLength: 8 }),
    fc.array(token, { minLength: 20, maxLength: 40 }),
    fc
      .tuple(fc.constantFrom(...BEGINNINGS), fc.array(token, { maxLength: 20 }))
      .map(([begin, end]) => [...begin, ...end]),
  ),
  sampling: fc
    .tuple(sampling, fc.constantFrom(undefined, undefined, 0, 2))
    .map(([params, promptLogprobs]) => (promptLogprobs === undefined ? params : { ...params, promptLogprobs })),
  adapter: fc.nat(ADAPTERS.length),
  salt: fc.nat(1),
  delay: fc.nat(12),
  cancelAfter: fc.oneof({ weight: 3, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary: fc.nat(30) }),
  emitted: fc.constantFrom(0, 0, 0, 3),
});
const limits: fc.Arbitrary<Partial<EngineLimits>> = fc.record({
  pageTokens: fc.constantFrom(4, 4, 16),
  kvPages: fc.constantFrom(15, 15, 30),
  maxChunk: fc.constantFrom(1, 7, 64),
  maxRows: fc.constantFrom(4, 9, 64),
  maxEntries: fc.constantFrom(4, 64),
  maxNumSeqs: fc.constantFrom(1, 4, 12),
  maxQueue: fc.constant(100),
  maxModelLen: fc.constant(MAX_MODEL_LEN),
});

async function harnessWithAdapters(sizes: Partial<EngineLimits>): Promise<Harness> {
  const harness = makeHarness(sizes);
  for (const adapter of ADAPTERS) await loadAdapter(harness.engine, adapter);
  return harness;
}

function submission(
  { promptIds, sampling: params, adapter, salt }: Traffic,
  emittedIds: readonly number[],
): Parameters<typeof run>[1] {
  return request(promptIds, params, {
    emittedIds,
    ...(adapter === 0 ? {} : { adapter: version(adapter) }),
    ...(salt === 0 ? {} : { cacheSalt: 's' }),
  });
}

/** An event without the one number that may differ: how much was found in the pool. */
function uncached(event: EngineEvent): unknown {
  return 'usage' in event ? { ...event, usage: { ...event.usage, cachedTokens: 0 } } : event;
}

/** Runs one among the others, and compares it with what it is alone. */
async function mixed({ engine }: Harness, one: Traffic, alone: Outcome): Promise<void> {
  for (let turn = 0; turn < one.delay; turn += 1) await nextTurn();
  const emitted = alone.tokens.slice(0, one.emitted);
  const submitted = submission(one, emitted);
  const outcome = run(engine, submitted);
  if (one.cancelAfter !== undefined) {
    for (let turn = 0; turn < one.cancelAfter; turn += 1) await nextTurn();
    engine.cancel(submitted.id);
  }
  const { tokens, last, events } = await outcome;
  const expected = alone.tokens.slice(emitted.length);
  if (last.type === 'cancelled') {
    assert.ok(one.cancelAfter !== undefined, 'a sequence was cancelled that nobody had cancelled');
    assert.deepEqual(tokens, expected.slice(0, tokens.length));
    return;
  }
  assert.deepEqual(uncached(last), uncached(alone.last));
  assert.deepEqual(tokens, expected);
  if (emitted.length === 0)
    assert.deepEqual(
      events.map(uncached),
      alone.events.map(uncached),
      'log-probabilities too are those of the request alone',
    );
}

/** Eight long sequences over a pool that holds one: preempted whatever the seed of the run. */
const CROWD: [Traffic[], Partial<EngineLimits>] = [
  Array.from({ length: 8 }, (_, i) => ({
    promptIds: Array.from({ length: 8 }, (__, j) => (i + j) % VOCAB),
    sampling: { temperature: 0, maxTokens: 40, ignoreEos: true },
    adapter: i % (ADAPTERS.length + 1),
    salt: 0,
    delay: i,
    cancelAfter: undefined,
    emitted: 0,
  })),
  { pageTokens: 4, kvPages: 15, maxChunk: 7, maxNumSeqs: 12, maxQueue: 100, maxModelLen: MAX_MODEL_LEN },
];

/** One after another with the same beginning: the second finds the pages of the first, whatever the seed. */
const FOLLOWERS: [Traffic[], Partial<EngineLimits>] = [
  [1, 2].map((end) => ({
    promptIds: [...(BEGINNINGS[0] ?? []), end],
    sampling: { temperature: 0, maxTokens: 4, ignoreEos: true },
    adapter: 1,
    salt: 0,
    delay: 0,
    cancelAfter: undefined,
    emitted: 0,
  })),
  { pageTokens: 4, kvPages: 15, maxNumSeqs: 1, maxQueue: 100, maxModelLen: MAX_MODEL_LEN },
];

test('every sequence has the tokens that it has alone, and nothing is left over', async () => {
  const totals = { preemptions: 0, widest: 0, stops: 0, hits: 0 };
  await fc.assert(
    fc.asyncProperty(fc.array(traffic, { minLength: 1, maxLength: 12 }), limits, async (all, sizes) => {
      const quiet = await harnessWithAdapters({ maxModelLen: MAX_MODEL_LEN });
      const alone: Outcome[] = [];
      for (const one of all) alone.push(await run(quiet.engine, submission(one, [])));
      await closeClean(quiet);
      const busy = await harnessWithAdapters(sizes);
      await Promise.all(all.map((one, i) => mixed(busy, one, alone[i] ?? assert.fail())));
      const { preemptions, prefixHits } = busy.engine.stats();
      totals.hits += prefixHits;
      totals.preemptions += preemptions;
      totals.widest = Math.max(totals.widest, busy.native.widest);
      totals.stops += alone.filter(({ last }) => last.type === 'done' && last.stopId !== undefined).length;
      await closeClean(busy);
    }),
    { numRuns: 80, examples: [CROWD, FOLLOWERS] },
  );
  assert.ok(totals.preemptions > 8, `only ${totals.preemptions} preemptions happened`);
  assert.ok(totals.widest >= 3, `no step had more than ${totals.widest} sequences`);
  assert.ok(totals.hits > 0, 'nothing was ever reused');
  assert.ok(totals.stops > 20, `only ${totals.stops} sequences met a stop id`);
});

test('adapters that come and go under load never mix up what runs', async () => {
  const churn = fc.array(fc.tuple(fc.constantFrom('load', 'release', 'request', 'wait'), fc.constantFrom(1, 2, 3)), {
    maxLength: 60,
  });
  await fc.assert(
    fc.asyncProperty(churn, async (steps) => {
      const quiet = await harnessWithAdapters({ maxModelLen: MAX_MODEL_LEN });
      const alone = await Promise.all(
        [1, 2, 3].map((adapter) =>
          run(quiet.engine, request([adapter, 5, EOS, 9], { maxTokens: 12 }, { adapter: version(adapter) })),
        ),
      );
      await closeClean(quiet);
      const busy = makeHarness({ kvPages: 8, pageTokens: 4, maxModelLen: 32, maxChunk: 7 });
      const loads: Promise<unknown>[] = [];
      const outcomes: Promise<void>[] = [];
      for (const [action, adapter] of steps) {
        if (action === 'load') loads.push(loadAdapter(busy.engine, adapter).catch((error: unknown) => error));
        if (action === 'release') await busy.engine.release(version(adapter));
        if (action === 'wait') await nextTurn();
        if (action === 'request') outcomes.push(check(busy, adapter, alone));
      }
      await Promise.all([...outcomes, ...loads]);
      await closeClean(busy);
    }),
    { numRuns: 100 },
  );
});

/** Either the adapter's own tokens, or an error that says that it is not loaded. */
async function check({ engine }: Harness, adapter: number, alone: readonly Outcome[]): Promise<void> {
  const { last, tokens } = await run(
    engine,
    request([adapter, 5, EOS, 9], { maxTokens: 12 }, { adapter: version(adapter) }),
  );
  if (last.type === 'failed') assert.equal(last.error.code, 'model_not_found');
  else assert.deepEqual(tokens, alone[adapter - 1]?.tokens);
}
