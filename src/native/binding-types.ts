/**
 * The typed description of the whole native module (native/addon). Nothing else of it is visible.
 * TypeScript validates, native asserts: a call that breaks a rule written here throws, it never crashes.
 * All typed arrays are read during the call (or, for promises, until they settle) and must not be changed meanwhile.
 */
import type { BlockStage, BottleneckActivation, LayerNorm, TermTensor } from '../core/terms.js';

/** Element and block types of weight files. Numbers are those of native/core/dtype.h. */
export const DTYPES = {
  f32: 0,
  f16: 1,
  bf16: 2,
  q8_0: 3,
  q4_0: 4,
  q4_1: 5,
  q5_0: 6,
  q5_1: 7,
  q4_k: 8,
  q5_k: 9,
  q6_k: 10,
} as const;
export type WeightDtype = keyof typeof DTYPES;

/** One tensor of a weight file, bounds already checked against the file's size. */
export interface WeightEntry {
  /** Index into {@link LoadOptions.files}. */
  readonly file: number;
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
  readonly dtype: WeightDtype;
  /** Matrices `[rows, cols]` row-major, rows = outputs; norms and biases have rows = 1. */
  readonly rows: number;
  readonly cols: number;
  readonly layer: number;
  /** Number of core/model-config SITES. */
  readonly site: number;
  /** What the tensor is at its site: the matrix (or norm weight), or the linear's bias. */
  readonly part: 'weight' | 'bias';
  /**
   * > 0: rows come in GGUF's Llama order for that many heads and are put back to the Hugging Face order
   * (row h·d + 2i + j of the file is row h·d + j·d/2 + i). Applies to q and k weights and biases.
   */
  readonly permutedHeads: number;
  /** Added to every value (Gemma's norm weights of Hugging Face files are w - 1). */
  readonly add: number;
}

export interface NativeModelConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly ffnSize: number;
  readonly normEps: number;
  /** 0 silu, 1 gelu_tanh. */
  readonly activation: number;
  readonly qkNorm: boolean;
  readonly postNorms: boolean;
  readonly tiedHead: boolean;
  readonly embedScale: number;
  readonly attnScale: number;
  /** [layers]: 0 or the sliding window; and the rope table of each layer. */
  readonly layerWindow: Int32Array;
  readonly layerRope: Int32Array;
  /** Each `[headDim / 2]`. */
  readonly ropeInvFreq: readonly Float32Array[];
  readonly ropeScale: Float32Array;
}

export interface LoadOptions {
  readonly model: NativeModelConfig;
  /** Paths of the weight files. */
  readonly files: readonly string[];
  readonly weights: readonly WeightEntry[];
  /**
   * How weights are held and multiplied, and the type of the KV pool. int8: matrices as rotated int8 with a scale for each
   * output, multiplied by inputs rounded to int8 with a scale for each row; adapters' terms read the unrounded inputs, and
   * the KV pool is bf16. q4: linears in 4 bits with a scale and a minimum for each group of 32 inputs, multiplied by inputs
   * rounded to int8 in the same groups. Q4_0, Q4_1 and Q4_K tensors are taken exactly as they are, and the other matrices of
   * such a file as in int8; of any other file the linears are rounded to 4 bits, and embedding and head held as in int8.
   */
  readonly dtype: 'f32' | 'bf16' | 'int8' | 'q4';
  /**
   * The KV pool: auto (or left out) is the type that `dtype` says; int8 rounds each token's key and value of a head to int8
   * with a float32 scale. Adapters' prefixes are not rounded.
   */
  readonly kvCacheDtype?: 'auto' | 'int8';
  /** Compute threads, the caller of a step included; 0: one for each core. */
  readonly threads: number;
  /** 'auto', or one of {@link NativeInfo.isas}; 'scalar' is the reference. */
  readonly isa: string;
  readonly backend: 'cpu' | 'cuda';
  /** Pages of the KV pool; one page is {@link NativeInfo.pageTokens} tokens of all layers. */
  readonly kvPages: number;
  /** Largest number of rows in a step, and of logits entries. */
  readonly maxRows: number;
  readonly maxEntries: number;
}

