// The gate before a step: whatever the caller made, a plan that passes can be run by a backend
// without any further range check. Called by the addon on the engine's thread before
// model/run_step.
#pragma once

#include <unordered_map>

#include "check_terms.h"
#include "model_config.h"
#include "step.h"

namespace manyfold {

struct PlanLimits {
  int32_t kv_pages = 0;
  int32_t max_rows = 0;
  int32_t max_entries = 0;
};

// Sets that are loaded now.
using LoadedTerms = std::unordered_map<TermHandle, TermFacts>;

// Throws kInvalidArgument with field, index, expected and found. Checked: lengths, every index,
// that rows of a sequence are consecutive and ascend, that runs cover the rows' KV slots and no two
// rows write one slot, that a sequence's base is the length of its shared prefixes, and the ranges
// of all sampling parameters.
void check_plan(const StepPlan& plan, const ModelConfig& model, const PlanLimits& limits,
                const LoadedTerms& terms);

}  // namespace manyfold
