// The SIMD policy of the AVX-512 tiers in plain arrays: it says what each operation means, and it
// lets machines without AVX-512 run that tier's code paths, packed layouts and tails. Included by
// isa/emulated.cpp alone, for native tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../../core/dtype.h"
#include "../kernels/inline.h"

// Not inlined: unrolled tiles of sixteen-lane loops would take minutes to compile.
#define MF_CALL [[gnu::noinline]] static

namespace manyfold::emulated {

template <bool kWithDot>
struct Simd {
  static constexpr int32_t kLanes = 16;
  static constexpr int32_t kRegisters = 32;
  // Steps of a tile's loop that are written out one after the other.
  static constexpr int32_t kUnroll = 1;
  // Sums of one inner product of an adapter's REDUCE that run beside each other.
  static constexpr int32_t kChains = 4;
  // Whether bf16 weights are multiplied in pairs, by bf16 inputs.
  static constexpr bool kDotBf16 = kWithDot;
  static constexpr const char* kName = kWithDot ? "emulated-bf16" : "emulated";

  struct F {
    float lane[kLanes];
  };
  struct Mask {
    bool lane[kLanes];
  };
  struct Pairs {
    uint16_t half[2 * kLanes];
  };
  struct Codes {
    uint32_t word[kLanes];
  };
  using Index = Codes;
  struct Bytes {
    int8_t value[4 * kLanes];
  };

