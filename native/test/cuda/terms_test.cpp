// Sets in device memory: every value of every kind where the kernels will look for it, ranks of a
// group one after another, the facts, the count of bytes, and refusals.
#include <cstring>

#include "../../core/error.h"
#include "../../cuda/cuda_terms.h"
#include "../check.h"
#include "adapter_case.h"

namespace manyfold {
namespace {

using namespace cuda;
using namespace test;

ModelConfig small_model() {
  ModelConfig model;
  model.vocab = 50;
  model.hidden = 40;
  model.heads = 2;
  model.kv_heads = 1;
  model.head_dim = 16;
  model.ffn = 72;
  model.layers.resize(2);
  return model;
}

float value_of(const DeviceValues& values, int32_t row, int32_t column) {
  const int64_t at = int64_t{row} * values.stride + column;
  uint16_t half;
  switch (values.type) {
    case ValueType::kF32:
      return static_cast<const float*>(values.data)[at];
    case ValueType::kF16:
    case ValueType::kBf16:
      std::memcpy(&half, static_cast<const uint16_t*>(values.data) + at, 2);
      return values.type == ValueType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
    case ValueType::kInt8:
      return values.scales[row] * static_cast<const int8_t*>(values.data)[at];
    case ValueType::kTernary: {
      const int64_t word = int64_t{row} * values.stride + column / 32;
      const uint32_t bit = 1u << (column % 32);
      if ((static_cast<const uint32_t*>(values.data)[word] & bit) != 0) return values.scales[0];
      return (values.negative[word] & bit) != 0 ? -values.scales[0] : 0.0f;
    }
  }
  return NAN;
}

// Bytes of a row with its padding.
size_t row_bytes(const DeviceValues& values) {
  const size_t element = values.type == ValueType::kInt8                                        ? 1
                         : values.type == ValueType::kF32 || values.type == ValueType::kTernary ? 4
                                                                                                : 2;
  return static_cast<size_t>(values.stride) * element;
}

void check_values(const DeviceValues& found, const TermTensor& expected) {
  CHECK(found.rows == expected.shape[0] && found.cols == expected.shape[1]);
  CHECK(row_bytes(found) % 16 == 0);
  CHECK(reinterpret_cast<uintptr_t>(found.data) % 16 == 0);
  for (int32_t r = 0; r < found.rows; ++r) {
    for (int32_t k = 0; k < found.cols; ++k)
      CHECK(value_of(found, r, k) == expected.at(static_cast<size_t>(r * found.cols + k)));
    const int32_t end = found.type == ValueType::kTernary ? 32 * found.stride : found.stride;
    for (int32_t k = found.cols; k < end; ++k) CHECK(value_of(found, r, k) == 0.0f);
  }
}

template <class T>
bool same(const T* found, const std::vector<T>& expected) {
  if (expected.empty()) return found == nullptr;
  return std::equal(expected.begin(), expected.end(), found);
}

bool same(const float* found, const TermTensor& expected) {
  for (size_t i = 0; i < expected.count(); ++i) {
    if (found[i] != expected.at(i)) return false;
  }
  return true;
}

const DeviceSite* site_at(const DeviceSet& set, SiteRef ref) {
  const int32_t place = set.site_at[site_index(ref)];
  return place < 0 ? nullptr : set.sites + place;
}

TEST(terms_factors) {
  const ModelConfig model = small_model();
  for (const Factor factor : kFactors) {
    TermMaker make(3);
    LowRank lowrank = make.lowrank(factor, 40, 72, 5);
    lowrank.mid = make.floats(5);
    lowrank.out_diag = make.floats(72);
    LowRank mixed = make.lowrank(factor, 40, 72, 3);
    mixed.mid_matrix = make.tensor(Factor::kBf16, {3, 3});
    const RowCol rowcol = make.rowcol(factor, RowColSide::kOut, 40, 72, 9);
    const SiteRef gate{1, Site::kGate};
    CudaTerms terms(model, nullptr);
    const TermHandle handle = terms.load_terms({{gate, lowrank}, {gate, mixed}, {gate, rowcol}});
    const DeviceSite* site = site_at(terms.device_set(handle), gate);
    CHECK(site != nullptr && site->lowranks == 2 && site->rowcols == 1 && site->sparses == 0);
    check_values(site->lowrank[0].a, lowrank.a);
    check_values(site->lowrank[0].b, lowrank.b);
    check_values(site->lowrank[1].a, mixed.a);
    CHECK(same(site->lowrank[0].mid, lowrank.mid));
    CHECK(same(site->lowrank[0].out_diag, lowrank.out_diag));
    CHECK(site->lowrank[0].mid_matrix == nullptr && site->lowrank[1].mid == nullptr);
    CHECK(same(site->lowrank[1].mid_matrix, mixed.mid_matrix));
    CHECK(site->lowrank[0].scale == lowrank.scale && site->lowrank[0].rank == 5);
    check_values(site->rowcol[0].values, rowcol.values);
    CHECK(same(site->rowcol[0].index, rowcol.index));
    CHECK(site->rowcol[0].on_inputs == 0 && site->rowcol[0].scale == rowcol.scale);
    CHECK(site->rowcol[0].count == static_cast<int32_t>(rowcol.index.size()));
  }
}

TEST(terms_rare_kinds) {
  const ModelConfig model = small_model();
  TermMaker make(4);
  const Sparse sparse = make.sparse(Factor::kTernary, 40, 32, 4);
  const BlockDiag pre = make.chain(BlockPlacement::kPre, 40, 40, 2, 60);
  const Diag diag{make.floats(40), {}, make.floats(32)};
  const Override norm{{}, make.tensor(Factor::kBf16, {1, 40})};
  const Override head{{3, 9}, make.tensor(Factor::kF16, {2, 40})};
  const Prefix prefix{make.tensor(Factor::kF32, {4, 1, 16}), make.tensor(Factor::kF32, {4, 1, 16}),
                      0.5f};
  const SiteRef q{0, Site::kQ}, final_norm{-1, Site::kFinalNorm}, top{-1, Site::kHead};
  const SiteRef attention{1, Site::kAttention};
  CudaTerms terms(model, nullptr);
  const TermHandle handle = terms.load_terms(
      {{q, sparse}, {q, pre}, {q, diag}, {final_norm, norm}, {top, head}, {attention, prefix}});
  const DeviceSet& set = terms.device_set(handle);
  const DeviceSite* site = site_at(set, q);
  CHECK(same(site->sparse->row_start, sparse.row_start));
  CHECK(same(site->sparse->columns, sparse.columns) && same(site->sparse->values, sparse.values));
  CHECK(site->h != nullptr && site->g == nullptr && same(site->h, diag.h) && same(site->c, diag.c));
  CHECK(site->pre->stage_count == 2 && site->pre->out == 40 && site->pre->widest == 60);
  CHECK(same(site->pre->stages[1].gather, pre.stages[1].gather));
  CHECK(same(site->pre->stages[1].blocks, pre.stages[1].blocks));
  CHECK(same(site->pre->output, pre.output) && site->post == nullptr);
  CHECK(same(site_at(set, final_norm)->override_values, norm.values));
  CHECK(site_at(set, final_norm)->override_ids == nullptr);
  CHECK(same(site_at(set, top)->override_ids, head.rows) && site_at(set, top)->overrides == 2);
  CHECK(same(site_at(set, attention)->prefix.v, prefix.v));
  CHECK(site_at(set, attention)->prefix.gated == 1 && site_at(set, attention)->prefix.n == 4);
  CHECK(site_at(set, {0, Site::kK}) == nullptr);
  const SetFacts& facts = terms.facts(handle);
  CHECK(facts.changes_inputs && facts.changes_outputs && facts.linears);
  CHECK(facts.others && facts.chain_stages == 2 && facts.additives == 0 && facts.bottlenecks == 0);
  CHECK(facts.prefix.gated_prefix && facts.prefix.shared_prefix == 0);
  CHECK(facts.scratch_width == 60);
}

TEST(terms_bottleneck) {
  const ModelConfig model = small_model();
  TermMaker make(5);
  Bottleneck term;
  term.down = make.tensor(Factor::kBf16, {7, 40});
  term.up = make.tensor(Factor::kF32, {40, 7});
  term.up_bias = make.floats(40);
  term.norm = LayerNorm{make.floats(40), make.floats(40), 1e-6f};
  term.placement = BottleneckPlacement::kSum;
  term.activation = BottleneckActivation::kTanh;
  const SiteRef residual{1, Site::kResidualMlp};
  CudaTerms terms(model, nullptr);
  const TermHandle handle = terms.load_terms({{residual, term}, {residual, term}});
  const DeviceSite* site = site_at(terms.device_set(handle), residual);
  CHECK(site->bottleneck_count == 2);
  const DeviceBottleneck& found = site->bottlenecks[1];
  check_values(found.down, term.down);
  check_values(found.up, term.up);
  CHECK(found.down_bias == nullptr && same(found.up_bias, term.up_bias) && found.middle == 7);
  CHECK(same(found.norm_weight, term.norm->weight) && same(found.norm_bias, term.norm->bias));
  CHECK(found.norm_eps == 1e-6f && found.placement == term.placement);
  CHECK(terms.facts(handle).bottlenecks == 2 && terms.facts(handle).scratch_width == 47);
  CHECK(!terms.facts(handle).linears && terms.facts(handle).plane_width == 0);
}

// Whatever the order of terms, a group's ranks lie q, k, v and gate, up.
TEST(terms_ranks_of_groups) {
  const ModelConfig model = small_model();
  TermMaker make(6);
  CudaTerms terms(model, nullptr);
  const TermHandle handle =
      terms.load_terms({{{0, Site::kV}, make.lowrank(Factor::kBf16, 40, 16, 4)},
                        {{0, Site::kUp}, make.lowrank(Factor::kBf16, 40, 72, 30)},
                        {{0, Site::kQ}, make.lowrank(Factor::kBf16, 40, 32, 3)},
                        {{0, Site::kDown}, make.lowrank(Factor::kBf16, 72, 40, 6)},
                        {{0, Site::kGate}, make.lowrank(Factor::kBf16, 40, 72, 1)},
                        {{0, Site::kQ}, make.lowrank(Factor::kBf16, 40, 32, 2)},
                        {{1, Site::kV}, make.lowrank(Factor::kBf16, 40, 16, 9)},
                        {{-1, Site::kEmbedding}, make.lowrank(Factor::kBf16, 50, 40, 99)}});
  const DeviceSet& set = terms.device_set(handle);
  const auto v0 = [&](SiteRef ref, int32_t term) { return site_at(set, ref)->lowrank[term].v0; };
  CHECK(v0({0, Site::kQ}, 0) == 0 && v0({0, Site::kQ}, 1) == 3 && v0({0, Site::kV}, 0) == 5);
  CHECK(v0({0, Site::kGate}, 0) == 0 && v0({0, Site::kUp}, 0) == 1);
  CHECK(v0({0, Site::kDown}, 0) == 0 && v0({1, Site::kV}, 0) == 0);
  CHECK(v0({-1, Site::kEmbedding}, 0) == 0);
  CHECK(terms.facts(handle).plane_width == 31);
}

TEST(terms_memory) {
  const ModelConfig model = small_model();
  const size_t before = simt::device_bytes();
  TermMaker make(7);
  CudaTerms terms(model, nullptr);
  const TermSet set = {{{0, Site::kO}, make.lowrank(Factor::kBf16, 32, 40, 8)}};
  const TermHandle first = terms.load_terms(TermSet(set)), second = terms.load_terms(TermSet(set));
  CHECK(first > 0 && second > 0 && first != second && terms.term_sets() == 2);
  CHECK(terms.term_bytes() == 2 * terms.facts(first).bytes);
  CHECK(simt::device_bytes() == before + terms.term_bytes());
  terms.free_terms(first);
  CHECK(terms.term_sets() == 1 && simt::device_bytes() == before + terms.facts(second).bytes);
  bool refused = false;
  try {
    terms.free_terms(first);
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kInvalidArgument;
  }
  CHECK(refused);
  const TermHandle empty = terms.load_terms({});
  CHECK(site_at(terms.device_set(empty), {0, Site::kO}) == nullptr);
  CHECK(!terms.facts(empty).linears && terms.facts(empty).scratch_width == 0);
}

TEST(terms_refusals) {
  const ModelConfig model = small_model();
  TermMaker make(8);
  CudaTerms terms(model, nullptr);
  bool refused = false;
  try {
    terms.load_terms({{{0, Site::kO}, make.lowrank(Factor::kBf16, 33, 40, 8)}});
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kInvalidArgument;
  }
  CHECK(refused && terms.term_sets() == 0);
  refused = false;
  simt::plan_fault(simt::Fault::kAllocation, 0, cudaErrorMemoryAllocation);
  try {
    terms.load_terms({{{0, Site::kO}, make.lowrank(Factor::kBf16, 32, 40, 8)}});
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kOutOfMemory;
  }
  simt::clear_faults();
  CHECK(refused && terms.term_sets() == 0 && terms.term_bytes() == 0);
}

}  // namespace
}  // namespace manyfold
