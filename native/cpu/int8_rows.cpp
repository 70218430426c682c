// See int8_rows.h. Additions go in the order of kernels/int8.h: pairs at distance 1 first.
#include "int8_rows.h"

#include <algorithm>
#include <cmath>

namespace manyfold {
namespace {

// Rounds [cols] to the nearest integers, ties to even, with one scale.
float round_row(const float* x, int32_t cols, int8_t* out) {
  float most = 0.0f, poison = 0.0f;
  for (int32_t i = 0; i < cols; ++i) {
    most = std::max(most, std::fabs(x[i]));
    poison += x[i] * 0.0f;  // NaN for what is not finite
  }
  const Int8Scale scale = int8_scale(most);
  const bool finite = poison == poison;
  for (int32_t i = 0; i < cols; ++i) {
    out[i] = finite ? static_cast<int8_t>(std::lrintf(x[i] * scale.inverse)) : int8_t{0};
  }
  return scale.scale + poison;
}

}  // namespace

void rotate_blocks(float* x, int32_t cols) {
  const int32_t block = rotation_block(cols);
  for (int32_t h = 1; h < block; h *= 2) {
    for (int32_t first = 0; first < cols; first += 2 * h) {
      float* low = x + first;
      float* high = low + h;
      for (int32_t i = 0; i < h; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a + b;
        high[i] = a - b;
      }
    }
  }
}

float quantize_input(float* x, int32_t cols, int8_t* out) {
  rotate_blocks(x, cols);
  return round_row(x, cols, out);
}

// The block's size, which H · H leaves behind, goes into the scale: a power of two, so it is exact.
float quantize_weight(float* w, int32_t cols, int8_t* out) {
  rotate_blocks(w, cols);
  return round_row(w, cols, out) / static_cast<float>(rotation_block(cols));
}

void dequantize_weight(const int8_t* values, float scale, int32_t cols, float* out) {
  for (int32_t i = 0; i < cols; ++i) out[i] = values[i];
  rotate_blocks(out, cols);  // sums of integers below 2^24: exact
  for (int32_t i = 0; i < cols; ++i) out[i] *= scale;
}

}  // namespace manyfold
