/**
 * The one description of a decoder-only model, whatever file it came from. `checkpoint` makes it from
 * config.json or GGUF metadata; `native` turns it into the C++ `ModelConfig` (native/core/model_config.h).
 * A family is nothing but values of these fields: there is one forward pass.
 */
export type ModelFamily = 'llama' | 'mistral' | 'qwen2' | 'qwen3' | 'gemma3';
export type Activation = 'silu' | 'gelu_tanh';

export interface RopeTable {
  /** Radians per position of each rotated pair, [head_dim / 2], scaling (linear, llama3, YaRN) already applied. */
  readonly invFreq: Float32Array;
  /** cos and sin are multiplied by it (YaRN's attention factor; 1 elsewhere). */
  readonly scale: number;
}

export interface LayerConfig {
  /** A query at position p sees keys at p - window + 1 .. p; 0 means all keys. */
  readonly window: number;
  /** Index into {@link ModelConfig.ropes}. */
  readonly rope: number;
}

export interface ModelConfig {
  readonly family: ModelFamily;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly ffnSize: number;
  readonly normEps: number;
  readonly activation: Activation;
  /** RMSNorm over head_dim on q and k before RoPE (Qwen3, Gemma 3). */
  readonly qkNorm: boolean;
  /** RMSNorm on the outputs of attention and MLP before they join the residual stream (Gemma 3). */
  readonly postNorms: boolean;
  /** The head reads the embedding matrix. */
  readonly tiedHead: boolean;
  /** Embedding rows are multiplied by it (Gemma: sqrt(hidden); 1 elsewhere). */
  readonly embedScale: number;
  /** q · k is multiplied by it: 1/sqrt(head_dim), or Gemma's query_pre_attn_scalar^-0.5. */
  readonly attnScale: number;
  readonly layers: readonly LayerConfig[];
  readonly ropes: readonly RopeTable[];
  /** Longest context that the model was made for, in tokens. */
  readonly maxPositions: number;
}

/**
 * Every place of the model that an adapter can touch. Numbers are those of native/core/site.h; a test compares them.
 * Layer is -1 for embedding, finalNorm and head.
 */
export const SITES = {
  embedding: 0,
  attnNorm: 1,
  q: 2,
  k: 3,
  v: 4,
  qNorm: 5,
  kNorm: 6,
  attention: 7,
  o: 8,
  postAttnNorm: 9,
  residualAttn: 10,
  mlpNorm: 11,
  gate: 12,
  up: 13,
  down: 14,
  postMlpNorm: 15,
  residualMlp: 16,
  finalNorm: 17,
  head: 18,
} as const;
export type SiteName = keyof typeof SITES;

/** A site of one layer; layer -1 for those that the model has once. */
export interface SiteRef {
  readonly layer: number;
  readonly site: SiteName;
}

/** `[out, in]` of a linear's site. Only q, k, v, o, gate, up, down and head are linears. */
export function linearShape(config: ModelConfig, site: SiteName): { out: number; in: number } | undefined {
  const q = config.numHeads * config.headDim;
  const kv = config.numKvHeads * config.headDim;
  switch (site) {
    case 'q':
      return { out: q, in: config.hiddenSize };
    case 'k':
    case 'v':
      return { out: kv, in: config.hiddenSize };
    case 'o':
      return { out: config.hiddenSize, in: q };
    case 'gate':
    case 'up':
      return { out: config.ffnSize, in: config.hiddenSize };
    case 'down':
      return { out: config.hiddenSize, in: config.ffnSize };
    case 'head':
      return { out: config.vocabSize, in: config.hiddenSize };
    default:
      return undefined;
  }
}
