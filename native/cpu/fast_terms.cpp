// See fast_terms.h.
#include "fast_terms.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>

#include "../core/check_model.h"
#include "../core/check_terms.h"
#include "../core/error.h"

namespace manyfold {
namespace {

// Linears that share an input have one family number: four of each layer, then the head.
int32_t family_of(SiteRef site, int32_t layers) {
  switch (site.site) {
    case Site::kQ:
    case Site::kK:
    case Site::kV:
      return site.layer * 4;
    case Site::kO:
      return site.layer * 4 + 1;
    case Site::kGate:
    case Site::kUp:
      return site.layer * 4 + 2;
    case Site::kDown:
      return site.layer * 4 + 3;
    case Site::kHead:
      return layers * 4;
    default:
      return -1;
  }
}

// The narrowest type that holds every value exactly, so that nothing is rounded and bf16 files stay
// bf16 in memory.
Dtype exact_dtype(std::initializer_list<const TermTensor*> tensors) {
  for (const TermTensor* tensor : tensors) {
    if (tensor->dtype == Dtype::kBf16) continue;
    for (size_t i = 0; i < tensor->count(); ++i) {
      const float value = tensor->at(i);
      if (bf16_to_f32(f32_to_bf16(value)) != value) return Dtype::kF32;
    }
  }
  return Dtype::kBf16;
}

size_t element_bytes(Dtype dtype) {
  return dtype == Dtype::kF32 ? 4 : 2;
}

}  // namespace

// Fills a FastTermSet: everything asks for its memory, then one allocation is made and filled.
class TermPacker {
 public:
  TermPacker(const ModelConfig& model, const Kernels& kernels, SharedBlocks& shared,
             FastTermSet& set)
      : model_(model), kernels_(kernels), set_(set), memory_(shared, set.shared_) {}

  void pack(const TermSet& terms) {
    for (const Term& term : terms) sort_term(term);
    make_stacks();
    set_.prefixes_.resize(prefixes_.size());
    for (size_t i = 0; i < prefixes_.size(); ++i) add_prefix(set_.prefixes_[i], *prefixes_[i]);
    set_.memory_ = memory_.lay_out();
    set_.rare_ = UnpackedTerms(model_, rare_);
    for (const Term& term : rare_) note_rare(term.site);
  }

 private:
  void sort_term(const Term& term) {
    if (std::holds_alternative<Prefix>(term.op)) {
      prefixes_.push_back(&term);
    } else if (std::holds_alternative<Diag>(term.op)) {
      Diag diag = std::get<Diag>(term.op);
      for (std::vector<float>* values : {&diag.h, &diag.g, &diag.c}) {
        *values = padded(std::move(*values));
      }
      set_.limits_.scales_inputs |= !diag.h.empty();
      rare_.push_back({term.site, std::move(diag)});
    } else if (const Override* op = std::get_if<Override>(&term.op)) {
      if (term.site.site == Site::kHead) {
        pack_op(term.site, *op);
      } else {
        rare_.push_back(term);
      }
    } else if (const Bottleneck* bottleneck = std::get_if<Bottleneck>(&term.op)) {
      pack_op(term.site, *bottleneck);
    } else if (const BlockDiag* chain = std::get_if<BlockDiag>(&term.op)) {
      pack_op(term.site, *chain);
    } else if (!is_linear_site(term.site.site)) {
      pack_op(term.site, std::get<LowRank>(term.op));
    } else {
      stacked_.push_back(&term);
    }
  }

  // Lowrank terms of all sites, then rowcol, then sparse: the order in which reference_ops.cpp
  // adds.
  void make_stacks() {
    std::map<int32_t, StackPacker> packers;
    add_stacked<LowRank>(packers);
    add_stacked<RowCol>(packers);
    add_stacked<Sparse>(packers);
    set_.stacks_.resize(packers.size());
    int32_t place = 0;
    for (auto& [family, packer] : packers) {
      set_.stack_index_[static_cast<size_t>(family)] = place;
      PackedStack* stack = &set_.stacks_[static_cast<size_t>(place++)];
      packer.finish(stack, memory_, [this](SiteRef site, size_t bytes) { read(site) += bytes; });
      set_.limits_.stack_width = std::max(set_.limits_.stack_width, stack->width);
    }
    // Factors are filled when the memory is laid out, by packers that must live until then.
    packers_ = std::move(packers);
  }

