import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { AdapterLease } from '../adapters/residency.js';
import type { SamplingParams } from '../core/sampling.js';
import { PlanBuilder } from './build-plan.js';
import { EventStream } from './event-stream.js';
import { KvLedger } from './kv-ledger.js';
import type { EngineRequest } from './port.js';
import { Sequence } from './sequence.js';
import { EOS, request, version, VOCAB } from './testing/harness.js';

const SIZES = {
  maxRows: 32,
  maxEntries: 32,
  maxSequences: 8,
  kvPages: 16,
  pageTokens: 4,
  vocabSize: VOCAB,
  hiddenSize: 4,
};

function lease(handle: number, prefixTokens = 0, gatedPrefix = false): AdapterLease {
  const facts = {
    prefixTokens,
    softPromptTokens: 0,
    invocation: undefined,
    gatedPrefix,
    maxRank: 2,
    bytes: 0,
    kinds: {},
  };
  return { adapter: { version: version(handle), handle, facts, notes: [] }, release: () => undefined };
}

class Bench {
  readonly ledger = new KvLedger(SIZES.kvPages, SIZES.pageTokens);
  #arrivals = 0;

  /** A sequence with `computed` tokens in its pages, and room for what comes. */
  add(submitted: EngineRequest, computed: number, held?: AdapterLease): Sequence {
    this.#arrivals += 1;
    const sequence = new Sequence({
      request: submitted,
      arrival: this.#arrivals,
      lease: held,
      baseFingerprint: 'f',
      table: this.ledger.open(),
      events: new EventStream(() => undefined),
      maxModelLen: 100,
      eosTokenIds: [EOS],
    });
    assert.ok(this.ledger.grow(sequence.table, sequence.goal, sequence.goal));
    sequence.advance(computed, this.ledger);
    return sequence;
  }
}

function arrays(values: object): Record<string, number[]> {
  return Object.fromEntries(
    Object.entries(values)
      .filter(([, value]) => ArrayBuffer.isView(value))
      .map(([key, value]) => [key, [...(value as Int32Array)]]),
  );
}

