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
