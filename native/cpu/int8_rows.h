// Int8 base weights (W8A8) as every tier and the reference mean them: which values a matrix and a
// row of inputs become. Callers: fast_weights, reference_stores, reference_ops.
//
// A row of inputs x and each row w of the matrix are first turned by the same rotation H: blocks of
// a power of two go through a Walsh-Hadamard transform, which spreads one large value over its
// block and leaves w · x as it is but for a factor (Ashkboos et al., QuaRot, arXiv 2404.00456).
// Then each is rounded to int8 with one scale: w ≈ scale_w · H q_w and H x ≈ scale_x · q_x, so that
//   y = float(Σ q_w · q_x) · (scale_x · scale_w).
// The sum is exact in int32, and all else is one float32 operation after the other, so all tiers
// agree bit for bit.
#pragma once

#include <cstdint>

#include "kernels/inline.h"

namespace manyfold {

inline constexpr int32_t kMostRotated = 4096;

// Values of one block of the rotation: the largest power of two that divides cols, at most
// kMostRotated.
MF_FLATTEN constexpr int32_t rotation_block(int32_t cols) {
  int32_t block = 1;
  while (block < kMostRotated && cols % (2 * block) == 0) block *= 2;
  return block;
}

// Scale of values whose largest magnitude is `most`, and what they are multiplied with before they
// are rounded. Rows of next to nothing become zeros; NaN stays NaN.
struct Int8Scale {
  float scale, inverse;
};
MF_INLINE Int8Scale int8_scale(float most) {
  return most < 1e-30f ? Int8Scale{0.0f, 0.0f} : Int8Scale{most / 127.0f, 127.0f / most};
}

// x = H x, unscaled: H · H is the block's size.
void rotate_blocks(float* x, int32_t cols);

// A row of inputs [cols] to int8 [cols]; returns its scale, NaN when any value is not finite. x is
// overwritten.
float quantize_input(float* x, int32_t cols, int8_t* out);

// A row of weights, likewise.
float quantize_weight(float* w, int32_t cols, int8_t* out);

// The row that quantize_weight's result stands for. values may be the last cols bytes of out.
void dequantize_weight(const int8_t* values, float scale, int32_t cols, float* out);

}  // namespace manyfold
