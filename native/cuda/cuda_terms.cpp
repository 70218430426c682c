// See cuda_terms.h.
#include "cuda_terms.h"

#include <limits>
#include <string>
#include <vector>

#include "../core/check_terms.h"
#include "../core/error.h"

namespace manyfold::cuda {

TermHandle CudaTerms::load_terms(TermSet&& terms) {
  check_terms(model_, terms);
  MF_ASSERT(last_ < std::numeric_limits<TermHandle>::max());
  LoadedSet set;
  set.facts = set_facts(model_, terms);
  set.memory = allocate_device(set.facts.bytes, "an adapter's terms");
  // Ordinary memory: pinning so much for one copy costs more than the copy and stops the device.
  std::vector<std::byte> block(set.facts.bytes);
  set.device =
      pack_terms(model_, terms, reinterpret_cast<uintptr_t>(set.memory.get()), block.data());
  MF_CUDA(cudaMemcpyAsync(set.memory.get(), block.data(), block.size(), cudaMemcpyHostToDevice,
                          stream_));
  MF_CUDA(cudaStreamSynchronize(stream_));
  bytes_ += set.facts.bytes;
  sets_.emplace(++last_, std::move(set));
  return last_;
}

void CudaTerms::free_terms(TermHandle handle) {
  const auto place = sets_.find(handle);
  MF_CHECK(place != sets_.end(), "free_terms: handle " + std::to_string(handle) + " is not loaded");
  const LoadedSet set = std::move(place->second);
  sets_.erase(place);
  bytes_ -= set.facts.bytes;
  // Steps under way may read it until here; the owner frees it behind this.
  MF_CUDA(cudaDeviceSynchronize());
}

const CudaTerms::LoadedSet& CudaTerms::find(TermHandle handle) const {
  const auto place = sets_.find(handle);
  MF_ASSERT(place != sets_.end());
  return place->second;
}

}  // namespace manyfold::cuda
