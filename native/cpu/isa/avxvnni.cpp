// The kernels of the AVX-VNNI tier: those of AVX2 but for products with int8 and 4-bit weights.
// Only dispatch.cpp refers to them, after asking the machine.
#include <cstddef>
#include <cstdint>

#include "../int8_rows.h"
#include "../kernels/kernels.h"
#include "../q4_rows.h"
#include "tiers.h"

// From here on, so that nothing which other files share is compiled for these instructions.
#pragma GCC target("avx2,fma,f16c")

#include "simd_avxvnni.h"

#include "../kernels/int8.h"
#include "../kernels/q4.h"

namespace manyfold {

const Kernels& avxvnni_kernels() noexcept {
  static const Kernels kTable = []() noexcept {
    Kernels table = avx2_kernels();
    table.isa = "avxvnni";
    table.int8 = kernels::make_int8_kernels<avxvnni::Simd>();
    table.q4 = kernels::make_q4_kernels<avxvnni::Simd>();
    return table;
  }();
  return kTable;
}

}  // namespace manyfold
