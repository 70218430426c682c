// 4-bit base weights as every tier and the reference mean them. Callers: fast_weights,
// reference_stores, reference_ops.
//
// A row of weights is cut into groups of kQ4Group inputs; each has a scale d and a minimum m:
//   w ≈ d · code + m, code 0 to 15,
// which holds GGUF's Q4_0 (m = -8 d), Q4_1 and Q4_K exactly. A row of inputs is rounded to int8
// with one scale for each group, as llama.cpp does for the same formats: x ≈ scale · q. Then
//   y = Σ_groups float(Σ code · q) · (d · scale) + m · (scale · Σ q),
// the sums over a group exact in integers, the rest in float32: groups in ascending order, each
// with one product and two fused multiply-adds. So all tiers agree bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "../core/dtype.h"

namespace manyfold {

// A group of inputs, as kernels read it.
struct Q4Inputs {
  int8_t values[kQ4Group];
  float scale;
  float sum;  // scale · Σ values
};
static_assert(sizeof(Q4Inputs) == 40);

// Some rows of a 4-bit matrix.
class Q4Matrix {
 public:
  Q4Matrix(int32_t rows, int32_t cols)
      : cols_(cols),
        codes_(static_cast<size_t>(rows) * static_cast<size_t>(cols)),
        d_(static_cast<size_t>(rows) * static_cast<size_t>(q4_groups(cols))),
        m_(d_.size()) {}
  // From row `row` on.
  Q4Rows from(int32_t row) {
    const int64_t group = int64_t{row} * q4_groups(cols_);
    return {codes_.data() + int64_t{row} * cols_, d_.data() + group, m_.data() + group};
  }
  const uint8_t* codes(int32_t row) const { return codes_.data() + int64_t{row} * cols_; }
  float d(int32_t row, int32_t group) const { return d_[place(row, group)]; }
  float m(int32_t row, int32_t group) const { return m_[place(row, group)]; }
  // Whether half precision holds every scale and minimum.
  bool fits_half() const;
  size_t bytes() const { return codes_.size() + 2 * d_.size() * sizeof(float); }

 private:
  size_t place(int32_t row, int32_t group) const {
    return static_cast<size_t>(int64_t{row} * q4_groups(cols_) + group);
  }

  int32_t cols_;
  std::vector<uint8_t> codes_;
  std::vector<float> d_, m_;
};

// A row of inputs [cols] to q4_groups(cols) groups; the last is filled up with zeros. Scale and sum
// are NaN in a group that has a value which is not finite.
void quantize_q4_input(const float* x, int32_t cols, Q4Inputs* out);

// A row of weights [cols] to codes, with d and m that half precision holds. Of several ranges the
// one that leaves the least squared error, d and m by least squares of each.
void quantize_q4_weight(const float* w, int32_t cols, const Q4Rows& out);

// The row that codes, d and m stand for.
void dequantize_q4_weight(const Q4Rows& row, int32_t cols, float* out);

}  // namespace manyfold
