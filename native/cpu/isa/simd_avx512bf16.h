// SIMD policy of AVX512-BF16: the lanes of AVX-512, VNNI, and the dot product of bf16 pairs.
// Included by isa/avx512bf16.cpp alone.
#pragma once

#include "simd_avx512.h"

namespace manyfold::avx512bf16 {

struct Tier;

struct Simd : avx512::Vnni<avx512::Lanes<Tier>> {
  static constexpr bool kDotBf16 = true;
  static constexpr const char* kName = "avx512bf16";

  using Pairs = __m512bh;

  MF_INLINE Pairs load_pairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  MF_INLINE Pairs set_pair(const uint16_t* p) {
    int32_t both;
    __builtin_memcpy(&both, p, 4);
    return (__m512bh)_mm512_set1_epi32(both);
  }
  MF_INLINE F dot(F sum, Pairs a, Pairs b) { return _mm512_dpbf16_ps(sum, a, b); }
};

}  // namespace manyfold::avx512bf16
