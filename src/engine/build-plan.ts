/**
 * A scheduled plan as the typed arrays that native code takes. The arrays are made once and written anew in each step,
 * so a plan is valid until the next one is built; the loop builds one at a time and awaits it. Per row there are only
 * stores to typed arrays.
 */
import { bug } from '../core/errors.js';
import type { SamplingParams } from '../core/sampling.js';
import type { NativePlan } from '../native/binding-types.js';
import { doubled } from './token-history.js';
import type { Chunk } from './schedule.js';
import type { Sequence } from './sequence.js';

export interface PlanSizes {
  readonly maxRows: number;
  readonly maxEntries: number;
  readonly maxSequences: number;
  readonly kvPages: number;
  readonly pageTokens: number;
  readonly vocabSize: number;
  readonly hiddenSize: number;
}

/** A plan, and what its entries answer. */
export interface BuiltStep {
  readonly plan: NativePlan;
  /** Index of the chunk that entry e belongs to. */
  readonly entryChunk: Int32Array;
  /** Prompt row whose next token entry e scores; SAMPLE where it samples. */
  readonly entryScores: Int32Array;
}

export const SAMPLE = -1;
const NONE = -1;
const PARAMS = 8;
/** Runs that one sequence can have: a shared prefix, pages, a gated prefix. */
const MAX_RUNS = 3;
const RUN_PAGES = 0;
const RUN_PREFIX = 1;
const RUN_GATED_PREFIX = 2;
const TWO_TO_32 = 2 ** 32;

type EntrySampling = Pick<
  SamplingParams,
  'temperature' | 'topK' | 'topP' | 'minP' | 'repetitionPenalty' | 'frequencyPenalty' | 'presencePenalty'
>;

/** Of entries that score a given token: nothing is drawn. */
const SCORING: EntrySampling = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
};

const NO_FLOATS = new Float32Array(0);
const NO_WORDS = new Uint32Array(0);

export class PlanBuilder {
  readonly #sizes: PlanSizes;
  readonly #rowSequence: Int32Array;
  readonly #rowPosition: Int32Array;
  readonly #rowToken: Int32Array;
  readonly #rowTerms: Int32Array;
  readonly #rowGate: Int32Array;
  readonly #sequenceBase: Int32Array;
  readonly #sequenceRuns: Int32Array;
  readonly #runKind: Uint8Array;
  readonly #runRef: Int32Array;
  readonly #runTokens: Int32Array;
  #pages: Int32Array;
  readonly #termSets: Int32Array;
  readonly #entryRow: Int32Array;
  readonly #entryTarget: Int32Array;
  readonly #entryTopLogprobs: Int32Array;
  readonly #entryParams: Float32Array;
  readonly #entrySeed: Uint32Array;
  readonly #entryBias: Int32Array;
  readonly #entryHistory: Int32Array;
  readonly #entryMask: Int32Array;
  readonly #entryChunk: Int32Array;
  readonly #entryScores: Int32Array;
  #biasIds = new Int32Array(64);
  #biasValues = new Float32Array(64);
  #historyIds = new Int32Array(64);
  #historyCounts = new Int32Array(64);
  /** Index into termSets by handle, of the plan being built. */
  readonly #termIndex = new Map<number, number>();
  #rows = 0;
  #sequences = 0;
  #runs = 0;
  #pageSlots = 0;
  #entries = 0;
  #biases = 0;
  #historyLength = 0;
  #embeddings = NO_FLOATS;
  #embeddingRows = 0;

  constructor(sizes: PlanSizes) {
    const { maxRows, maxEntries, maxSequences, kvPages } = sizes;
    this.#sizes = sizes;
    this.#rowSequence = new Int32Array(maxRows);
    this.#rowPosition = new Int32Array(maxRows);
    this.#rowToken = new Int32Array(maxRows);
    this.#rowTerms = new Int32Array(maxRows);
    this.#rowGate = new Int32Array(maxRows).fill(NONE);
    this.#sequenceBase = new Int32Array(maxSequences);
    this.#sequenceRuns = new Int32Array(maxSequences + 1);
    this.#runKind = new Uint8Array(maxSequences * MAX_RUNS);
    this.#runRef = new Int32Array(maxSequences * MAX_RUNS);
    this.#runTokens = new Int32Array(maxSequences * MAX_RUNS);
    this.#pages = new Int32Array(kvPages);
    this.#termSets = new Int32Array(maxSequences);
    this.#entryRow = new Int32Array(maxEntries);
    this.#entryTarget = new Int32Array(maxEntries);
    this.#entryTopLogprobs = new Int32Array(maxEntries);
    this.#entryParams = new Float32Array(maxEntries * PARAMS);
    this.#entrySeed = new Uint32Array(maxEntries * 4);
    this.#entryBias = new Int32Array(maxEntries + 1);
    this.#entryHistory = new Int32Array(maxEntries + 1);
    this.#entryMask = new Int32Array(maxEntries).fill(NONE);
    this.#entryChunk = new Int32Array(maxEntries);
    this.#entryScores = new Int32Array(maxEntries);
  }

