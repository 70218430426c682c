// See check_plan.h. Fields are named as in NativePlan of src/native/binding-types.ts, since its
// maker reads the message.
#include "check_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "error.h"

namespace manyfold {

namespace {

[[noreturn]] void refuse(const char* field, size_t index, const std::string& expected,
                         const std::string& found) {
  fail(ErrorCode::kInvalidArgument, std::string(field) + "[" + std::to_string(index) +
                                        "]: expected " + expected + ", found " + found);
}

void check_length(const char* field, size_t found, size_t expected) {
  if (found == expected) return;
  fail(ErrorCode::kInvalidArgument, std::string(field) + ": expected length " +
                                        std::to_string(expected) + ", found " +
                                        std::to_string(found));
}

void check_at_most(const char* what, size_t found, int32_t limit) {
  if (found <= static_cast<size_t>(limit)) return;
  fail(ErrorCode::kInvalidArgument, std::string(what) + ": expected at most " +
                                        std::to_string(limit) + ", found " + std::to_string(found));
}

// low <= value < high.
void check_range(const char* field, size_t index, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value < high) return;
  refuse(field, index, std::to_string(low) + " to " + std::to_string(high - 1),
         std::to_string(value));
}

// offsets [n + 1]: starts at 0, never falls, ends at `total`.
void check_offsets(const char* field, std::span<const int32_t> offsets, size_t n, size_t total) {
  check_length(field, offsets.size(), n + 1);
  if (offsets[0] != 0) refuse(field, 0, "0", std::to_string(offsets[0]));
  for (size_t i = 0; i < n; ++i) {
    if (offsets[i + 1] < offsets[i]) {
      refuse(field, i + 1, "at least " + std::to_string(offsets[i]),
             std::to_string(offsets[i + 1]));
    }
  }
  if (static_cast<size_t>(offsets[n]) != total)
    refuse(field, n, std::to_string(total), std::to_string(offsets[n]));
}

class PlanChecker {
 public:
  PlanChecker(const StepPlan& plan, const ModelConfig& model, const PlanLimits& limits,
              const LoadedTerms& terms)
      : plan_(plan), model_(model), limits_(limits), terms_(terms) {}

  void check() {
    check_term_sets();
    check_rows();
    check_runs();
    check_slots();
    check_entries();
    check_sampling();
    check_entry_lists();
  }

 private:
  void check_term_sets() const {
    for (size_t i = 0; i < plan_.term_sets.size(); ++i) {
      if (!terms_.contains(plan_.term_sets[i])) {
        refuse("termSets", i, "the handle of a loaded set", std::to_string(plan_.term_sets[i]));
      }
    }
  }

  void check_rows() {
    const size_t rows = plan_.row_position.size();
    if (rows == 0)
      fail(ErrorCode::kInvalidArgument, "rowPosition: expected at least 1 row, found 0");
    check_at_most("rowPosition", rows, limits_.max_rows);
    check_length("rowSequence", plan_.row_sequence.size(), rows);
    check_length("rowToken", plan_.row_token.size(), rows);
    check_length("rowTerms", plan_.row_terms.size(), rows);
    check_length("rowGate", plan_.row_gate.size(), rows);
    check_tables();
    const int64_t embeddings = static_cast<int64_t>(plan_.embeddings.size()) / model_.hidden;
    const int64_t gates = plan_.gate_width == 0
                              ? 0
                              : static_cast<int64_t>(plan_.rank_gates.size()) / plan_.gate_width;
    const int64_t sequences = static_cast<int64_t>(plan_.sequence_base.size());
    std::vector<uint8_t> seen(plan_.sequence_base.size(), 0);
    for (size_t r = 0; r < rows; ++r) {
      check_range("rowSequence", r, plan_.row_sequence[r], 0, sequences);
      check_range("rowToken", r, plan_.row_token[r], -embeddings, model_.vocab);
      check_range("rowTerms", r, plan_.row_terms[r], -1,
                  static_cast<int64_t>(plan_.term_sets.size()));
      check_range("rowGate", r, plan_.row_gate[r], -1, gates);
      check_row_order(r, seen);
    }
    for (size_t s = 0; s < seen.size(); ++s) {
      if (seen[s] == 0) refuse("sequenceBase", s, "a sequence with at least 1 row", "none");
    }
  }

