// Element types of weights and activations as distinct types, so that kernels are templates over
// them: float, Bf16 and F16 hold the bits, load() and round_to() convert.
#pragma once

#include "language.cuh"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace manyfold::cuda {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

MF_DEVICE float load(float value) {
  return value;
}
MF_DEVICE float load(Bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}
MF_DEVICE float load(F16 value) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(value.bits));
#else
  _Float16 half;
  std::memcpy(&half, &value.bits, 2);
  return static_cast<float>(half);
#endif
}

// Round to nearest even; NaN stays NaN.
template <class T>
MF_DEVICE T round_to(float value);
template <>
MF_DEVICE float round_to<float>(float value) {
  return value;
}
template <>
MF_DEVICE Bf16 round_to<Bf16>(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
MF_DEVICE F16 round_to<F16>(float value) {
#if defined(__CUDACC__)
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const _Float16 half = static_cast<_Float16>(value);
  F16 result;
  std::memcpy(&result.bits, &half, 2);
  return result;
#endif
}

// Two neighbours of one 32-bit word, the lower address first.
template <class T>
MF_DEVICE float2 load_pair(uint32_t word) {
  return make_float2(load(T{static_cast<uint16_t>(word & 0xffffu)}),
                     load(T{static_cast<uint16_t>(word >> 16)}));
}
template <class T>
MF_DEVICE uint32_t round_pair(float first, float second) {
  return static_cast<uint32_t>(round_to<T>(first).bits) |
         static_cast<uint32_t>(round_to<T>(second).bits) << 16;
}

}  // namespace manyfold::cuda
