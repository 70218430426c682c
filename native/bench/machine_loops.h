// The loops that measure a tier's bounds, over its SIMD policy. Included by machine_<tier>.cpp.
#pragma once

#include "machine.h"

namespace manyfold::bench {

// Twelve independent chains, each from its own start: enough for two units of four to six cycles of
// latency.
template <class S>
float multiply_chains(int64_t rounds) {
  typename S::F sums[kChains];
#pragma GCC unroll 12
  for (int32_t i = 0; i < kChains; ++i) sums[i] = S::set(static_cast<float>(i));
  const auto a = S::set(0.9999f), b = S::set(0.0001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int32_t i = 0; i < kChains; ++i) sums[i] = S::fma(a, b, sums[i]);
  }
#pragma GCC unroll 12
  for (int32_t i = 1; i < kChains; ++i) sums[0] = S::add(sums[0], sums[i]);
  return S::sum(sums[0]);
}

template <class S>
float dot_chains(int64_t rounds) {
  typename S::F sums[kChains];
#pragma GCC unroll 12
  for (int32_t i = 0; i < kChains; ++i) sums[i] = S::set(static_cast<float>(i));
  const uint16_t one[2] = {0x3f80, 0x3f80};
  const auto a = S::set_pair(one);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int32_t i = 0; i < kChains; ++i) sums[i] = S::dot(sums[i], a, a);
  }
#pragma GCC unroll 12
  for (int32_t i = 1; i < kChains; ++i) sums[0] = S::add(sums[0], sums[i]);
  return S::sum(sums[0]);
}

template <class S>
float int8_chains(int64_t rounds) {
  typename S::F sums[kChains];
#pragma GCC unroll 12
  for (int32_t i = 0; i < kChains; ++i) sums[i] = S::zero();
  alignas(64) int8_t ones[64];
  for (int8_t& one : ones) one = 1;
  const typename S::Int8Input inputs[4] = {1, 1, 1, 1};
  auto w = S::load_int8(ones);
  const auto x = S::set_int8(inputs);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int32_t i = 0; i < kChains; ++i) {
      __asm__ volatile("" : "+x"(w));  // else one product would serve all chains
      sums[i] = S::dot_int8(sums[i], w, x);
    }
  }
#pragma GCC unroll 12
  for (int32_t i = 1; i < kChains; ++i) sums[0] = S::add(sums[0], sums[i]);
  return S::sum(sums[0]);
}

// n is a multiple of eight vectors.
template <class S>
float read_all(const float* p, int64_t n) {
  typename S::F sums[8];
#pragma GCC unroll 8
  for (int32_t i = 0; i < 8; ++i) sums[i] = S::zero();
  for (int64_t k = 0; k < n; k += 8 * S::kLanes) {
#pragma GCC unroll 8
    for (int32_t i = 0; i < 8; ++i) sums[i] = S::add(sums[i], S::load(p + k + i * S::kLanes));
  }
#pragma GCC unroll 8
  for (int32_t i = 1; i < 8; ++i) sums[0] = S::add(sums[0], sums[i]);
  return S::sum(sums[0]);
}

}  // namespace manyfold::bench
