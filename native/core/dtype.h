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

// How a backend holds a matrix of base weights: in its dtype, as int8 with one scale a row
// (cpu/int8_rows.h), or as 4-bit codes in groups of kQ4Group inputs, each with a scale and a
// minimum (cpu/q4_rows.h) in half precision or, kQ4Wide, in float32.
enum class WeightFormat : uint8_t { kPlain, kInt8, kQ4, kQ4Wide };
inline constexpr int32_t kQ4Group = 32;

constexpr bool is_q4(WeightFormat format) {
  return format == WeightFormat::kQ4 || format == WeightFormat::kQ4Wide;
}
constexpr bool is_q4(Dtype dtype) {
  return dtype == Dtype::kQ4_0 || dtype == Dtype::kQ4_1 || dtype == Dtype::kQ4_K;
}
constexpr int32_t q4_groups(int32_t cols) {
  return (cols + kQ4Group - 1) / kQ4Group;
}
// Rows of a 4-bit matrix: value c of a row is d[c / kQ4Group] · codes[c] + m[c / kQ4Group].
struct Q4Rows {
  uint8_t* codes;  // [rows, cols], each 0 to 15
  float* d;        // [rows, q4_groups(cols)]
  float* m;        // likewise
};

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

// Round to nearest even; too large becomes infinity, NaN stays NaN.
inline uint16_t f32_to_f16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  // Bits that are cut off: 13 of a normal number, more of one that becomes subnormal.
  const uint32_t exponent = magnitude >> 23;
  if (exponent < 102) return sign;
  const bool normal = exponent >= 113;
  const uint32_t cut = normal ? 13 : 126 - exponent;
  const uint32_t whole = normal ? magnitude - (112u << 23) : (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t rounded = whole + (1u << (cut - 1)) - 1 + (whole >> cut & 1u);
  return static_cast<uint16_t>(sign | rounded >> cut);
}

}  // namespace manyfold
