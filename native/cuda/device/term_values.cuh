// Factors of adapters in their own codecs, read 16 bytes at a time (ternary: 16 values of two
// planes), and the two products over them: lanes along a row (REDUCE) and a thread for each row
// (SPREAD). Orders of sums depend on the factor alone, never on how many input rows go along.
#pragma once

#include "number.cuh"

#if defined(__CUDACC__)
#define MF_NO_UNROLL _Pragma("unroll 1")
// A number that the compiler takes for a new one at each place: what is computed from it is not
// moved out of loops. Without it the addresses of every codec's loads live in registers at once.
#define MF_KEEP_HERE(number) asm volatile("" : "+r"(number))
#else
#define MF_NO_UNROLL
#define MF_KEEP_HERE(number) static_cast<void>(number)
#endif

namespace manyfold::cuda {

// Where one row of a factor begins, at a multiple of 16 bytes; zeros behind its last column up to
// the next such multiple. negative: of ternary factors, whose positive plane is `data`.
struct FactorRow {
  const void* data;
  const uint32_t* negative;
};

struct F32Chunk {
  static constexpr int kValues = 4;
  uint4 bits;
  MF_DEVICE void clear() { bits = make_uint4(0, 0, 0, 0); }
  MF_DEVICE void fetch(const FactorRow& row, int chunk) {
    bits = __ldg(static_cast<const uint4*>(row.data) + chunk);
  }
  // Values 4 q .. 4 q + 3.
  MF_DEVICE float4 quad(int) const {
    return make_float4(__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                       __uint_as_float(bits.w));
  }
};

// T: Bf16 or F16.
template <class T>
struct HalfChunk {
  static constexpr int kValues = 8;
  uint4 bits;
  MF_DEVICE void clear() { bits = make_uint4(0, 0, 0, 0); }
  MF_DEVICE void fetch(const FactorRow& row, int chunk) {
    bits = __ldg(static_cast<const uint4*>(row.data) + chunk);
  }
  MF_DEVICE float4 quad(int q) const {
    const float2 low = load_pair<T>(q == 0 ? bits.x : bits.z);
    const float2 high = load_pair<T>(q == 0 ? bits.y : bits.w);
    return make_float4(low.x, low.y, high.x, high.y);
  }
};

// Values without their row's scale.
struct Int8Chunk {
  static constexpr int kValues = 16;
  uint4 bits;
  MF_DEVICE void clear() { bits = make_uint4(0, 0, 0, 0); }
  MF_DEVICE void fetch(const FactorRow& row, int chunk) {
    bits = __ldg(static_cast<const uint4*>(row.data) + chunk);
  }
  MF_DEVICE float4 quad(int q) const {
    const uint32_t word = q == 0 ? bits.x : q == 1 ? bits.y : q == 2 ? bits.z : bits.w;
    return make_float4(byte_of(word, 0), byte_of(word, 1), byte_of(word, 2), byte_of(word, 3));
  }
  static MF_DEVICE float byte_of(uint32_t word, int i) {
    return static_cast<float>(static_cast<int8_t>(word >> (8 * i) & 0xffu));
  }
};

// -1, 0 or 1: values without the scale.
struct TernaryChunk {
  static constexpr int kValues = 16;
  uint32_t positive, negative;
  MF_DEVICE void clear() { positive = negative = 0; }
  MF_DEVICE void fetch(const FactorRow& row, int chunk) {
    const int shift = 16 * (chunk % 2);
    positive = __ldg(static_cast<const uint32_t*>(row.data) + chunk / 2) >> shift;
    negative = __ldg(row.negative + chunk / 2) >> shift;
  }
  MF_DEVICE float4 quad(int q) const {
    return make_float4(sign_of(4 * q), sign_of(4 * q + 1), sign_of(4 * q + 2), sign_of(4 * q + 3));
  }
  MF_DEVICE float sign_of(int i) const {
    const uint32_t bit = 1u << i;
    return (positive & bit) != 0 ? 1.0f : (negative & bit) != 0 ? -1.0f : 0.0f;
  }
};

// sum + w · x, value by value in order.
MF_DEVICE float dot_quad(float4 w, float4 x, float sum) {
  sum = fmaf(w.x, x.x, sum);
  sum = fmaf(w.y, x.y, sum);
  sum = fmaf(w.z, x.z, sum);
  return fmaf(w.w, x.w, sum);
}

// Place of float4 `i` of a row of inputs in shared memory: lanes whose chunks lie 1, 2 or 4 such
// quads apart then meet different banks.
MF_DEVICE int swizzled_quad(int i) {
  return i ^ (i >> 3 & 3);
}

// sums[f][r] += this lane's part of Σ_k factor f [k] · x[r][k] over kSpan columns from chunk0 on,
// of which the first `chunks` chunks exist. x: shared, [kRows][kSpan] with swizzled quads, zeros
// behind the last column. Rows from `rows` on are left alone. All loads of the factors are under
// way before the first is used.
template <class Chunk, int kSpan, int kFactors, int kRows>
MF_DEVICE void dot_lanes(const FactorRow (&factor)[kFactors], int chunk0, int chunks,
                         const float* x, int rows, float (&sums)[kFactors][kRows]) {
  constexpr int kValues = Chunk::kValues;
  constexpr int kSteps = kSpan / (kWarpSize * kValues);
  static_assert(kSteps * kWarpSize * kValues == kSpan);
  int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  MF_KEEP_HERE(lane);
  constexpr int kAhead = kSteps < 2 ? kSteps : 2;  // loads of each factor under way
  MF_NO_UNROLL
  for (int s0 = 0; s0 < kSteps; s0 += kAhead) {
    Chunk bits[kFactors][kAhead];
    MF_UNROLL
    for (int s = 0; s < kAhead; ++s) {
      const int chunk = (s0 + s) * kWarpSize + lane;
      MF_UNROLL
      for (int f = 0; f < kFactors; ++f) {
        bits[f][s].clear();
        if (chunk < chunks) bits[f][s].fetch(factor[f], chunk0 + chunk);
      }
    }
    MF_UNROLL
    for (int s = 0; s < kAhead; ++s) {
      const int quad0 = ((s0 + s) * kWarpSize + lane) * (kValues / 4);
      MF_UNROLL
      for (int q = 0; q < kValues / 4; ++q) {
        float4 w[kFactors];
        MF_UNROLL
        for (int f = 0; f < kFactors; ++f) w[f] = bits[f][s].quad(q);
        const float4* place = reinterpret_cast<const float4*>(x) + swizzled_quad(quad0 + q);
        MF_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (r >= rows) continue;
          const float4 in = place[r * (kSpan / 4)];
          MF_UNROLL
          for (int f = 0; f < kFactors; ++f) sums[f][r] = dot_quad(w[f], in, sums[f][r]);
        }
      }
    }
  }
}

