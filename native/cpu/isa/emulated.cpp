// The AVX-512 tiers in plain arrays, for native tests on machines without those instructions.
// cpu_isas() never names them.
#include "simd_emulated.h"

#include "../kernels/table.h"
#include "tiers.h"

namespace manyfold {

const Kernels& emulated_kernels() noexcept {
  static constexpr Kernels kTable = kernels::make_kernels<emulated::Simd<false>>();
  return kTable;
}

const Kernels& emulated_bf16_kernels() noexcept {
  static constexpr Kernels kTable = kernels::make_kernels<emulated::Simd<true>>();
  return kTable;
}

}  // namespace manyfold
