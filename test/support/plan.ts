/**
 * Builds NativePlans by hand for tests that drive the native engine without the scheduler: sequences with their pages,
 * and steps over any rows of them. Used by the parity and mixed tests.
 */
import assert from 'node:assert/strict';
import type { NativePlan } from '../../src/native/binding-types.js';

/** What a test knows of a loaded term set. */
export interface LoadedTerms {
  readonly handle: number;
  /** Keys of its shared prefix: 0 for none. */
  readonly prefixLength: number;
  readonly gatedPrefix: boolean;
}

export const NO_TERMS: LoadedTerms = { handle: 0, prefixLength: 0, gatedPrefix: false };

/** Pages of the KV pool that are free, handed out in order, or in a shuffled one. */
export class PagePool {
  private readonly free: number[];
  readonly total: number;

  constructor(total: number, shuffleSeed = 0) {
    this.total = total;
    this.free = Array.from({ length: total }, (_, i) => total - 1 - i);
    let state = shuffleSeed >>> 0;
    if (shuffleSeed === 0) return;
    for (let i = total - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const j = state % (i + 1);
      [this.free[i], this.free[j]] = [this.free[j] ?? 0, this.free[i] ?? 0];
    }
  }

  take(): number {
    const page = this.free.pop();
    assert.ok(page !== undefined, 'the test needs a larger pool');
    return page;
  }

  give(pages: readonly number[]): void {
    this.free.push(...pages);
  }

  get available(): number {
    return this.free.length;
  }
}

export interface SequenceOptions {
  readonly terms?: LoadedTerms;
  /** Tokens before this one are the base's (an adapter that is invoked later); 0 when absent. */
  readonly termsFrom?: number;
  /** [rows][ranks] rank gates of every token. */
  readonly gates?: readonly Float32Array[];
  /** Rows that tokens -1 - i name. */
  readonly embeddings?: readonly Float32Array[];
}

/** One sequence: its tokens, how many of them have been computed, and its pages. */
export class TestSequence {
  readonly tokens: number[];
  readonly terms: LoadedTerms;
  readonly termsFrom: number;
  readonly gates: readonly Float32Array[] | undefined;
  readonly embeddings: readonly Float32Array[];
  computed = 0;
  pages: number[] = [];

  constructor(tokens: readonly number[], options: SequenceOptions = {}) {
    this.tokens = [...tokens];
    this.terms = options.terms ?? NO_TERMS;
    this.termsFrom = options.termsFrom ?? 0;
    this.gates = options.gates;
    this.embeddings = options.embeddings ?? [];
  }

  /** Forgets all computed tokens and gives the pages back: a preemption, or the end. */
  drop(pool: PagePool): void {
    pool.give(this.pages);
    this.pages = [];
    this.computed = 0;
  }
}

/** Rows of one sequence in a step: its next `count` tokens. `entries`: which rows give logits or a token. */
export interface StepPart {
  readonly sequence: TestSequence;
  readonly count: number;
  readonly entries: 'none' | 'raw' | 'sample-last';
}

class PlanArrays {
  readonly rowSequence: number[] = [];
  readonly rowPosition: number[] = [];
  readonly rowToken: number[] = [];
  readonly rowTerms: number[] = [];
  readonly rowGate: number[] = [];
  readonly gates: Float32Array[] = [];
  readonly embeddings: Float32Array[] = [];
  readonly sequenceBase: number[] = [];
  readonly sequenceRuns: number[] = [0];
  readonly runKind: number[] = [];
  readonly runRef: number[] = [];
  readonly runTokens: number[] = [];
  readonly pages: number[] = [];
  readonly termSets: number[] = [];
  readonly entryRow: number[] = [];
  readonly entryTarget: number[] = [];

  termIndex(handle: number): number {
    if (handle === 0) return -1;
    const found = this.termSets.indexOf(handle);
    return found >= 0 ? found : this.termSets.push(handle) - 1;
  }

  addRun(kind: number, ref: number, tokens: number): void {
    this.runKind.push(kind);
    this.runRef.push(ref);
    this.runTokens.push(tokens);
  }
}