  template <class Op>
  void add_stacked(std::map<int32_t, StackPacker>& packers) {
    for (const Term* term : stacked_) {
      const Op* op = std::get_if<Op>(&term->op);
      if (op == nullptr) continue;
      const int32_t family = family_of(term->site, set_.layers_);
      packers.try_emplace(family, kernels_).first->second.add(term->site, *op);
    }
  }

  size_t& read(SiteRef site) { return set_.site_bytes_[static_cast<size_t>(site_index(site))]; }

  PackedSite& packed(SiteRef site) {
    int32_t& index = set_.packed_index_[static_cast<size_t>(site_index(site))];
    if (index < 0) {
      index = static_cast<int32_t>(set_.packed_.size());
      set_.packed_.emplace_back();
    }
    return set_.packed_[static_cast<size_t>(index)];
  }

  // Packs `object` from the term and notes what it reads and needs.
  template <class Object, class Op>
  void pack_into(SiteRef site, Object& object, const Op& op) {
    const size_t before = memory_.bytes();
    object.pack(kernels_, op, memory_);
    read(site) += memory_.bytes() - before;
    if constexpr (requires { object.scratch_floats(); }) {
      set_.limits_.scratch = std::max(set_.limits_.scratch, object.scratch_floats());
    }
  }

  void pack_op(SiteRef site, const Override& op) {
    pack_into(site, packed(site).head_rows.emplace(op), op);
  }
  void pack_op(SiteRef site, const Bottleneck& op) {
    pack_into(site, packed(site).bottlenecks.emplace_back(op), op);
  }
  void pack_op(SiteRef site, const LowRank& op) {
    pack_into(site, packed(site).lookups.emplace_back(op), op);
  }
  void pack_op(SiteRef site, const BlockDiag& op) {
    const WeightShape shape = weight_shape(model_, site.site);
    switch (op.placement) {
      case BlockPlacement::kPre:
        pack_into(site, packed(site).pre.emplace(op, shape.cols, shape.cols), op);
        set_.limits_.scales_inputs = true;
        return;
      case BlockPlacement::kPost:
        pack_into(site, packed(site).post.emplace(op, shape.rows, shape.rows), op);
        return;
      case BlockPlacement::kAdditive:
        pack_into(site, packed(site).additive.emplace_back(op, shape.cols, shape.rows), op);
        int64_t& floats = chain_floats_[family_of(site, set_.layers_)];
        floats += round_up(shape.rows, kRowPad);
        set_.limits_.chain_floats = std::max(set_.limits_.chain_floats, floats);
        return;
    }
  }

  void add_prefix(PackedPrefix& prefix, const Term& term) {
    const Prefix& op = std::get<Prefix>(term.op);
    // Tiers that multiply pairs of bf16 keep sixteen bits of queries and weights; a float32 model
    // wants all of them.
    prefix.dtype = kernels_.rounds_inputs ? Dtype::kF32 : exact_dtype({&op.k, &op.v});
    prefix.tokens = op.k.shape[0];
    prefix.gated = op.gate.has_value();
    prefix.gate = op.gate.value_or(0.0f);
    const int64_t tokens = round_up(prefix.tokens, kPageTokens);
    prefix.head_bytes = static_cast<size_t>(tokens * model_.head_dim) * element_bytes(prefix.dtype);
    if (!prefix.gated) set_.shared_prefix_ = prefix.tokens;
    set_.prefix_index_[static_cast<size_t>(term.site.layer)] =
        static_cast<int32_t>(&prefix - set_.prefixes_.data());
    const size_t bytes = prefix.head_bytes * static_cast<size_t>(model_.kv_heads);
    read(term.site) += 2 * bytes;
    const PackedPrefix* place = &prefix;
    memory_.ask<std::byte>(&prefix.k, bytes, [this, place, &op](std::byte* block) {
      pack_prefix(*place, op.k, kernels_.append_key, block);
    });
    memory_.ask<std::byte>(&prefix.v, bytes, [this, place, &op](std::byte* block) {
      pack_prefix(*place, op.v, kernels_.append_value, block);
    });
  }

