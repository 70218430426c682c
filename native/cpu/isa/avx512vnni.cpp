// The kernels of the AVX512-VNNI tier: those of AVX-512 but for products with int8 and 4-bit
// weights. Only dispatch.cpp refers to them, after asking the machine.
#include <cstddef>
#include <cstdint>

#include "../int8_rows.h"
#include "../kernels/kernels.h"
#include "../q4_rows.h"
#include "tiers.h"

// From here on, so that nothing which other files share is compiled for these instructions.
// GCC 12 warns of its own intrinsics, which leave unused inputs undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")

#include "simd_avx512.h"

#include "../kernels/int8.h"
#include "../kernels/q4.h"

namespace manyfold::avx512vnni {

struct Tier;

struct Simd : avx512::Vnni<avx512::Lanes<Tier>> {};

}  // namespace manyfold::avx512vnni

namespace manyfold {

const Kernels& avx512vnni_kernels() noexcept {
  static const Kernels kTable = []() noexcept {
    Kernels table = avx512_kernels();
    table.isa = "avx512vnni";
    table.int8 = kernels::make_int8_kernels<avx512vnni::Simd>();
    table.q4 = kernels::make_q4_kernels<avx512vnni::Simd>();
    return table;
  }();
  return kTable;
}

}  // namespace manyfold
