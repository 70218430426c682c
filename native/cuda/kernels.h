// Launches of the base model's kernels (kernels/*.cu). Every launch is asynchronous on `stream` and
// may be captured into a graph: pointers and shapes are fixed at capture, counts are read from
// StepTables. Errors of a launch are thrown as cuda::check does.
//
// Element types: weights and inputs of products are `dtype` (f32, bf16 or f16), everything else is
// float32. Strides are in elements; rows of weights and of inputs of products begin at multiples of
// 32 bytes and hold zeros behind their last column up to their stride.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../core/dtype.h"
#include "../core/model_config.h"
#include "step_tables.h"

namespace manyfold::cuda {

// out[r, o] = Σ_k input[r, k] · weight[o, k], accumulated in float32. Rows from *live on are not
// written (live may be null: all `rows`).
struct GemmArgs {
  Dtype dtype = Dtype::kBf16;
  const void* weight = nullptr;  // [outs, stride]
  const void* input = nullptr;   // [rows, input_stride]
  float* out = nullptr;          // [rows, out_stride]
  int32_t rows = 0, outs = 0;
  int32_t cols = 0;  // summed columns: a multiple of 16, padding included
  int32_t weight_stride = 0, input_stride = 0, out_stride = 0;
  const int32_t* live = nullptr;
  // A row's bits are the same alone and in any batch: the kernels of gemm.cu all sum the same
  // ranges of columns in the same order, so that this asks for nothing that they do not do.
  bool batch_invariant = false;
};
void launch_gemm(const GemmArgs& args, cudaStream_t stream);

// Keys and values of one layer: page p at pool + p · page_bytes, as [2][kv_heads][kPageTokens]
// [head_dim] of dtype, keys first.
struct LayerKv {
  std::byte* pool = nullptr;
  size_t page_bytes = 0;
};

struct AttentionShape {
  Dtype dtype = Dtype::kBf16;  // of keys, values and context
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  int32_t window = 0;  // as LayerConfig
  float scale = 1.0f;
};

// context[r, head] = softmax(scale · q k) v over the sequence's shared prefixes and slots, causal
// by position and within the window; then += gate · softmax over each gated prefix alone.
struct AttentionArgs {
  AttentionShape shape;
  StepTables tables;
  int32_t layer = 0;  // of the prefixes' site
  int32_t rows = 0;   // capacity: rows from counts->rows on are not touched
  // Tokens that the longest row may see at most; sizes the grid.
  int32_t most_keys = 0;
  LayerKv kv;
  const float* q = nullptr;  // [rows, q_stride], rotated
  void* context = nullptr;   // [rows, context_stride] of dtype
  int32_t q_stride = 0, context_stride = 0;
  // Scratch of attention_scratch_bytes(shape, rows, most_keys).
  void* scratch = nullptr;
  bool batch_invariant = false;
};
size_t attention_scratch_bytes(const AttentionShape& shape, int32_t rows, int32_t most_keys);
void launch_attention(const AttentionArgs& args, cudaStream_t stream);

// residual[r] = embed_scale · (row of the table, or of the set's override, + lowrank terms of the
// set's embedding site), or the plan's embedding row as it is.
struct EmbedArgs {
  StepTables tables;
  Dtype dtype = Dtype::kBf16;
  const void* table = nullptr;  // [vocab, table_stride]
  float* residual = nullptr;    // [rows, hidden]
  int32_t rows = 0, hidden = 0, table_stride = 0;
  float scale = 1.0f;
};
void launch_embed(const EmbedArgs& args, cudaStream_t stream);

// out[i] = in[j] / rms(in[j]) ⊙ weight, j = i, or entry_row[i] with by_entry; override values of
// the set at `site` replace the weight.
struct NormArgs {
  StepTables tables;
  SiteRef site = {-1, Site::kFinalNorm};
  Dtype out_dtype = Dtype::kF32;
  const float* in = nullptr;      // [.., in_stride]
  const float* weight = nullptr;  // [width]
  void* out = nullptr;            // [.., out_stride]; may be `in` when out_dtype is f32
  int32_t rows = 0, width = 0, in_stride = 0, out_stride = 0;
  float eps = 1e-5f;
  bool by_entry = false;
};
void launch_norm(const NormArgs& args, cudaStream_t stream);

// cos and sin of every row's position for one RoPE table, angles in double as core/rope.h: [rows,
// half] each.
struct RopeAnglesArgs {
  StepTables tables;
  const float* inv_freq = nullptr;  // [half]
  float* cos = nullptr;
  float* sin = nullptr;
  int32_t rows = 0, half = 0;
  float scale = 1.0f;
};
void launch_rope_angles(const RopeAnglesArgs& args, cudaStream_t stream);

// Biases and norms of q and k where the model has them, rotation of q and k, then k and v to the
// rows' slots.
struct RopeAppendArgs {
  StepTables tables;
  int32_t layer = 0;
  Dtype dtype = Dtype::kBf16;                            // of the pool
  float *q = nullptr, *k = nullptr, *v = nullptr;        // [rows, stride]
  const float *q_weight = nullptr, *k_weight = nullptr;  // [head_dim] or null
  const float *cos = nullptr, *sin = nullptr;            // [rows, head_dim / 2]
  LayerKv kv;
  int32_t rows = 0, heads = 0, kv_heads = 0, head_dim = 0, stride = 0;
  float eps = 1e-5f;
};
void launch_rope_append(const RopeAppendArgs& args, cudaStream_t stream);

// out = act(gate) ⊙ up.
struct ActivateArgs {
  StepTables tables;
  Activation activation = Activation::kSilu;
  Dtype dtype = Dtype::kBf16;                  // of out
  const float *gate = nullptr, *up = nullptr;  // [rows, stride]
  void* out = nullptr;                         // [rows, out_stride]
  int32_t rows = 0, width = 0, stride = 0, out_stride = 0;
};
void launch_activate(const ActivateArgs& args, cudaStream_t stream);

// y[r] += x[r] (x_stride 0: the same x for every row, a bias).
struct AddArgs {
  const int32_t* live = nullptr;
  const float* x = nullptr;
  float* y = nullptr;
  int32_t rows = 0, width = 0, x_stride = 0, y_stride = 0;
};
void launch_add(const AddArgs& args, cudaStream_t stream);

}  // namespace manyfold::cuda
