// See pack_terms.h.
#include "pack_terms.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <vector>

#include "../core/error.h"

namespace manyfold::cuda {

namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kRowBytes = 16;

size_t round_up(size_t n, size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Lays arrays one after another; without a block it only counts.
class BlockWriter {
 public:
  BlockWriter(uintptr_t address, std::byte* block) : address_(address), block_(block) {}

  size_t size() const { return size_; }

  // A piece of zeros; to is where to write it, or null.
  template <class T>
  const T* reserve(size_t count, T** to) {
    const size_t at = size_;
    size_ = round_up(size_ + count * sizeof(T), kAlignment);
    *to = block_ == nullptr ? nullptr : reinterpret_cast<T*>(block_ + at);
    if (block_ != nullptr) std::memset(block_ + at, 0, size_ - at);
    return reinterpret_cast<const T*>(address_ + at);
  }

  // Null for no values.
  template <class T>
  const T* put(const T* from, size_t count) {
    if (count == 0) return nullptr;
    T* to;
    const T* place = reserve(count, &to);
    if (to != nullptr) std::memcpy(to, from, count * sizeof(T));
    return place;
  }
  template <class T>
  const T* put(const std::vector<T>& values) {
    return put(values.data(), values.size());
  }

  // Rows of `row` elements, each padded with zeros to `stride`.
  template <class T>
  const T* put_rows(const T* from, size_t rows, size_t row, size_t stride) {
    T* to;
    const T* place = reserve(rows * stride, &to);
    for (size_t r = 0; to != nullptr && r < rows; ++r)
      std::memcpy(to + r * stride, from + r * row, row * sizeof(T));
    return place;
  }

  // A tensor of any codec as float32, without padding.
  const float* put_floats(const TermTensor& tensor) {
    float* to;
    const float* place = reserve(tensor.count(), &to);
    for (size_t i = 0; to != nullptr && i < tensor.count(); ++i) to[i] = tensor.at(i);
    return place;
  }

 private:
  uintptr_t address_;
  std::byte* block_;
  size_t size_ = 0;
};

int32_t row_stride(size_t cols, size_t element) {
  return static_cast<int32_t>(round_up(cols * element, kRowBytes) / element);
}

DeviceValues put_ternary(BlockWriter& writer, const TermTensor& tensor, DeviceValues values) {
  const size_t words = tensor.plane_stride();
  const auto rows = static_cast<size_t>(values.rows);
  values.type = ValueType::kTernary;
  values.stride = row_stride(words, sizeof(uint32_t));
  const auto stride = static_cast<size_t>(values.stride);
  values.data = writer.put_rows(tensor.positive.data(), rows, words, stride);
  values.negative = writer.put_rows(tensor.negative.data(), rows, words, stride);
  return values;
}

DeviceValues put_dense(BlockWriter& writer, const TermTensor& tensor, DeviceValues values) {
  const bool wide = tensor.dtype == Dtype::kF32;
  const size_t element = wide ? 4 : 2;
  const auto rows = static_cast<size_t>(values.rows), cols = static_cast<size_t>(values.cols);
  values.type = wide                          ? ValueType::kF32
                : tensor.dtype == Dtype::kF16 ? ValueType::kF16
                                              : ValueType::kBf16;
  values.stride = row_stride(cols, element);
  values.data = writer.put_rows(tensor.bytes.data(), rows, cols * element,
                                static_cast<size_t>(values.stride) * element);
  return values;
}

// A matrix in its own type.
DeviceValues put_values(BlockWriter& writer, const TermTensor& tensor) {
  DeviceValues values = {};
  values.rows = tensor.shape[0];
  values.cols = tensor.shape[1];
  values.scales = writer.put(tensor.scales);
  if (tensor.codec == Codec::kTernary) return put_ternary(writer, tensor, values);
  if (tensor.codec == Codec::kDense) return put_dense(writer, tensor, values);
  const auto rows = static_cast<size_t>(values.rows), cols = static_cast<size_t>(values.cols);
  values.type = ValueType::kInt8;
  values.stride = row_stride(cols, 1);
  values.data =
      writer.put_rows(tensor.bytes.data(), rows, cols, static_cast<size_t>(values.stride));
  return values;
}

int32_t widest_stage(const BlockDiag& term) {
  int32_t widest = 0;
  for (const BlockStage& stage : term.stages)
    widest = std::max(widest, stage.blocks.shape[0] * stage.blocks.shape[1]);
  return widest;
}

DeviceChain put_chain(BlockWriter& writer, const BlockDiag& term) {
  std::vector<DeviceStage> stages;
  for (const BlockStage& stage : term.stages) {
    const std::vector<int32_t>& shape = stage.blocks.shape;
    stages.push_back(
        {writer.put(stage.gather), writer.put_floats(stage.blocks), shape[0], shape[1], shape[2]});
  }
  const DeviceStage& last = stages.back();
  DeviceChain chain = {};
  chain.stages = writer.put(stages);
  chain.output = writer.put(term.output);
  chain.stage_count = static_cast<int32_t>(stages.size());
  chain.out = term.output.empty() ? last.count * last.p : static_cast<int32_t>(term.output.size());
  chain.widest = widest_stage(term);
  chain.scale = term.scale;
  return chain;
}

// The terms of one site, gathered before the site's table is written.
struct SiteParts {
  std::vector<DeviceLowRank> lowrank;
  std::vector<DeviceRowCol> rowcol;
  std::vector<DeviceSparse> sparse;
  std::vector<DeviceChain> pre, post, additive;
  std::vector<DeviceBottleneck> bottlenecks;
  DeviceSite site = {};
};

// Adds one term to its site's parts. v0: ranks of the group so far.
struct PackTerm {
  BlockWriter& writer;
  SiteParts& parts;
  int32_t& v0;

  void operator()(const LowRank& term) const {
    DeviceLowRank out = {};
    out.a = put_values(writer, term.a);
    out.b = put_values(writer, term.b);
    out.mid = writer.put(term.mid);
    if (!term.mid_matrix.shape.empty()) out.mid_matrix = writer.put_floats(term.mid_matrix);
    out.out_diag = writer.put(term.out_diag);
    out.scale = term.scale;
    out.rank = term.a.shape[0];
    out.v0 = v0;
    v0 += out.rank;
    parts.lowrank.push_back(out);
  }
  void operator()(const RowCol& term) const {
    DeviceRowCol out = {};
    out.values = put_values(writer, term.values);
    out.index = writer.put(term.index);
    out.scale = term.scale;
    out.count = static_cast<int32_t>(term.index.size());
    out.on_inputs = term.side == RowColSide::kIn ? 1 : 0;
    parts.rowcol.push_back(out);
  }
  void operator()(const Sparse& term) const {
    parts.sparse.push_back({writer.put(term.row_start), writer.put(term.columns),
                            writer.put_floats(term.values), term.scale});
  }
  void operator()(const BlockDiag& term) const {
    std::vector<DeviceChain>& chains = term.placement == BlockPlacement::kPre    ? parts.pre
                                       : term.placement == BlockPlacement::kPost ? parts.post
                                                                                 : parts.additive;
    chains.push_back(put_chain(writer, term));
  }
  void operator()(const Diag& term) const {
    parts.site.h = writer.put(term.h);
    parts.site.g = writer.put(term.g);
    parts.site.c = writer.put(term.c);
  }
  void operator()(const Override& term) const {
    parts.site.override_ids = writer.put(term.rows);
    parts.site.override_values = writer.put_floats(term.values);
    parts.site.overrides = static_cast<int32_t>(term.rows.size());
  }
  void operator()(const Prefix& term) const {
    parts.site.prefix = {writer.put_floats(term.k), writer.put_floats(term.v), term.k.shape[0],
                         term.gate.has_value() ? 1 : 0, term.gate.value_or(0.0f)};
  }
  void operator()(const Bottleneck& term) const {
    DeviceBottleneck out = {};
    out.down = put_values(writer, term.down);
    out.up = put_values(writer, term.up);
    out.down_bias = writer.put(term.down_bias);
    out.up_bias = writer.put(term.up_bias);
    if (term.norm) {
      out.norm_weight = writer.put(term.norm->weight);
      out.norm_bias = writer.put(term.norm->bias);
      out.norm_eps = term.norm->eps;
    }
    out.scale = term.scale;
    out.middle = term.down.shape[0];
    out.placement = term.placement;
    out.activation = term.activation;
    parts.bottlenecks.push_back(out);
  }
};

DeviceSite finish_site(BlockWriter& writer, const SiteParts& parts) {
  DeviceSite site = parts.site;
  site.lowrank = writer.put(parts.lowrank);
  site.rowcol = writer.put(parts.rowcol);
  site.sparse = writer.put(parts.sparse);
  site.pre = writer.put(parts.pre);
  site.post = writer.put(parts.post);
  site.additive = writer.put(parts.additive);
  site.bottlenecks = writer.put(parts.bottlenecks);
  site.lowranks = static_cast<int32_t>(parts.lowrank.size());
  site.rowcols = static_cast<int32_t>(parts.rowcol.size());
  site.sparses = static_cast<int32_t>(parts.sparse.size());
  site.additives = static_cast<int32_t>(parts.additive.size());
  site.bottleneck_count = static_cast<int32_t>(parts.bottlenecks.size());
  return site;
}

// The first of the sites that share an input with this one.
SiteRef group_of(SiteRef ref) {
  switch (ref.site) {
    case Site::kK:
    case Site::kV:
      return {ref.layer, Site::kQ};
    case Site::kUp:
      return {ref.layer, Site::kGate};
    default:
      return ref;
  }
}

// Terms by site_index; numbers of sites ascend within a group.
using TermsBySite = std::map<int32_t, std::vector<const Term*>>;
TermsBySite by_site(const TermSet& terms) {
  TermsBySite sites;
  for (const Term& term : terms) sites[site_index(term.site)].push_back(&term);
  return sites;
}

DeviceSet write_set(const ModelConfig& model, const TermSet& terms, BlockWriter& writer) {
  const TermsBySite sites = by_site(terms);
  std::vector<int32_t> site_at((model.layers.size() + 1) * kSiteCount, -1);
  int32_t* site_at_place;
  DeviceSite* sites_place;
  DeviceSet set = {};
  set.site_at = writer.reserve(site_at.size(), &site_at_place);
  set.sites = writer.reserve(sites.size(), &sites_place);
  std::map<int32_t, int32_t> ranks;  // of a group, by its first site
  int32_t place = 0;
  for (const auto& [index, list] : sites) {
    SiteParts parts;
    int32_t& v0 = ranks[site_index(group_of(list.front()->site))];
    for (const Term* term : list) std::visit(PackTerm{writer, parts, v0}, term->op);
    const DeviceSite site = finish_site(writer, parts);
    if (sites_place != nullptr) sites_place[place] = site;
    site_at[static_cast<size_t>(index)] = place++;
  }
  if (site_at_place != nullptr) std::copy(site_at.begin(), site_at.end(), site_at_place);
  return set;
}

// Adds what one term asks of a step.
struct CountTerm {
  const ModelConfig& model;
  SiteRef site;
  SetFacts& facts;
  int32_t& ranks;                    // of the group
  int32_t &additives, &bottlenecks;  // of the site

  void need_scratch(int32_t width) const {
    facts.scratch_width = std::max(facts.scratch_width, width);
  }
  void operator()(const LowRank& term) const {
    // The embedding's ranks come from a look-up, not from REDUCE.
    if (site.site == Site::kEmbedding) return;
    ranks += term.a.shape[0];
    facts.plane_width = std::max(facts.plane_width, ranks);
  }
  void operator()(const BlockDiag& term) const {
    const WeightShape shape = weight_shape(model, site.site);
    const bool post = term.placement == BlockPlacement::kPost;
    need_scratch(std::max(post ? shape.rows : shape.cols, widest_stage(term)));
    facts.chain_stages = std::max(facts.chain_stages, static_cast<int32_t>(term.stages.size()));
    if (term.placement == BlockPlacement::kAdditive)
      facts.additives = std::max(facts.additives, ++additives);
    facts.changes_inputs |= term.placement == BlockPlacement::kPre;
    facts.changes_outputs |= post;
  }
  void operator()(const Diag& term) const { facts.changes_inputs |= !term.h.empty(); }
  void operator()(const Override&) const { facts.changes_outputs |= site.site == Site::kHead; }
  void operator()(const Bottleneck& term) const {
    facts.bottlenecks = std::max(facts.bottlenecks, ++bottlenecks);
    need_scratch(term.down.shape[0] + model.hidden);
  }
  void operator()(const Prefix&) const {}
  void operator()(const RowCol&) const { facts.others = true; }
  void operator()(const Sparse&) const { facts.others = true; }
};

}  // namespace

SetFacts set_facts(const ModelConfig& model, const TermSet& terms) {
  SetFacts facts;
  facts.prefix = term_facts(terms);
  std::map<int32_t, int32_t> ranks, additives, bottlenecks;
  for (const Term& term : terms) {
    const int32_t index = site_index(term.site);
    facts.linears |= is_linear_site(term.site.site);
    std::visit(CountTerm{model, term.site, facts, ranks[site_index(group_of(term.site))],
                         additives[index], bottlenecks[index]},
               term.op);
  }
  facts.bytes = packed_bytes(model, terms);
  return facts;
}

size_t packed_bytes(const ModelConfig& model, const TermSet& terms) {
  BlockWriter counter(kAlignment, nullptr);
  write_set(model, terms, counter);
  return counter.size();
}

DeviceSet pack_terms(const ModelConfig& model, const TermSet& terms, uintptr_t address,
                     std::byte* block) {
  MF_ASSERT(address % kAlignment == 0);
  BlockWriter writer(address, block);
  return write_set(model, terms, writer);
}

}  // namespace manyfold::cuda
