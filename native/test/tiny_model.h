// A small random model, adapters of every kind, and step plans that own their arrays: what native
// tests drive backends with.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "../core/backend.h"

namespace manyfold::test {

// Three layers, GQA, q/k norms, post-norms, a sliding window on layer 1, two RoPE tables, untied
// head, odd sizes.
ModelConfig tiny_model();

// Random weights for every site (biases on q, k, v, up and down) through WeightStore::add_weight.
void fill_weights(const ModelConfig& model, WeightStore& store, uint32_t seed = 1);

// Sets: 0 lowrank everywhere, 1 diag and lowrank, 2 overrides, 3 shared prefix of 5 keys, 4 gated
// prefix, 5 bottlenecks, 6 rowcol and sparse, 7 blockdiag, 8 every kind of a linear at once, 9
// lowrank with mid matrices and coded factors.
inline constexpr int32_t kTermKinds = 10;
TermSet tiny_terms(const ModelConfig& model, int32_t kind, uint32_t seed = 1);

// A StepPlan with its arrays. Fields are public so that tests may break them; view() points at what
// they hold then.
struct PlanArrays {
  std::vector<int32_t> row_sequence, row_position, row_token, row_terms, row_gate;
  std::vector<float> rank_gates;
  int32_t gate_width = 0;
  std::vector<float> embeddings;
  std::vector<int32_t> sequence_base, sequence_runs = {0};
  std::vector<uint8_t> run_kind;
  std::vector<int32_t> run_ref, run_tokens, pages, term_sets;
  std::vector<int32_t> entry_row, entry_target, entry_top_logprobs;
  std::vector<float> entry_params;
  std::vector<uint32_t> entry_seed;
  std::vector<int32_t> entry_bias = {0}, bias_ids;
  std::vector<float> bias_values;
  std::vector<int32_t> entry_history = {0}, history_ids, history_counts, entry_mask;
  std::vector<uint32_t> masks;

  StepPlan view() const;
};

// One sequence's part of a step: rows for positions first .. first + count - 1 of `tokens`, on its
// own pages.
struct SequencePart {
  std::vector<int32_t> tokens;   // of the whole sequence so far
  int32_t first = 0, count = 0;  // places in tokens
  std::vector<int32_t> pages;    // enough for first + count tokens
  TermHandle terms = 0;
  int32_t shared_prefix = 0;  // keys of the set's shared prefix
  bool gated_prefix = false;
  int32_t target = kTargetRaw;  // of an entry for every row
};
void add_sequence(PlanArrays& plan, const SequencePart& part);

std::vector<int32_t> random_tokens(int32_t vocab, int32_t count, uint32_t seed);

}  // namespace manyfold::test