  void check_tables() const {
    if (plan_.gate_width < 0) {
      fail(ErrorCode::kInvalidArgument,
           "gateWidth: expected at least 0, found " + std::to_string(plan_.gate_width));
    }
    const size_t width = static_cast<size_t>(plan_.gate_width);
    if (width == 0 ? !plan_.rank_gates.empty() : plan_.rank_gates.size() % width != 0) {
      fail(ErrorCode::kInvalidArgument, "rankGates: expected a multiple of gateWidth " +
                                            std::to_string(width) + ", found length " +
                                            std::to_string(plan_.rank_gates.size()));
    }
    if (plan_.embeddings.size() % static_cast<size_t>(model_.hidden) != 0) {
      fail(ErrorCode::kInvalidArgument, "embeddings: expected a multiple of " +
                                            std::to_string(model_.hidden) + ", found length " +
                                            std::to_string(plan_.embeddings.size()));
    }
  }

  // Rows of one sequence stand together and ascend.
  void check_row_order(size_t r, std::vector<uint8_t>& seen) const {
    const int32_t sequence = plan_.row_sequence[r];
    const int32_t position = plan_.row_position[r];
    if (r > 0 && plan_.row_sequence[r - 1] == sequence) {
      if (position <= plan_.row_position[r - 1]) {
        refuse("rowPosition", r,
               "more than the row before, " + std::to_string(plan_.row_position[r - 1]),
               std::to_string(position));
      }
      return;
    }
    if (seen[static_cast<size_t>(sequence)] != 0) {
      refuse("rowSequence", r, "rows of one sequence to be consecutive",
             "sequence " + std::to_string(sequence) + " a second time");
    }
    seen[static_cast<size_t>(sequence)] = 1;
    if (position < 0) refuse("rowPosition", r, "at least 0", std::to_string(position));
  }

  void check_runs() {
    const size_t runs = plan_.run_kind.size();
    const size_t sequences = plan_.sequence_base.size();
    check_length("runRef", plan_.run_ref.size(), runs);
    check_length("runTokens", plan_.run_tokens.size(), runs);
    check_offsets("sequenceRuns", plan_.sequence_runs, sequences, runs);
    for (size_t p = 0; p < plan_.pages.size(); ++p)
      check_range("pages", p, plan_.pages[p], 0, limits_.kv_pages);
    slots_.assign(sequences, 0);
    for (size_t s = 0; s < sequences; ++s) check_sequence_runs(s);
  }

  void check_sequence_runs(size_t s) {
    int64_t slots = 0, prefix = 0;
    for (size_t n = static_cast<size_t>(plan_.sequence_runs[s]);
         n < static_cast<size_t>(plan_.sequence_runs[s + 1]); ++n) {
      check_range("runKind", n, plan_.run_kind[n], 0, 3);
      if (plan_.run_kind[n] == static_cast<uint8_t>(RunKind::kPages)) {
        if (slots % kPageTokens != 0) {
          refuse("runTokens", n, "runs before the last to fill their pages",
                 std::to_string(slots) + " tokens before this run");
        }
        slots += check_page_run(n, slots);
      } else {
        prefix += check_prefix_run(n);
      }
    }
    if (plan_.sequence_base[s] != prefix) {
      refuse("sequenceBase", s, "the number of its runs' prefix keys, " + std::to_string(prefix),
             std::to_string(plan_.sequence_base[s]));
    }
    slots_[s] = slots;
  }

  // Returns the run's tokens.
  int64_t check_page_run(size_t n, int64_t slots_before) const {
    const int64_t pool_tokens = static_cast<int64_t>(limits_.kv_pages) * kPageTokens;
    const int64_t tokens = plan_.run_tokens[n];
    check_range("runTokens", n, tokens, 1, pool_tokens - slots_before + 1);
    const int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
    check_range("runRef", n, plan_.run_ref[n], 0,
                static_cast<int64_t>(plan_.pages.size()) - pages + 1);
    return tokens;
  }

