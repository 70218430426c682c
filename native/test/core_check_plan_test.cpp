// check_plan is the only gate before backends: whatever it lets pass must run without a bad access.
// Random damage to good plans is either refused or run, on the reference and on the fast backend;
// under the sanitizers an access out of bounds ends the test.
#include "../core/check_plan.h"

#include <cstring>
#include <random>

#include "../core/error.h"
#include "../model/forward.h"
#include "check.h"
#include "tiny_model.h"

namespace manyfold {
namespace {

using test::PlanArrays;
using test::SequencePart;

constexpr PlanLimits kLimits{16, 48, 48};

struct Fixture {
  ModelConfig model = test::tiny_model();
  std::unique_ptr<Backend> backend;
  LoadedTerms loaded;
  std::vector<TermHandle> handles;

  explicit Fixture(const std::string& isa = "scalar") {
    BackendOptions options;
    options.model = model;
    options.dtype = Dtype::kF32;
    options.isa = isa;
    options.threads = 2;
    options.kv_pages = kLimits.kv_pages;
    options.max_rows = kLimits.max_rows;
    options.max_entries = kLimits.max_entries;
    backend = make_cpu_backend(options);
    test::fill_weights(model, backend->weights());
    for (const int32_t kind : {0, 3, 4}) {
      TermSet terms = test::tiny_terms(model, kind);
      const TermFacts facts = term_facts(terms);
      handles.push_back(backend->terms().load_terms(std::move(terms)));
      loaded.emplace(handles.back(), facts);
    }
  }

  // Base, lowrank, shared prefix, gated prefix; two page runs for the last.
  PlanArrays good_plan() const {
    PlanArrays plan;
    for (int32_t s = 0; s < 4; ++s) {
      SequencePart part;
      part.count = 2 + s;
      part.tokens = test::random_tokens(model.vocab, part.count, static_cast<uint32_t>(s));
      part.pages = {s};
      part.target = kTargetSample;
      if (s > 0) part.terms = handles[static_cast<size_t>(s - 1)];
      part.shared_prefix = s == 2 ? 5 : 0;
      part.gated_prefix = s == 3;
      test::add_sequence(plan, part);
    }
    SequencePart longer;
    longer.tokens = test::random_tokens(model.vocab, 20, 9);
    longer.first = 14;
    longer.count = 6;
    longer.pages = {9, 4};
    test::add_sequence(plan, longer);
    // The same KV as two runs.
    plan.run_tokens.back() = 16;
    plan.run_kind.push_back(0);
    plan.run_ref.push_back(plan.run_ref.back() + 1);
    plan.run_tokens.push_back(4);
    ++plan.sequence_runs.back();
    plan.gate_width = 3;
    plan.rank_gates = {1, 0, 0.5f, 0, 1, 2};
    plan.row_gate[0] = 1;
    plan.embeddings.assign(static_cast<size_t>(model.hidden), 0.1f);
    plan.row_token[1] = -1;
    plan.masks = {0xffffffffu, 0x1fffffffu};
    plan.entry_mask[0] = 0;
    return plan;
  }

  bool refused(const PlanArrays& plan, const std::string& field) const {
    try {
      check_plan(plan.view(), model, kLimits, loaded);
      return false;
    } catch (const Error& error) {
      const bool named = std::string(error.what()).starts_with(field);
      CHECK_THAT(named, std::string("expected ") + field + " to be named, found: " + error.what());
      return error.code() == ErrorCode::kInvalidArgument;
    }
  }
};

template <typename T>
void damage(std::vector<T>& values, std::mt19937& random) {
  static constexpr int32_t kValues[] = {
      -2147483647 - 1, -3, -2, -1, 0, 1, 2, 5, 15, 16, 17, 60, 61, 1 << 20, 2147483647};
  const int32_t value = kValues[random() % std::size(kValues)];
  switch (random() % 4) {
    case 0:
      if (!values.empty()) values.pop_back();
      break;
    case 1:
      values.push_back(static_cast<T>(value));
      break;
    default:
      if (!values.empty()) values[random() % values.size()] = static_cast<T>(value);
      break;
  }
}

void damage_plan(PlanArrays& p, std::mt19937& random) {
  std::vector<int32_t>* ints[] = {
      &p.row_sequence,  &p.row_position,  &p.row_token,    &p.row_terms,          &p.row_gate,
      &p.sequence_base, &p.sequence_runs, &p.run_ref,      &p.run_tokens,         &p.pages,
      &p.term_sets,     &p.entry_row,     &p.entry_target, &p.entry_top_logprobs, &p.entry_bias,
      &p.bias_ids,      &p.entry_history, &p.history_ids,  &p.history_counts,     &p.entry_mask};
  std::vector<float>* floats[] = {&p.rank_gates, &p.embeddings, &p.entry_params, &p.bias_values};
  const uint32_t choice = random() % 28;
  if (choice < std::size(ints)) return damage(*ints[choice], random);
  if (choice < 24) return damage(*floats[choice - 20], random);
  if (choice == 24) return damage(p.run_kind, random);
  if (choice == 25) return damage(p.masks, random);
  if (choice == 26) return damage(p.entry_seed, random);
  p.gate_width = static_cast<int32_t>(random() % 5) - 1;
}

}  // namespace

TEST(core_check_plan_good) {
  Fixture fixture;
  const PlanArrays plan = fixture.good_plan();
  check_plan(plan.view(), fixture.model, kLimits, fixture.loaded);
  StepResult result;
  run_step(fixture.model, fixture.backend->ops(), plan.view(), result);
  CHECK(result.tokens.size() == plan.entry_row.size());
}

TEST(core_check_plan_names_fields) {
  Fixture fixture;
  PlanArrays plan = fixture.good_plan();
  plan.run_tokens[plan.run_tokens.size() - 2] = 15;
  CHECK(fixture.refused(plan, "runTokens"));
  plan = fixture.good_plan();
  plan.sequence_base[2] = 4;
  CHECK(fixture.refused(plan, "sequenceBase[2]"));
  plan = fixture.good_plan();
  plan.term_sets[1] = 1000;
  CHECK(fixture.refused(plan, "termSets[1]"));
  plan = fixture.good_plan();
  plan.pages[1] = plan.pages[0];
  CHECK(fixture.refused(plan, "rowPosition"));
  plan = fixture.good_plan();
  std::swap(plan.row_sequence[0], plan.row_sequence[5]);
  CHECK(fixture.refused(plan, "row"));
  plan = PlanArrays();
  CHECK(fixture.refused(plan, "rowPosition: expected at least 1"));
}

TEST(core_check_plan_survives_damage) {
  for (const char* isa : {"scalar", "auto"}) {
    Fixture fixture(isa);
    std::mt19937 random(5);
    int32_t ran = 0, refused = 0;
    for (int32_t round = 0; round < 3000; ++round) {
      PlanArrays plan = fixture.good_plan();
      for (uint32_t n = random() % 3 + 1; n > 0; --n) damage_plan(plan, random);
      try {
        check_plan(plan.view(), fixture.model, kLimits, fixture.loaded);
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::kInvalidArgument);
        ++refused;
        continue;
      }
      if (++ran % 8 != 0) continue;  // a step costs a thousand checks
      StepResult result;
      run_step(fixture.model, fixture.backend->ops(), plan.view(), result);
    }
    CHECK(ran > 100);
    CHECK(refused > 1000);
  }
}

}  // namespace manyfold
