// The forward pass over the reference backend: rows do not depend on chunks, neighbours or pages,
// terms act as they are defined, and counters tell what was read. Equality with transformers and
// with float64 is test/parity-*.test.ts.
#include "../model/forward.h"

#include <cmath>

#include "../core/check_plan.h"
#include "check.h"
#include "tiny_model.h"

namespace manyfold {
namespace {

using test::PlanArrays;
using test::SequencePart;

struct Setup {
  ModelConfig model = test::tiny_model();
  std::unique_ptr<Backend> backend;
  LoadedTerms loaded;
  std::vector<TermHandle> handles;  // [kTermKinds]

  explicit Setup(Dtype dtype = Dtype::kF32) {
    BackendOptions options;
    options.model = model;
    options.dtype = dtype;
    options.isa = "scalar";
    options.kv_pages = 64;
    options.max_rows = 160;
    options.max_entries = 160;
    backend = make_cpu_backend(options);
    test::fill_weights(model, backend->weights());
    for (int32_t kind = 0; kind < test::kTermKinds; ++kind) {
      TermSet terms = test::tiny_terms(model, kind);
      const TermFacts facts = term_facts(terms);
      handles.push_back(backend->terms().load_terms(std::move(terms)));
      loaded.emplace(handles.back(), facts);
    }
  }

  std::vector<float> run(const PlanArrays& arrays) {
    const StepPlan plan = arrays.view();
    check_plan(plan, model, {64, 160, 160}, loaded);
    StepResult result;
    run_step(model, backend->ops(), plan, result);
    return result.raw_logits;
  }

  // kind -1: the base.
  SequencePart part(int32_t kind, int32_t tokens, int32_t first_page) const {
    SequencePart part;
    part.tokens = test::random_tokens(model.vocab, tokens, static_cast<uint32_t>(kind + 10));
    part.count = tokens;
    for (int32_t p = 0; p * kPageTokens < tokens; ++p) part.pages.push_back(first_page + p);
    if (kind < 0) return part;
    part.terms = handles[static_cast<size_t>(kind)];
    const TermFacts& facts = loaded.at(part.terms);
    part.shared_prefix = facts.shared_prefix;
    part.gated_prefix = facts.gated_prefix;
    return part;
  }

  std::vector<float> alone(const SequencePart& part) {
    PlanArrays plan;
    test::add_sequence(plan, part);
    return run(plan);
  }
};

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : 1e9;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  return largest;
}

}  // namespace

TEST(model_forward_rows_are_independent) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
    Setup setup(dtype);
    PlanArrays mixed;
    std::vector<float> expected;
    int32_t page = 0;
    for (int32_t kind = -1; kind < test::kTermKinds; ++kind) {
      const SequencePart whole = setup.part(kind, 17 - kind, page);
      const std::vector<float> logits = setup.alone(whole);
      expected.insert(expected.end(), logits.begin(), logits.end());
      for (const float x : logits) CHECK(std::isfinite(x));

      std::vector<float> chunked;
      for (const int32_t chunk : {1, 7}) {
        chunked.clear();
        for (int32_t first = 0; first < whole.count; first += chunk) {
          SequencePart part = whole;
          part.first = first;
          part.count = std::min(chunk, whole.count - first);
          for (int32_t& p : part.pages) p = 60 - p;  // other pages, backwards
          const std::vector<float> rows = setup.alone(part);
          chunked.insert(chunked.end(), rows.begin(), rows.end());
        }
        CHECK(chunked == logits);
      }
      test::add_sequence(mixed, whole);
      page += 2;
    }
    CHECK(setup.run(mixed) == expected);
  }
}

TEST(model_forward_terms_act) {
  Setup setup;
  for (int32_t kind = 0; kind < test::kTermKinds; ++kind) {
    SequencePart adapted = setup.part(kind, 12, 0);
    SequencePart base = adapted;
    base.terms = 0;
    base.shared_prefix = 0;
    base.gated_prefix = false;
    CHECK(largest_difference(setup.alone(adapted), setup.alone(base)) > 1e-2);
  }
}

TEST(model_forward_rank_gates) {
  Setup setup;
  const SequencePart part = setup.part(0, 6, 0);
  PlanArrays plan;
  test::add_sequence(plan, part);
  const std::vector<float> plain = setup.run(plan);
  plan.gate_width = 4;
  plan.rank_gates.assign(8, 1.0f);
  for (int32_t& gate : plan.row_gate) gate = 1;
  CHECK(setup.run(plan) == plain);
  plan.gate_width = 9;  // every rank there is
  plan.rank_gates.assign(9, 0.0f);
  for (int32_t& gate : plan.row_gate) gate = 0;
  SequencePart base = part;
  base.terms = 0;
  CHECK(setup.run(plan) == setup.alone(base));
}

TEST(model_forward_embeddings_by_value) {
  Setup setup;
  PlanArrays plan;
  SequencePart part = setup.part(-1, 6, 0);
  test::add_sequence(plan, part);
  const std::vector<float> expected = setup.run(plan);
  plan.embeddings.resize(static_cast<size_t>(setup.model.hidden) * 2);
  float* row = plan.embeddings.data() + setup.model.hidden;
  setup.backend->weights().read_weight({-1, Site::kEmbedding}, WeightPart::kWeight, part.tokens[2],
                                       1, row);
  for (int32_t i = 0; i < setup.model.hidden; ++i) row[i] *= setup.model.embed_scale;
  plan.row_token[2] = -2;
  CHECK(setup.run(plan) == expected);
}

TEST(model_forward_window) {
  // Layers 0 and 2 see everything; with all layers windowed, tokens before the window cannot
  // matter.
  Setup setup;
  ModelConfig model = setup.model;
  for (LayerConfig& layer : model.layers) layer.window = 2;
  BackendOptions options;
  options.model = model;
  options.dtype = Dtype::kF32;
  options.isa = "scalar";
  options.kv_pages = 8;
  options.max_rows = options.max_entries = 64;
  const std::unique_ptr<Backend> backend = make_cpu_backend(options);
  test::fill_weights(model, backend->weights());
  const auto last_row = [&](int32_t first_token) {
    SequencePart part = setup.part(-1, 8, 0);
    part.tokens[0] = first_token;
    PlanArrays plan;
    test::add_sequence(plan, part);
    StepResult result;
    run_step(model, backend->ops(), plan.view(), result);
    return std::vector<float>(result.raw_logits.end() - model.vocab, result.raw_logits.end());
  };
  CHECK(last_row(1) == last_row(2));  // three layers of window 2 reach back 3 tokens
}

TEST(model_forward_counters) {
  Setup setup;
  PlanArrays plan;
  for (int32_t i = 0; i < 4; ++i) test::add_sequence(plan, setup.part(i % 2, 3, i));
  plan.term_sets[2] = plan.term_sets[0];
  plan.term_sets[3] = plan.term_sets[1];
  setup.run(plan);
  const Counters counters = setup.backend->counters();
  const int64_t linears = 3 * 7 + 1;
  CHECK(counters.steps == 1);
  CHECK(counters.rows == 12);
  CHECK(counters.base_linear_reads == linears);
  CHECK(counters.term_reads == 2 * (linears + 1));  // the embedding has a lowrank term too
}

}  // namespace manyfold
