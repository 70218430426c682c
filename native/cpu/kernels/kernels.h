// The kernels of one ISA tier as a table of functions, free of any ISA header. Written once as
// templates over a SIMD policy (gemm.h, lowrank.h, attention.h, rows.h), instantiated in isa/,
// chosen in dispatch.cpp, called by the fast CPU backend, native/test and native/bench.
//
// Every sum has one order that depends only on the tier: a linear's output is one accumulator over
// ascending inputs, so one-row and many-row tiles and any split over threads give the same bits.
//
// Rows of activations are `stride` floats apart; strides are multiples of kRowPad and the floats
// from the width up to there are zero. Kernels read and write whole vectors within that padding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../core/dtype.h"
#include "../../core/model_config.h"
#include "../../core/step.h"
#include "../../core/terms.h"

namespace manyfold {

// Widest panel of any tier.
inline constexpr int32_t kRowPad = 64;
inline constexpr int32_t kMaxTileRows = 6;

constexpr int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// Gemm tiles run, by kernel.
struct TileCounts {
  int64_t single_row = 0, multi_row = 0;
};

// y[m, n] = Σ_k W[n, k] · x[m, k] for the outputs of panels panel0 .. panel1 - 1, all rows. W is
// packed by pack_panel: panel p holds outputs p · panel_rows .. and panels are panel_bytes apart.
struct GemmArgs {
  Dtype dtype = Dtype::kF32;
  const std::byte* weights = nullptr;
  int32_t cols = 0;
  int32_t panel0 = 0, panel1 = 0;
  const void* x = nullptr;  // float32, or bf16 where `rounds_inputs` says so
  int64_t x_stride = 0;     // elements
  float* y = nullptr;
  int64_t y_stride = 0;
  int32_t rows = 0;
  TileCounts* counts = nullptr;
};

// y[m, n] = float(Σ_k W[n, k] · x[m, k]) · (x_scale[m] · scale of n) of int8 values, for the
// outputs of panels panel0 .. panel1 - 1, all rows. x is written by Int8Kernels::quantize.
struct Int8Args {
  const std::byte* weights = nullptr;
  int32_t cols = 0;
  int32_t panel0 = 0, panel1 = 0;
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements
  const float* x_scale = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
  int32_t rows = 0;
  TileCounts* counts = nullptr;
};

// Products with int8 base weights; what the numbers mean is told in int8_rows.h.
struct Int8Kernels {
  int32_t panel_rows;
  int32_t input_bytes;  // of one input as gemm reads it: 1 or 2
  size_t (*panel_bytes)(int32_t cols);
  // Packs `count` rows of [count, cols] and their scales as one panel.
  void (*pack)(const int8_t* rows, const float* scales, int32_t count, int32_t cols,
               std::byte* panel);
  // Row `row` of a panel; returns its scale.
  float (*unpack_row)(const std::byte* panel, int32_t row, int32_t cols, int8_t* out);
  // A row of inputs in the form that gemm reads; returns its scale. rotated: [cols, padded] for the
  // kernel's own use.
  float (*quantize)(const float* x, int32_t cols, float* rotated, void* out);
  void (*gemm)(const Int8Args& args);
};

// y[m, n] = W[n] · x[m] of 4-bit weights and int8 inputs in groups, for the outputs of panels
// panel0 .. panel1 - 1, all rows. x is written by Q4Kernels::quantize.
struct Q4Args {
  const std::byte* weights = nullptr;
  bool wide = false;  // WeightFormat::kQ4Wide
  int32_t cols = 0;
  int32_t panel0 = 0, panel1 = 0;
  const std::byte* x = nullptr;
  int64_t x_stride = 0;  // bytes
  float* y = nullptr;
  int64_t y_stride = 0;
  int32_t rows = 0;
  TileCounts* counts = nullptr;
};

// Products with 4-bit base weights; what the numbers mean is told in q4_rows.h.
struct Q4Kernels {
  int32_t panel_rows;
  size_t (*panel_bytes)(int32_t cols, bool wide);
  // Packs `count` rows as one panel; without wide, half precision must hold d and m.
  void (*pack)(const Q4Rows& rows, int32_t count, int32_t cols, bool wide, std::byte* panel);
  // Row `row` of a panel.
  void (*unpack_row)(const std::byte* panel, int32_t row, int32_t cols, bool wide,
                     const Q4Rows& out);
  // A row of inputs as Q4Inputs, q4_groups(cols) of them.
  void (*quantize)(const float* x, int32_t cols, std::byte* out);
  void (*gemm)(const Q4Args& args);
};

// How an adapter's factor is stored: plain values, signed bytes, or two-bit codes of -1, 0 and 1.
// Scales of the last two belong into ReduceArgs::factor and SpreadArgs::out_diag.
class FactorType {
 public:
  enum Value : uint8_t { kF32, kBf16, kInt8, kTernary };
  constexpr FactorType(Value value) : value_(value) {}
  constexpr FactorType(Dtype dtype) : value_(dtype == Dtype::kF32 ? kF32 : kBf16) {}
  constexpr operator Value() const { return value_; }

