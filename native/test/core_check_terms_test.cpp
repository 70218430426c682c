// check_terms and check_model: what fits passes, what does not is refused by name, hostile sizes
// included.
#include "../core/check_terms.h"

#include <cmath>
#include <limits>

#include "../core/check_model.h"
#include "../core/error.h"
#include "check.h"
#include "tiny_model.h"

namespace manyfold {
namespace {

constexpr int32_t kMost = std::numeric_limits<int32_t>::max();

std::string refusal(const TermSet& terms) {
  try {
    check_terms(test::tiny_model(), terms);
    return "accepted";
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument ? error.what() : "another code";
  }
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TermTensor zeros(std::vector<int32_t> shape) {
  TermTensor tensor{Dtype::kF32, std::move(shape), {}};
  tensor.bytes.resize(tensor.count() * 4);
  return tensor;
}

// A good lowrank term at layer 0 q ([60, 40]) of rank 2.
Term lowrank() {
  return {{0, Site::kQ}, LowRank{zeros({2, 40}), zeros({60, 2}), 1, {}, {}}};
}

template <typename Change>
std::string changed_lowrank(Change change) {
  Term term = lowrank();
  change(term, std::get<LowRank>(term.op));
  return refusal({term});
}

template <typename Change>
std::string changed_options(Change change) {
  BackendOptions options;
  options.model = test::tiny_model();
  options.kv_pages = options.max_rows = options.max_entries = 4;
  change(options);
  try {
    check_options(options);
    return "accepted";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

TEST(core_check_terms_accepts_every_kind) {
  const ModelConfig model = test::tiny_model();
  for (int32_t kind = 0; kind < test::kTermKinds; ++kind) {
    CHECK(refusal(test::tiny_terms(model, kind)) == "accepted");
  }
  CHECK((term_facts(test::tiny_terms(model, 3)) == TermFacts{5, false}));
  CHECK((term_facts(test::tiny_terms(model, 4)) == TermFacts{0, true}));
  CHECK((term_facts({}) == TermFacts{0, false}));
}

TEST(core_check_terms_shapes) {
  CHECK(refusal({lowrank(), lowrank()}) == "accepted");  // lowrank terms sum
  const auto shape_of_a = [](std::vector<int32_t> shape) {
    return changed_lowrank([&](Term&, LowRank& t) { t.a.shape = shape; });
  };
  CHECK(has(shape_of_a({2, 41}),
            "term 0 at layer 0 q: lowrank A: expected shape [any, 40], found [2, 41]"));
  CHECK(has(shape_of_a({0, 40}), "lowrank A: expected shape"));
  CHECK(has(shape_of_a({-1, 40}), "lowrank A: expected shape"));
  CHECK(has(shape_of_a({2}), "found [2]"));
  CHECK(has(shape_of_a({}), "found []"));
  CHECK(has(shape_of_a({kMost, 40}), "lowrank A: expected shape"));
  CHECK(has(shape_of_a({3, 40}), "expected 480 bytes"));
  CHECK(has(changed_lowrank([](Term&, LowRank& t) { t.b.bytes.pop_back(); }), "lowrank B"));
  CHECK(has(changed_lowrank([](Term&, LowRank& t) { t.a.dtype = Dtype::kQ8_0; }), "dtype"));
  CHECK(has(changed_lowrank([](Term&, LowRank& t) { t.mid = {1}; }), "lowrank mid"));
  CHECK(has(changed_lowrank([](Term&, LowRank& t) { t.out_diag = {1}; }), "out diagonal"));
  CHECK(has(changed_lowrank([](Term&, LowRank& t) { t.scale = std::nanf(""); }), "scale"));
  CHECK(has(changed_lowrank([](Term&, LowRank& t) { t.a.bytes[3] = t.a.bytes[2] = 0xff; }),
            "lowrank A: expected finite values"));
}

TEST(core_check_terms_sites) {
  const auto at = [](SiteRef site) {
    return changed_lowrank([&](Term& t, LowRank&) { t.site = site; });
  };
  CHECK(has(at({3, Site::kQ}), "no such site"));
  CHECK(has(at({-2, Site::kQ}), "no such site"));
  CHECK(has(at({-1, Site::kQ}), "no such site"));
  CHECK(has(at({0, Site::kHead}), "no such site"));
  CHECK(has(at({kMost, Site::kQ}), "no such site"));
  CHECK(has(at({0, static_cast<Site>(99)}), "no such site"));
  CHECK(has(at({0, static_cast<Site>(-5)}), "no such site"));
  CHECK(has(at({0, Site::kAttention}), "lowrank: expected a linear"));
  CHECK(has(refusal({{{-1, Site::kEmbedding}, Diag{}}}), "diag: expected a linear"));
  CHECK(has(refusal({{{0, Site::kQ}, Prefix{}}}), "prefix: expected the attention"));
  CHECK(has(refusal({{{0, Site::kQ}, Override{}}}), "override: expected a norm"));
  CHECK(has(refusal({{{0, Site::kQ}, Bottleneck{}}}), "bottleneck: expected residual"));
}

TEST(core_check_terms_overrides_and_prefixes) {
  const auto rows = [](std::vector<uint32_t> ids) {
    const int32_t count = std::max<int32_t>(1, static_cast<int32_t>(ids.size()));
    return refusal({{{-1, Site::kHead}, Override{std::move(ids), zeros({count, 40})}}});
  };
  CHECK(rows({0, 60}) == "accepted");
  CHECK(has(rows({}), "at least one row"));
  CHECK(has(rows({5, 5}), "unique ascending"));
  CHECK(has(rows({6, 5}), "unique ascending"));
  CHECK(has(rows({61}), "ids below 61"));
  CHECK(has(refusal({{{0, Site::kAttnNorm}, Override{{1}, zeros({1, 40})}}}), "no rows"));
  CHECK(has(refusal({{{0, Site::kQNorm}, Override{{}, zeros({1, 40})}}}), "[1, 10]"));
  const auto prefix = [](int32_t layer, int32_t keys, std::optional<float> gate) {
    return Term{{layer, Site::kAttention},
                Prefix{zeros({keys, 2, 10}), zeros({keys, 2, 10}), gate}};
  };
  CHECK(refusal({prefix(0, 3, {}), prefix(2, 3, {})}) == "accepted");
  CHECK(has(refusal({prefix(0, 3, {}), prefix(2, 4, {})}), "same number of keys"));
  CHECK(refusal({prefix(0, 3, 1.0f), prefix(2, 4, 1.0f)}) == "accepted");
  CHECK(has(refusal({prefix(0, 3, {}), prefix(0, 3, 1.0f)}), "at most one"));
  CHECK(has(refusal({prefix(0, 3, std::numeric_limits<float>::infinity())}), "prefix gate"));
}

TEST(core_check_terms_codecs) {
  const auto int8 = [](std::vector<int32_t> shape) {
    TermTensor tensor{Dtype::kF32, std::move(shape), {}};
    tensor.codec = Codec::kInt8;
    tensor.bytes.resize(tensor.count());
    tensor.scales.resize(static_cast<size_t>(tensor.shape[0]));
    return tensor;
  };
  const auto ternary = [](std::vector<int32_t> shape) {
    TermTensor tensor{Dtype::kF32, std::move(shape), {}};
    tensor.codec = Codec::kTernary;
    tensor.positive.resize(static_cast<size_t>(tensor.shape[0]) * tensor.plane_stride());
    tensor.negative = tensor.positive;
    tensor.scales = {1};
    return tensor;
  };
  const auto with_a = [&](TermTensor a, auto change) {
    change(a);
    return changed_lowrank([&](Term&, LowRank& t) { t.a = std::move(a); });
  };
  const auto none = [](TermTensor&) {};
  CHECK(with_a(int8({2, 40}), none) == "accepted");
  CHECK(has(with_a(int8({2, 40}), [](TermTensor& a) { a.bytes.pop_back(); }), "expected 80 bytes"));
  CHECK(has(with_a(int8({2, 40}), [](TermTensor& a) { a.scales.push_back(1); }),
            "expected 2 scales, found 3"));
  CHECK(has(with_a(int8({2, 40}), [](TermTensor& a) { a.scales[1] = std::nanf(""); }),
            "expected finite scales"));
  CHECK(has(with_a(int8({2, 40}),
                   [](TermTensor& a) {
                     a.scales[0] = std::numeric_limits<float>::max();
                     a.bytes[0] = 2;
                   }),
            "lowrank A: expected finite values"));
  CHECK(with_a(ternary({2, 40}), none) == "accepted");
  CHECK(with_a(ternary({2, 40}), [](TermTensor& a) { a.negative[1] = 0x80; }) == "accepted");
  CHECK(has(with_a(ternary({2, 40}), [](TermTensor& a) { a.positive.pop_back(); }),
            "expected planes of 4 words, found 3 and 4"));
  CHECK(has(with_a(ternary({2, 40}), [](TermTensor& a) { a.negative.push_back(0); }),
            "found 4 and 5"));
  CHECK(
      has(with_a(ternary({2, 40}), [](TermTensor& a) { a.scales.clear(); }), "1 scales, found 0"));
  CHECK(has(with_a(ternary({2, 40}), [](TermTensor& a) { a.positive[0] = a.negative[0] = 4; }),
            "no entry in both planes"));
  CHECK(has(with_a(ternary({2, 40}), [](TermTensor& a) { a.positive[3] = 0x100; }),
            "no bits past the last column"));
  CHECK(has(refusal({{{0, Site::kAttnNorm}, Override{{}, int8({1, 40})}}}), "expected dense"));
}

TEST(core_check_terms_mid_matrices_and_norms) {
  const auto with_matrix = [](TermTensor matrix, std::vector<float> mid) {
    return changed_lowrank([&](Term&, LowRank& t) {
      t.mid_matrix = matrix;
      t.mid = mid;
    });
  };
  CHECK(with_matrix(zeros({2, 2}), {}) == "accepted");
  CHECK(has(with_matrix(zeros({2, 3}), {}), "mid matrix: expected shape [2, 2]"));
  CHECK(has(with_matrix(zeros({2, 2}), {1, 1}), "found both"));
  const auto with_norm = [](LayerNorm norm) {
    Bottleneck term;
    term.down = zeros({3, 40});
    term.up = zeros({40, 3});
    term.norm = std::move(norm);
    const Term whole{{0, Site::kResidualMlp}, term};
    return refusal({whole, whole});  // several act in turn
  };
  const std::vector<float> good(40, 1.0f);
  CHECK(with_norm({good, good, 1e-5f}) == "accepted");
  CHECK(has(with_norm({good, {}, 1e-5f}), "a weight and a bias"));
  CHECK(has(with_norm({good, {1, 2}, 1e-5f}), "norm bias: expected 40 values"));
  CHECK(has(with_norm({good, good, -1}), "norm eps: expected no negative number"));
  CHECK(has(with_norm({good, good, std::nanf("")}), "norm eps: expected a finite"));
}

TEST(core_check_terms_rows_columns_and_entries) {
  const auto rowcol = [](RowColSide side, std::vector<uint32_t> index, TermTensor values) {
    return refusal({{{0, Site::kQ}, RowCol{side, std::move(index), std::move(values), 1}}});
  };
  CHECK(rowcol(RowColSide::kIn, {0, 39}, zeros({60, 2})) == "accepted");
  CHECK(rowcol(RowColSide::kOut, {0, 59}, zeros({2, 40})) == "accepted");
  CHECK(has(rowcol(RowColSide::kIn, {}, zeros({60, 1})), "at least one, found none"));
  CHECK(has(rowcol(RowColSide::kIn, {0, 40}, zeros({60, 2})), "below 40, found 40"));
  CHECK(has(rowcol(RowColSide::kOut, {60}, zeros({1, 40})), "below 60, found 60"));
  CHECK(has(rowcol(RowColSide::kIn, {3, 3}, zeros({60, 2})), "found 3 after 3"));
  CHECK(has(rowcol(RowColSide::kIn, {0, 39}, zeros({60, 3})), "expected shape [60, 2]"));
  CHECK(has(refusal({{{0, Site::kAttnNorm}, RowCol{}}}), "rowcol: expected a linear"));
  const auto sparse = [](auto change) {
    Sparse term{std::vector<uint32_t>(61, 3), {4, 39, 0}, zeros({1, 3}), 1};
    term.row_start[0] = 0;
    term.row_start[1] = 2;
    change(term);
    return refusal({{{0, Site::kQ}, std::move(term)}});
  };
  CHECK(sparse([](Sparse&) {}) == "accepted");
  CHECK(has(sparse([](Sparse& t) { t.row_start.pop_back(); }), "expected 61, found 60"));
  CHECK(has(sparse([](Sparse& t) { t.row_start[60] = 4; }), "expected 0 to 3, found 0 to 4"));
  CHECK(has(sparse([](Sparse& t) { t.row_start[0] = 1; }), "found 1 to 3"));
  CHECK(has(sparse([](Sparse& t) { t.row_start[7] = kMost; }), "no start below the one before"));
  CHECK(has(sparse([](Sparse& t) { t.columns[1] = 40; }), "below 40, found 40"));
  CHECK(has(sparse([](Sparse& t) { t.columns[1] = 4; }), "found 4 after 4"));
  CHECK(
      has(sparse([](Sparse& t) { t.columns.pop_back(); }), "sparse columns: expected 3, found 2"));
  CHECK(has(sparse([](Sparse& t) { t.values = zeros({3}); }), "sparse values: expected shape"));
  CHECK(has(sparse([](Sparse& t) { t.values.codec = Codec::kInt8; }), "dense or ternary"));
  CHECK(has(refusal({{{-1, Site::kEmbedding}, Sparse{}}}), "sparse: expected a linear"));
}

TEST(core_check_terms_block_chains) {
  // q is [60, 40]: 20 blocks from pairs to triples.
  const auto chain = [](BlockPlacement placement, auto change) {
    BlockDiag term;
    term.placement = placement;
    term.stages.push_back({{}, zeros({20, 3, 2})});
    change(term);
    return refusal({{{0, Site::kQ}, std::move(term)}});
  };
  const auto none = [](BlockDiag&) {};
  CHECK(chain(BlockPlacement::kAdditive, none) == "accepted");
  CHECK(has(chain(BlockPlacement::kPre, none), "expected 40 values at the end of the chain"));
  CHECK(has(chain(BlockPlacement::kPost, none), "stage 0 input: expected 40 values, found 60"));
  const auto additive = [&](auto change) { return chain(BlockPlacement::kAdditive, change); };
  CHECK(has(additive([](BlockDiag& t) { t.stages.clear(); }), "at least one stage"));
  CHECK(has(additive([](BlockDiag& t) { t.scale = std::nanf(""); }), "blockdiag scale"));
  CHECK(has(additive([](BlockDiag& t) { t.stages[0].gather.assign(40, 40); }),
            "stage 0 gather: expected values below 40, found 40"));
  CHECK(has(additive([](BlockDiag& t) { t.stages[0].gather.assign(39, 0); }),
            "gather: expected 40 values, found 39"));
  CHECK(has(additive([](BlockDiag& t) { t.stages.push_back({{}, zeros({7, 1, 9})}); }),
            "stage 1 input: expected 63 values, found 60"));
  CHECK(has(additive([](BlockDiag& t) { t.stages[0].blocks.shape = {20, 6}; }), "any, any, any"));
  CHECK(has(additive([](BlockDiag& t) { t.stages[0].blocks.codec = Codec::kTernary; }),
            "expected dense"));
  CHECK(has(additive([](BlockDiag& t) { t.output.assign(60, 60); }), "output: expected values"));
  CHECK(has(additive([](BlockDiag& t) { t.output.assign(59, 0); }), "end of the chain, found 59"));
  const auto square = [](BlockPlacement placement, float scale) {
    BlockDiag term;
    term.placement = placement;
    term.scale = scale;
    term.stages.push_back({{}, zeros({placement == BlockPlacement::kPost ? 30 : 20, 2, 2})});
    return Term{{0, Site::kQ}, std::move(term)};
  };
  const Term pre = square(BlockPlacement::kPre, 1), post = square(BlockPlacement::kPost, 1);
  CHECK(refusal({pre, post}) == "accepted");
  CHECK(has(refusal({pre, pre}), "at most one"));
  CHECK(has(refusal({post, post}), "at most one"));
  CHECK(has(refusal({square(BlockPlacement::kPre, 2)}), "expected 1 where"));
  CHECK(has(refusal({{{0, Site::kResidualMlp}, BlockDiag{}}}), "blockdiag: expected a linear"));
}

TEST(core_check_model_refusals) {
  CHECK(changed_options([](BackendOptions&) {}) == "accepted");
  CHECK(has(changed_options([](BackendOptions& o) { o.model.vocab = 0; }), "vocabSize"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.hidden = -4; }), "hiddenSize"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.ffn = kMost; }), "ffnSize"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.vocab = o.model.hidden = 1 << 20; }),
            "vocabSize times hiddenSize"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.kv_heads = 4; }), "numKvHeads"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.heads = 1 << 23; }), "numHeads"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.head_dim = 9; }), "headDim"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.layers.clear(); }), "layerWindow"));
  CHECK(
      has(changed_options([](BackendOptions& o) { o.model.layers[1].rope = 2; }), "layerRope[1]"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.layers[1].window = -1; }),
            "layerWindow[1]"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.ropes[0].inv_freq.pop_back(); }),
            "ropeInvFreq[0]"));
  CHECK(has(changed_options([](BackendOptions& o) { o.model.ropes[0].scale = std::nanf(""); }),
            "ropeScale"));
  CHECK(has(changed_options([](BackendOptions& o) { o.dtype = Dtype::kQ4_0; }), "dtype"));
  CHECK(has(changed_options([](BackendOptions& o) { o.max_entries = 5; }), "maxEntries"));
  CHECK(has(changed_options([](BackendOptions& o) {
              o.kv_pages = kMost;
              o.model.head_dim = 1 << 20;
              o.model.hidden = 8;
              for (RopeTable& table : o.model.ropes) table.inv_freq.resize(1 << 19);
            }),
            "kvPages"));
}

}  // namespace manyfold