test('a mixed step has exactly these arrays', () => {
  const bench = new Bench();
  const odd: Partial<SamplingParams> = {
    temperature: 0.5,
    topK: 9,
    topP: 0.75,
    minP: 0.25,
    repetitionPenalty: 1.5,
    frequencyPenalty: 0.125,
    presencePenalty: -1,
    logitBias: [
      [7, 2],
      [8, -100],
      [7, 3],
    ],
    seed: 2 ** 33 + 5,
    choice: 2,
    minTokens: 4,
    ignoreEos: false,
    stopTokenIds: [9],
    logprobs: 4,
  };
  const decoding = bench.add(request([10, 11, 10, 12], odd, { emittedIds: [11, 13] }), 5, lease(21, 5));
  const prompt = bench.add(request([1, 2, 3, 4, 5, 6, 7, 8], { promptLogprobs: 200 }), 0);
  const sibling = bench.add(request([30, 31]), 1, lease(21, 5));
  const gated = bench.add(request([40]), 0, lease(22, 0, true));
  const builder = new PlanBuilder(SIZES);
  builder.build([{ sequence: sibling, count: 1 }]);
  const { plan, entryChunk, entryScores } = builder.build([
    { sequence: decoding, count: 1 },
    { sequence: prompt, count: 3 },
    { sequence: sibling, count: 1 },
    { sequence: gated, count: 1 },
  ]);
  const pages = [
    ...decoding.table.pages.subarray(0, 2),
    ...prompt.table.pages.subarray(0, 1),
    ...sibling.table.pages.subarray(0, 1),
    ...gated.table.pages.subarray(0, 1),
  ];
  const scored = [0, 0, 1, 0, 1, 0, 0, 0];
  assert.deepEqual(arrays(plan), {
    rowSequence: [0, 1, 1, 1, 2, 3],
    rowPosition: [10, 0, 1, 2, 6, 0],
    rowToken: [13, 1, 2, 3, 31, 40],
    rowTerms: [0, -1, -1, -1, 0, 1],
    rowGate: [-1, -1, -1, -1, -1, -1],
    rankGates: [],
    embeddings: [],
    sequenceBase: [5, 0, 5, 0],
    sequenceRuns: [0, 2, 3, 5, 7],
    runKind: [1, 0, 0, 1, 0, 0, 2],
    runRef: [0, 0, 2, 0, 3, 4, 1],
    runTokens: [0, 6, 3, 0, 2, 1, 0],
    pages,
    termSets: [21, 22],
    entryRow: [0, 1, 2, 3, 4, 5],
    entryTarget: [-1, 2, 3, 4, -1, -1],
    entryTopLogprobs: [4, VOCAB, VOCAB, VOCAB, -1, -1],
    entryParams: [0.5, 9, 0.75, 0.25, 1.5, 0.125, -1, 0, ...scored, ...scored, ...scored, ...scored, ...scored],
    entrySeed: [5, 2, 2, 2, ...new Array<number>(20).fill(0)],
    entryBias: [0, 4, 4, 4, 4, 4, 4],
    biasIds: [7, 8, EOS, 9],
    biasValues: [3, -Infinity, -Infinity, -Infinity],
    entryHistory: [0, 4, 4, 4, 4, 4, 4],
    historyIds: [10, 11, 12, 13],
    historyCounts: [0, 1, 0, 1],
    entryMask: [-1, -1, -1, -1, -1, -1],
    masks: [],
  });
  assert.equal(plan.gateWidth, 0);
  assert.deepEqual([...entryChunk], [0, 1, 1, 1, 2, 3]);
  assert.deepEqual([...entryScores], [-1, 0, 1, 2, -1, -1]);
});

test('stop ids are free again after min_tokens, and long histories and biases fit', () => {
  const bench = new Bench();
  const ids = Array.from({ length: 40 }, (_, id) => id);
  const sequences = [1, 2, 3].map(() =>
    bench.add(
      request(
        [1],
        {
          repetitionPenalty: 2,
          maxTokens: 40,
          minTokens: 1,
          ignoreEos: false,
          logitBias: ids.map((id) => [id, 1] as const),
        },
        { emittedIds: ids.slice(0, 11) },
      ),
      11,
    ),
  );
  const { plan } = new PlanBuilder(SIZES).build(sequences.map((sequence) => ({ sequence, count: 1 })));
  assert.equal(plan.biasIds.length, 120);
  assert.ok(plan.biasValues.every((value) => value === 1));
  assert.deepEqual([...plan.entryHistory], [0, 11, 22, 33]);
  assert.deepEqual([...plan.historyCounts.subarray(22, 33)], new Array<number>(11).fill(1));
  const [first] = sequences;
  assert.equal(first?.outputTokens, 11);
});

test('pages that become full are keyed by what they hold; a preempted sequence gets the same keys again', () => {
  const bench = new Bench();
  const submitted = request([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  const sequence = bench.add(submitted, 8);
  const [first, second] = sequence.table.keys;
  assert.equal(sequence.table.keys.length, 2);
  assert.notDeepEqual(first, second);
  sequence.preempt(bench.ledger);
  assert.deepEqual([sequence.computed, sequence.pages, sequence.table.keys.length], [0, 0, 0]);
  assert.ok(bench.ledger.grow(sequence.table, 9, 9));
  for (const end of [1, 5, 9]) sequence.advance(end, bench.ledger);
  assert.deepEqual(sequence.table.keys, [first, second]);
  const adapted = bench.add(submitted, 8, lease(5));
  assert.notDeepEqual(adapted.table.keys[0], first);
  const salted = bench.add({ ...submitted, cacheSalt: 's' }, 8);
  assert.notDeepEqual(salted.table.keys[0], first);
});
