// Adapters' terms of the fast CPU backend, packed once each. What goes through inner values
// (lowrank, rowcol) stands side by side for the sites that share an input (q, k, v; gate, up), so
// that one pass over the input serves them all; sparse terms stand beside them. Prefixes become
// pages of keys and values. Diagonals and overridden rows of the embedding and of norms stay plain
// float32 (reference/unpacked_terms.h).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "../core/backend.h"
#include "huge_memory.h"
#include "kernels/kernels.h"
#include "packed_rare.h"
#include "packed_stack.h"
#include "reference/unpacked_terms.h"

namespace manyfold {

// What a site has beside its stack, its prefix and its diagonal.
struct PackedSite {
  std::optional<PackedChain> pre, post;
  std::deque<PackedChain> additive;
  std::deque<PackedBottleneck> bottlenecks;
  std::deque<PackedLookup> lookups;  // of the embedding
  std::optional<PackedHeadRows> head_rows;
};

// Keys and values of one layer's prefix, one run of pages a head.
struct PackedPrefix {
  Dtype dtype = Dtype::kF32;
  const std::byte* k = nullptr;  // head 0
  const std::byte* v = nullptr;
  size_t head_bytes = 0;  // of one head's pages
  int32_t tokens = 0;
  bool gated = false;
  float gate = 0.0f;
};

// What scratch memory must hold for a set, or for any set loaded so far (that never shrinks).
struct TermLimits {
  int32_t stack_width = 0;
  int64_t chain_floats = 0;  // results of one row's additive chains, linears of one input
  int64_t scratch = 0;       // floats that one thread needs for a packed term
  bool scales_inputs = false;

  void widen(const TermLimits& other);
};

class FastTermSet {
 public:
  // terms must have passed check_terms. shared: of all sets of the backend.
  FastTermSet(const ModelConfig& model, const Kernels& kernels, SharedBlocks& shared,
              TermSet&& terms);

  // Of the linears that read the same input as this one; null when the set has none there.
  const PackedStack* stack(SiteRef linear) const;
  const PackedPrefix* prefix(int32_t layer) const;
  // The diagonal (padded to kRowPad), and overridden rows but the head's.
  const SiteTerms* rare(SiteRef site) const { return rare_.find(site); }
  const Diag* diag(SiteRef site) const {
    const SiteTerms* terms = rare(site);
    return terms == nullptr || !terms->diag ? nullptr : &*terms->diag;
  }
  // Null when the site has none of these.
  const PackedSite* packed(SiteRef site) const {
    const int32_t index = packed_index_[static_cast<size_t>(site_index(site))];
    return index < 0 ? nullptr : &packed_[static_cast<size_t>(index)];
  }
  // Whether the linear's base product reads something else than its input.
  bool changes_input(SiteRef linear) const {
    const Diag* of_site = diag(linear);
    const PackedSite* other = packed(linear);
    return (of_site != nullptr && !of_site->h.empty()) || (other != nullptr && other->pre);
  }
  // Bytes that a step reads for this site; 0 when the set has no term there.
  size_t site_bytes(SiteRef site) const {
    return site_bytes_[static_cast<size_t>(site_index(site))];
  }

  // Without what it shares with other sets.
  size_t bytes() const { return memory_.size() + rare_.bytes(); }
  int32_t shared_prefix() const { return shared_prefix_; }
  const TermLimits& limits() const { return limits_; }

 private:
  friend class TermPacker;

  int32_t layers_;
  HugeBuffer memory_;
  std::vector<SharedBlocks::Block> shared_;
  std::vector<PackedStack> stacks_;
  std::vector<int32_t> stack_index_;  // by family; -1: none
  std::vector<PackedPrefix> prefixes_;
  std::vector<int32_t> prefix_index_;  // by layer; -1: none
  std::vector<size_t> site_bytes_;     // by site_index
  std::deque<PackedSite> packed_;
  std::vector<int32_t> packed_index_;  // by site_index; -1: none
  UnpackedTerms rare_;
  int32_t shared_prefix_ = 0;
  TermLimits limits_;
};

class FastTerms final : public TermStore {
 public:
  FastTerms(const ModelConfig& model, const Kernels& kernels) : model_(model), kernels_(kernels) {}

  TermHandle load_terms(TermSet&& terms) override;
  void free_terms(TermHandle handle) override;
  size_t term_bytes() const override { return bytes_ + shared_.bytes(); }
  int32_t term_sets() const override { return static_cast<int32_t>(sets_.size()); }

  const FastTermSet& get(TermHandle handle) const;
  const TermLimits& limits() const { return limits_; }

 private:
  const ModelConfig& model_;
  const Kernels& kernels_;
  SharedBlocks shared_;
  std::map<TermHandle, std::unique_ptr<FastTermSet>> sets_;
  TermHandle last_ =
      0;  // handles are never used twice, so that a stale one cannot name another set
  size_t bytes_ = 0;
  TermLimits limits_;
};

}  // namespace manyfold
