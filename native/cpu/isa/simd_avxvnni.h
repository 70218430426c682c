// SIMD policy of AVX2 with AVX-VNNI: its int8 products; the rest is AVX2's. Included by
// isa/avxvnni.cpp and by native/bench.
#pragma once

#include "simd_avx2.h"

namespace manyfold::avxvnni {

struct Simd : avx2::Simd {
  using Int8Input = uint8_t;
  static constexpr int32_t kInt8Depth = 4, kInt8Vectors = 2, kInt8Offset = 128;
  MF_INLINE Bytes load_int8(const int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  MF_INLINE Inputs set_int8(const Int8Input* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  // As text: GCC 12 copies the sums of its own intrinsic to and fro.
  MF_INLINE F dot_int8(F sum, Bytes w, Inputs x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
    return sum;
  }
  MF_INLINE Q4Sum dot_q4(Q4Sum sum, Bytes w, Q4Four x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
    return sum;
  }
  MF_INLINE F q4_float(Q4Sum sum) { return _mm256_cvtepi32_ps(sum); }
  MF_INLINE void store_int8(Int8Input* p, F a) {
    const __m128i words = narrow_int(a);
    const __m128i bytes = _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(-128));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
  }
};

}  // namespace manyfold::avxvnni
