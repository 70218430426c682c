// See fast_terms.h.
#include "fast_terms.h"

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>

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

Dtype wider(Dtype a, Dtype b) {
  return a == Dtype::kF32 || b == Dtype::kF32 ? Dtype::kF32 : Dtype::kBf16;
}

// A, or D A where D is a matrix (γ acts on D A x), as float32.
std::vector<float> reduce_values(const LowRank& op) {
  std::vector<float> a = tensor_values(op.a);
  if (op.mid_matrix.shape.empty()) return a;
  const std::vector<float> d = tensor_values(op.mid_matrix);
  const auto ranks = static_cast<size_t>(op.a.shape[0]), cols = static_cast<size_t>(op.a.shape[1]);
  std::vector<float> product(a.size());
  std::vector<double> row(cols);
  for (size_t r = 0; r < ranks; ++r) {
    std::fill(row.begin(), row.end(), 0.0);
    for (size_t k = 0; k < ranks; ++k) {
      for (size_t c = 0; c < cols; ++c)
        row[c] += static_cast<double>(d[r * ranks + k]) * a[k * cols + c];
    }
    for (size_t c = 0; c < cols; ++c) product[r * cols + c] = static_cast<float>(row[c]);
  }
  return product;
}

size_t element_bytes(Dtype dtype) {
  return dtype == Dtype::kF32 ? 4 : 2;
}

std::vector<float> padded(std::vector<float> values) {
  if (!values.empty()) {
    values.resize(static_cast<size_t>(round_up(static_cast<int64_t>(values.size()), kRowPad)),
                  0.0f);
  }
  return values;
}

}  // namespace

// Fills a FastTermSet: sizes, one allocation, then the packing.
class TermPacker {
 public:
  TermPacker(const ModelConfig& model, const Kernels& kernels, FastTermSet& set)
      : model_(model), kernels_(kernels), set_(set) {}

  void pack(TermSet&& terms) {
    for (Term& term : terms) sort_term(std::move(term));
    for (const Term& term : lowrank_) add_to_stack(term);
    for (const Term& term : prefixes_) add_prefix(term);
    for (LowRankStack& stack : set_.stacks_) {
      stack.factor = padded(std::move(stack.factor));
      set_.limits_.stack_ranks = std::max(set_.limits_.stack_ranks, stack.ranks);
    }
    lay_out();
    for (size_t i = 0; i < set_.stacks_.size(); ++i) pack_stack(set_.stacks_[i], members_[i]);
    for (size_t i = 0; i < prefixes_.size(); ++i) pack_prefix(set_.prefixes_[i], prefixes_[i]);
    set_.rare_ = UnpackedTerms(model_, rare_);
    for (const Term& term : rare_) note_rare(term);
  }

 private:
  // Lowrank terms of linears and prefixes are packed; the rest stays as it is.
  void sort_term(Term&& term) {
    if (std::holds_alternative<LowRank>(term.op) && is_linear_site(term.site.site)) {
      lowrank_.push_back(std::move(term));
    } else if (std::holds_alternative<Prefix>(term.op)) {
      prefixes_.push_back(std::move(term));
    } else {
      rare_.push_back(std::move(term));
    }
  }

  void add_to_stack(const Term& term) {
    const LowRank& op = std::get<LowRank>(term.op);
    const auto family = static_cast<size_t>(family_of(term.site, set_.layers_));
    if (set_.stack_index_[family] < 0) {
      set_.stack_index_[family] = static_cast<int32_t>(set_.stacks_.size());
      set_.stacks_.emplace_back().dtype = Dtype::kBf16;
      members_.emplace_back();
    }
    const auto place = static_cast<size_t>(set_.stack_index_[family]);
    LowRankStack& stack = set_.stacks_[place];
    members_[place].push_back(&op);
    PackedSpread spread;
    spread.site = term.site;
    spread.dtype = exact_dtype({&op.b});
    spread.first_rank = stack.ranks;
    spread.rank = op.a.shape[0];
    spread.out = op.b.shape[0];
    spread.out_diag = padded(op.out_diag);
    stack.dtype =
        wider(stack.dtype, op.mid_matrix.shape.empty() ? exact_dtype({&op.a}) : Dtype::kF32);
    stack.cols = op.a.shape[1];
    stack.ranks += spread.rank;
    for (int32_t r = 0; r < spread.rank; ++r) {
      stack.factor.push_back(op.mid.empty() ? op.scale : op.scale * op.mid[static_cast<size_t>(r)]);
      stack.gate_index.push_back(r);
    }
    stack.spreads.push_back(std::move(spread));
  }