function addRuns(arrays: PlanArrays, sequence: TestSequence, tokensAfter: number): void {
  const terms = arrays.termIndex(sequence.terms.handle);
  if (sequence.terms.prefixLength > 0) arrays.addRun(1, terms, 0);
  if (sequence.terms.gatedPrefix) arrays.addRun(2, terms, 0);
  arrays.addRun(0, arrays.pages.length, tokensAfter);
  arrays.pages.push(...sequence.pages);
  arrays.sequenceBase.push(sequence.terms.prefixLength);
  arrays.sequenceRuns.push(arrays.runKind.length);
}

function addRow(arrays: PlanArrays, sequence: TestSequence, index: number, firstEmbedding: number): void {
  const token = sequence.tokens[index];
  assert.ok(token !== undefined, 'the sequence has no such token');
  arrays.rowSequence.push(arrays.sequenceBase.length);
  arrays.rowPosition.push(sequence.terms.prefixLength + index);
  arrays.rowToken.push(token >= 0 ? token : token - firstEmbedding);
  arrays.rowTerms.push(index < sequence.termsFrom ? -1 : arrays.termIndex(sequence.terms.handle));
  const gate = sequence.gates?.[index];
  arrays.rowGate.push(gate === undefined ? -1 : arrays.gates.push(gate) - 1);
}

function concat(rows: readonly Float32Array[], width: number): Float32Array {
  const out = new Float32Array(rows.length * width);
  rows.forEach((row, i) => {
    out.set(row, i * width);
  });
  return out;
}

/** The plan of one step; takes the pages that it needs and marks the rows as computed. */
export function buildPlan(parts: readonly StepPart[], pool: PagePool, pageTokens: number): NativePlan {
  const arrays = new PlanArrays();
  for (const { sequence, count, entries } of parts) {
    const after = sequence.computed + count;
    while (sequence.pages.length * pageTokens < after) sequence.pages.push(pool.take());
    const firstEmbedding = arrays.embeddings.length;
    arrays.embeddings.push(...sequence.embeddings);
    for (let index = sequence.computed; index < after; index++) {
      if (entries === 'raw' || (entries === 'sample-last' && index === after - 1)) {
        arrays.entryRow.push(arrays.rowSequence.length);
        arrays.entryTarget.push(entries === 'raw' ? -2 : -1);
      }
      addRow(arrays, sequence, index, firstEmbedding);
    }
    addRuns(arrays, sequence, after);
    sequence.computed = after;
  }
  return finishPlan(arrays);
}

function finishPlan(arrays: PlanArrays): NativePlan {
  const entries = arrays.entryRow.length;
  const gateWidth = arrays.gates[0]?.length ?? 0;
  const params = new Float32Array(entries * 8);
  // Greedy: temperature 0, no top-k, all of the nucleus, no penalties.
  for (let e = 0; e < entries; e++) params.set([0, 0, 1, 0, 1, 0, 0, 0], e * 8);
  return {
    rowSequence: Int32Array.from(arrays.rowSequence),
    rowPosition: Int32Array.from(arrays.rowPosition),
    rowToken: Int32Array.from(arrays.rowToken),
    rowTerms: Int32Array.from(arrays.rowTerms),
    rowGate: Int32Array.from(arrays.rowGate),
    rankGates: concat(arrays.gates, gateWidth),
    gateWidth,
    embeddings: concat(arrays.embeddings, arrays.embeddings[0]?.length ?? 0),
    sequenceBase: Int32Array.from(arrays.sequenceBase),
    sequenceRuns: Int32Array.from(arrays.sequenceRuns),
    runKind: Uint8Array.from(arrays.runKind),
    runRef: Int32Array.from(arrays.runRef),
    runTokens: Int32Array.from(arrays.runTokens),
    pages: Int32Array.from(arrays.pages),
    termSets: Int32Array.from(arrays.termSets),
    entryRow: Int32Array.from(arrays.entryRow),
    entryTarget: Int32Array.from(arrays.entryTarget),
    entryTopLogprobs: new Int32Array(entries).fill(-1),
    entryParams: params,
    entrySeed: new Uint32Array(entries * 4),
    entryBias: new Int32Array(entries + 1),
    biasIds: new Int32Array(0),
    biasValues: new Float32Array(0),
    entryHistory: new Int32Array(entries + 1),
    historyIds: new Int32Array(0),
    historyCounts: new Int32Array(0),
    entryMask: new Int32Array(entries).fill(-1),
    masks: new Uint32Array(0),
  };
}
