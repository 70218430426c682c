// Between the two files of the emulation.
#pragma once

#include "cuda_runtime.h"

namespace simt {

// Runs all blocks one after another, now.
void run_grid(dim3 grid, dim3 shape, size_t dynamic_bytes, const std::function<void()>& body);

}  // namespace simt