  void add_prefix(const Term& term) {
    const Prefix& op = std::get<Prefix>(term.op);
    PackedPrefix prefix;
    prefix.dtype = exact_dtype({&op.k, &op.v});
    prefix.tokens = op.k.shape[0];
    prefix.gated = op.gate.has_value();
    prefix.gate = op.gate.value_or(0.0f);
    const int64_t tokens = round_up(prefix.tokens, kPageTokens);
    prefix.head_bytes = static_cast<size_t>(tokens * model_.head_dim) * element_bytes(prefix.dtype);
    if (!prefix.gated) set_.shared_prefix_ = prefix.tokens;
    set_.prefix_index_[static_cast<size_t>(term.site.layer)] =
        static_cast<int32_t>(set_.prefixes_.size());
    set_.site_bytes_[static_cast<size_t>(site_index(term.site))] += 2 * all_heads(prefix);
    set_.prefixes_.push_back(prefix);
  }

  size_t all_heads(const PackedPrefix& prefix) const {
    return prefix.head_bytes * static_cast<size_t>(model_.kv_heads);
  }

  // Calls block(pointer, bytes) for everything that lies in the set's memory, always in the same
  // order.
  template <class Block>
  void for_blocks(const Block& block) {
    for (LowRankStack& stack : set_.stacks_) {
      block(stack.a, kernels_.reduce_bytes(stack.dtype, stack.ranks, stack.cols));
      for (PackedSpread& spread : stack.spreads) {
        block(spread.b, kernels_.spread_bytes(spread.dtype, spread.out, spread.rank));
      }
    }
    for (PackedPrefix& prefix : set_.prefixes_) {
      block(prefix.k, all_heads(prefix));
      block(prefix.v, all_heads(prefix));
    }
  }

