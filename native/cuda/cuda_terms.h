// Adapters in device memory: each set is one piece, its tables of device_terms.h in front of its
// values.
//
// Content that several sets name alike (TermTensor::shared) is kept once for each set: sharing it
// between sets is not built yet, and term_bytes counts every copy.
#pragma once

#include <map>

#include "../core/backend.h"
#include "device_terms.h"
#include "handles.h"
#include "pack_terms.h"

namespace manyfold::cuda {

class CudaTerms final : public TermStore {
 public:
  // stream: copies go there; load_terms returns when the bytes have arrived.
  CudaTerms(const ModelConfig& model, cudaStream_t stream) : model_(model), stream_(stream) {}
  TermHandle load_terms(TermSet&& terms) override;
  // The memory is freed when no step that was begun before can still read it.
  void free_terms(TermHandle handle) override;
  size_t term_bytes() const override { return bytes_; }
  int32_t term_sets() const override { return static_cast<int32_t>(sets_.size()); }

  const DeviceSet& device_set(TermHandle handle) const { return find(handle).device; }
  const SetFacts& facts(TermHandle handle) const { return find(handle).facts; }

 private:
  struct LoadedSet {
    DeviceMemory memory;
    DeviceSet device;
    SetFacts facts;
  };
  const LoadedSet& find(TermHandle handle) const;

  const ModelConfig& model_;
  cudaStream_t stream_;
  std::map<TermHandle, LoadedSet> sets_;
  TermHandle last_ = 0;
  size_t bytes_ = 0;
};

}  // namespace manyfold::cuda
