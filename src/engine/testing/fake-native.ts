/**
 * A native engine whose model is a hash, for tests of the engine. It keeps a KV memory with one number for each token
 * slot of the pool; a row's number mixes its token, position, terms and the numbers of all slots before it, read through
 * the plan's page table. So a wrong page, a stale slot, a missed recompute, a wrong handle or a wrong history changes
 * the tokens, as it would with a real model. Every plan is checked against the rules before it runs.
 */
import assert from 'node:assert/strict';
import { setImmediate as nextTurn } from 'node:timers/promises';

import type {
  NativeCounters,
  NativeEngine,
  NativeEngineInfo,
  NativePlan,
  NativeResult,
  NativeTerm,
} from '../../native/binding-types.js';
import { checkPlan, HIDDEN } from './check-plan.js';

export interface FakeNativeOptions {
  readonly vocabSize: number;
  readonly kvPages: number;
  readonly pageTokens: number;
  readonly maxRows: number;
  readonly maxEntries: number;
}

interface LoadedSet {
  readonly digest: number;
  readonly shared: number;
  readonly gated: boolean;
}

/** NativeResult.tokens where nothing can be sampled or scored. */
const IMPOSSIBLE = -2;

export class FakeNative implements NativeEngine {
  readonly #options: FakeNativeOptions;
  readonly #memory: Int32Array;
  readonly #sets = new Map<number, LoadedSet>();
  #nextHandle = 1;
  #running: NativePlan | undefined;
  disposed = false;
  steps = 0;
  rows = 0;
  /** Most sequences that one step had. */
  widest = 0;
  /** A test's door: throws to make the step fail. */
  beforeStep: (plan: NativePlan) => void = () => undefined;
  /** Another: throws to make the load fail. */
  beforeLoad: (terms: readonly NativeTerm[]) => void = () => undefined;

  constructor(options: FakeNativeOptions) {
    this.#options = options;
    // What nobody has written must not look like zero.
    this.#memory = Int32Array.from({ length: options.kvPages * options.pageTokens }, (_, i) => mix(0x7fed, i));
  }

