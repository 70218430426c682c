// The kernels of the AVX2 with FMA tier. Only dispatch.cpp refers to them, after asking the
// machine.
#include <cstddef>
#include <cstdint>

#include "../kernels/kernels.h"
#include "tiers.h"

// From here on, so that nothing which other files share is compiled for these instructions.
#pragma GCC target("avx2,fma,f16c")

#include "simd_avx2.h"

#include "../kernels/table.h"

namespace manyfold {

const Kernels& avx2_kernels() noexcept {
  static constexpr Kernels kTable = kernels::make_kernels<avx2::Simd>();
  return kTable;
}

}  // namespace manyfold
