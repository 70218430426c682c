// The one forward pass, for every model family and every backend.
#pragma once

#include "../core/backend.h"

namespace manyfold {

// Runs a plan that passed check_plan. Throws what the backend throws; a step that threw leaves the
// backend usable, but the KV slots of its rows hold nothing of worth.
void run_step(const ModelConfig& model, StepOps& ops, const StepPlan& plan, StepResult& result);

}  // namespace manyfold
