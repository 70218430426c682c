// The kernels of the AVX-512 tier. Only dispatch.cpp refers to them, after asking the machine.
#include <cstddef>
#include <cstdint>

#include "../kernels/kernels.h"
#include "tiers.h"

// From here on, so that nothing which other files share is compiled for these instructions.
// GCC 12 warns of its own intrinsics, which leave unused inputs undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")

#include "simd_avx512.h"

#include "../kernels/table.h"

namespace manyfold::avx512 {

struct Tier;

struct Simd : Lanes<Tier> {
  static constexpr bool kDotBf16 = false;
  static constexpr const char* kName = "avx512";
};

}  // namespace manyfold::avx512

namespace manyfold {

const Kernels& avx512_kernels() noexcept {
  static constexpr Kernels kTable = kernels::make_kernels<avx512::Simd>();
  return kTable;
}

}  // namespace manyfold