  void lay_out() {
    const auto rounded = [](size_t bytes) {
      return static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 64));
    };
    size_t total = 0;
    for_blocks([&](std::byte*&, size_t bytes) { total += rounded(bytes); });
    if (total == 0) return;
    // Kernels read whole vectors, so past the end of the last block.
    set_.memory_ = HugeBuffer(total + 64, "an adapter");
    size_t offset = 0;
    for_blocks([&](std::byte*& pointer, size_t bytes) {
      pointer = set_.memory_.data() + offset;
      offset += rounded(bytes);
    });
  }

  void pack_stack(LowRankStack& stack, const std::vector<const LowRank*>& members) {
    const auto cols = static_cast<size_t>(stack.cols);
    std::vector<float> a;
    a.reserve(static_cast<size_t>(stack.ranks) * cols);
    for (size_t i = 0; i < members.size(); ++i) {
      const std::vector<float> values = reduce_values(*members[i]);
      a.insert(a.end(), values.begin(), values.end());
      const PackedSpread& spread = stack.spreads[i];
      kernels_.pack_spread(spread.dtype, tensor_values(members[i]->b).data(), spread.out,
                           spread.rank, spread.b);
      set_.site_bytes_[static_cast<size_t>(site_index(spread.site))] +=
          static_cast<size_t>(spread.rank) * cols * element_bytes(stack.dtype) +
          kernels_.spread_bytes(spread.dtype, spread.out, spread.rank);
    }
    kernels_.pack_reduce(stack.dtype, a.data(), stack.ranks, stack.cols, stack.a);
  }

  void pack_prefix(const PackedPrefix& prefix, const Term& term) {
    const Prefix& op = std::get<Prefix>(term.op);
    const std::vector<float> k = tensor_values(op.k), v = tensor_values(op.v);
    const size_t page_bytes =
        static_cast<size_t>(kPageTokens * model_.head_dim) * element_bytes(prefix.dtype);
    for (int32_t token = 0; token < prefix.tokens; ++token) {
      for (int32_t head = 0; head < model_.kv_heads; ++head) {
        const size_t from = static_cast<size_t>((token * model_.kv_heads + head) * model_.head_dim);
        const size_t to = static_cast<size_t>(head) * prefix.head_bytes +
                          static_cast<size_t>(token / kPageTokens) * page_bytes;
        const int32_t slot = token % kPageTokens;
        kernels_.append_key(prefix.dtype, k.data() + from, model_.head_dim, slot, prefix.k + to);
        kernels_.append_value(prefix.dtype, v.data() + from, model_.head_dim, slot, prefix.v + to);
      }
    }
  }

  void note_rare(const Term& term) {
    const SiteTerms* terms = set_.rare(term.site);
    size_t& bytes = set_.site_bytes_[static_cast<size_t>(site_index(term.site))];
    if (const LowRank* lowrank = std::get_if<LowRank>(&term.op)) {
      set_.limits_.embedding_rank = std::max(set_.limits_.embedding_rank, lowrank->a.shape[0]);
    }
    if (!rare_noted_.insert(site_index(term.site)).second) return;
    bytes += terms->bytes;
    note_limits(term.site, *terms);
  }

  void note_limits(SiteRef site, const SiteTerms& terms) {
    TermLimits& limits = set_.limits_;
    limits.scales_inputs |= terms.changes_input();
    for (const BottleneckValues& term : terms.bottlenecks) {
      limits.bottleneck = std::max(limits.bottleneck, term.scratch_floats());
    }
    const auto note_chain = [&](const BlockChain& chain) {
      limits.chain_scratch = std::max(limits.chain_scratch, chain.scratch_floats());
    };
    if (terms.pre) note_chain(*terms.pre);
    if (terms.post) note_chain(*terms.post);
    for (const BlockChain& chain : terms.additive) {
      note_chain(chain);
      int32_t& floats = chain_floats_[family_of(site, set_.layers_)];
      floats += chain.inner_width();
      limits.chain_floats = std::max(limits.chain_floats, floats);
    }
  }

  const ModelConfig& model_;
  const Kernels& kernels_;
  FastTermSet& set_;
  TermSet lowrank_, prefixes_, rare_;
  std::vector<std::vector<const LowRank*>> members_;  // by stack
  std::set<int32_t> rare_noted_;                      // sites whose rare terms are counted
  std::map<int32_t, int32_t> chain_floats_;           // by family: inner values of one row
};

FastTermSet::FastTermSet(const ModelConfig& model, const Kernels& kernels, TermSet&& terms)
    : layers_(static_cast<int32_t>(model.layers.size())),
      stack_index_(static_cast<size_t>(layers_) * 4 + 1, -1),
      prefix_index_(static_cast<size_t>(layers_), -1),
      site_bytes_(static_cast<size_t>(layers_ + 1) * kSiteCount, 0) {
  TermPacker(model, kernels, *this).pack(std::move(terms));
}

const LowRankStack* FastTermSet::stack(SiteRef linear) const {
  const int32_t index = stack_index_[static_cast<size_t>(family_of(linear, layers_))];
  return index < 0 ? nullptr : &stacks_[static_cast<size_t>(index)];
}

const PackedPrefix* FastTermSet::prefix(int32_t layer) const {
  const int32_t index = prefix_index_[static_cast<size_t>(layer)];
  return index < 0 ? nullptr : &prefixes_[static_cast<size_t>(index)];
}

void TermLimits::widen(const TermLimits& other) {
  stack_ranks = std::max(stack_ranks, other.stack_ranks);
  bottleneck = std::max(bottleneck, other.bottleneck);
  embedding_rank = std::max(embedding_rank, other.embedding_rank);
  chain_floats = std::max(chain_floats, other.chain_floats);
  chain_scratch = std::max(chain_scratch, other.chain_scratch);
  scales_inputs |= other.scales_inputs;
}

TermHandle FastTerms::load_terms(TermSet&& terms) {
  check_terms(model_, terms);
  MF_ASSERT(last_ < std::numeric_limits<TermHandle>::max());
  auto set = std::make_unique<FastTermSet>(model_, kernels_, std::move(terms));
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
