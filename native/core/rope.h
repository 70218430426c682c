// Rotary angles of one position, as every backend computes them: the product position · frequency
// is rounded to float32 as the reference implementations of the model families do, cosine and sine
// are taken in double.
#pragma once

#include <cmath>

#include "model_config.h"

namespace manyfold {

// cos and sin: [head_dim / 2]. Pair i of a head is (x[i], x[i + head_dim / 2]).
inline void rope_angles(const RopeTable& table, int32_t position, float* cos, float* sin) {
  const float p = static_cast<float>(position);
  for (size_t i = 0; i < table.inv_freq.size(); ++i) {
    const double angle = static_cast<double>(p * table.inv_freq[i]);
    cos[i] = static_cast<float>(std::cos(angle)) * table.scale;
    sin[i] = static_cast<float>(std::sin(angle)) * table.scale;
  }
}

}  // namespace manyfold
