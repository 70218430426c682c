// See term_ops.h.
#include "term_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../core/step.h"

namespace manyfold {

void multiply_row(const float* a, const float* b, int32_t n, float* out) {
  for (int32_t i = 0; i < n; ++i) out[i] = a[i] * b[i];
}

void add_row(const float* c, int32_t n, float* y) {
  for (int32_t i = 0; i < n; ++i) y[i] += c[i];
}

float dot_row(const float* a, const float* b, int32_t n) {
  double sum = 0;
  for (int32_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return static_cast<float>(sum);
}

void rms_norm_row(const float* x, const float* weight, int32_t n, float eps, float* out) {
  double squares = 0;
  for (int32_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const double factor = 1.0 / std::sqrt(squares / n + static_cast<double>(eps));
  for (int32_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i] * factor) * weight[i];
}

namespace {

// y += scale · e ⊙ B (γ ⊙ D middle); changes middle [rank] and the [rank] floats behind it.
void lowrank_expand(const LowRankView& term, const float* gate, int32_t gate_width, float* middle,
                    float* y) {
  if (term.mid_matrix != nullptr) {
    float* mixed = middle + term.rank;
    for (int32_t r = 0; r < term.rank; ++r) {
      mixed[r] = dot_row(term.mid_matrix + static_cast<size_t>(r) * term.rank, middle, term.rank);
    }
    middle = mixed;
  }
  if (term.mid != nullptr) multiply_row(term.mid, middle, term.rank, middle);
  if (gate != nullptr) multiply_row(gate, middle, std::min(gate_width, term.rank), middle);
  for (int32_t o = 0; o < term.out; ++o) {
    float delta =
        term.scale * dot_row(term.b + static_cast<size_t>(o) * term.rank, middle, term.rank);
    if (term.out_diag != nullptr) delta *= term.out_diag[o];
    y[o] += delta;
  }
}

}  // namespace

void lowrank_row(const LowRankView& term, const float* x, const float* gate, int32_t gate_width,
                 float* scratch, float* y) {
  for (int32_t r = 0; r < term.rank; ++r) {
    scratch[r] = dot_row(term.a + static_cast<size_t>(r) * term.in, x, term.in);
  }
  lowrank_expand(term, gate, gate_width, scratch, y);
}

void lowrank_one_hot(const LowRankView& term, int32_t index, const float* gate, int32_t gate_width,
                     float* scratch, float* y) {
  for (int32_t r = 0; r < term.rank; ++r)
    scratch[r] = term.a[static_cast<size_t>(r) * term.in + index];
  lowrank_expand(term, gate, gate_width, scratch, y);
}

void rowcol_row(const RowColView& term, const float* x, int32_t out0, int32_t out1, float* y) {
  if (term.side == RowColSide::kIn) {
    for (int32_t o = out0; o < out1; ++o) {
      const float* row = term.values + static_cast<int64_t>(o) * term.count;
      double sum = 0;
      for (int32_t j = 0; j < term.count; ++j) {
        sum += static_cast<double>(row[j]) * x[term.index[j]];
      }
      y[o] += term.scale * static_cast<float>(sum);
    }
    return;
  }
  const uint32_t* end = term.index + term.count;
  const uint32_t* first = std::lower_bound(term.index, end, static_cast<uint32_t>(out0));
  for (; first != end && *first < static_cast<uint32_t>(out1); ++first) {
    y[*first] += term.scale * dot_row(term.values + (first - term.index) * term.in, x, term.in);
  }
}

void sparse_row(const SparseView& term, const float* x, int32_t out0, int32_t out1, float* y) {
  for (int32_t o = out0; o < out1; ++o) {
    double sum = 0;
    for (uint32_t j = term.row_start[o]; j < term.row_start[o + 1]; ++j) {
      sum += static_cast<double>(term.values[j]) * x[term.columns[j]];
    }
    y[o] += term.scale * static_cast<float>(sum);
  }
}

int32_t find_row(const uint32_t* ids, int32_t count, uint32_t id) {
  const uint32_t* place = std::lower_bound(ids, ids + count, id);
  return place != ids + count && *place == id ? static_cast<int32_t>(place - ids) : -1;
}

void override_products(const uint32_t* ids, int32_t count, const float* values, int32_t in,
                       const float* u, float* y) {
  for (int32_t i = 0; i < count; ++i)
    y[ids[i]] = dot_row(values + static_cast<size_t>(i) * in, u, in);
}

float bottleneck_activation(BottleneckActivation activation, float x) {
  const double v = x;
  switch (activation) {
    case BottleneckActivation::kIdentity:
      return x;
    case BottleneckActivation::kRelu:
      return x > 0 ? x : 0.0f;
    case BottleneckActivation::kGelu:
      return static_cast<float>(0.5 * v * (1.0 + std::erf(v / std::sqrt(2.0))));
    case BottleneckActivation::kGeluTanh:
      return static_cast<float>(0.5 * v *
                                (1.0 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))));
    case BottleneckActivation::kSilu:
      return static_cast<float>(v / (1.0 + std::exp(-v)));
    case BottleneckActivation::kTanh:
      return static_cast<float>(std::tanh(v));
  }
  return x;
}

