/** Raw logits of one text under a term set, straight from the native engine. Called by compress-sweep.ts. */
import type { NativeEngine, NativePlan } from '../native/binding-types.js';

export interface LogitsOptions {
  readonly engine: NativeEngine;
  readonly tokens: readonly number[];
  /** Handle of loaded terms. */
  readonly terms: number;
  readonly pageTokens: number;
  /** Tokens of one step. */
  readonly chunk: number;
}

/** Calls `row` with the logits `[vocab]` behind each token, in order; they are gone after the call. */
export async function forEachLogits(
  options: LogitsOptions,
  row: (logits: Float32Array, position: number) => void,
): Promise<void> {
  const { engine, tokens, chunk } = options;
  for (let from = 0; from < tokens.length; from += chunk) {
    const count = Math.min(chunk, tokens.length - from);
    const { rawLogits } = await engine.step(planOf(options, from, count));
    const vocab = rawLogits.length / count;
    for (let i = 0; i < count; i += 1) row(rawLogits.subarray(i * vocab, (i + 1) * vocab), from + i);
  }
}

/** One sequence from the first page of the pool on; every row gives its logits. */
function planOf({ tokens, terms, pageTokens }: LogitsOptions, from: number, count: number): NativePlan {
  const rows = Int32Array.from({ length: count }, (_, i) => i);
  const end = from + count;
  const params = new Float32Array(8 * count);
  // Unused by raw logits, but held to the rules: greedy, all of the nucleus, no penalty.
  for (let i = 0; i < count; i += 1) params.set([0, 0, 1, 0, 1, 0, 0, 0], 8 * i);
  return {
    rowSequence: new Int32Array(count),
    rowPosition: rows.map((i) => from + i),
    rowToken: Int32Array.from(tokens.slice(from, end)),
    rowTerms: new Int32Array(count),
    rowGate: new Int32Array(count).fill(-1),
    rankGates: new Float32Array(0),
    gateWidth: 0,
    embeddings: new Float32Array(0),
    sequenceBase: Int32Array.of(0),
    sequenceRuns: Int32Array.of(0, 1),
    runKind: Uint8Array.of(0),
    runRef: Int32Array.of(0),
    runTokens: Int32Array.of(end),
    pages: Int32Array.from({ length: Math.ceil(end / pageTokens) }, (_, page) => page),
    termSets: Int32Array.of(terms),
    entryRow: rows,
    entryTarget: new Int32Array(count).fill(-2),
    entryTopLogprobs: new Int32Array(count).fill(-1),
    entryParams: params,
    entrySeed: new Uint32Array(4 * count),
    entryBias: new Int32Array(count + 1),
    biasIds: new Int32Array(0),
    biasValues: new Float32Array(0),
    entryHistory: new Int32Array(count + 1),
    historyIds: new Int32Array(0),
    historyCounts: new Int32Array(0),
    entryMask: new Int32Array(count).fill(-1),
    masks: new Uint32Array(0),
  };
}
