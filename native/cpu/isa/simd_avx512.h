// SIMD policies of AVX-512 (F, BW, VL, DQ), with VNNI or without: sixteen float lanes. Included by
// isa/avx512.cpp, isa/avx512vnni.cpp and isa/avx512bf16.cpp. What each operation means is told in
// isa/simd_emulated.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../kernels/inline.h"

namespace manyfold::avx512 {

// The operations that both tiers share. Tier only makes the two instantiations different types.
template <class Tier>
struct Lanes {
  static constexpr int32_t kLanes = 16;
  static constexpr int32_t kRegisters = 32;
  static constexpr int32_t kUnroll = 4;
  static constexpr int32_t kChains = 4;

  using F = __m512;
  using Mask = __mmask16;
  using Codes = __m512i;
  using Index = __m512i;
  using Bytes = __m512i;
  using Inputs = __m512i;

  MF_INLINE F zero() { return _mm512_setzero_ps(); }
  MF_INLINE F set(float x) { return _mm512_set1_ps(x); }
  MF_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  MF_INLINE void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  MF_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  MF_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  MF_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  MF_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  MF_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
  MF_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
  MF_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  MF_INLINE F round(F a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  MF_INLINE F scale_by_power(F a, F n) { return _mm512_scalef_ps(a, n); }
  MF_INLINE F lane_numbers() {
    return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
  MF_INLINE Mask less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  MF_INLINE Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
  MF_INLINE F select(Mask m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }

  MF_INLINE float first(F a) { return _mm512_cvtss_f32(a); }
  MF_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  MF_INLINE float sum(F a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  MF_INLINE float highest(F a) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  MF_INLINE F widen(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  MF_INLINE void split(const uint16_t* p, F& even, F& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536)));
  }
  MF_INLINE void narrow(uint16_t* p, F a) {
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i lowest = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(lowest, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const Mask nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i top = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(top));
  }

  MF_INLINE F widen(const int8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }

  template <int32_t kDistance>
  MF_INLINE F swap(F a) {
    if constexpr (kDistance == 1) return _mm512_permute_ps(a, 0xb1);
    if constexpr (kDistance == 2) return _mm512_permute_ps(a, 0x4e);
    if constexpr (kDistance == 4) return _mm512_shuffle_f32x4(a, a, 0xb1);
    return _mm512_shuffle_f32x4(a, a, 0x4e);
  }

  // Without VNNI: bytes are widened and multiplied in pairs.
  using Int8Input = int16_t;
  static constexpr int32_t kInt8Depth = 2, kInt8Vectors = 2, kInt8Offset = 0;
  MF_INLINE Bytes load_int8(const int8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  MF_INLINE Inputs set_int8(const Int8Input* p) {
    int32_t both;
    __builtin_memcpy(&both, p, 4);
    return _mm512_set1_epi32(both);
  }
  MF_INLINE F dot_int8(F sum, Bytes w, Inputs x) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), _mm512_madd_epi16(w, x)));
  }
  MF_INLINE F from_int32(F sum, const int32_t* correction) {
    return _mm512_cvtepi32_ps(
        _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_loadu_si512(correction)));
  }
  MF_INLINE void store_int8(Int8Input* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(a)));
  }

  using Q4Sum = __m512i;
  using Q4Four = __m512i;
  MF_INLINE Q4Sum q4_zero() { return _mm512_setzero_si512(); }
  MF_INLINE Bytes load_bytes(const std::byte* p) { return _mm512_loadu_si512(p); }
  MF_INLINE void store_bytes(std::byte* p, Bytes a) { _mm512_storeu_si512(p, a); }
  MF_INLINE Bytes low_nibbles(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
  MF_INLINE Bytes high_nibbles(Bytes a) {
    return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15));
  }
  MF_INLINE Q4Four set_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // Pairs of products, 2 · 15 · 127 at most, are summed in int16: eight of them fit.
  MF_INLINE Q4Sum dot_q4(Q4Sum sum, Bytes w, Q4Four x) {
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x));
  }
  MF_INLINE F q4_float(Q4Sum sum) {
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(sum, _mm512_set1_epi16(1)));
  }
  MF_INLINE void store_signed(int8_t* p, F a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
  }
  MF_INLINE F load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  MF_INLINE void store_half(uint16_t* p, F a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }

  MF_INLINE Codes load_codes(const uint32_t* p) { return _mm512_loadu_si512(p); }
  // A permutation takes the low four bits of each code word as the place in a table: two values.
  MF_INLINE F ternary(Codes c) {
    return _mm512_permutexvar_ps(
        c, _mm512_setr_ps(0, 1, -1, 0, 0, 1, -1, 0, 0, 1, -1, 0, 0, 1, -1, 0));
  }
  MF_INLINE F ternary_next(Codes c) {
    return _mm512_permutexvar_ps(
        c, _mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, -1, -1, -1, -1, 0, 0, 0, 0));
  }
  MF_INLINE Codes skip_two(Codes c) { return _mm512_srli_epi32(c, 4); }

  MF_INLINE Index load_index(const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  MF_INLINE Index load_index(const uint32_t* p) { return _mm512_loadu_si512(p); }
  MF_INLINE F gather(const float* x, Index i) { return _mm512_i32gather_ps(i, x, 4); }
  MF_INLINE F gather_signed(const float* x, const uint16_t* p) {
    const __m512i both = load_index(p);
    const __m512i column = _mm512_and_si512(both, _mm512_set1_epi32(0x7fff));
    const Mask used = _mm512_cmpneq_epi32_mask(column, _mm512_set1_epi32(0x7fff));
    const F value = _mm512_mask_i32gather_ps(zero(), used, column, x, 4);
    const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(both, 15), 31);
    return _mm512_xor_ps(value, _mm512_castsi512_ps(sign));
  }
  MF_INLINE F gather_signed(const float* x, const uint8_t* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m512i both = _mm512_cvtepu8_epi32(bytes);
    const __m512i column = _mm512_and_si512(both, _mm512_set1_epi32(0x7f));
    const Mask used = _mm512_cmpneq_epi32_mask(column, _mm512_set1_epi32(0x7f));
    const F value = _mm512_mask_i32gather_ps(zero(), used, column, x, 4);
    const __m512i sign = _mm512_slli_epi32(_mm512_srli_epi32(both, 7), 31);
    return _mm512_xor_ps(value, _mm512_castsi512_ps(sign));
  }

  MF_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
};

// A tier whose machines have AVX512-VNNI: bytes are multiplied four at a time.
template <class Base>
struct Vnni : Base {
  using typename Base::Bytes;
  using typename Base::F;
  using typename Base::Inputs;
  using typename Base::Q4Four;
  using typename Base::Q4Sum;

  using Int8Input = uint8_t;
  static constexpr int32_t kInt8Depth = 4, kInt8Vectors = 4, kInt8Offset = 128;
  MF_INLINE Bytes load_int8(const int8_t* p) { return _mm512_loadu_si512(p); }
  MF_INLINE Inputs set_int8(const Int8Input* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  // GCC 12 copies the sums of its own intrinsic to and fro, which halves the speed.
  MF_INLINE F dot_int8(F sum, Bytes w, Inputs x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
  }
  MF_INLINE Q4Sum dot_q4(Q4Sum sum, Bytes w, Q4Four x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  MF_INLINE F q4_float(Q4Sum sum) { return _mm512_cvtepi32_ps(sum); }
  MF_INLINE void store_int8(Int8Input* p, F a) {
    const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes, _mm_set1_epi8(-128)));
  }
};

}  // namespace manyfold::avx512