 private:
  Value value_;
};

// v[m, r] = factor[r] · Σ_k A[r, k] · x[rows[m], k] for ranks of vectors vector0 ..
// vector1 - 1 (of `lanes` ranks each). A is packed by pack_reduce.
struct ReduceArgs {
  FactorType dtype = FactorType::kF32;
  const std::byte* a = nullptr;
  int32_t ranks = 0, cols = 0;
  int32_t vector0 = 0, vector1 = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* rows = nullptr;
  int32_t count = 0;
  const float* factor = nullptr;  // [ranks, rounded up to lanes]
  float* v = nullptr;             // [count, v_stride]
  int64_t v_stride = 0;           // a multiple of lanes, at least ranks
};

// y[rows[m], n] += e[n] · Σ_r B[n, r] · v[m, r] for outputs of panels panel0 .. panel1 - 1 of
// spread_rows outputs each. B is packed as panels of spread_rows (pack_spread).
struct SpreadArgs {
  FactorType dtype = FactorType::kF32;
  const std::byte* b = nullptr;
  int32_t rank = 0;
  int32_t panel0 = 0, panel1 = 0;
  const float* v = nullptr;
  int64_t v_stride = 0;
  const int32_t* rows = nullptr;
  int32_t count = 0;
  const float* out_diag = nullptr;  // padded like the outputs, or null
  float* y = nullptr;
  int64_t y_stride = 0;
  const std::byte* next = nullptr;  // read ahead with the last panels: what comes after them
  int64_t next_bytes = 0;
};

// What the entries of SlicedArgs are: ±1 (the highest bit of a column; all other bits set: no
// entry), or values beside the columns (padding: column 0, value 0).
enum class SlicedEntries : uint8_t { kSigns, kBf16, kF32 };

// Outputs of a window are sorted by their entries before they are cut into slices.
inline constexpr int32_t kSliceWindow = 64;
inline constexpr uint8_t kNoPlace = 255;

// Sparse rows. Slice s holds outputs s · lanes .. of the sorted order, and steps steps[s] ..
// steps[s + 1] - 1 of `lanes` entries each. sum[o] = Σ value · x[x_rows[m], column]; then
// out[m, o] = factor[o] · sum[o] without places, and with them out[out_rows[m], window of o +
// places[o]] += factor[o] · sum[o].
struct SlicedArgs {
  SlicedEntries entries = SlicedEntries::kSigns;
  int32_t column_bytes = 2;  // 1 (signs), 2, or 4 (values)
  const std::byte* columns = nullptr;
  const std::byte* values = nullptr;
  const uint32_t* steps = nullptr;
  const uint8_t* places = nullptr;  // kNoPlace: beyond the last output
  const float* factor = nullptr;    // in the sorted order, whole slices; null: 1
  int32_t slice0 = 0, slice1 = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* x_rows = nullptr;  // null: 0, 1, …
  int32_t count = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  const int32_t* out_rows = nullptr;
};

// out[m, o] = Σ_c values[o, c] · x[m, starts[o] + c] for all outputs, o's block being o /
// block_outputs. Packed by pack_blocks; out is written up to whole vectors.
struct BlockArgs {
  FactorType dtype = FactorType::kF32;  // kF32 or kBf16
  const std::byte* values = nullptr;
  int32_t outputs = 0, block_outputs = 0, inputs = 0;
  const uint32_t* starts = nullptr;  // [outputs, rounded up to lanes]
  const float* x = nullptr;
  int64_t x_stride = 0;
  int32_t count = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
};

// How keys and values are held: plain values, or int8 with one scale a token and head (int8_kv.h).
enum class KvType : uint8_t { kF32, kBf16, kInt8 };
constexpr KvType kv_type(Dtype dtype) {
  return dtype == Dtype::kF32 ? KvType::kF32 : KvType::kBf16;
}
// Of one kv head's keys, or values; int8: the values, then a float32 scale for each token.
constexpr size_t kv_page_bytes(KvType type, int32_t head_dim) {
  const auto values = static_cast<size_t>(head_dim) * kPageTokens;
  return type == KvType::kF32    ? values * 4
         : type == KvType::kBf16 ? values * 2
                                 : values + kPageTokens * sizeof(float);
}

// Keys and values of one kv head in pages of kPageTokens tokens, in the tier's own order (the
// Products of kernels/attention_*.h).
struct KeySegment {
  KvType type = KvType::kF32;
  const std::byte* k = nullptr;  // page 0
  const std::byte* v = nullptr;
  const int32_t* pages = nullptr;  // page numbers in order; null: 0, 1, 2, …
  int32_t tokens = 0;              // written ones
  int32_t position = 0;            // of its first token
};

// The query heads of one kv head for some consecutive rows of a sequence, against segments in
// order.
struct AttentionArgs {
  const float* q = nullptr;  // row 0, first head of the group; heads are head_dim apart
  int64_t q_stride = 0;
  float* out = nullptr;  // the same layout
  int64_t out_stride = 0;
  const int32_t* positions = nullptr;  // [rows], ascending
  int32_t rows = 0, heads = 0, head_dim = 0;
  float scale = 1.0f;
  int32_t window = 0;
  const KeySegment* shared = nullptr;  // one softmax over all of them, causal by position
  int32_t shared_count = 0;
  const KeySegment* gated =
      nullptr;  // own softmax each, seen by every row; gate times the result is added
  const float* gates = nullptr;
  int32_t gated_count = 0;
  float* scratch = nullptr;  // attention_scratch(rows · heads, head_dim) floats
};

struct Kernels {
  const char* isa;
  int32_t lanes;
  // bf16 weights take bf16 inputs (round_inputs).
  bool rounds_inputs;