  template <class Append>
  void pack_prefix(const PackedPrefix& prefix, const TermTensor& tensor, const Append& append,
                   std::byte* block) const {
    const std::vector<float> values = tensor_values(tensor);
    const size_t page_bytes =
        static_cast<size_t>(kPageTokens * model_.head_dim) * element_bytes(prefix.dtype);
    for (int32_t token = 0; token < prefix.tokens; ++token) {
      for (int32_t head = 0; head < model_.kv_heads; ++head) {
        const size_t from = static_cast<size_t>((token * model_.kv_heads + head) * model_.head_dim);
        const size_t to = static_cast<size_t>(head) * prefix.head_bytes +
                          static_cast<size_t>(token / kPageTokens) * page_bytes;
        append(kv_type(prefix.dtype), values.data() + from, model_.head_dim, token % kPageTokens,
               block + to);
      }
    }
  }

  void note_rare(SiteRef site) {
    if (rare_noted_.insert(site_index(site)).second) read(site) += set_.rare(site)->bytes;
  }

  const ModelConfig& model_;
  const Kernels& kernels_;
  FastTermSet& set_;
  PackedMemory memory_;
  std::vector<const Term*> stacked_, prefixes_;
  TermSet rare_;
  std::map<int32_t, StackPacker> packers_;   // by family
  std::set<int32_t> rare_noted_;             // sites whose rare terms are counted
  std::map<int32_t, int64_t> chain_floats_;  // by family: results of one row
};

FastTermSet::FastTermSet(const ModelConfig& model, const Kernels& kernels, SharedBlocks& shared,
                         TermSet&& terms)
    : layers_(static_cast<int32_t>(model.layers.size())),
      stack_index_(static_cast<size_t>(layers_) * 4 + 1, -1),
      prefix_index_(static_cast<size_t>(layers_), -1),
      site_bytes_(static_cast<size_t>(layers_ + 1) * kSiteCount, 0),
      packed_index_(site_bytes_.size(), -1) {
  TermPacker(model, kernels, shared, *this).pack(terms);
}

const PackedStack* FastTermSet::stack(SiteRef linear) const {
  const int32_t index = stack_index_[static_cast<size_t>(family_of(linear, layers_))];
  return index < 0 ? nullptr : &stacks_[static_cast<size_t>(index)];
}

const PackedPrefix* FastTermSet::prefix(int32_t layer) const {
  const int32_t index = prefix_index_[static_cast<size_t>(layer)];
  return index < 0 ? nullptr : &prefixes_[static_cast<size_t>(index)];
}

void TermLimits::widen(const TermLimits& other) {
  stack_width = std::max(stack_width, other.stack_width);
  chain_floats = std::max(chain_floats, other.chain_floats);
  scratch = std::max(scratch, other.scratch);
  scales_inputs |= other.scales_inputs;
}

TermHandle FastTerms::load_terms(TermSet&& terms) {
  check_terms(model_, terms);
  MF_ASSERT(last_ < std::numeric_limits<TermHandle>::max());
  auto set = std::make_unique<FastTermSet>(model_, kernels_, shared_, std::move(terms));
  bytes_ += set->bytes();
  limits_.widen(set->limits());
  sets_.emplace(++last_, std::move(set));
  return last_;
}

void FastTerms::free_terms(TermHandle handle) {
  const auto place = sets_.find(handle);
  MF_CHECK(place != sets_.end(), "free_terms: handle " + std::to_string(handle) + " is not loaded");
  bytes_ -= place->second->bytes();
  sets_.erase(place);
}

const FastTermSet& FastTerms::get(TermHandle handle) const {
  const auto place = sets_.find(handle);
  MF_ASSERT(place != sets_.end());
  return *place->second;
}

}  // namespace manyfold
