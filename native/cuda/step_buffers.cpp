// See step_buffers.h.
#include "step_buffers.h"

#include <algorithm>

#include "../core/error.h"
#include "cuda_weights.h"

namespace manyfold::cuda {

StepBuffers::StepBuffers(const BackendOptions& options) : options_(options) {
  const ModelConfig& model = options.model;
  const int32_t rows = options.max_rows, entries = options.max_entries;
  const int32_t most = std::max({model.hidden, model.q_width(), model.ffn});
  const int32_t qkv = model.q_width() + 2 * model.kv_width();
  residual_ = {take_floats(int64_t{rows} * model.hidden, "the residual stream"), model.hidden};
  block_out_ = {take_floats(int64_t{rows} * model.hidden, "outputs of blocks"), model.hidden};
  qkv_ = {take_floats(int64_t{rows} * qkv, "queries, keys and values"), qkv};
  gate_up_ = {take_floats(int64_t{rows} * 2 * model.ffn, "gate and up"), 2 * model.ffn};
  normed_ = take_inputs(rows, model.hidden, model.hidden, "normed rows");
  context_ = take_inputs(rows, model.q_width(), model.q_width(), "contexts");
  ffn_ = take_inputs(rows, model.ffn, model.ffn, "activations");
  changed_inputs = take_inputs(rows, 0, most, "changed inputs");
  head_inputs = take_inputs(entries, model.hidden, model.hidden, "inputs of the head");
  changed_head_inputs = take_inputs(entries, model.hidden, model.hidden, "inputs of the head");
  logits = take_floats(int64_t{entries} * model.vocab, "logits");
  for (size_t i = 0; i < model.ropes.size(); ++i) {
    cos.push_back(take_floats(int64_t{rows} * (model.head_dim / 2), "angles"));
    sin.push_back(take_floats(int64_t{rows} * (model.head_dim / 2), "angles"));
  }
}

// Zeroed: pads must be zero, and rows that a graph's bucket adds must be numbers.
void* StepBuffers::take(size_t bytes, const char* what) {
  memory_.push_back(allocate_device(bytes, what));
  if (bytes > 0) MF_CUDA(cudaMemset(memory_.back().get(), 0, bytes));
  bytes_ += bytes;
  return memory_.back().get();
}

float* StepBuffers::take_floats(int64_t count, const char* what) {
  return static_cast<float*>(take(static_cast<size_t>(count) * sizeof(float), what));
}

StepBuffers::Inputs StepBuffers::take_inputs(int32_t rows, int32_t cols, int32_t most_cols,
                                             const char* what) {
  const int32_t stride = padded_columns(most_cols);
  const size_t bytes = static_cast<size_t>(rows) * static_cast<size_t>(stride) *
                       (options_.dtype == Dtype::kF32 ? 4 : 2);
  return {take(bytes, what), cols, stride};
}

StepBuffers::Floats StepBuffers::floats(Buffer buffer) const {
  const ModelConfig& model = options_.model;
  switch (buffer) {
    case Buffer::kResidual:
      return residual_;
    case Buffer::kBlockOut:
      return block_out_;
    case Buffer::kQ:
      return qkv_;
    case Buffer::kK:
      return {qkv_.data + model.q_width(), qkv_.stride};
    case Buffer::kV:
      return {qkv_.data + model.q_width() + model.kv_width(), qkv_.stride};
    case Buffer::kGate:
      return gate_up_;
    case Buffer::kUp:
      return {gate_up_.data + model.ffn, gate_up_.stride};
    default:
      break;
  }
  fail(ErrorCode::kBug, "cuda: this buffer holds inputs of products, not float32 rows");
}

StepBuffers::Inputs StepBuffers::inputs(Buffer buffer) const {
  switch (buffer) {
    case Buffer::kNormed:
      return normed_;
    case Buffer::kContext:
      return context_;
    case Buffer::kFfn:
      return ffn_;
    default:
      break;
  }
  fail(ErrorCode::kBug, "cuda: this buffer does not hold inputs of products");
}

}  // namespace manyfold::cuda
