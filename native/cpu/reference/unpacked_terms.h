// An adapter's terms as float32, found by site. The reference backend computes with nothing else;
// the fast backend keeps one of these for the rare terms beside its packed lowrank factors.
#pragma once

#include <optional>
#include <vector>

#include "../../core/model_config.h"
#include "../../core/terms.h"
#include "block_chain.h"
#include "term_ops.h"

namespace manyfold {

struct LowRankValues {
  std::vector<float> a, b, mid, out_diag;
  int32_t rank = 0, in = 0, out = 0;
  float scale = 1.0f;
  std::vector<float> mid_matrix;
  LowRankView view() const;
};

struct RowColValues {
  RowColSide side = RowColSide::kIn;
  std::vector<uint32_t> index;
  std::vector<float> values;
  int32_t in = 0;
  float scale = 1.0f;
  RowColView view() const;
};

struct SparseValues {
  std::vector<uint32_t> row_start, columns;
  std::vector<float> values;
  float scale = 1.0f;
  SparseView view() const;
};

struct OverrideValues {
  std::vector<uint32_t> rows;  // empty for norms
  std::vector<float> values;   // [max(1, rows), width]
  int32_t width = 0;
  // Row of a token id, or null when that id is not overridden.
  const float* find(uint32_t id) const;
};

struct PrefixValues {
  std::vector<float> k, v;  // [n, kv_heads, head_dim]
  int32_t n = 0;
  std::optional<float> gate;
};

struct BottleneckValues {
  BottleneckPlacement placement = BottleneckPlacement::kSequential;
  BottleneckActivation activation = BottleneckActivation::kIdentity;
  std::vector<float> down, up, down_bias, up_bias;
  int32_t middle = 0, hidden = 0;
  float scale = 1.0f;
  std::optional<LayerNorm> norm;
  BottleneckView view() const;
  // Floats of scratch that bottleneck_row wants.
  int32_t scratch_floats() const { return middle + 2 * hidden; }
};

// All terms of one set at one site.
struct SiteTerms {
  std::vector<LowRankValues> lowrank;
  std::optional<Diag> diag;
  std::optional<OverrideValues> override_rows;
  std::optional<PrefixValues> prefix;
  std::vector<BottleneckValues> bottlenecks;
  std::vector<RowColValues> rowcol;
  std::vector<SparseValues> sparse;
  std::optional<BlockChain> pre, post;
  std::vector<BlockChain> additive;
  size_t bytes = 0;

  bool changes_input() const { return pre || (diag && !diag->h.empty()); }
};

class UnpackedTerms {
 public:
  UnpackedTerms() = default;
  // The set must have passed check_terms. with_lowrank false leaves lowrank terms out (a backend
  // that packs its own).
  UnpackedTerms(const ModelConfig& model, const TermSet& terms, bool with_lowrank = true);
  // Null when the set has no (unpacked) term there.
  const SiteTerms* find(SiteRef site) const;
  size_t bytes() const { return bytes_; }
  // Positions that the set's shared prefix takes; 0 without one.
  int32_t shared_prefix() const { return shared_prefix_; }

 private:
  std::vector<int32_t> index_;  // by site_index; -1: none
  std::vector<SiteTerms> sites_;
  size_t bytes_ = 0;
  int32_t shared_prefix_ = 0;
};

// Values of a tensor as float32.
std::vector<float> tensor_values(const TermTensor& tensor);

}  // namespace manyfold