  // Returns the number of positions that the run's keys take.
  int64_t check_prefix_run(size_t n) const {
    check_range("runRef", n, plan_.run_ref[n], 0, static_cast<int64_t>(plan_.term_sets.size()));
    if (plan_.run_tokens[n] != 0)
      refuse("runTokens", n, "0 for a prefix", std::to_string(plan_.run_tokens[n]));
    const TermHandle handle = plan_.term_sets[static_cast<size_t>(plan_.run_ref[n])];
    const TermFacts& facts = terms_.at(handle);
    const bool gated = plan_.run_kind[n] == static_cast<uint8_t>(RunKind::kGatedPrefix);
    if (gated ? !facts.gated_prefix : facts.shared_prefix == 0) {
      refuse("runRef", n, gated ? "a set with a gated prefix" : "a set with a shared prefix",
             "handle " + std::to_string(handle) + " without one");
    }
    return gated ? 0 : facts.shared_prefix;
  }

  // Every row has its KV slot, and no two rows of the step write the same one.
  void check_slots() {
    std::vector<std::pair<int64_t, size_t>> written;  // (page · kPageTokens + offset, row)
    written.reserve(plan_.row_position.size());
    for (size_t r = 0; r < plan_.row_position.size(); ++r) {
      const size_t s = static_cast<size_t>(plan_.row_sequence[r]);
      const int64_t base = plan_.sequence_base[s];
      check_range("rowPosition", r, plan_.row_position[r], base, base + slots_[s]);
      written.emplace_back(pool_slot(s, plan_.row_position[r] - base), r);
    }
    std::sort(written.begin(), written.end());
    for (size_t i = 1; i < written.size(); ++i) {
      if (written[i].first == written[i - 1].first) {
        refuse("rowPosition", written[i].second, "a KV slot of its own",
               "page " + std::to_string(written[i].first / kPageTokens) + " offset " +
                   std::to_string(written[i].first % kPageTokens) + ", which row " +
                   std::to_string(written[i - 1].second) + " writes too");
      }
    }
  }

  int64_t pool_slot(size_t s, int64_t slot) const {
    for (size_t n = static_cast<size_t>(plan_.sequence_runs[s]);
         n < static_cast<size_t>(plan_.sequence_runs[s + 1]); ++n) {
      if (plan_.run_kind[n] != static_cast<uint8_t>(RunKind::kPages)) continue;
      if (slot < plan_.run_tokens[n]) {
        const size_t page = static_cast<size_t>(plan_.run_ref[n] + slot / kPageTokens);
        return static_cast<int64_t>(plan_.pages[page]) * kPageTokens + slot % kPageTokens;
      }
      slot -= plan_.run_tokens[n];
    }
    fail(ErrorCode::kBug, "a KV slot beyond the runs passed its range check; this is a bug");
  }

  void check_entries() const {
    const size_t entries = plan_.entry_row.size();
    check_at_most("entryRow", entries, limits_.max_entries);
    check_length("entryTarget", plan_.entry_target.size(), entries);
    check_length("entryTopLogprobs", plan_.entry_top_logprobs.size(), entries);
    check_length("entryParams", plan_.entry_params.size(), entries * kEntryParams);
    check_length("entrySeed", plan_.entry_seed.size(), entries * 4);
    check_length("entryMask", plan_.entry_mask.size(), entries);
    std::vector<uint8_t> seen(plan_.row_position.size(), 0);
    for (size_t e = 0; e < entries; ++e) {
      check_range("entryRow", e, plan_.entry_row[e], 0, plan_.rows());
      uint8_t& row = seen[static_cast<size_t>(plan_.entry_row[e])];
      if (row != 0)
        refuse("entryRow", e, "at most one entry a row",
               "row " + std::to_string(plan_.entry_row[e]) + " again");
      row = 1;
      check_range("entryTarget", e, plan_.entry_target[e], kTargetRaw, model_.vocab);
      check_range("entryTopLogprobs", e, plan_.entry_top_logprobs[e], -1,
                  static_cast<int64_t>(model_.vocab) + 1);
      if (plan_.entry_target[e] == kTargetRaw && plan_.entry_top_logprobs[e] != -1) {
        refuse("entryTopLogprobs", e, "-1 for an entry that copies raw logits out",
               std::to_string(plan_.entry_top_logprobs[e]));
      }
    }
  }

