// See q4_rows.h.
#include "q4_rows.h"

#include <algorithm>
#include <cmath>

#include "int8_rows.h"

namespace manyfold {
namespace {

// Ranges that are tried for a group of weights: the whole one, then narrower ones, which clip the
// ends and are finer between them.
constexpr int32_t kRanges = 12;
constexpr float kRangeStep = 0.035f;
// Adding and taking away 1.5 · 2^23 rounds a small float to the nearest integer, ties to even.
constexpr float kRounder = 12582912.0f;

float round_to_half(float value) {
  return f16_to_f32(f32_to_f16(value));
}

// A group's scale and minimum, and codes as floats. Values beyond the group's count are copies of
// its first, and so change neither ends nor much else.
struct GroupFit {
  float d = 0.0f, m = 0.0f;
  float codes[kQ4Group];

  // The nearest codes of d and m, and the squared error that they leave.
  float encode(const float* w) {
    const float inverse = d > 0.0f ? 1.0f / d : 0.0f;
    float error = 0.0f;
    for (int32_t i = 0; i < kQ4Group; ++i) {
      const float code = (w[i] - m) * inverse + kRounder - kRounder;
      codes[i] = code < 0.0f ? 0.0f : code > 15.0f ? 15.0f : code;
      const float left = d * codes[i] + m - w[i];
      error += left * left;
    }
    return error;
  }

  // d and m by least squares of the codes; unchanged when all codes are one.
  void solve(const float* w) {
    float n = 0.0f, squares = 0.0f, sum = 0.0f, product = 0.0f;
    for (int32_t i = 0; i < kQ4Group; ++i) {
      n += codes[i];
      squares += codes[i] * codes[i];
      sum += w[i];
      product += codes[i] * w[i];
    }
    const float determinant = kQ4Group * squares - n * n;
    if (determinant <= 0.0f) return;
    d = (kQ4Group * product - n * sum) / determinant;
    m = (sum - d * n) / kQ4Group;
  }

  void round_scales() {
    d = round_to_half(d);
    m = round_to_half(m);
  }
};

GroupFit fit_group(const float* w) {
  float low = w[0], high = w[0];
  for (int32_t i = 1; i < kQ4Group; ++i) {
    low = std::min(low, w[i]);
    high = std::max(high, w[i]);
  }
  GroupFit best;
  float least = INFINITY;
  for (int32_t range = 0; range < kRanges; ++range) {
    const float cut = kRangeStep * static_cast<float>(range) * (high - low) / 2;
    GroupFit fit;
    fit.m = low + cut;
    fit.d = (high - low - 2 * cut) / 15;
    fit.encode(w);
    fit.solve(w);
    fit.round_scales();
    const float error = fit.encode(w);
    if (error < least) {
      least = error;
      best = fit;
    }
  }
  return best;
}

}  // namespace

bool Q4Matrix::fits_half() const {
  const auto fits = [](float value) { return round_to_half(value) == value; };
  return std::all_of(d_.begin(), d_.end(), fits) && std::all_of(m_.begin(), m_.end(), fits);
}

void quantize_q4_input(const float* x, int32_t cols, Q4Inputs* out) {
  for (int32_t group = 0; group < q4_groups(cols); ++group) {
    Q4Inputs& to = out[group];
    const int32_t first = group * kQ4Group, count = std::min(kQ4Group, cols - first);
    float most = 0.0f, poison = 0.0f;
    for (int32_t i = 0; i < count; ++i) {
      most = std::max(most, std::fabs(x[first + i]));
      poison += x[first + i] * 0.0f;  // NaN for what is not finite
    }
    const Int8Scale scale = int8_scale(most);
    int32_t sum = 0;
    std::fill_n(to.values, kQ4Group, int8_t{0});
    for (int32_t i = 0; i < count && poison == poison; ++i) {
      to.values[i] = static_cast<int8_t>(std::lrintf(x[first + i] * scale.inverse));
      sum += to.values[i];
    }
    to.scale = scale.scale + poison;
    to.sum = to.scale * static_cast<float>(sum);
  }
}

void quantize_q4_weight(const float* w, int32_t cols, const Q4Rows& out) {
  for (int32_t group = 0; group < q4_groups(cols); ++group) {
    const int32_t first = group * kQ4Group, count = std::min(kQ4Group, cols - first);
    float values[kQ4Group];
    std::copy_n(w + first, count, values);
    std::fill(values + count, values + kQ4Group, w[first]);
    const GroupFit fit = fit_group(values);
    out.d[group] = fit.d;
    out.m[group] = fit.m;
    for (int32_t i = 0; i < count; ++i) out.codes[first + i] = static_cast<uint8_t>(fit.codes[i]);
  }
}

void dequantize_q4_weight(const Q4Rows& row, int32_t cols, float* out) {
  for (int32_t i = 0; i < cols; ++i) {
    out[i] = row.d[i / kQ4Group] * static_cast<float>(row.codes[i]) + row.m[i / kQ4Group];
  }
}

}  // namespace manyfold