  async step(plan: NativePlan): Promise<NativeResult> {
    assert.ok(!this.disposed, 'step after dispose');
    assert.equal(this.#running, undefined, 'a second step before the first has ended');
    this.#running = plan;
    const before = structuredClone(plan);
    try {
      checkPlan(plan, { ...this.#options, prefixOf: (handle) => this.#sets.get(handle) });
      await nextTurn();
      this.beforeStep(plan);
      assert.deepEqual(plan, before, 'the plan was changed while it ran');
      this.steps += 1;
      this.rows += plan.rowPosition.length;
      this.widest = Math.max(this.widest, plan.sequenceBase.length);
      return this.#compute(plan);
    } finally {
      this.#running = undefined;
    }
  }

  async loadTerms(terms: readonly NativeTerm[]): Promise<number> {
    this.beforeLoad(terms);
    let digest = 17;
    let shared = 0;
    let gated = false;
    for (const term of terms) {
      digest = mix(mix(digest, term.layer * 32 + term.site), Math.round(term.scale * 1024));
      const values = term.first !== undefined && 'data' in term.first ? term.first.data : [];
      for (const value of values) digest = mix(digest, Math.round(value * 1024));
      if (term.kind === 'prefix' && term.gate === undefined) shared = term.first?.shape[0] ?? 0;
      if (term.kind === 'prefix' && term.gate !== undefined) gated = true;
    }
    await nextTurn();
    const handle = this.#nextHandle;
    this.#nextHandle += 1;
    this.#sets.set(handle, { digest, shared, gated });
    return handle;
  }

  freeTerms(handle: number): void {
    const named = this.#running?.termSets.includes(handle) ?? false;
    assert.ok(!named, `handle ${handle} was freed while a step named it`);
    assert.ok(this.#sets.delete(handle), `handle ${handle} is not loaded`);
  }

  readWeight(): Float32Array {
    return new Float32Array(0);
  }

  counters(): NativeCounters {
    const { steps, rows } = this;
    const none = {
      baseLinearReads: 0,
      baseBytesRead: 0,
      termReads: 0,
      termBytesRead: 0,
      singleRowTiles: 0,
      multiRowTiles: 0,
    };
    return { steps, rows, ...none };
  }

  info(): NativeEngineInfo {
    const { kvPages } = this.#options;
    return {
      isa: 'fake',
      threads: 1,
      weightBytes: 0,
      kvBytes: kvPages,
      pageBytes: 1,
      termSets: this.#sets.size,
      termBytes: 0,
    };
  }

  /** Scored entries answer as native code does when the logits are not finite. */
  scoresFail = false;

  dispose(): void {
    this.disposed = true;
  }

  #compute(plan: NativePlan): NativeResult {
    const states = new Int32Array(plan.rowPosition.length);
    for (let r = 0; r < states.length; r += 1) states[r] = this.#row(plan, r);
    const entries = plan.entryRow.length;
    const result = {
      tokens: new Int32Array(entries),
      logprobs: new Float32Array(entries),
      ranks: new Int32Array(entries),
      topIds: [] as number[],
      topLogprobs: [] as number[],
    };
    for (let e = 0; e < entries; e += 1) {
      const state = states[plan.entryRow[e] ?? 0] ?? 0;
      const target = plan.entryTarget[e] ?? -1;
      const scored = this.scoresFail ? IMPOSSIBLE : target;
      const token = target >= 0 ? scored : this.#sample(plan, e, state);
      result.tokens[e] = token;
      result.logprobs[e] = -positive(mix(state, token), 1000) / 100;
      result.ranks[e] = 1 + positive(mix(state, token + 7), this.#options.vocabSize);
      for (let k = 0; k < (plan.entryTopLogprobs[e] ?? 0); k += 1) {
        result.topIds.push(positive(state + k, this.#options.vocabSize));
        result.topLogprobs.push(-k);
      }
    }
    const { topIds, topLogprobs, ...rest } = result;
    return {
      ...rest,
      topIds: Int32Array.from(topIds),
      topLogprobs: Float32Array.from(topLogprobs),
      rawLogits: new Float32Array(0),
      stepNs: 1,
    };
  }

  /** Writes the row's KV slot and returns what its logits would be made of. */
  #row(plan: NativePlan, r: number): number {
    const s = plan.rowSequence[r] ?? 0;
    const terms = plan.rowTerms[r] ?? -1;
    const digest = terms < 0 ? 0 : this.#digest(plan, terms);
    const slot = (plan.rowPosition[r] ?? 0) - (plan.sequenceBase[s] ?? 0);
    let state = mix(mix(digest, this.#token(plan, r)), plan.rowPosition[r] ?? 0);
    for (let n = plan.sequenceRuns[s] ?? 0; n < (plan.sequenceRuns[s + 1] ?? 0); n += 1) {
      if (plan.runKind[n] !== 0) state = mix(state, this.#digest(plan, plan.runRef[n] ?? -1));
    }
    for (let at = 0; at < slot; at += 1) state = mix(state, this.#memory[this.#address(plan, s, at)] ?? 0);
    this.#memory[this.#address(plan, s, slot)] = state;
    return state;
  }

  /** The token, or a number made of the embedding row that is given by value. */
  #token(plan: NativePlan, r: number): number {
    const token = plan.rowToken[r] ?? 0;
    if (token >= 0) return token;
    const row = plan.embeddings.subarray((-1 - token) * HIDDEN, -token * HIDDEN);
    return row.reduce((sum, value) => mix(sum, Math.round(value * 1024)), 0x50f7);
  }

  #digest(plan: NativePlan, terms: number): number {
    return this.#sets.get(plan.termSets[terms] ?? -1)?.digest ?? assert.fail('a row names a set that is not loaded');
  }

  #address(plan: NativePlan, s: number, slot: number): number {
    const { pageTokens } = this.#options;
    for (let n = plan.sequenceRuns[s] ?? 0; n < (plan.sequenceRuns[s + 1] ?? 0); n += 1) {
      if (plan.runKind[n] !== 0) continue;
      assert.ok(slot < (plan.runTokens[n] ?? 0), `slot ${slot} is past the run's ${plan.runTokens[n]} tokens`);
      const page =
        plan.pages[(plan.runRef[n] ?? 0) + Math.floor(slot / pageTokens)] ?? assert.fail('a slot has no page');
      return page * pageTokens + (slot % pageTokens);
    }
    return assert.fail(`sequence ${s} has no pages`);
  }

  /** Depends on everything that a sampler reads; never a banned token. */
  #sample(plan: NativePlan, e: number, state: number): number {
    let mixed = state;
    for (let i = 0; i < 8; i += 1) mixed = mix(mixed, Math.round((plan.entryParams[e * 8 + i] ?? 0) * 1000));
    for (let i = 0; i < 4; i += 1) mixed = mix(mixed, plan.entrySeed[e * 4 + i] ?? 0);
    let history = 0;
    for (let i = plan.entryHistory[e] ?? 0; i < (plan.entryHistory[e + 1] ?? 0); i += 1) {
      history = (history + mix(plan.historyIds[i] ?? 0, plan.historyCounts[i] ?? 0)) | 0;
    }
    mixed = mix(mixed, history);
    const banned = new Set<number>();
    for (let i = plan.entryBias[e] ?? 0; i < (plan.entryBias[e + 1] ?? 0); i += 1) {
      const value = plan.biasValues[i] ?? 0;
      if (value === -Infinity) banned.add(plan.biasIds[i] ?? -1);
      else mixed = mix(mixed, Math.round(value * 1000) + (plan.biasIds[i] ?? 0));
    }
    const { vocabSize } = this.#options;
    if (banned.size >= vocabSize) return -1;
    let token = positive(mixed, vocabSize);
    while (banned.has(token)) token = (token + 1) % vocabSize;
    return token;
  }
}

/** Two 32-bit numbers into one; order counts. */
function mix(a: number, b: number): number {
  let h = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(b + 0x165667b1, 0xc2b2ae35);
  h ^= h >>> 15;
  h = Math.imul(h, 0x27d4eb2f);
  return h ^ (h >>> 13);
}

function positive(value: number, modulus: number): number {
  return (value >>> 0) % modulus;
}