void layer_norm_row(const LayerNorm& norm, const float* x, int32_t n, float* out) {
  double sum = 0, squares = 0;
  for (int32_t i = 0; i < n; ++i) sum += x[i];
  const double mean = sum / n;
  for (int32_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double factor = 1.0 / std::sqrt(squares / n + static_cast<double>(norm.eps));
  for (int32_t i = 0; i < n; ++i) {
    const auto k = static_cast<size_t>(i);
    out[i] = static_cast<float>((x[i] - mean) * factor) * norm.weight[k] + norm.bias[k];
  }
}

namespace {

const float* bottleneck_input(const BottleneckView& term, const float* sub_block_input,
                              const float* residual, float* sum, const float* t) {
  switch (term.placement) {
    case BottleneckPlacement::kSequential:
      return t;
    case BottleneckPlacement::kParallel:
      return sub_block_input;
    case BottleneckPlacement::kResidual:
      return residual;
    case BottleneckPlacement::kSum:
      break;
  }
  for (int32_t i = 0; i < term.hidden; ++i) sum[i] = t[i] + residual[i];
  return sum;
}

}  // namespace

void bottleneck_row(const BottleneckView& term, const float* sub_block_input, const float* residual,
                    float* scratch, float* t) {
  const float* input =
      bottleneck_input(term, sub_block_input, residual, scratch + term.middle + term.hidden, t);
  if (term.norm != nullptr) {
    float* normed = scratch + term.middle;
    layer_norm_row(*term.norm, input, term.hidden, normed);
    input = normed;
  }
  for (int32_t m = 0; m < term.middle; ++m) {
    float sum = dot_row(term.down + static_cast<size_t>(m) * term.hidden, input, term.hidden);
    if (term.down_bias != nullptr) sum += term.down_bias[m];
    scratch[m] = bottleneck_activation(term.activation, sum);
  }
  for (int32_t i = 0; i < term.hidden; ++i) {
    float sum = dot_row(term.up + static_cast<size_t>(i) * term.middle, scratch, term.middle);
    if (term.up_bias != nullptr) sum += term.up_bias[i];
    t[i] += term.scale * sum;
  }
}

SoftmaxPart attend_tile(const float* q, const float* const* keys, const float* const* values,
                        int32_t count, int32_t head_dim, float scale, float* acc) {
  std::fill(acc, acc + head_dim, 0.0f);
  SoftmaxPart part{-std::numeric_limits<float>::infinity(), 0.0f};
  if (count == 0) return part;
  float scores[kAttentionTile];
  for (int32_t i = 0; i < count; ++i) {
    scores[i] = dot_row(q, keys[i], head_dim) * scale;
    part.max = std::max(part.max, scores[i]);
  }
  double sum = 0;
  for (int32_t i = 0; i < count; ++i) {
    scores[i] = std::exp(scores[i] - part.max);
    sum += scores[i];
  }
  part.sum = static_cast<float>(sum);
  for (int32_t d = 0; d < head_dim; ++d) {
    double value = 0;
    for (int32_t i = 0; i < count; ++i) value += static_cast<double>(scores[i]) * values[i][d];
    acc[d] = static_cast<float>(value);
  }
  return part;
}

void merge_softmax(SoftmaxPart& total, float* total_acc, const SoftmaxPart& part,
                   const float* part_acc, int32_t head_dim) {
  if (part.sum == 0.0f) return;
  const float max = std::max(total.max, part.max);
  const float keep = total.sum == 0.0f ? 0.0f : std::exp(total.max - max);
  const float join = std::exp(part.max - max);
  for (int32_t d = 0; d < head_dim; ++d) total_acc[d] = total_acc[d] * keep + part_acc[d] * join;
  total.sum = total.sum * keep + part.sum * join;
  total.max = max;
}

void gated_prefix_head(const float* q, const float* k, const float* v, int32_t n, int32_t stride,
                       int32_t head_dim, float scale, float gate, float* scratch, float* out) {
  float* total_acc = scratch;
  float* tile_acc = scratch + head_dim;
  std::fill(total_acc, total_acc + head_dim, 0.0f);
  SoftmaxPart total{-std::numeric_limits<float>::infinity(), 0.0f};
  for (int32_t first = 0; first < n; first += kAttentionTile) {
    const float* keys[kAttentionTile];
    const float* values[kAttentionTile];
    const int32_t count = std::min(kAttentionTile, n - first);
    for (int32_t i = 0; i < count; ++i) {
      keys[i] = k + static_cast<size_t>(first + i) * stride;
      values[i] = v + static_cast<size_t>(first + i) * stride;
    }
    const SoftmaxPart part = attend_tile(q, keys, values, count, head_dim, scale, tile_acc);
    merge_softmax(total, total_acc, part, tile_acc, head_dim);
  }
  for (int32_t d = 0; d < head_dim; ++d) out[d] += gate * (total_acc[d] / total.sum);
}

}  // namespace manyfold