  /** The sequences' pages must have been allocated for the chunks. */
  build(chunks: readonly Chunk<Sequence>[]): BuiltStep {
    this.#rows = this.#sequences = this.#runs = this.#pageSlots = 0;
    this.#entries = this.#biases = this.#historyLength = this.#embeddingRows = 0;
    this.#termIndex.clear();
    for (const { sequence, count } of chunks) {
      const terms = sequence.activeFrom < sequence.computed + count ? this.#termsOf(sequence) : NONE;
      this.#addRuns(sequence, sequence.computed + count, terms);
      this.#addRows(sequence, count, terms);
      this.#addEntries(sequence, count);
      this.#sequences += 1;
    }
    return {
      plan: this.#plan(),
      entryChunk: this.#entryChunk.subarray(0, this.#entries),
      entryScores: this.#entryScores.subarray(0, this.#entries),
    };
  }

  /** Index into termSets; sequences of one adapter share one. */
  #termsOf({ lease }: Sequence): number {
    if (lease === undefined) return NONE;
    const { handle } = lease.adapter;
    const known = this.#termIndex.get(handle);
    if (known !== undefined) return known;
    const index = this.#termIndex.size;
    this.#termSets[index] = handle;
    this.#termIndex.set(handle, index);
    return index;
  }

  #addRuns({ lease, prefixTokens, table }: Sequence, end: number, terms: number): void {
    this.#sequenceBase[this.#sequences] = prefixTokens;
    if (prefixTokens > 0) this.#addRun(RUN_PREFIX, terms, 0);
    this.#addRun(RUN_PAGES, this.#pageSlots, end);
    const pages = Math.ceil(end / this.#sizes.pageTokens);
    // Sequences that share a prefix list the same pages, so there may be more slots than pages.
    while (this.#pageSlots + pages > this.#pages.length) this.#pages = doubled(this.#pages);
    this.#pages.set(table.pages.subarray(0, pages), this.#pageSlots);
    this.#pageSlots += pages;
    if (lease?.adapter.facts.gatedPrefix === true) this.#addRun(RUN_GATED_PREFIX, terms, 0);
    this.#sequenceRuns[this.#sequences + 1] = this.#runs;
  }

  #addRun(kind: number, ref: number, tokens: number): void {
    this.#runKind[this.#runs] = kind;
    this.#runRef[this.#runs] = ref;
    this.#runTokens[this.#runs] = tokens;
    this.#runs += 1;
  }

  #addRows(sequence: Sequence, count: number, terms: number): void {
    const { computed, prefixTokens, tokens, activeFrom } = sequence;
    for (let i = computed; i < computed + count; i += 1) {
      this.#rowSequence[this.#rows] = this.#sequences;
      this.#rowPosition[this.#rows] = prefixTokens + i;
      const token = tokens[i] as number;
      this.#rowToken[this.#rows] = token < 0 ? this.#addEmbedding(sequence, -1 - token) : token;
      this.#rowTerms[this.#rows] = i < activeFrom ? NONE : terms;
      this.#rows += 1;
    }
  }

  /** The row's token: it is given by value. */
  #addEmbedding({ lease }: Sequence, row: number): number {
    const hidden = this.#sizes.hiddenSize;
    const values = lease?.adapter.softPrompt ?? bug('a row is given by value, and there is no soft prompt');
    const at = this.#embeddingRows * hidden;
    if (at + hidden > this.#embeddings.length) {
      const wider = new Float32Array(Math.max(2 * this.#embeddings.length, 32 * hidden));
      wider.set(this.#embeddings);
      this.#embeddings = wider;
    }
    this.#embeddings.set(values.subarray(row * hidden, (row + 1) * hidden), at);
    this.#embeddingRows += 1;
    return -this.#embeddingRows;
  }

  #addEntries(sequence: Sequence, count: number): void {
    const { computed, goal, samples, sampling } = sequence;
    const firstRow = this.#rows - count;
    const end = computed + count;
    for (let i = Math.max(computed, sequence.scoreFrom); i < Math.min(end, sequence.scoreTo); i += 1) {
      this.#addEntry(firstRow + i - computed, sequence.tokens[i + 1] as number, sampling.promptLogprobs ?? NONE);
      this.#entryScores[this.#entries - 1] = i;
      this.#setParams(SCORING);
      this.#setSeed(0, 0, 0);
    }
    if (end < goal || !samples) return;
    this.#addEntry(this.#rows - 1, SAMPLE, sampling.logprobs ?? NONE);
    this.#entryScores[this.#entries - 1] = SAMPLE;
    this.#setParams(sampling);
    this.#setSeed(sampling.seed, sampling.choice, sequence.outputTokens);
    this.#addBias(sequence);
    this.#addHistory(sequence);
  }

  #addEntry(row: number, target: number, topLogprobs: number): void {
    const e = this.#entries;
    this.#entryRow[e] = row;
    this.#entryTarget[e] = target;
    this.#entryTopLogprobs[e] = Math.min(topLogprobs, this.#sizes.vocabSize);
    this.#entryChunk[e] = this.#sequences;
    this.#entryBias[e + 1] = this.#biases;
    this.#entryHistory[e + 1] = this.#historyLength;
    this.#entries += 1;
  }

  #setParams(sampling: EntrySampling): void {
    const params = this.#entryParams;
    const at = (this.#entries - 1) * PARAMS;
    params[at] = sampling.temperature;
    params[at + 1] = sampling.topK;
    params[at + 2] = sampling.topP;
    params[at + 3] = sampling.minP;
    params[at + 4] = sampling.repetitionPenalty;
    params[at + 5] = sampling.frequencyPenalty;
    params[at + 6] = sampling.presencePenalty;
  }

  #setSeed(seed: number, choice: number, outputIndex: number): void {
    const at = (this.#entries - 1) * 4;
    this.#entrySeed[at] = seed % TWO_TO_32;
    this.#entrySeed[at + 1] = Math.floor(seed / TWO_TO_32);
    this.#entrySeed[at + 2] = choice;
    this.#entrySeed[at + 3] = outputIndex;
  }

  #addBias({ bias }: Sequence): void {
    const { ids, values } = bias;
    while (this.#biases + ids.length > this.#biasIds.length) {
      this.#biasIds = doubled(this.#biasIds);
      const wider = new Float32Array(this.#biasValues.length * 2);
      wider.set(this.#biasValues);
      this.#biasValues = wider;
    }
    this.#biasIds.set(ids, this.#biases);
    this.#biasValues.set(values, this.#biases);
    this.#biases += ids.length;
    this.#entryBias[this.#entries] = this.#biases;
  }

  #addHistory({ history }: Sequence): void {
    if (history === undefined) return;
    while (this.#historyLength + history.size > this.#historyIds.length) {
      this.#historyIds = doubled(this.#historyIds);
      this.#historyCounts = doubled(this.#historyCounts);
    }
    history.copyTo(this.#historyIds, this.#historyCounts, this.#historyLength);
    this.#historyLength += history.size;
    this.#entryHistory[this.#entries] = this.#historyLength;
  }

  #plan(): NativePlan {
    const [rows, sequences, runs, entries] = [this.#rows, this.#sequences, this.#runs, this.#entries];
    return {
      rowSequence: this.#rowSequence.subarray(0, rows),
      rowPosition: this.#rowPosition.subarray(0, rows),
      rowToken: this.#rowToken.subarray(0, rows),
      rowTerms: this.#rowTerms.subarray(0, rows),
      rowGate: this.#rowGate.subarray(0, rows),
      rankGates: NO_FLOATS,
      gateWidth: 0,
      embeddings: this.#embeddings.subarray(0, this.#embeddingRows * this.#sizes.hiddenSize),
      sequenceBase: this.#sequenceBase.subarray(0, sequences),
      sequenceRuns: this.#sequenceRuns.subarray(0, sequences + 1),
      runKind: this.#runKind.subarray(0, runs),
      runRef: this.#runRef.subarray(0, runs),
      runTokens: this.#runTokens.subarray(0, runs),
      pages: this.#pages.subarray(0, this.#pageSlots),
      termSets: this.#termSets.subarray(0, this.#termIndex.size),
      entryRow: this.#entryRow.subarray(0, entries),
      entryTarget: this.#entryTarget.subarray(0, entries),
      entryTopLogprobs: this.#entryTopLogprobs.subarray(0, entries),
      entryParams: this.#entryParams.subarray(0, entries * PARAMS),
      entrySeed: this.#entrySeed.subarray(0, entries * 4),
      entryBias: this.#entryBias.subarray(0, entries + 1),
      biasIds: this.#biasIds.subarray(0, this.#biases),
      biasValues: this.#biasValues.subarray(0, this.#biases),
      entryHistory: this.#entryHistory.subarray(0, entries + 1),
      historyIds: this.#historyIds.subarray(0, this.#historyLength),
      historyCounts: this.#historyCounts.subarray(0, this.#historyLength),
      entryMask: this.#entryMask.subarray(0, entries),
      masks: NO_WORDS,
    };
  }
}
