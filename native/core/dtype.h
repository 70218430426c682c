// Element and block types of weight files and of what backends hold. Numbers are those of DTYPES in
// src/native/binding-types.ts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace manyfold {

enum class Dtype : uint8_t {
  kF32 = 0,
  kF16 = 1,
  kBf16 = 2,
  kQ8_0 = 3,
  kQ4_0 = 4,
  kQ4_1 = 5,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ4_K = 8,
  kQ5_K = 9,
  kQ6_K = 10,
};
inline constexpr int kDtypeCount = 11;

// How a backend holds matrices of base weights: in its dtype, or as int8 with one scale a row
// (cpu/int8_rows.h).
enum class WeightFormat : uint8_t { kPlain, kInt8 };
// How a backend holds keys and values: in its dtype, or as int8 with one scale a token and head
// (cpu/int8_kv.h).
enum class KvFormat : uint8_t { kPlain, kInt8 };
// Most inputs of an int8 linear: sums of 255 · 127 stay within int32.
inline constexpr int32_t kMostInt8Inputs = 65536;

// Values in one block, and bytes of one block (1 and the element's size for plain types).
struct BlockShape {
  int32_t values;
  int32_t bytes;
};

constexpr BlockShape block_shape(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return {1, 4};
    case Dtype::kF16:
      return {1, 2};
    case Dtype::kBf16:
      return {1, 2};
    case Dtype::kQ8_0:
      return {32, 34};
    case Dtype::kQ4_0:
      return {32, 18};
    case Dtype::kQ4_1:
      return {32, 20};
    case Dtype::kQ5_0:
      return {32, 22};
    case Dtype::kQ5_1:
      return {32, 24};
    case Dtype::kQ4_K:
      return {256, 144};
    case Dtype::kQ5_K:
      return {256, 176};
    case Dtype::kQ6_K:
      return {256, 210};
  }
  return {1, 0};
}

// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float bf16_to_f32(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// IEEE binary16, subnormals included.
inline float f16_to_f32(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  uint32_t exponent = (half >> 10) & 0x1fu;
  uint32_t mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else if (mantissa == 0) {
    bits = sign;
  } else {
    exponent = 113;
    while ((mantissa & 0x400u) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    bits = sign | (exponent << 23) | ((mantissa & 0x3ffu) << 13);
  }
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

}  // namespace manyfold
