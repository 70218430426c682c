// SIMD policy of AVX2 with FMA: eight float lanes. Included by isa/avx2.cpp and simd_avxvnni.h.
// What each operation means is told in isa/simd_emulated.h, which does the same in plain arrays.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../kernels/inline.h"

namespace manyfold::avx2 {

struct Simd {
  static constexpr int32_t kLanes = 8;
  static constexpr int32_t kRegisters = 16;
  static constexpr int32_t kUnroll = 4;
  static constexpr int32_t kChains = 2;
  static constexpr bool kDotBf16 = false;
  static constexpr const char* kName = "avx2";

  using F = __m256;
  using Mask = __m256;
  using Codes = __m256i;
  using Index = __m256i;
  using Bytes = __m256i;
  using Inputs = __m256i;

  MF_INLINE F zero() { return _mm256_setzero_ps(); }
  MF_INLINE F set(float x) { return _mm256_set1_ps(x); }
  MF_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  MF_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  MF_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  MF_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  MF_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  MF_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  MF_INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
  MF_INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
  MF_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  MF_INLINE F round(F a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  MF_INLINE F scale_by_power(F a, F n) {
    const __m256i bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23)));
  }
  MF_INLINE F lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
  MF_INLINE Mask less(F a, F b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  MF_INLINE Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  MF_INLINE F select(Mask m, F yes, F no) { return _mm256_blendv_ps(no, yes, m); }

  MF_INLINE float first(F a) { return _mm256_cvtss_f32(a); }
  MF_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  MF_INLINE float sum(F a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  MF_INLINE float highest(F a) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  MF_INLINE F widen(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  MF_INLINE void split(const uint16_t* p, F& even, F& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)));
  }
  MF_INLINE void narrow(uint16_t* p, F a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i lowest = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_add_epi32(bits, _mm256_add_epi32(lowest, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }

  MF_INLINE F widen(const int8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }

  template <int32_t kDistance>
  MF_INLINE F swap(F a) {
    if constexpr (kDistance == 1) return _mm256_permute_ps(a, 0xb1);
    if constexpr (kDistance == 2) return _mm256_permute_ps(a, 0x4e);
    return _mm256_permute2f128_ps(a, a, 1);
  }

  // Bytes are widened and multiplied in pairs: exact, as pmaddubsw on them would not be.
  using Int8Input = int16_t;
  static constexpr int32_t kInt8Depth = 2, kInt8Vectors = 2, kInt8Offset = 0;
  MF_INLINE Bytes load_int8(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  MF_INLINE Inputs set_int8(const Int8Input* p) {
    int32_t both;
    __builtin_memcpy(&both, p, 4);
    return _mm256_set1_epi32(both);
  }
  MF_INLINE F dot_int8(F sum, Bytes w, Inputs x) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), _mm256_madd_epi16(w, x)));
  }
  MF_INLINE F from_int32(F sum, const int32_t* correction) {
    const __m256i less = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(correction));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_castps_si256(sum), less));
  }
  MF_INLINE void store_int8(Int8Input* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_int(a));
  }

  using Q4Sum = __m256i;
  using Q4Four = __m256i;
  MF_INLINE Q4Sum q4_zero() { return _mm256_setzero_si256(); }
  MF_INLINE Bytes load_bytes(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  MF_INLINE void store_bytes(std::byte* p, Bytes a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
  }
  MF_INLINE Bytes low_nibbles(Bytes a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
  MF_INLINE Bytes high_nibbles(Bytes a) {
    return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15));
  }
  MF_INLINE Q4Four set_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  // Pairs of products, 2 · 15 · 127 at most, are summed in int16: eight of them fit.
  MF_INLINE Q4Sum dot_q4(Q4Sum sum, Bytes w, Q4Four x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
  }
  MF_INLINE F q4_float(Q4Sum sum) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
  }
  MF_INLINE void store_signed(int8_t* p, F a) {
    const __m128i words = narrow_int(a);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  MF_INLINE F load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  MF_INLINE void store_half(uint16_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }

  MF_INLINE Codes load_codes(const uint32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  // A permutation takes the low three bits of each code word as the place in a table.
  MF_INLINE F ternary(Codes c) {
    return _mm256_permutevar8x32_ps(_mm256_setr_ps(0, 1, -1, 0, 0, 1, -1, 0), c);
  }
  MF_INLINE F ternary_next(Codes c) { return ternary(_mm256_srli_epi32(c, 2)); }
  MF_INLINE Codes skip_two(Codes c) { return _mm256_srli_epi32(c, 4); }

  MF_INLINE Index load_index(const uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  MF_INLINE Index load_index(const uint32_t* p) { return load_codes(p); }
  MF_INLINE F gather(const float* x, Index i) { return _mm256_i32gather_ps(x, i, 4); }
  MF_INLINE F gather_signed(const float* x, const uint16_t* p) {
    return signed_columns<15>(x, load_index(p));
  }
  MF_INLINE F gather_signed(const float* x, const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return signed_columns<7>(x, _mm256_cvtepu8_epi32(bytes));
  }

  MF_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

  // Rounded to int16.
  MF_INLINE __m128i narrow_int(F a) {
    const __m256i whole = _mm256_cvtps_epi32(a);
    return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  }

 private:
  template <int32_t kBits>
  MF_INLINE F signed_columns(const float* x, Index both) {
    const __m256i none = _mm256_set1_epi32((1 << kBits) - 1);
    const __m256i column = _mm256_and_si256(both, none);
    const __m256i unused = _mm256_cmpeq_epi32(column, none);
    const __m256i used = _mm256_xor_si256(unused, _mm256_set1_epi32(-1));
    const F value = _mm256_mask_i32gather_ps(zero(), x, column, _mm256_castsi256_ps(used), 4);
    const __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(both, kBits), 31);
    return _mm256_xor_ps(value, _mm256_castsi256_ps(sign));
  }
};

}  // namespace manyfold::avx2
