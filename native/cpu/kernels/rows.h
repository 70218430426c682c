// What is done to single rows: RMSNorm, rotary rotation, activations, sums. Included by
// kernels/table.h only.
#pragma once

#include "inline.h"
#include "kernels.h"

namespace manyfold::kernels {

// e^x within about 1e-7 of relative error for x up to 88 (larger x count as 88); exactly 0 below
// -87, so that masked scores weigh nothing, and exactly 1 at 0. Cody-Waite reduction and a
// polynomial of degree 6.
template <class S>
MF_FLATTEN typename S::F exponential(typename S::F x) {
  using F = typename S::F;
  const F low = S::set(-87.0f);
  const auto vanishes = S::less(x, low);
  const F bounded = S::max(S::min(x, S::set(88.0f)), low);
  const F n = S::round(S::mul(bounded, S::set(1.44269504f)));
  F r = S::fma(n, S::set(-0.693359375f), bounded);
  r = S::fma(n, S::set(2.12194440e-4f), r);
  F p = S::set(1.9875691500e-4f);
  p = S::fma(p, r, S::set(1.3981999507e-3f));
  p = S::fma(p, r, S::set(8.3334519073e-3f));
  p = S::fma(p, r, S::set(4.1665795894e-2f));
  p = S::fma(p, r, S::set(1.6666665459e-1f));
  p = S::fma(p, r, S::set(5.0000001201e-1f));
  p = S::fma(p, S::mul(r, r), S::add(r, S::set(1.0f)));
  return S::select(vanishes, S::zero(), S::scale_by_power(p, n));
}

// The last, partial vector of a row: `left` floats, zeros above.
template <class S>
struct Tail {
  float lane[S::kLanes] = {};
  MF_FLATTEN Tail(const float* from, int32_t left) {
    for (int32_t i = 0; i < left; ++i) lane[i] = from[i];
  }
  MF_FLATTEN void put(float* to, int32_t left) const {
    for (int32_t i = 0; i < left; ++i) to[i] = lane[i];
  }
};

// Four accumulators over whole vectors, then the tail: one order for every caller.
template <class S>
MF_FLATTEN float sum_of_squares(const float* x, int32_t n) {
  typename S::F sums[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
  int32_t i = 0;
  for (; i + 4 * S::kLanes <= n; i += 4 * S::kLanes) {
    for (int32_t j = 0; j < 4; ++j) {
      const auto v = S::load(x + i + j * S::kLanes);
      sums[j] = S::fma(v, v, sums[j]);
    }
  }
  for (; i + S::kLanes <= n; i += S::kLanes) {
    const auto v = S::load(x + i);
    sums[0] = S::fma(v, v, sums[0]);
  }
  if (i < n) {
    const Tail<S> tail(x + i, n - i);
    const auto v = S::load(tail.lane);
    sums[0] = S::fma(v, v, sums[0]);
  }
  return S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])));
}

template <class S>
void rms_norm(const float* x, const float* weight, int32_t n, float eps, float* out) {
  const float mean = sum_of_squares<S>(x, n) / static_cast<float>(n);
  const auto inverse = S::set(1.0f / __builtin_sqrtf(mean + eps));
  int32_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes) {
    S::store(out + i, S::mul(S::mul(S::load(x + i), inverse), S::load(weight + i)));
  }
  if (i < n) {
    Tail<S> tail(x + i, n - i);
    const Tail<S> w(weight + i, n - i);
    S::store(tail.lane, S::mul(S::mul(S::load(tail.lane), inverse), S::load(w.lane)));
    tail.put(out + i, n - i);
  }
}

// Pair i of a head is (x[i], x[i + half]).
template <class S>
void rotate(float* x, int32_t half, const float* cos, const float* sin) {
  const auto turn = [](float* a, float* b, const float* c, const float* s) {
    const auto va = S::load(a), vb = S::load(b), vc = S::load(c), vs = S::load(s);
    S::store(a, S::fma(va, vc, S::sub(S::zero(), S::mul(vb, vs))));
    S::store(b, S::fma(vb, vc, S::mul(va, vs)));
  };
  int32_t i = 0;
  for (; i + S::kLanes <= half; i += S::kLanes) turn(x + i, x + half + i, cos + i, sin + i);
  if (i < half) {
    Tail<S> a(x + i, half - i), b(x + half + i, half - i);
    const Tail<S> c(cos + i, half - i), s(sin + i, half - i);
    turn(a.lane, b.lane, c.lane, s.lane);
    a.put(x + i, half - i);
    b.put(x + half + i, half - i);
  }
}

// n is a multiple of lanes in the functions below.
template <class S>
void add(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += S::kLanes)
    S::store(y + i, S::add(S::load(y + i), S::load(x + i)));
}

// x · logistic(x), and gelu's tanh form as x · logistic(2u), which is the same function.
template <class S>
void activate(Activation activation, const float* gate, const float* up, int64_t n, float* out) {
  using F = typename S::F;
  for (int64_t i = 0; i < n; i += S::kLanes) {
    const F x = S::load(gate + i);
    F power = S::sub(S::zero(), x);
    if (activation == Activation::kGeluTanh) {
      const F cubic = S::fma(S::mul(x, x), S::set(0.044715f), S::set(1.0f));
      power = S::mul(S::mul(x, cubic), S::set(-1.5957691216057308f));
    }
    const F act = S::div(x, S::add(S::set(1.0f), exponential<S>(power)));
    S::store(out + i, S::mul(act, S::load(up + i)));
  }
}

// y *= x.
template <class S>
void multiply(const float* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += S::kLanes)
    S::store(y + i, S::mul(S::load(y + i), S::load(x + i)));
}