/**
 * One step. Rows of one sequence are consecutive and ascend in position. All arrays are exactly as long as written.
 * R rows, S sequences, N runs, P page slots, T term sets, E logits entries, M embedding rows.
 */
export interface NativePlan {
  /** [R] index of the row's sequence in this plan. */
  readonly rowSequence: Int32Array;
  /** [R] position, also RoPE's; its KV slot is position - sequenceBase of its sequence. */
  readonly rowPosition: Int32Array;
  /** [R] token id, or -1 - i for row i of `embeddings`. */
  readonly rowToken: Int32Array;
  /** [R] index into `termSets`, -1 for the base. */
  readonly rowTerms: Int32Array;
  /** [R] index into `rankGates` (a row of it), -1 for no gate (all ones). */
  readonly rowGate: Int32Array;
  /** [G × gateWidth] γ for the lowrank terms of a row, by rank index; ranks beyond the width count as 1. */
  readonly rankGates: Float32Array;
  readonly gateWidth: number;
  /** [M × hidden] embedding rows given by value (soft prompts). */
  readonly embeddings: Float32Array;
  /** [S] position of the first paged token: 0, or the number of prefix positions that an adapter owns. */
  readonly sequenceBase: Int32Array;
  /** [S + 1] first run of each sequence. */
  readonly sequenceRuns: Int32Array;
  /** [N] 0: pages; 1: a term set's prefix, shared softmax; 2: a term set's gated prefix, own softmax. */
  readonly runKind: Uint8Array;
  /** [N] kind 0: first index into `pages`; kinds 1 and 2: index into `termSets`. */
  readonly runRef: Int32Array;
  /** [N] kind 0: tokens in these pages after this step; kinds 1 and 2: 0 (the term knows). */
  readonly runTokens: Int32Array;
  /** [P] page numbers of the pool. */
  readonly pages: Int32Array;
  /** [T] handles from {@link NativeEngine.loadTerms}. */
  readonly termSets: Int32Array;

  /** Logits entries. [E] the row; several entries may not share one row. */
  readonly entryRow: Int32Array;
  /** [E] -1: sample a token; >= 0: score this token (prompt log-probabilities); -2: copy raw logits out. */
  readonly entryTarget: Int32Array;
  /** [E] -1: no log-probabilities; else how many of the best. */
  readonly entryTopLogprobs: Int32Array;
  /** [E × 8] temperature, topK, topP, minP, repetition, frequency, presence, unused. */
  readonly entryParams: Float32Array;
  /** [E × 4] low and high 32 bits of the seed, choice, output index. */
  readonly entrySeed: Uint32Array;
  /** [E + 1] ranges of `biasIds` and `biasValues`; -Infinity bans. */
  readonly entryBias: Int32Array;
  readonly biasIds: Int32Array;
  readonly biasValues: Float32Array;
  /** [E + 1] ranges of `historyIds`: distinct tokens for the penalties; counts of the output, -1 bits aside: */
  readonly entryHistory: Int32Array;
  readonly historyIds: Int32Array;
  /** Occurrences in the output; 0 for a token that stands in the prompt only. */
  readonly historyCounts: Int32Array;
  /** [E] index of a row of `masks`, -1 for none. */
  readonly entryMask: Int32Array;
  /** [K × ceil(vocab / 32)] bit t % 32 of word t / 32: token t is allowed. */
  readonly masks: Uint32Array;
}

export interface NativeResult {
  /**
   * [E] sampled id; the target for scored entries; -1 for raw logits. -2: nothing can be sampled or scored, because
   * the raw logits are not finite (an adapter that overflows) or mask and bias ban every token. Only that sequence must
   * fail; the other entries of the step are good.
   */
  readonly tokens: Int32Array;
  /** [E] of that token, from raw logits; NaN where not asked for. */
  readonly logprobs: Float32Array;
  /** [E] rank of that token, 1 is best; 0 where not asked for. */
  readonly ranks: Int32Array;
  /** [Σ entryTopLogprobs] of all entries that ask, in order. */
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
  /** [raw entries × vocab] in order. */
  readonly rawLogits: Float32Array;
  /** Nanoseconds in native code. */
  readonly stepNs: number;
}

