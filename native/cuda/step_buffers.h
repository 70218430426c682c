// Activations of a step in device memory, and the scratch of its kernels. Inputs of products are in
// the model's dtype with padded rows, everything else is float32.
#pragma once

#include <vector>

#include "../core/backend.h"
#include "handles.h"

namespace manyfold::cuda {

class StepBuffers {
 public:
  explicit StepBuffers(const BackendOptions& options);

  // Float32 outputs: residual, block out, and q, k, v / gate, up side by side in one row.
  struct Floats {
    float* data = nullptr;
    int32_t stride = 0;
  };
  Floats floats(Buffer buffer) const;
  // Inputs of products: normed, context, ffn.
  struct Inputs {
    void* data = nullptr;
    int32_t cols = 0, stride = 0;
  };
  Inputs inputs(Buffer buffer) const;

  Inputs head_inputs, changed_inputs, changed_head_inputs;  // the latter for sets that change x
  float* logits = nullptr;                                  // [max_entries, vocab]
  std::vector<float*> cos, sin;                             // by rope table, [max_rows, half]
  size_t bytes() const { return bytes_; }

 private:
  void* take(size_t bytes, const char* what);
  float* take_floats(int64_t count, const char* what);
  Inputs take_inputs(int32_t rows, int32_t cols, int32_t most_cols, const char* what);

  const BackendOptions& options_;
  size_t bytes_ = 0;
  std::vector<DeviceMemory> memory_;
  Floats residual_, block_out_, qkv_, gate_up_;
  Inputs normed_, context_, ffn_;
};

}  // namespace manyfold::cuda
