// The kernels of the AVX512-BF16 tier. Only dispatch.cpp refers to them, after asking the machine.
#include <cstddef>
#include <cstdint>

#include "../kernels/kernels.h"
#include "tiers.h"

// From here on, so that nothing which other files share is compiled for these instructions.
// GCC 12 warns of its own intrinsics, which leave unused inputs undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")

#include "simd_avx512bf16.h"

#include "../kernels/table.h"

namespace manyfold {

const Kernels& avx512bf16_kernels() noexcept {
  static constexpr Kernels kTable = kernels::make_kernels<avx512bf16::Simd>();
  return kTable;
}

}  // namespace manyfold
