/**
 * The adapter IR: every adapter compiles, at load, to terms of one normal form per linear
 *
 *     u = M (h ⊙ x);   z = W u;   y = Q (g ⊙ z) + Σ_k Δ_k(x) + b + c
 *
 * evaluated in float32 in this order and rounded once; the Δ come in the order lowrank, rowcol, sparse, blockdiag. `x` is
 * the raw input of the linear, `z` is not rounded; `g` and `Q` act on the base product alone. Kernels know terms, never
 * methods. A new kind is a new member of {@link Term} here and of `Term` in native/core/terms.h; nothing else moves.
 */
import type { SiteRef } from './model-config.js';

/** Row-major values. bf16 and f16 are raw 16-bit patterns. */
export type DenseTensor =
  | { readonly dtype: 'f32'; readonly shape: readonly number[]; readonly data: Float32Array }
  | { readonly dtype: 'bf16' | 'f16'; readonly shape: readonly number[]; readonly data: Uint16Array };

/** `[rows, cols]`; value (i, j) = scales[i] · data[i · cols + j]. */
export interface Int8Tensor {
  readonly dtype: 'int8';
  readonly shape: readonly number[];
  readonly data: Int8Array;
  /** `[rows]`. */
  readonly scales: Float32Array;
}

/**
 * `[rows, cols]` of {-scale, 0, scale}, two bit planes (ComPEFT): bit j % 32 of word i · ceil(cols / 32) + j / 32 stands
 * for (i, j). No bit is set in both planes, none past `cols`. The backend keeps planes, or index lists where they are
 * smaller.
 */
export interface TernaryTensor {
  readonly dtype: 'ternary';
  readonly shape: readonly number[];
  readonly positive: Uint32Array;
  readonly negative: Uint32Array;
  readonly scale: number;
}

/**
 * Values of a term. `shared`, where it stands, names the content (a hash): backends hold tensors of one name, shape and
 * use once for all term sets that bring them (VeRA's projections, skill inventories).
 */
export type TermTensor = (DenseTensor | Int8Tensor | TernaryTensor) & { readonly shared?: string };

/**
 * Δ = scale · e ⊙ B (γ ⊙ D (A x)). A `[R, in]`, B `[out, R]`. γ is the per-row rank gate of the step plan. A and B may be
 * dense, int8 or ternary.
 */
export interface LowRankTerm {
  readonly kind: 'lowrank';
  readonly site: SiteRef;
  readonly a: TermTensor;
  readonly b: TermTensor;
  readonly scale: number;
  /** D as a diagonal `[R]`, or as a matrix `[R, R]`; at most one of the two. */
  readonly mid?: Float32Array;
  readonly midMatrix?: DenseTensor;
  /** e `[out]`. */
  readonly outDiag?: Float32Array;
}

/**
 * Whole columns or rows of a difference (S²FT). `in` (GATHER_IN): Δ = scale · V x[index], V `[out, k]`. `out`
 * (SCATTER_OUT): Δ[index] = scale · V x, V `[k, in]`. `index` is unique and ascending. V may be dense, int8 or ternary.
 */
export interface RowColTerm {
  readonly kind: 'rowcol';
  readonly site: SiteRef;
  readonly side: 'in' | 'out';
  readonly index: Uint32Array;
  readonly values: TermTensor;
  readonly scale: number;
}

/**
 * Single entries of a difference (SFT, SHiRA), compressed by output row: Δ_i = scale · Σ_j values[j] · x[columns[j]] for
 * j in rowStart[i] .. rowStart[i + 1] - 1. Columns ascend within a row and are unique. Values `[1, nnz]`, dense or ternary.
 */
export interface SparseTerm {
  readonly kind: 'sparse';
  readonly site: SiteRef;
  /** `[out + 1]`, from 0 to nnz. */
  readonly rowStart: Uint32Array;
  /** `[nnz]`, each below `in`. */
  readonly columns: Uint32Array;
  readonly values: TermTensor;
  readonly scale: number;
}

/** t' = blocks · t[gather]: block b `[p, q]` maps values b·q .. of its input to b·p .. of its output. */
export interface BlockStage {
  /** The stage's input is t[gather[0]], t[gather[1]], …: `[nb · q]`, each below the length of t; absent: t itself. */
  readonly gather?: Uint32Array;
  /** `[nb, p, q]`. */
  readonly blocks: DenseTensor;
}