/** Flat form of core/terms `Term`; absent parts are undefined. */
export interface NativeTerm {
  readonly kind: 'lowrank' | 'diag' | 'override' | 'prefix' | 'bottleneck' | 'rowcol' | 'sparse' | 'blockdiag';
  readonly layer: number;
  readonly site: number;
  readonly scale: number;
  /** lowrank A; override, rowcol and sparse values; prefix k; bottleneck down. */
  readonly first?: TermTensor | undefined;
  /** lowrank B; prefix v; bottleneck up. */
  readonly second?: TermTensor | undefined;
  /** lowrank mid matrix. */
  readonly third?: TermTensor | undefined;
  /** lowrank mid; diag h; bottleneck down bias. */
  readonly vectorA?: Float32Array | undefined;
  /** lowrank out diagonal; diag g; bottleneck up bias. */
  readonly vectorB?: Float32Array | undefined;
  /** diag c. */
  readonly vectorC?: Float32Array | undefined;
  /** override rows; rowcol index; sparse columns; blockdiag output. */
  readonly rows?: Uint32Array | undefined;
  /** sparse row starts. */
  readonly rowStart?: Uint32Array | undefined;
  /** prefix gate; undefined: shared softmax. */
  readonly gate?: number | undefined;
  readonly activation?: BottleneckActivation | undefined;
  /** Of a bottleneck: sequential, parallel; of a blockdiag: pre, post, additive; of a rowcol: in, out. */
  readonly placement?:
    'sequential' | 'parallel' | 'sum' | 'residual' | 'pre' | 'post' | 'additive' | 'in' | 'out' | undefined;
  /** bottleneck. */
  readonly norm?: LayerNorm | undefined;
  /** blockdiag. */
  readonly stages?: readonly BlockStage[] | undefined;
}

/** Counted by the backend since it was made; tests assert on them. */
export interface NativeCounters {
  readonly steps: number;
  readonly rows: number;
  /** How often the packed bytes of a base linear were streamed, and those bytes. */
  readonly baseLinearReads: number;
  readonly baseBytesRead: number;
  /** The same for (term set, site) pairs. */
  readonly termReads: number;
  readonly termBytesRead: number;
  /** Gemm tiles run by the one-row kernel and by many-row kernels. */
  readonly singleRowTiles: number;
  readonly multiRowTiles: number;
}

export interface NativeInfo {
  readonly version: string;
  /** Backends in this build. */
  readonly backends: readonly string[];
  /** CPU tiers that this machine can run, best first; always ends with 'scalar'. */
  readonly isas: readonly string[];
  readonly pageTokens: number;
  readonly cores: number;
}

export interface NativeEngineInfo {
  readonly isa: string;
  readonly threads: number;
  readonly weightBytes: number;
  readonly kvBytes: number;
  /** Bytes of KV for one page over all layers. */
  readonly pageBytes: number;
  /** Term sets that are loaded, and their bytes. */
  readonly termSets: number;
  readonly termBytes: number;
}

export interface NativeEngine {
  /** Runs off the JS thread. One at a time: a second call before the first settles throws. */
  step(plan: NativePlan): Promise<NativeResult>;
  /** Packs the terms into backend memory, off the JS thread; resolves to a handle > 0. */
  loadTerms(terms: readonly NativeTerm[]): Promise<number>;
  /** Must not be called while a step that names the handle runs; throws for an unknown handle. */
  freeTerms(handle: number): void;
  /**
   * Weights as served (after packing and rounding), `[rows, cols]` from row0 on; norms and biases have one row. A bias
   * that the model does not have is empty.
   */
  readWeight(layer: number, site: number, part: 'weight' | 'bias', row0: number, rowCount: number): Float32Array;
  counters(): NativeCounters;
  info(): NativeEngineInfo;
  /** Frees everything; calls afterwards throw. Waits for a running step. Idempotent. */
  dispose(): void;
}

export interface NativeBinding {
  info(): NativeInfo;
  /** Loads and packs off the JS thread. `onProgress` gets (bytes done, bytes in all), some ten times. */
  createEngine(options: LoadOptions, onProgress?: (done: number, total: number) => void): Promise<NativeEngine>;
  /** Dequantises raw blocks (a test's door to native/model/dequant): count values of one dtype. */
  dequantize(dtype: WeightDtype, bytes: Uint8Array, count: number): Float32Array;
}