// sums[r] += Σ_k factor[k] · v[r][k] over `chunks` chunks from chunk0 on, by this thread alone.
// v: shared, [kRows][stride], 16-byte aligned, zeros behind the last column.
template <class Chunk, int kRows>
MF_DEVICE void dot_thread(const FactorRow& factor, int chunk0, int chunks, const float* v,
                          int stride, int rows, float (&sums)[kRows]) {
  constexpr int kValues = Chunk::kValues;
  constexpr int kAhead = 2;  // loads under way
  MF_KEEP_HERE(chunk0);
  MF_NO_UNROLL
  for (int first = 0; first < chunks; first += kAhead) {
    Chunk bits[kAhead];
    MF_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      bits[i].clear();
      if (first + i < chunks) bits[i].fetch(factor, chunk0 + first + i);
    }
    MF_UNROLL
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= chunks) continue;
      MF_UNROLL
      for (int q = 0; q < kValues / 4; ++q) {
        const float4 w = bits[i].quad(q);
        const float* place = v + (first + i) * kValues + 4 * q;
        MF_UNROLL
        for (int r = 0; r < kRows; ++r) {
          if (r >= rows) continue;
          sums[r] = dot_quad(w, *reinterpret_cast<const float4*>(place + r * stride), sums[r]);
        }
      }
    }
  }
}

// Sum over 8 neighbouring lanes, the same bits in each.
MF_DEVICE float octet_sum(float value) {
  MF_UNROLL
  for (int other = 4; other > 0; other /= 2) value += __shfl_xor_sync(kFullWarp, value, other);
  return value;
}

}  // namespace manyfold::cuda