  MF_CALL F zero() { return set(0.0f); }
  MF_CALL F set(float x) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = x;
    return out;
  }
  // Neither load nor store wants alignment.
  MF_CALL F load(const float* p) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = p[i];
    return out;
  }
  MF_CALL void store(float* p, const F& x) { std::memcpy(p, x.lane, sizeof(x.lane)); }
  MF_CALL F add(const F& a, const F& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] + b.lane[i];
    return out;
  }
  MF_CALL F sub(const F& a, const F& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] - b.lane[i];
    return out;
  }
  MF_CALL F mul(const F& a, const F& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] * b.lane[i];
    return out;
  }
  MF_CALL F div(const F& a, const F& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] / b.lane[i];
    return out;
  }
  // The second operand where either is NaN.
  MF_CALL F max(const F& a, const F& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i)
      out.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return out;
  }
  MF_CALL F min(const F& a, const F& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i)
      out.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return out;
  }
  // a · b + c, rounded once.
  MF_CALL F fma(const F& a, const F& b, const F& c) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = std::fma(a.lane[i], b.lane[i], c.lane[i]);
    return out;
  }
  // To the nearest integer, ties to even.
  MF_CALL F round(const F& a) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = std::nearbyint(a.lane[i]);
    return out;
  }
  // a · 2^n for integers n of -126 .. 127.
  MF_CALL F scale_by_power(const F& a, const F& n) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i)
      out.lane[i] = std::ldexp(a.lane[i], static_cast<int>(n.lane[i]));
    return out;
  }
  MF_CALL F lane_numbers() {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = static_cast<float>(i);
    return out;
  }
  // False where either is NaN.
  MF_CALL Mask less(const F& a, const F& b) {
    Mask out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] < b.lane[i];
    return out;
  }
  MF_CALL Mask both(const Mask& a, const Mask& b) {
    Mask out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i] && b.lane[i];
    return out;
  }
  MF_CALL F select(const Mask& m, const F& yes, const F& no) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = m.lane[i] ? yes.lane[i] : no.lane[i];
    return out;
  }

  MF_CALL float first(const F& a) { return a.lane[0]; }
  // a · b + c of single floats, rounded once.
  MF_CALL float fused(float a, float b, float c) { return std::fma(a, b, c); }
  // Across lanes, halves folded on halves: the order of every tier.
  MF_CALL float sum(F a) {
    for (int32_t n = kLanes / 2; n > 0; n /= 2) {
      for (int32_t i = 0; i < n; ++i) a.lane[i] += a.lane[i + n];
    }
    return a.lane[0];
  }
  MF_CALL float highest(F a) {
    for (int32_t n = kLanes / 2; n > 0; n /= 2) {
      for (int32_t i = 0; i < n; ++i) {
        a.lane[i] = a.lane[i] > a.lane[i + n] ? a.lane[i] : a.lane[i + n];
      }
    }
    return a.lane[0];
  }

  // kLanes bf16 values.
  MF_CALL F widen(const uint16_t* p) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = to_float(p[i]);
    return out;
  }
  // 2 · kLanes bf16 values: those at even and at odd places.
  MF_CALL void split(const uint16_t* p, F& even, F& odd) {
    for (int32_t i = 0; i < kLanes; ++i) even.lane[i] = to_float(p[2 * i]);
    for (int32_t i = 0; i < kLanes; ++i) odd.lane[i] = to_float(p[2 * i + 1]);
  }
  // kLanes values rounded to bf16, nearest even.
  MF_CALL void narrow(uint16_t* p, const F& a) {
    for (int32_t i = 0; i < kLanes; ++i) {
      uint32_t bits;
      std::memcpy(&bits, &a.lane[i], 4);
      const bool nan = a.lane[i] != a.lane[i];
      p[i] = static_cast<uint16_t>(
          (nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
  }

  MF_CALL Pairs load_pairs(const uint16_t* p) {
    Pairs out;
    std::memcpy(out.half, p, sizeof(out.half));
    return out;
  }
  // The two halves at p in every lane.
  MF_CALL Pairs set_pair(const uint16_t* p) {
    Pairs out;
    for (int32_t i = 0; i < 2 * kLanes; ++i) out.half[i] = p[i % 2];
    return out;
  }
  // Both rounded to bf16: the lanes of low, then those of high.
  MF_CALL Pairs round_pairs(const F& low, const F& high) {
    Pairs out;
    narrow(out.half, low);
    narrow(out.half + kLanes, high);
    return out;
  }
  MF_CALL void store_pairs(uint16_t* p, const Pairs& a) { std::memcpy(p, a.half, sizeof(a.half)); }
  // sum + a.odd · b.odd, then + a.even · b.even.
  MF_CALL F dot(const F& sum, const Pairs& a, const Pairs& b) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) {
      const float odd =
          std::fma(to_float(a.half[2 * i + 1]), to_float(b.half[2 * i + 1]), sum.lane[i]);
      out.lane[i] = std::fma(to_float(a.half[2 * i]), to_float(b.half[2 * i]), odd);
    }
    return out;
  }

  // kLanes signed bytes.
  MF_CALL F widen(const int8_t* p) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = p[i];
    return out;
  }

  // Lanes whose numbers differ in the bit kDistance change places.
  template <int32_t kDistance>
  MF_CALL F swap(const F& a) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = a.lane[i ^ kDistance];
    return out;
  }

  // Products of int8 weights, kInt8Depth of them summed in int32 in the bits of a lane; inputs have
  // kInt8Offset added.
  using Int8Input = std::conditional_t<kWithDot, uint8_t, int16_t>;
  static constexpr int32_t kInt8Depth = kWithDot ? 4 : 2, kInt8Vectors = kWithDot ? 4 : 2;
  static constexpr int32_t kInt8Offset = kWithDot ? 128 : 0;

  struct Inputs {
    Int8Input value[kInt8Depth];
  };
  MF_CALL Bytes load_int8(const int8_t* p) {
    Bytes out;
    std::memcpy(out.value, p, kInt8Depth * kLanes);
    return out;
  }
  MF_CALL Inputs set_int8(const Int8Input* p) {
    Inputs out;
    std::memcpy(out.value, p, sizeof(out.value));
    return out;
  }
  MF_CALL F dot_int8(const F& sum, const Bytes& w, const Inputs& x) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) {
      int32_t total;
      std::memcpy(&total, &sum.lane[i], 4);
      for (int32_t n = 0; n < kInt8Depth; ++n) total += w.value[i * kInt8Depth + n] * x.value[n];
      std::memcpy(&out.lane[i], &total, 4);
    }
    return out;
  }
  // int32 sums less their corrections, as floats.
  MF_CALL F from_int32(const F& sum, const int32_t* correction) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) {
      int32_t total;
      std::memcpy(&total, &sum.lane[i], 4);
      out.lane[i] = static_cast<float>(total - correction[i]);
    }
    return out;
  }
  // Rounded to nearest even; anything for what is not finite.
  MF_CALL void store_int8(Int8Input* p, const F& a) {
    for (int32_t i = 0; i < kLanes; ++i) {
      const bool finite = a.lane[i] - a.lane[i] == 0.0f;
      const auto rounded = finite ? static_cast<int32_t>(std::lrintf(a.lane[i])) : 0;
      p[i] = static_cast<Int8Input>(rounded + kInt8Offset);
    }
  }

  // A group of 4-bit products: sums of unsigned bytes times signed ones, four a lane. What a group
  // of 32 sums up to stays within int16.
  struct Q4Sum {
    int32_t lane[kLanes];
  };
  struct Q4Four {
    int8_t value[4];
  };
  MF_CALL Q4Sum q4_zero() { return {}; }
  MF_CALL Bytes load_bytes(const std::byte* p) {
    Bytes out;
    std::memcpy(out.value, p, sizeof(out.value));
    return out;
  }
  MF_CALL void store_bytes(std::byte* p, const Bytes& a) {
    std::memcpy(p, a.value, sizeof(a.value));
  }
  MF_CALL Bytes low_nibbles(const Bytes& a) {
    Bytes out;
    for (int32_t i = 0; i < 4 * kLanes; ++i) out.value[i] = a.value[i] & 15;
    return out;
  }
  MF_CALL Bytes high_nibbles(const Bytes& a) {
    Bytes out;
    for (int32_t i = 0; i < 4 * kLanes; ++i) out.value[i] = a.value[i] >> 4 & 15;
    return out;
  }
  // The four signed bytes at p in every lane.
  MF_CALL Q4Four set_four(const int8_t* p) {
    Q4Four out;
    std::memcpy(out.value, p, sizeof(out.value));
    return out;
  }
  MF_CALL Q4Sum dot_q4(const Q4Sum& sum, const Bytes& w, const Q4Four& x) {
    Q4Sum out = sum;
    for (int32_t i = 0; i < 4 * kLanes; ++i) out.lane[i / 4] += w.value[i] * x.value[i % 4];
    return out;
  }
  MF_CALL F q4_float(const Q4Sum& sum) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = static_cast<float>(sum.lane[i]);
    return out;
  }
  // Integers of -127 to 127 as signed bytes; anything for what is not finite.
  MF_CALL void store_signed(int8_t* p, const F& a) {
    for (int32_t i = 0; i < kLanes; ++i) {
      p[i] = a.lane[i] - a.lane[i] == 0.0f ? static_cast<int8_t>(a.lane[i]) : int8_t{0};
    }
  }
  // kLanes values in half precision.
  MF_CALL F load_half(const uint16_t* p) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = f16_to_f32(p[i]);
    return out;
  }
  MF_CALL void store_half(uint16_t* p, const F& a) {
    for (int32_t i = 0; i < kLanes; ++i) p[i] = f32_to_f16(a.lane[i]);
  }

  // Words of ternary values, two bits each from the lowest on: 0, 1, or 2 for -1.
  MF_CALL Codes load_codes(const uint32_t* p) {
    Codes out;
    std::memcpy(out.word, p, sizeof(out.word));
    return out;
  }
  // The lowest value of each word, and the one after it.
  MF_CALL F ternary(const Codes& c) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = ternary_value(c.word[i]);
    return out;
  }
  MF_CALL F ternary_next(const Codes& c) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = ternary_value(c.word[i] >> 2);
    return out;
  }
  MF_CALL Codes skip_two(const Codes& c) {
    Codes out;
    for (int32_t i = 0; i < kLanes; ++i) out.word[i] = c.word[i] >> 4;
    return out;
  }

  MF_CALL Index load_index(const uint16_t* p) {
    Index out;
    for (int32_t i = 0; i < kLanes; ++i) out.word[i] = p[i];
    return out;
  }
  MF_CALL Index load_index(const uint32_t* p) { return load_codes(p); }
  MF_CALL F gather(const float* x, const Index& index) {
    F out;
    for (int32_t i = 0; i < kLanes; ++i) out.lane[i] = x[index.word[i]];
    return out;
  }
  // ± x[column]: the highest bit is the sign, the others the column; all ones: nothing.
  template <class Column>
  MF_CALL F gather_signed(const float* x, const Column* p) {
    constexpr uint32_t kNone = (1u << (8 * sizeof(Column) - 1)) - 1;
    F out;
    for (int32_t i = 0; i < kLanes; ++i) {
      const uint32_t column = p[i] & kNone;
      const float value = column == kNone ? 0.0f : x[column];
      out.lane[i] = p[i] > kNone ? -value : value;
    }
    return out;
  }

  MF_INLINE void prefetch(const void*) {}

 private:
  MF_INLINE float ternary_value(uint32_t word) {
    return (word & 3) == 1 ? 1.0f : (word & 3) == 2 ? -1.0f : 0.0f;
  }
  MF_INLINE float to_float(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
  }
};

}  // namespace manyfold::emulated