  // Base weights.
  int32_t (*panel_rows)(Dtype dtype);
  size_t (*panel_bytes)(Dtype dtype, int32_t cols);
  // Packs `count` rows of [count, cols] as one panel; rows beyond count become zero.
  void (*pack_panel)(Dtype dtype, const float* rows, int32_t count, int32_t cols, std::byte* panel);
  // Row `row` of a panel as float32 [cols].
  void (*unpack_row)(Dtype dtype, const std::byte* panel, int32_t row, int32_t cols, float* out);
  // x [n] rounded to bf16, n a multiple of lanes.
  void (*round_inputs)(const float* x, int64_t n, uint16_t* out);
  void (*gemm)(const GemmArgs& args);
  Int8Kernels int8;
  Q4Kernels q4;

  // Adapters' factors. What is packed are values that the type holds exactly.
  int32_t (*spread_rows)();
  size_t (*spread_bytes)(FactorType dtype, int32_t out, int32_t rank);
  void (*pack_spread)(FactorType dtype, const float* b, int32_t out, int32_t rank,
                      std::byte* packed);
  size_t (*reduce_bytes)(FactorType dtype, int32_t ranks, int32_t cols);
  void (*pack_reduce)(FactorType dtype, const float* a, int32_t ranks, int32_t cols,
                      std::byte* packed);
  void (*reduce)(const ReduceArgs& args);
  void (*spread)(const SpreadArgs& args);
  void (*sliced)(const SlicedArgs& args);
  size_t (*block_bytes)(FactorType dtype, int32_t outputs, int32_t inputs);
  void (*pack_blocks)(FactorType dtype, const float* values, int32_t outputs, int32_t inputs,
                      std::byte* packed);
  void (*blocks)(const BlockArgs& args);

  // Attention. One token's key and value [head_dim] into their page.
  void (*append_key)(KvType type, const float* k, int32_t head_dim, int32_t token, std::byte* page);
  void (*append_value)(KvType type, const float* v, int32_t head_dim, int32_t token,
                       std::byte* page);
  int64_t (*attention_scratch)(int32_t queries, int32_t head_dim);
  void (*attention)(const AttentionArgs& args);

  // Rows. out may be x. Any n.
  void (*rms_norm)(const float* x, const float* weight, int32_t n, float eps, float* out);
  // Rotates one head of 2 · half values; cos and sin [half].
  void (*rotate)(float* x, int32_t half, const float* cos, const float* sin);
  // y += x, y *= x, y += factor · x, and out = act(gate) ⊙ up; n a multiple of lanes.
  void (*add)(const float* x, int64_t n, float* y);
  void (*multiply)(const float* x, int64_t n, float* y);
  void (*add_scaled)(const float* x, float factor, int64_t n, float* y);
  void (*activate)(Activation activation, const float* gate, const float* up, int64_t n,
                   float* out);
  // out[i] = x[index[i]], and x = act(x + bias) (bias may be null); n a multiple of lanes.
  void (*gather)(const float* x, const uint32_t* index, int64_t n, float* out);
  void (*activate_bottleneck)(BottleneckActivation activation, const float* bias, int64_t n,
                              float* x);
  // Any n; out may be x. weight and bias are padded with zeros to whole vectors.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, int32_t n, float eps,
                     float* out);
};

}  // namespace manyfold
