// The adapter IR in native form. Mirrors src/core/terms.ts, which tells each term's maths. A
// backend takes a TermSet once (TermStore::load_terms), packs it as it likes and knows it by handle
// from then on.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "dtype.h"
#include "site.h"

namespace manyfold {

// Row-major values of dtype f32, f16 or bf16, owned.
struct TermTensor {
  Dtype dtype = Dtype::kF32;
  std::vector<int32_t> shape;
  std::vector<uint8_t> bytes;

  size_t count() const {
    size_t n = 1;
    for (int32_t d : shape) n *= static_cast<size_t>(d);
    return n;
  }
  float at(size_t i) const {
    if (dtype == Dtype::kF32) {
      float v;
      std::memcpy(&v, bytes.data() + 4 * i, 4);
      return v;
    }
    uint16_t v;
    std::memcpy(&v, bytes.data() + 2 * i, 2);
    return dtype == Dtype::kBf16 ? bf16_to_f32(v) : f16_to_f32(v);
  }
};

// Δ = scale · e ⊙ B (γ ⊙ d ⊙ (A x)); A [R, in], B [out, R], d [R] and e [out] may be empty.
struct LowRank {
  TermTensor a, b;
  float scale = 1.0f;
  std::vector<float> mid, out_diag;
};

// u = h ⊙ x; z' = g ⊙ z; y += c. Each may be empty.
struct Diag {
  std::vector<float> h, g, c;
};

// Absolute values: whole norm weight (rows empty, values [1, n]), or rows of embedding or head
// (ascending ids).
struct Override {
  std::vector<uint32_t> rows;
  TermTensor values;
};

// Keys and values without tokens at Site::kAttention: k, v [n, kv_heads, head_dim]. gate: own
// softmax, result times gate.
struct Prefix {
  TermTensor k, v;
  std::optional<float> gate;
};

enum class BottleneckActivation { kIdentity, kRelu, kGelu, kGeluTanh, kSilu, kTanh };
enum class BottleneckPlacement { kSequential, kParallel };

// t' = t + scale · (U act(D n + down_bias) + up_bias), n = t (sequential) or the sub-block's input
// (parallel). D [m, hidden], U [hidden, m]; biases may be empty.
struct Bottleneck {
  BottleneckPlacement placement = BottleneckPlacement::kSequential;
  BottleneckActivation activation = BottleneckActivation::kRelu;
  TermTensor down, up;
  std::vector<float> down_bias, up_bias;
  float scale = 1.0f;
};

struct Term {
  SiteRef site;
  std::variant<LowRank, Diag, Override, Prefix, Bottleneck> op;
};

using TermSet = std::vector<Term>;

// A loaded TermSet; 0 is none.
using TermHandle = int32_t;

}  // namespace manyfold
