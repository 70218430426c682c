// The gate before an engine is made: a ModelConfig and BackendOptions that pass have sizes and
// tables that every backend can rely on. Called by the addon.
#pragma once

#include "backend.h"
#include "model_config.h"

namespace manyfold {

// Throws kInvalidArgument with field, expected and found.
void check_model(const ModelConfig& model);

// check_model, then dtype, pool and batch sizes. Throws kOutOfMemory for a pool beyond any machine.
void check_options(const BackendOptions& options);

}  // namespace manyfold
