// The one description of a decoder-only model. A family is nothing but values of these fields; the
// maths of each field is told in src/core/model-config.ts, which this mirrors.
#pragma once

#include <cstdint>
#include <vector>

#include "site.h"

namespace manyfold {

enum class Activation { kSilu = 0, kGeluTanh = 1 };

struct RopeTable {
  std::vector<float> inv_freq;  // [head_dim / 2], scaling applied
  float scale = 1.0f;           // multiplies cos and sin
};

struct LayerConfig {
  int32_t window = 0;  // 0: all keys; else a query at p sees p - window + 1 .. p
  int32_t rope = 0;    // index into ropes
};

struct ModelConfig {
  int32_t vocab = 0;
  int32_t hidden = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int32_t ffn = 0;
  float norm_eps = 1e-5f;
  Activation activation = Activation::kSilu;
  bool qk_norm = false;
  bool post_norms = false;
  bool tied_head = false;
  float embed_scale = 1.0f;
  float attn_scale = 1.0f;
  std::vector<LayerConfig> layers;
  std::vector<RopeTable> ropes;

  int32_t q_width() const { return heads * head_dim; }
  int32_t kv_width() const { return kv_heads * head_dim; }
};

// [rows, cols] of a site's weight; {0, 0} for sites that hold none (attention, residuals).
struct WeightShape {
  int32_t rows;
  int32_t cols;
};
inline WeightShape weight_shape(const ModelConfig& m, Site site) {
  switch (site) {
    case Site::kEmbedding:
    case Site::kHead:
      return {m.vocab, m.hidden};
    case Site::kAttnNorm:
    case Site::kPostAttnNorm:
    case Site::kMlpNorm:
    case Site::kPostMlpNorm:
    case Site::kFinalNorm:
      return {1, m.hidden};
    case Site::kQNorm:
    case Site::kKNorm:
      return {1, m.head_dim};
    case Site::kQ:
      return {m.q_width(), m.hidden};
    case Site::kK:
    case Site::kV:
      return {m.kv_width(), m.hidden};
    case Site::kO:
      return {m.hidden, m.q_width()};
    case Site::kGate:
    case Site::kUp:
      return {m.ffn, m.hidden};
    case Site::kDown:
      return {m.hidden, m.ffn};
    case Site::kAttention:
    case Site::kResidualAttn:
    case Site::kResidualMlp:
      return {0, 0};
  }
  return {0, 0};
}

}  // namespace manyfold
