// One step, as plain spans that the caller keeps alive. Field by field the same as NativePlan and
// NativeResult of src/native/binding-types.ts, which tells what each means. Made by the addon,
// checked by check_plan, read by backends.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace manyfold {

// Tokens of a KV page, and of a tile of attention: sums over keys are taken tile by tile at fixed
// absolute positions, so that a row's bits do not depend on chunking, placement or neighbours.
inline constexpr int32_t kPageTokens = 16;
inline constexpr int32_t kAttentionTile = 64;

enum class RunKind : uint8_t { kPages = 0, kPrefix = 1, kGatedPrefix = 2 };

struct StepPlan {
  std::span<const int32_t> row_sequence, row_position, row_token, row_terms, row_gate;
  std::span<const float> rank_gates;
  int32_t gate_width = 0;
  std::span<const float> embeddings;

  std::span<const int32_t> sequence_base;  // [S]
  std::span<const int32_t> sequence_runs;  // [S + 1]
  std::span<const uint8_t> run_kind;
  std::span<const int32_t> run_ref, run_tokens;
  std::span<const int32_t> pages;
  std::span<const int32_t> term_sets;  // [T] TermHandle

  std::span<const int32_t> entry_row, entry_target, entry_top_logprobs;
  std::span<const float> entry_params;   // [E * 8]
  std::span<const uint32_t> entry_seed;  // [E * 4]
  std::span<const int32_t> entry_bias, bias_ids;
  std::span<const float> bias_values;
  std::span<const int32_t> entry_history, history_ids, history_counts;
  std::span<const int32_t> entry_mask;
  std::span<const uint32_t> masks;

  int32_t rows() const { return static_cast<int32_t>(row_position.size()); }
  int32_t sequences() const { return static_cast<int32_t>(sequence_base.size()); }
  int32_t entries() const { return static_cast<int32_t>(entry_row.size()); }
};

struct StepResult {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> ranks;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
  std::vector<float> raw_logits;
  int64_t step_ns = 0;
};

// Indices into entry_params, 8 a row.
enum EntryParam {
  kTemperature,
  kTopK,
  kTopP,
  kMinP,
  kRepetition,
  kFrequency,
  kPresence,
  kEntryParamUnused
};
inline constexpr int32_t kEntryParams = 8;
inline constexpr int32_t kTargetSample = -1;
inline constexpr int32_t kTargetRaw = -2;
// In StepResult::tokens of a raw entry, and of one whose logits leave no token to choose (see
// NativeResult.tokens).
inline constexpr int32_t kTokenNone = -1;
inline constexpr int32_t kTokenImpossible = -2;

}  // namespace manyfold
