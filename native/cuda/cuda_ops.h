// The operations of a step on the device. Each call only launches kernels; finish() waits. Steps of
// few rows are captured once for each shape (StepShape) and replayed: then the calls between
// begin() and finish() do nothing.
#pragma once

#include <map>
#include <span>
#include <tuple>

#include "../core/sampler.h"
#include "adapter_kernels.h"
#include "cuda_terms.h"
#include "cuda_weights.h"
#include "kernels.h"
#include "step_buffers.h"
#include "step_upload.h"

namespace manyfold::cuda {

// Keys and values of all layers: page p of layer l at pool + l · layer_bytes + p · page_bytes.
struct CudaKv {
  CudaKv(const BackendOptions& options);
  LayerKv layer(int32_t index) const;
  DeviceMemory memory;
  size_t page_bytes = 0, layer_bytes = 0, bytes = 0;
};

// What a captured graph is for. Never how many adapters there are, nor which.
struct StepShape {
  int32_t rows = 0, entries = 0, keys = 0;  // powers of two
  bool adapters = false, others = false, inputs = false, outputs = false, bottlenecks = false;
  auto operator<=>(const StepShape&) const = default;
};

// Rows of the largest step that is captured.
inline constexpr int32_t kMostGraphRows = 64;
// Graphs that are kept; all are given up when one more is captured.
inline constexpr size_t kMostGraphs = 64;

class CudaOps final : public StepOps {
 public:
  CudaOps(const BackendOptions& options, const CudaWeights& weights, const CudaTerms& terms,
          const CudaKv& kv, cudaStream_t stream);
  void begin(const StepPlan& plan) override;
  void embed() override;
  void norm(SiteRef site, Buffer in, Buffer out) override;
  void linear(std::span<const LinearOut> outs, Buffer in) override;
  void rope_append(int32_t layer) override;
  void attention(int32_t layer) override;
  void activate() override;
  void add(SiteRef residual_site) override;
  void finish(StepResult& result) override;

  const Counters& counters() const { return counters_; }
  int64_t graphs_captured() const { return graphs_captured_; }
  int64_t graphs_replayed() const { return graphs_replayed_; }
  size_t bytes() const { return buffers_.bytes(); }

 private:
  // A group of linears over rows, or the head over entries.
  struct LinearCall {
    std::span<const LinearOut> outs;
    StepBuffers::Inputs in;
    void* changed = nullptr;  // [rows, in.stride] for sets that change their inputs
    float* y = nullptr;       // of the first site; the others lie beside it
    int32_t rows = 0, y_stride = 0;
    bool by_entry = false;
  };

  StepShape shape_of(const StepPlan& plan) const;
  void reserve_scratch();
  void start_graph(bool addresses_changed);
  void launch_angles();
  void apply_linear(const LinearCall& call);
  void multiply(const LinearCall& call, SiteRef site, const void* input, int32_t first_out,
                int32_t outs);
  AdapterArgs adapter_args(const LinearCall& call) const;
  void apply_site_outputs(const LinearCall& call, size_t place, const void* u, int32_t first_out);
  void add_biases(const LinearCall& call);
  void count_linear(const LinearCall& call);
  void launch_head();
  void sample(StepResult& result);
  const int32_t* live(bool by_entry) const;

  const BackendOptions& options_;
  const ModelConfig& model_;
  const CudaWeights& weights_;
  const CudaTerms& terms_;
  const CudaKv& kv_;
  cudaStream_t stream_;
  StepBuffers buffers_;
  StepUpload upload_;
  StepPlan plan_;
  StepShape shape_;
  std::map<StepShape, GraphExec> graphs_;
  bool capturing_ = false, replaying_ = false;
  int64_t graphs_captured_ = 0, graphs_replayed_ = 0;

  std::vector<DeviceMemory> inv_freq_;  // by rope table
  DeviceMemory planes_, scratch_, attention_scratch_;
  size_t planes_bytes_ = 0, scratch_bytes_ = 0, attention_bytes_ = 0;
  // The most that any set used so far wants.
  int32_t plane_width_ = 0, scratch_width_ = 0;
  int32_t chain_stages_ = 0, additives_ = 0, bottleneck_terms_ = 0;
  PinnedMemory host_logits_;
  int32_t multiprocessors_ = 1;
  Counters counters_;
  Sampler sampler_;
};

}  // namespace manyfold::cuda
