// The adapter IR in native form. Mirrors src/core/terms.ts, which tells each term's maths. A
// backend takes a TermSet once (TermStore::load_terms), packs it as it likes and knows it by handle
// from then on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "dtype.h"
#include "site.h"

namespace manyfold {

enum class Codec : uint8_t { kDense, kInt8, kTernary };

// Values of a term, owned. Dense: row-major, dtype f32, f16 or bf16, in `bytes`. Int8: [rows, cols]
// in `bytes`, value = scales[row] · byte. Ternary: [rows, cols] of {-scale, 0, scale} in two bit
// planes, bit j % 32 of word row · ceil(cols / 32) + j / 32; scales[0] is the scale.
struct TermTensor {
  Dtype dtype = Dtype::kF32;
  std::vector<int32_t> shape;
  std::vector<uint8_t> bytes;
  Codec codec = Codec::kDense;
  std::vector<float> scales = {};
  std::vector<uint32_t> positive = {}, negative = {};
  std::string shared = {};  // names the content; empty: not shared

  size_t count() const {
    size_t n = 1;
    for (int32_t d : shape) n *= static_cast<size_t>(d);
    return n;
  }
  // Words of one row of a plane.
  size_t plane_stride() const { return (static_cast<size_t>(shape.back()) + 31) / 32; }

  float at(size_t i) const {
    if (codec == Codec::kInt8) {
      return scales[i / static_cast<size_t>(shape.back())] * static_cast<int8_t>(bytes[i]);
    }
    if (codec == Codec::kTernary) return ternary_at(i);
    if (dtype == Dtype::kF32) {
      float v;
      std::memcpy(&v, bytes.data() + 4 * i, 4);
      return v;
    }
    uint16_t v;
    std::memcpy(&v, bytes.data() + 2 * i, 2);
    return dtype == Dtype::kBf16 ? bf16_to_f32(v) : f16_to_f32(v);
  }

 private:
  float ternary_at(size_t i) const {
    const size_t cols = static_cast<size_t>(shape.back());
    const size_t word = i / cols * plane_stride() + i % cols / 32;
    const uint32_t bit = 1u << (i % cols % 32);
    if ((positive[word] & bit) != 0) return scales[0];
    return (negative[word] & bit) != 0 ? -scales[0] : 0.0f;
  }
};

// Δ = scale · e ⊙ B (γ ⊙ D (A x)); A [R, in], B [out, R]; D is diag(mid [R]) or mid_matrix [R, R];
// mid, mid_matrix and e [out] may be empty.
struct LowRank {
  TermTensor a, b;
  float scale = 1.0f;
  std::vector<float> mid, out_diag;
  TermTensor mid_matrix = {};  // shape empty: none
};

enum class RowColSide { kIn, kOut };

// kIn: Δ = scale · V x[index], V [out, k]; kOut: Δ[index] = scale · V x, V [k, in]. index unique,
// ascending.
struct RowCol {
  RowColSide side = RowColSide::kIn;
  std::vector<uint32_t> index;
  TermTensor values;
  float scale = 1.0f;
};

// Δ_i = scale · Σ values[j] · x[columns[j]], j in row_start[i] .. row_start[i + 1] - 1. values
// [1, nnz].
struct Sparse {
  std::vector<uint32_t> row_start, columns;
  TermTensor values;
  float scale = 1.0f;
};

// t' = blocks · t[gather]; blocks [nb, p, q]; gather [nb · q], empty: t itself.
struct BlockStage {
  std::vector<uint32_t> gather;
  TermTensor blocks;
};

enum class BlockPlacement { kPre, kPost, kAdditive };

// A chain of block-diagonal maps, then values[output] (empty: as they are).
struct BlockDiag {
  BlockPlacement placement = BlockPlacement::kPre;
  std::vector<BlockStage> stages;
  std::vector<uint32_t> output;
  float scale = 1.0f;
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
// What it reads: t, the sub-block's input (the normed residual), r + t, or r, the residual stream
// before the sub-block.
enum class BottleneckPlacement { kSequential, kParallel, kSum, kResidual };

// (t - mean) / sqrt(variance + eps) ⊙ weight + bias; all [hidden].
struct LayerNorm {
  std::vector<float> weight, bias;
  float eps = 0.0f;
};

// t' = t + scale · (U act(D n + down_bias) + up_bias), n = norm(what the placement says). D [m,
// hidden], U [hidden, m]; biases may be empty, norm absent.
struct Bottleneck {
  BottleneckPlacement placement = BottleneckPlacement::kSequential;
  BottleneckActivation activation = BottleneckActivation::kRelu;
  TermTensor down, up;
  std::vector<float> down_bias, up_bias;
  float scale = 1.0f;
  std::optional<LayerNorm> norm = std::nullopt;
};

struct Term {
  SiteRef site;
  std::variant<LowRank, Diag, Override, Prefix, Bottleneck, RowCol, Sparse, BlockDiag> op;
};

using TermSet = std::vector<Term>;

// A loaded TermSet; 0 is none.
using TermHandle = int32_t;

}  // namespace manyfold
