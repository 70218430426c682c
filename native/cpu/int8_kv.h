// Keys and values in int8: one scale for each token and head, the largest magnitude over 127;
// values are rounded to nearest even. Used by the reference and by the kernels of every tier, so
// that all pools hold the same values.
#pragma once

#include <cstdint>

namespace manyfold {

inline constexpr int32_t kMostInt8Kv = 127;

// The scale of a token's [n] values. 0 where they are all zero; NaN and infinity stay what they
// are.
static inline float int8_kv_scale(const float* x, int32_t n) {
  float most = 0.0f;
  for (int32_t i = 0; i < n; ++i) {
    const float size = x[i] < 0.0f ? -x[i] : x[i];
    most = size > most || size != size ? size : most;
  }
  return most / static_cast<float>(kMostInt8Kv);
}

// What values are multiplied with before they are rounded: 0 where nothing can be kept of them.
static inline float int8_kv_inverse(float scale) {
  const float inverse = 1.0f / scale;
  return inverse - inverse == 0.0f && scale - scale == 0.0f ? inverse : 0.0f;
}

static inline int8_t int8_kv(float x, float inverse) {
  // 1.5 · 2^23 moves the whole part to the low bits, rounded as the processor rounds.
  const float magic = 12582912.0f;
  const float scaled = inverse == 0.0f ? 0.0f : x * inverse;
  return static_cast<int8_t>(static_cast<int32_t>((scaled + magic) - magic));
}

}  // namespace manyfold