// y += factor · x.
template <class S>
void add_scaled(const float* x, float factor, int64_t n, float* y) {
  const auto f = S::set(factor);
  for (int64_t i = 0; i < n; i += S::kLanes)
    S::store(y + i, S::fma(f, S::load(x + i), S::load(y + i)));
}

// out[i] = x[index[i]].
template <class S>
void gather_row(const float* x, const uint32_t* index, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += S::kLanes)
    S::store(out + i, S::gather(x, S::load_index(index + i)));
}

// tanh with a relative error of about 2e-7: an odd polynomial near zero, where the quotient of
// exponentials would lose its digits.
template <class S>
MF_FLATTEN typename S::F hyperbolic_tangent(typename S::F x) {
  using F = typename S::F;
  const F one = S::set(1.0f), square = S::mul(x, x);
  F p = S::set(-5.70498872745e-3f);
  p = S::fma(p, square, S::set(2.06390887954e-2f));
  p = S::fma(p, square, S::set(-5.37397155531e-2f));
  p = S::fma(p, square, S::set(1.33314422036e-1f));
  p = S::fma(p, square, S::set(-3.33332819422e-1f));
  const F near = S::fma(S::mul(p, square), x, x);
  const F power = exponential<S>(S::add(x, x));
  const F far = S::sub(one, S::div(S::set(2.0f), S::add(power, one)));
  return S::select(S::less(square, S::set(0.390625f)), near, far);
}

// x Φ(x) = x · erfc(-x / √2) / 2. erfc(z) for z >= 0 is a polynomial in 1 / (1 + p z) times e^-z²
// (Abramowitz and Stegun 7.1.26, error below 1.5e-7 in all).
template <class S>
MF_FLATTEN typename S::F gauss_error_unit(typename S::F x) {
  using F = typename S::F;
  const F one = S::set(1.0f);
  const F z = S::mul(S::max(x, S::sub(S::zero(), x)), S::set(0.70710678f));
  const F t = S::div(one, S::fma(S::set(0.3275911f), z, one));
  F p = S::set(1.061405429f);
  p = S::fma(p, t, S::set(-1.453152027f));
  p = S::fma(p, t, S::set(1.421413741f));
  p = S::fma(p, t, S::set(-0.284496736f));
  p = S::fma(p, t, S::set(0.254829592f));
  const F tail = S::mul(S::mul(p, t), exponential<S>(S::sub(S::zero(), S::mul(z, z))));
  const F half = S::mul(S::set(0.5f), tail);
  return S::mul(x, S::select(S::less(x, S::zero()), half, S::sub(one, half)));
}

template <class S>
MF_FLATTEN typename S::F bottleneck_unit(BottleneckActivation activation, typename S::F x) {
  using F = typename S::F;
  const F one = S::set(1.0f);
  switch (activation) {
    case BottleneckActivation::kIdentity:
      return x;
    case BottleneckActivation::kRelu:
      return S::select(S::less(S::zero(), x), x, S::zero());
    case BottleneckActivation::kGelu:
      return gauss_error_unit<S>(x);
    case BottleneckActivation::kGeluTanh: {
      const F cubic = S::fma(S::mul(x, x), S::set(0.044715f), one);
      const F power = S::mul(S::mul(x, cubic), S::set(-1.5957691216057308f));
      return S::div(x, S::add(one, exponential<S>(power)));
    }
    case BottleneckActivation::kSilu:
      return S::div(x, S::add(one, exponential<S>(S::sub(S::zero(), x))));
    case BottleneckActivation::kTanh:
      return hyperbolic_tangent<S>(x);
  }
  return x;
}

// x = act(x + bias); bias may be null.
template <class S>
void activate_bottleneck(BottleneckActivation activation, const float* bias, int64_t n, float* x) {
  for (int64_t i = 0; i < n; i += S::kLanes) {
    auto v = S::load(x + i);
    if (bias != nullptr) v = S::add(v, S::load(bias + i));
    S::store(x + i, bottleneck_unit<S>(activation, v));
  }
}

// (x - mean) / sqrt(variance + eps) ⊙ weight + bias. Any n; weight and bias are padded, and so is
// out, whose padding becomes zero.
template <class S>
void layer_norm(const float* x, const float* weight, const float* bias, int32_t n, float eps,
                float* out) {
  using F = typename S::F;
  const int32_t whole = n / S::kLanes * S::kLanes;
  const Tail<S> tail(x + whole, n - whole);
  F sum = S::zero();
  for (int32_t i = 0; i < whole; i += S::kLanes) sum = S::add(sum, S::load(x + i));
  sum = S::add(sum, S::load(tail.lane));
  const F mean = S::set(S::sum(sum) / static_cast<float>(n));
  F squares = S::zero();
  for (int32_t i = 0; i < whole; i += S::kLanes) {
    const F d = S::sub(S::load(x + i), mean);
    squares = S::fma(d, d, squares);
  }
  const auto in_row = S::less(S::lane_numbers(), S::set(static_cast<float>(n - whole)));
  const F last = S::select(in_row, S::sub(S::load(tail.lane), mean), S::zero());
  squares = S::fma(last, last, squares);
  const float variance = S::sum(squares) / static_cast<float>(n);
  const F inverse = S::set(1.0f / __builtin_sqrtf(variance + eps));
  for (int32_t i = 0; i < whole; i += S::kLanes) {
    const F d = S::mul(S::sub(S::load(x + i), mean), inverse);
    S::store(out + i, S::fma(d, S::load(weight + i), S::load(bias + i)));
  }
  if (whole < n) {
    const F y = S::fma(S::mul(last, inverse), S::load(weight + whole), S::load(bias + whole));
    S::store(out + whole, S::select(in_row, y, S::zero()));
  }
}

}  // namespace manyfold::kernels