  void check_sampling() const {
    constexpr float kMost = std::numeric_limits<float>::max();
    constexpr float kTiny = std::numeric_limits<float>::denorm_min();
    struct Rule {
      EntryParam param;
      const char* name;
      float low, high;
    };
    static constexpr Rule kRules[] = {
        {kTemperature, "temperature", 0.0f, kMost},
        {kTopK, "topK", 0.0f, 16777216.0f},
        {kTopP, "topP", kTiny, 1.0f},
        {kMinP, "minP", 0.0f, 1.0f},
        {kRepetition, "repetition", kTiny, kMost},
        {kFrequency, "frequency", -kMost, kMost},
        {kPresence, "presence", -kMost, kMost},
    };
    for (size_t e = 0; e < plan_.entry_row.size(); ++e) {
      for (const Rule& rule : kRules) {
        const float value = plan_.entry_params[e * kEntryParams + rule.param];
        const bool whole = rule.param != kTopK || value == std::floor(value);
        if (value >= rule.low && value <= rule.high && whole) continue;
        refuse("entryParams", e * kEntryParams + rule.param,
               std::string(rule.name) +
                   (rule.param == kTopK ? " as a whole number from " : " from ") +
                   std::to_string(rule.low) + " to " + std::to_string(rule.high),
               std::to_string(value));
      }
    }
  }

  void check_entry_lists() const {
    const size_t entries = plan_.entry_row.size();
    check_offsets("entryBias", plan_.entry_bias, entries, plan_.bias_ids.size());
    check_length("biasValues", plan_.bias_values.size(), plan_.bias_ids.size());
    for (size_t i = 0; i < plan_.bias_ids.size(); ++i) {
      check_range("biasIds", i, plan_.bias_ids[i], 0, model_.vocab);
      const float value = plan_.bias_values[i];
      if (!(value <= std::numeric_limits<float>::max())) {  // NaN too; -infinity bans
        refuse("biasValues", i, "a finite number or -Infinity", std::to_string(value));
      }
    }
    check_offsets("entryHistory", plan_.entry_history, entries, plan_.history_ids.size());
    check_length("historyCounts", plan_.history_counts.size(), plan_.history_ids.size());
    for (size_t i = 0; i < plan_.history_ids.size(); ++i) {
      check_range("historyIds", i, plan_.history_ids[i], 0, model_.vocab);
      check_range("historyCounts", i, plan_.history_counts[i], 0,
                  std::numeric_limits<int32_t>::max());
    }
    const size_t words = (static_cast<size_t>(model_.vocab) + 31) / 32;
    if (plan_.masks.size() % words != 0) {
      fail(ErrorCode::kInvalidArgument, "masks: expected a multiple of " + std::to_string(words) +
                                            " words, found length " +
                                            std::to_string(plan_.masks.size()));
    }
    const int64_t masks = static_cast<int64_t>(plan_.masks.size() / words);
    for (size_t e = 0; e < entries; ++e)
      check_range("entryMask", e, plan_.entry_mask[e], -1, masks);
  }

  const StepPlan& plan_;
  const ModelConfig& model_;
  const PlanLimits& limits_;
  const LoadedTerms& terms_;
  std::vector<int64_t> slots_;  // [S] KV slots that the runs of each sequence give
};

}  // namespace

void check_plan(const StepPlan& plan, const ModelConfig& model, const PlanLimits& limits,
                const LoadedTerms& terms) {
  PlanChecker(plan, model, limits, terms).check();
}

}  // namespace manyfold
