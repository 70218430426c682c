// The kernel tables of all tiers that are built. Calling a function of one on a machine without its
// instructions ends the process: callers ask dispatch.h, except tests, which ask for the emulated
// ones.
#pragma once

#include "../kernels/kernels.h"

namespace manyfold {

const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512bf16_kernels();
const Kernels& emulated_kernels();
const Kernels& emulated_bf16_kernels();

}  // namespace manyfold
