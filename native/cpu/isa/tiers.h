// The kernel tables of all tiers that are built. Calling a function of one on a machine without its
// instructions ends the process: callers ask dispatch.h, except tests, which ask for the emulated
// ones.
#pragma once

#include "../kernels/kernels.h"

namespace manyfold {

const Kernels& avx2_kernels() noexcept;
const Kernels& avxvnni_kernels() noexcept;
const Kernels& avx512_kernels() noexcept;
const Kernels& avx512vnni_kernels() noexcept;
const Kernels& avx512bf16_kernels() noexcept;
const Kernels& amx_kernels() noexcept;
const Kernels& emulated_kernels() noexcept;
const Kernels& emulated_bf16_kernels() noexcept;

}  // namespace manyfold
