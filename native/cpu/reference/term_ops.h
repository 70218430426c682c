// The maths of adapter terms for one row, plain and scalar. Callers: the reference backend for
// every term, and the fast CPU backend for the rare ones (diag, override, prefix, bottleneck), so
// that they are written once. Nothing here allocates; sums are taken in double and in index order,
// so a row's bits never depend on its neighbours.
#pragma once

#include <cstdint>

#include "../../core/terms.h"

namespace manyfold {

// out[i] = a[i] · b[i]. Diag's h (out = u, b = x) and g (out = b = z). out may be a or b.
void multiply_row(const float* a, const float* b, int32_t n, float* out);

// y[i] += c[i]. Biases and diag's c.
void add_row(const float* c, int32_t n, float* y);

// Σ a[i] · b[i] in double.
float dot_row(const float* a, const float* b, int32_t n);

// x[i] / sqrt(mean(x²) + eps) · weight[i]; out may be x.
void rms_norm_row(const float* x, const float* weight, int32_t n, float eps, float* out);

struct LowRankView {
  const float* a = nullptr;  // [rank, in]
  const float* b = nullptr;  // [out, rank]
  int32_t rank = 0, in = 0, out = 0;
  float scale = 1.0f;
  const float* mid = nullptr;         // [rank] or null
  const float* out_diag = nullptr;    // [out] or null
  const float* mid_matrix = nullptr;  // [rank, rank] or null
};

// y += scale · e ⊙ B (γ ⊙ D (A x)). gate is γ [gate_width] or null; ranks from gate_width on count
// as 1. scratch [2 · rank].
void lowrank_row(const LowRankView& term, const float* x, const float* gate, int32_t gate_width,
                 float* scratch, float* y);

// The same for x = one-hot of `index` (the embedding).
void lowrank_one_hot(const LowRankView& term, int32_t index, const float* gate, int32_t gate_width,
                     float* scratch, float* y);

struct RowColView {
  RowColSide side = RowColSide::kIn;
  const uint32_t* index = nullptr;  // [count]
  const float* values = nullptr;    // kIn [out, count], kOut [count, in]
  int32_t count = 0, in = 0;
  float scale = 1.0f;
};

// Outputs out0 .. out1 - 1: y += scale · V x[index] (kIn), or y[index] += scale · V x (kOut).
void rowcol_row(const RowColView& term, const float* x, int32_t out0, int32_t out1, float* y);

struct SparseView {
  const uint32_t* row_start = nullptr;  // [out + 1]
  const uint32_t* columns = nullptr;
  const float* values = nullptr;
  float scale = 1.0f;
};

// Outputs out0 .. out1 - 1: y_i += scale · Σ values[j] · x[columns[j]].
void sparse_row(const SparseView& term, const float* x, int32_t out0, int32_t out1, float* y);

// Place of `id` in ascending ids, or -1.
int32_t find_row(const uint32_t* ids, int32_t count, uint32_t id);

// Replaces the head's products at overridden ids: y[ids[i]] = values[i] · u. values [count, in].
void override_products(const uint32_t* ids, int32_t count, const float* values, int32_t in,
                       const float* u, float* y);

struct BottleneckView {
  BottleneckPlacement placement = BottleneckPlacement::kSequential;
  BottleneckActivation activation = BottleneckActivation::kIdentity;
  const float* down = nullptr;       // [middle, hidden]
  const float* up = nullptr;         // [hidden, middle]
  const float* down_bias = nullptr;  // [middle] or null
  const float* up_bias = nullptr;    // [hidden] or null
  int32_t middle = 0, hidden = 0;
  float scale = 1.0f;
  const LayerNorm* norm = nullptr;
};

// (x - mean) / sqrt(variance + eps) ⊙ weight + bias; out may not be x.
void layer_norm_row(const LayerNorm& norm, const float* x, int32_t n, float* out);

// t += scale · (U act(D n + down_bias) + up_bias), n = what the placement says, through the norm
// where there is one. scratch [middle + 2 hidden].
void bottleneck_row(const BottleneckView& term, const float* sub_block_input, const float* residual,
                    float* scratch, float* t);

float bottleneck_activation(BottleneckActivation activation, float x);

// Softmax over some keys of one query head, not divided by its sum: the weight of key i is
// exp(score_i - max).
struct SoftmaxPart {
  float max;  // -infinity: no keys
  float sum;
};

// One tile: keys[i] and values[i] point to [head_dim]; count may be 0; at most kAttentionTile.
// acc [head_dim] = Σ exp(score_i - max) · values[i].
SoftmaxPart attend_tile(const float* q, const float* const* keys, const float* const* values,
                        int32_t count, int32_t head_dim, float scale, float* acc);

// total = total ∪ part: both rescaled to the larger maximum. total_acc and part_acc are [head_dim].
void merge_softmax(SoftmaxPart& total, float* total_acc, const SoftmaxPart& part,
                   const float* part_acc, int32_t head_dim);

// One query head over a gated prefix of n keys, its own softmax: out += gate · softmax(q·k) v.
// k and v point at the head's first key; key i is `stride` floats after key i - 1. scratch [2 ·
// head_dim].
void gated_prefix_head(const float* q, const float* k, const float* v, int32_t n, int32_t stride,
                       int32_t head_dim, float scale, float gate, float* scratch, float* out);

}  // namespace manyfold
