/**
 * The adapter IR: every adapter compiles, at load, to terms of one normal form per linear
 *
 *     u = h ⊙ x;   z = W u;   y = g ⊙ z + Σ_k Δ_k(x) + b + c
 *
 * evaluated in float32 in this order and rounded once. `x` is the raw input of the linear, `z` is not rounded.
 * Kernels know terms, never methods. A new kind is a new member of {@link Term} here and of `Term` in
 * native/core/terms.h; nothing else moves.
 */
import type { SiteRef } from './model-config.js';

/** Row-major values. bf16 and f16 are raw 16-bit patterns. */
export type TermTensor =
  | { readonly dtype: 'f32'; readonly shape: readonly number[]; readonly data: Float32Array }
  | { readonly dtype: 'bf16' | 'f16'; readonly shape: readonly number[]; readonly data: Uint16Array };

/** Δ = scale · e ⊙ B (γ ⊙ d ⊙ (A x)). A `[R, in]`, B `[out, R]`. γ is the per-row rank gate of the step plan. */
export interface LowRankTerm {
  readonly kind: 'lowrank';
  readonly site: SiteRef;
  readonly a: TermTensor;
  readonly b: TermTensor;
  readonly scale: number;
  /** d `[R]`. */
  readonly mid?: Float32Array;
  /** e `[out]`. */
  readonly outDiag?: Float32Array;
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
  readonly values: TermTensor;
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
  readonly k: TermTensor;
  readonly v: TermTensor;
  readonly gate?: number;
}

export type BottleneckActivation = 'identity' | 'relu' | 'gelu' | 'gelu_tanh' | 'silu' | 'tanh';

/**
 * At site `residualAttn` or `residualMlp`: with t the sub-block's output (after post-norms) and r the residual stream
 * before it, sequential: t' = t + s·(U act(D t + b_d) + b_u); parallel: the same of the sub-block's input (the normed
 * residual). Then r + t' goes on. D `[m, hidden]`, U `[hidden, m]`.
 */
export interface BottleneckTerm {
  readonly kind: 'bottleneck';
  readonly site: SiteRef;
  readonly placement: 'sequential' | 'parallel';
  readonly activation: BottleneckActivation;
  readonly down: TermTensor;
  readonly downBias?: Float32Array;
  readonly up: TermTensor;
  readonly upBias?: Float32Array;
  readonly scale: number;
}

export type Term = LowRankTerm | DiagTerm | OverrideTerm | PrefixTerm | BottleneckTerm;

/** What one adapter version compiles to. Terms on one site sum (lowrank) or must be single (diag, override, prefix). */
export interface TermSet {
  readonly terms: readonly Term[];
}