/**
 * A chain of block-diagonal maps (OFT, BOFT, RoAd, LoKr, GraLoRA, C3A), stage 0 first, then values[output] if it stands.
 * `pre`: M above, in → in. `post`: Q, out → out. `additive`: Δ = scale · chain(x), in → out. `scale` is 1 for pre and post.
 */
export interface BlockDiagTerm {
  readonly kind: 'blockdiag';
  readonly site: SiteRef;
  readonly placement: 'pre' | 'post' | 'additive';
  readonly stages: readonly BlockStage[];
  /** Result i is value output[i] of the last stage. */
  readonly output?: Uint32Array;
  readonly scale: number;
}

/** h `[in]` scales the input of the base product, g `[out]` the base product alone, c `[out]` is added last. */
export interface DiagTerm {
  readonly kind: 'diag';
  readonly site: SiteRef;
  readonly h?: Float32Array;
  readonly g?: Float32Array;
  readonly c?: Float32Array;
}

/**
 * Absolute replacement. On a norm site: `values` is `[1, hidden or head_dim]` and `rows` is absent (the effective
 * weight, so Gemma's 1 + w is already added). On `embedding` and `head`: `values` is `[n, hidden]`, `rows` the
 * token ids, unique and ascending.
 */
export interface OverrideTerm {
  readonly kind: 'override';
  readonly site: SiteRef;
  readonly rows?: Uint32Array;
  readonly values: DenseTensor;
}

/**
 * Keys and values without tokens, at site `attention` of one layer. k and v are `[n, kv_heads, head_dim]`, keys as
 * attention sees them (no RoPE is applied). Without a gate they stand before position 0 and share the softmax (prefix
 * tuning: paged positions start at n). With a gate they have their own softmax and gate times its result is added
 * (LLaMA-Adapter); they take no positions.
 */
export interface PrefixTerm {
  readonly kind: 'prefix';
  readonly site: SiteRef;
  readonly k: DenseTensor;
  readonly v: DenseTensor;
  readonly gate?: number;
}

export type BottleneckActivation = 'identity' | 'relu' | 'gelu' | 'gelu_tanh' | 'silu' | 'tanh';

/** (t - mean) / sqrt(variance + eps) ⊙ weight + bias over `hidden`. */
export interface LayerNorm {
  readonly weight: Float32Array;
  readonly bias: Float32Array;
  readonly eps: number;
}

/**
 * At site `residualAttn` or `residualMlp`: with t the sub-block's output (after post-norms) and r the residual stream
 * before it, t' = t + s·(U act(D n(i) + b_d) + b_u), and r + t' goes on. What i is says the placement: sequential t;
 * parallel the sub-block's input (the normed residual); sum r + t; residual r. D `[m, hidden]`, U `[hidden, m]`; n is a LayerNorm or nothing. Several on one site
 * apply one after the other, in the set's order.
 */
export interface BottleneckTerm {
  readonly kind: 'bottleneck';
  readonly site: SiteRef;
  readonly placement: 'sequential' | 'parallel' | 'sum' | 'residual';
  readonly activation: BottleneckActivation;
  readonly down: DenseTensor;
  readonly downBias?: Float32Array;
  readonly up: DenseTensor;
  readonly upBias?: Float32Array;
  readonly scale: number;
  readonly norm?: LayerNorm;
}

export type Term =
  LowRankTerm | RowColTerm | SparseTerm | DiagTerm | BlockDiagTerm | OverrideTerm | PrefixTerm | BottleneckTerm;

/**
 * What one adapter version compiles to. On one site, lowrank, rowcol, sparse, additive blockdiag and bottleneck terms sum;
 * diag, override, prefix, pre and post must be single.
 */
export interface TermSet {
  readonly terms: readonly Term[];
  /**
   * Soft prompt (prompt tuning, P-tuning): `[n, hidden]` rows that stand before the first token, at positions 0 .. n - 1,
   * in the place of embeddings (embedScale already in them). Tokens follow at n.
   */
  readonly softPrompt?: DenseTensor;
  /**
   * Activated LoRA: the terms act from the last occurrence of these token ids in the prompt on, and not at all where they
   * do not occur; rows before it are the base's, KV included.
   */
  readonly invocation?: readonly number[];
}
