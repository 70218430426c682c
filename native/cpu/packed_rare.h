// Terms beside inner products and prefixes, packed for the kernels: chains of block-diagonal maps,
// bottlenecks, overridden rows of the head, and lowrank terms of the embedding.
#pragma once

#include <optional>
#include <vector>

#include "../core/terms.h"
#include "packed_memory.h"

namespace manyfold {

// Rows that one call below takes at once.
inline constexpr int32_t kRareRows = 16;

// Rows `ids` of an array: row m is at base + ids[m] · stride.
struct RowsOf {
  float* base = nullptr;
  int64_t stride = 0;
  const int32_t* ids = nullptr;
  int32_t count = 0;

  float* row(int32_t m) const { return base + ids[m] * stride; }
};

class PackedChain {
 public:
  // The term is kept by address until the memory is laid out, and so is the chain. out: values of
  // the result.
  PackedChain(const BlockDiag& term, int32_t in, int32_t out);
  void pack(const Kernels& kernels, const BlockDiag& term, PackedMemory& memory);

  int32_t out() const { return out_; }
  float scale() const { return scale_; }
  int64_t scratch_floats() const { return 2 * kRareRows * stride_; }
  // chain(x) of at most kRareRows rows: result m at m · stride, in scratch, zeros after `out`.
  const float* run(const Kernels& kernels, const RowsOf& x, float* scratch, int64_t* stride) const;
  // x [out] = chain(x).
  void replace(const Kernels& kernels, const RowsOf& x, float* scratch) const;

 private:
  struct Stage {
    const uint32_t* gather = nullptr;  // padded to whole vectors; null: the input itself
    FactorType dtype = FactorType::kF32;
    const std::byte* values = nullptr;
    const uint32_t* starts = nullptr;
    int32_t inputs = 0, outputs = 0, block_outputs = 0, block_inputs = 0;
  };
  std::vector<Stage> stages_;
  const uint32_t* output_ = nullptr;
  int32_t in_, out_;
  int64_t stride_ = 0;  // of the widest stage
  float scale_;
};

class PackedBottleneck {
 public:
  explicit PackedBottleneck(const Bottleneck& term);
  void pack(const Kernels& kernels, const Bottleneck& term, PackedMemory& memory);

  int64_t scratch_floats() const;
  // t += the bottleneck, for at most kRareRows rows; input: the sub-block's; residual: the stream
  // before it; rows by the same ids.
  void run(const Kernels& kernels, const RowsOf& t, const RowsOf& input, const RowsOf& residual,
           float* scratch) const;

 private:
  RowsOf read(const Kernels& kernels, const RowsOf& t, const RowsOf& input, const RowsOf& residual,
              float* sum) const;

  BottleneckPlacement placement_;
  BottleneckActivation activation_;
  bool normed_;
  float eps_ = 0.0f;
  int32_t hidden_, middle_;
  FactorType down_type_ = FactorType::kF32, up_type_ = FactorType::kF32;
  const std::byte *down_ = nullptr, *up_ = nullptr;
  const float *down_factor_ = nullptr, *down_bias_ = nullptr;
  const float *up_factor_ = nullptr, *up_bias_ = nullptr;  // both with the scale
  const float *norm_weight_ = nullptr, *norm_bias_ = nullptr;
};

// y[rows[i]] = values[i] · u.
class PackedHeadRows {
 public:
  explicit PackedHeadRows(const Override& term);
  void pack(const Kernels& kernels, const Override& term, PackedMemory& memory);
  // The overridden outputs among out0 .. out1 - 1, for all rows of u and y by the same ids.
  void run(const Kernels& kernels, const RowsOf& u, const RowsOf& y, int32_t out0,
           int32_t out1) const;

 private:
  int32_t count_, cols_;
  FactorType dtype_ = FactorType::kF32;
  const uint32_t* ids_ = nullptr;
  const std::byte* values_ = nullptr;
  const float* factor_ = nullptr;
};

// Δ(one-hot of a token): a row of the transposed A, then B.
class PackedLookup {
 public:
  explicit PackedLookup(const LowRank& term);
  void pack(const Kernels& kernels, const LowRank& term, PackedMemory& memory);
  int64_t scratch_floats() const { return round_up(rank_, kRowPad); }
  // gate: γ of the row or null; ranks from gate_width on count as 1.
  void run(const Kernels& kernels, int32_t token, const float* gate, int32_t gate_width,
           float* scratch, float* y) const;

 private:
  int32_t rank_, out_;
  bool halves_ = false;  // A is bf16
  FactorType b_type_ = FactorType::kF32;
  const std::byte *a_ = nullptr, *b_ = nullptr;
  const float *factor_ = nullptr, *out_diag_ = nullptr;
};

}  // namespace manyfold
