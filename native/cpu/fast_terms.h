// Adapters' terms of the fast CPU backend, packed once each. Lowrank factors of linears become
// panels: the A's of sites that share an input (q, k, v; gate, up) stand side by side, so that one
// pass over the input serves them all. Prefixes become pages of keys and values. The rare kinds
// stay plain float32 (reference/unpacked_terms.h).
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "../core/backend.h"
#include "huge_memory.h"
#include "kernels/kernels.h"
#include "reference/unpacked_terms.h"

namespace manyfold {

// B of one lowrank term; its ranks begin at `first_rank` of the stack.
struct PackedSpread {
  SiteRef site{};
  Dtype dtype = Dtype::kF32;
  std::byte* b = nullptr;
  int32_t first_rank = 0, rank = 0, out = 0;
  std::vector<float> out_diag;  // padded to kRowPad; empty: none
};

// The lowrank terms of the linears that share one input.
struct LowRankStack {
  Dtype dtype = Dtype::kF32;
  std::byte* a = nullptr;
  int32_t ranks = 0, cols = 0;
  std::vector<float> factor;        // scale · mid of each rank, padded to kRowPad
  std::vector<int32_t> gate_index;  // each rank's index within its own term
  std::vector<PackedSpread> spreads;
};

// Keys and values of one layer's prefix, one run of pages a head.
struct PackedPrefix {
  Dtype dtype = Dtype::kF32;
  std::byte* k = nullptr;  // head 0
  std::byte* v = nullptr;
  size_t head_bytes = 0;  // of one head's pages
  int32_t tokens = 0;
  bool gated = false;
  float gate = 0.0f;
};

// What scratch memory must hold for a set, or for any set loaded so far (that never shrinks).
struct TermLimits {
  int32_t stack_ranks = 0;
  int32_t bottleneck = 0;  // floats of scratch of one
  int32_t embedding_rank = 0;
  int32_t chain_floats = 0;   // inner values of one row's additive chains, linears of one input
  int32_t chain_scratch = 0;  // floats of scratch of one chain
  bool scales_inputs = false;

  void widen(const TermLimits& other);
};

class FastTermSet {
 public:
  // terms must have passed check_terms.
  FastTermSet(const ModelConfig& model, const Kernels& kernels, TermSet&& terms);

  // Of the linears that read the same input as this one; null when the set has none there.
  const LowRankStack* stack(SiteRef linear) const;
  const PackedPrefix* prefix(int32_t layer) const;
  // All that is neither a prefix nor a linear's lowrank term.
  const SiteTerms* rare(SiteRef site) const { return rare_.find(site); }
  // Bytes that a step reads for this site; 0 when the set has no term there.
  size_t site_bytes(SiteRef site) const {
    return site_bytes_[static_cast<size_t>(site_index(site))];
  }

  size_t bytes() const { return memory_.size() + rare_.bytes(); }
  int32_t shared_prefix() const { return shared_prefix_; }
  const TermLimits& limits() const { return limits_; }

 private:
  friend class TermPacker;

  int32_t layers_;
  HugeBuffer memory_;
  std::vector<LowRankStack> stacks_;
  std::vector<int32_t> stack_index_;  // by family; -1: none
  std::vector<PackedPrefix> prefixes_;
  std::vector<int32_t> prefix_index_;  // by layer; -1: none
  std::vector<size_t> site_bytes_;     // by site_index
  UnpackedTerms rare_;
  int32_t shared_prefix_ = 0;
  TermLimits limits_;
};

class FastTerms final : public TermStore {
 public:
  FastTerms(const ModelConfig& model, const Kernels& kernels) : model_(model), kernels_(kernels) {}

  TermHandle load_terms(TermSet&& terms) override;
  void free_terms(TermHandle handle) override;
  size_t term_bytes() const override { return bytes_; }
  int32_t term_sets() const override { return static_cast<int32_t>(sets_.size()); }

  const FastTermSet& get(TermHandle handle) const;
  const TermLimits& limits() const { return limits_; }

 private:
  const ModelConfig& model_;
  const Kernels& kernels_;
  std::map<TermHandle, std::unique_ptr<FastTermSet>> sets_;
  TermHandle last_ =
      0;  // handles are never used twice, so that a stale one cannot name another set
  size_t bytes_ = 0;
  TermLimits limits_;
};

}  // namespace manyfold
