// SIMD policy of AVX512-BF16: the lanes of AVX-512, VNNI, and the dot product of bf16 pairs.
// Included by
// isa/avx512bf16.cpp and isa/amx_attention.cpp.
#pragma once

#include "simd_avx512.h"

namespace manyfold::avx512bf16 {

// Base's operations and those of bf16 pairs.
template <class Base>
struct PairLanes : Base {
  using typename Base::F;

  static constexpr bool kDotBf16 = true;
  using Pairs = __m512bh;

  MF_INLINE Pairs load_pairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  MF_INLINE Pairs set_pair(const uint16_t* p) {
    int32_t both;
    __builtin_memcpy(&both, p, 4);
    return (__m512bh)_mm512_set1_epi32(both);
  }
  MF_INLINE Pairs round_pairs(F low, F high) { return _mm512_cvtne2ps_pbh(high, low); }
  MF_INLINE void store_pairs(uint16_t* p, Pairs a) { _mm512_storeu_si512(p, (__m512i)a); }
  MF_INLINE F dot(F sum, Pairs a, Pairs b) { return _mm512_dpbf16_ps(sum, a, b); }
};

struct Tier;

struct Simd : PairLanes<avx512::Vnni<avx512::Lanes<Tier>>> {
  static constexpr const char* kName = "avx512bf16";
};

}  // namespace manyfold::avx512bf16
