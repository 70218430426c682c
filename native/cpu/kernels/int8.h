// Int8 base weights: packing, rounding of inputs, and y = W x with int32 sums; what the numbers
// mean is told in cpu/int8_rows.h. Included by kernels/table.h and by the VNNI tiers of isa/.
#pragma once

#include "../int8_rows.h"
#include "tiles.h"

namespace manyfold::kernels {

// [steps][rows][kDepth] signed bytes after a head of [rows] float32 scales and [rows] int32
// corrections. Sums are int32 in the bits of S::F. Inputs are int16, or bytes with kInt8Offset
// added, which makes every sum too large by its correction.
template <class S>
struct Int8DotPanel {
  using Weight = int8_t;
  using Input = typename S::Int8Input;
  using Loaded = typename S::Bytes;
  using Factor = typename S::Inputs;
  static constexpr int32_t kVectors = S::kInt8Vectors, kDepth = S::kInt8Depth;
  static constexpr int32_t kRows = kVectors * S::kLanes, kStep = kDepth * kRows;
  static constexpr int64_t kHeadBytes = 8 * kRows;

  MF_INLINE void load(const Weight* p, Loaded* w) {
    for (int32_t i = 0; i < kVectors; ++i) w[i] = S::load_int8(p + i * kDepth * S::kLanes);
  }
  MF_INLINE Factor broadcast(const Input* x) { return S::set_int8(x); }
  MF_INLINE typename S::F multiply(const Loaded& w, const Factor& x, const typename S::F& sum) {
    return S::dot_int8(sum, w, x);
  }
  MF_INLINE int64_t index(int32_t row, int32_t col) {
    return int64_t{col / kDepth} * kStep + row * kDepth + col % kDepth;
  }
  MF_INLINE int64_t bytes(int32_t cols) {
    return kHeadBytes + (int64_t{cols} + kDepth - 1) / kDepth * kStep;
  }
  MF_INLINE const float* scales(const std::byte* panel) {
    return reinterpret_cast<const float*>(panel);
  }
  MF_INLINE const int32_t* corrections(const std::byte* panel) {
    return reinterpret_cast<const int32_t*>(panel + 4 * kRows);
  }
  MF_INLINE const Weight* values(const std::byte* panel) {
    return reinterpret_cast<const Weight*>(panel + kHeadBytes);
  }
};

template <class S>
size_t int8_panel_bytes(int32_t cols) {
  return static_cast<size_t>(Int8DotPanel<S>::bytes(cols));
}

template <class S>
void pack_int8(const int8_t* rows, const float* scales, int32_t count, int32_t cols,
               std::byte* panel) {
  using P = Int8DotPanel<S>;
  const int64_t bytes = P::bytes(cols);
  for (int64_t i = 0; i < bytes; ++i) panel[i] = std::byte{0};
  auto* scale = reinterpret_cast<float*>(panel);
  auto* correction = reinterpret_cast<int32_t*>(panel + 4 * P::kRows);
  auto* values = reinterpret_cast<int8_t*>(panel + P::kHeadBytes);
  for (int32_t row = 0; row < count; ++row) {
    int32_t sum = 0;
    for (int32_t col = 0; col < cols; ++col) {
      const int8_t value = rows[int64_t{row} * cols + col];
      values[P::index(row, col)] = value;
      sum += value;
    }
    scale[row] = scales[row];
    correction[row] = sum * S::kInt8Offset;
  }
}

template <class S>
float unpack_int8(const std::byte* panel, int32_t row, int32_t cols, int8_t* out) {
  using P = Int8DotPanel<S>;
  const int8_t* values = P::values(panel);
  for (int32_t col = 0; col < cols; ++col) out[col] = values[P::index(row, col)];
  return P::scales(panel)[row];
}

// 1 for lanes whose number lacks the bit kDistance, -1 for the others.
template <class S, int32_t kDistance>
struct ButterflySigns {
  struct Lanes {
    float lane[S::kLanes];
  };
  static constexpr Lanes make() {
    Lanes out{};
    for (int32_t i = 0; i < S::kLanes; ++i) out.lane[i] = (i & kDistance) == 0 ? 1.0f : -1.0f;
    return out;
  }
  alignas(64) static constexpr Lanes kSigns = make();
};

// Sums and differences of lanes kDistance apart.
template <class S, int32_t kDistance>
MF_FLATTEN typename S::F butterfly(const typename S::F& x) {
  return S::fma(S::load(ButterflySigns<S, kDistance>::kSigns.lane), x,
                S::template swap<kDistance>(x));
}

// All stages of a block that lie within a vector.
template <class S>
MF_FLATTEN typename S::F rotate_lanes(typename S::F x, int32_t block) {
  if (block > 1) x = butterfly<S, 1>(x);
  if (block > 2) x = butterfly<S, 2>(x);
  if (block > 4) x = butterfly<S, 4>(x);
  if constexpr (S::kLanes > 8) {
    if (block > 8) x = butterfly<S, 8>(x);
  }
  return x;
}

// Stages h and 2h of four vectors.
template <class S>
MF_FLATTEN void butterfly_four(typename S::F (&v)[4]) {
  const typename S::F a = S::add(v[0], v[1]), b = S::sub(v[0], v[1]);
  const typename S::F c = S::add(v[2], v[3]), d = S::sub(v[2], v[3]);
  v[0] = S::add(a, c);
  v[1] = S::add(b, d);
  v[2] = S::sub(a, c);
  v[3] = S::sub(b, d);
}

// Stages h and 2h of [cols], h at least a vector.
template <class S>
void rotate_two_stages(float* x, int32_t cols, int32_t h) {
  for (int32_t first = 0; first < cols; first += 4 * h) {
    for (float* p = x + first; p < x + first + h; p += S::kLanes) {
      typename S::F v[4] = {S::load(p), S::load(p + h), S::load(p + 2 * h), S::load(p + 3 * h)};
      butterfly_four<S>(v);
      for (int32_t i = 0; i < 4; ++i) S::store(p + i * h, v[i]);
    }
  }
}

template <class S>
void rotate_one_stage(float* x, int32_t cols, int32_t h) {
  for (int32_t first = 0; first < cols; first += 2 * h) {
    for (float* p = x + first; p < x + first + h; p += S::kLanes) {
      const typename S::F a = S::load(p), b = S::load(p + h);
      S::store(p, S::add(a, b));
      S::store(p + h, S::sub(a, b));
    }
  }
}

// out = H x, [cols] rounded up to lanes.
template <class S>
void rotate_row(const float* x, int32_t cols, float* out) {
  const int32_t block = rotation_block(cols);
  int32_t h = S::kLanes;
  if (block >= 4 * S::kLanes) {
    for (int32_t i = 0; i < cols; i += 4 * S::kLanes) {
      typename S::F v[4];
      for (int32_t n = 0; n < 4; ++n) {
        v[n] = rotate_lanes<S>(S::load(x + i + n * S::kLanes), block);
      }
      butterfly_four<S>(v);
      for (int32_t n = 0; n < 4; ++n) S::store(out + i + n * S::kLanes, v[n]);
    }
    h = 4 * S::kLanes;
  } else {
    for (int32_t i = 0; i < cols; i += S::kLanes) {
      S::store(out + i, rotate_lanes<S>(S::load(x + i), block));
    }
  }
  for (; 4 * h <= block; h *= 4) rotate_two_stages<S>(out, cols, h);
  if (2 * h <= block) rotate_one_stage<S>(out, cols, h);
}

// Writes whole vectors of inputs; returns the row's scale.
template <class S>
float quantize_row(const float* x, int32_t cols, float* rotated, void* out) {
  rotate_row<S>(x, cols, rotated);
  typename S::F most = S::zero(), poison = S::zero();
  const typename S::F zero = S::zero();
  for (int32_t i = 0; i < cols; i += S::kLanes) {
    const typename S::F value = S::load(rotated + i);
    most = S::max(most, S::max(value, S::sub(zero, value)));
    poison = S::fma(value, zero, poison);
  }
  const Int8Scale scale = int8_scale(S::highest(most));
  const typename S::F inverse = S::set(scale.inverse);
  auto* to = static_cast<typename S::Int8Input*>(out);
  for (int32_t i = 0; i < cols; i += S::kLanes) {
    S::store_int8(to + i, S::mul(S::load(rotated + i), inverse));
  }
  return scale.scale + S::sum(poison);
}

template <class S, int32_t kTileRows, int32_t kPanels>
void int8_tile(const Int8Args& a, int32_t panel, int32_t row, Ahead& ahead) {
  using P = Int8DotPanel<S>;
  using T = Tile<S, P, kTileRows, kPanels>;
  const std::byte* panels[kPanels];
  const int8_t* w[kPanels];
  for (int32_t p = 0; p < kPanels; ++p) {
    panels[p] = a.weights + (panel + p) * P::bytes(a.cols);
    w[p] = P::values(panels[p]);
  }
  const typename P::Input* x[kTileRows];
  for (int32_t m = 0; m < kTileRows; ++m) {
    x[m] = static_cast<const typename P::Input*>(a.x) + (row + m) * a.x_stride;
  }
  T tile;
  tile.clear();
  tile.multiply(w, x, (a.cols + P::kDepth - 1) / P::kDepth, P::kStep, ahead);
  float* y = a.y + row * a.y_stride + int64_t{panel} * P::kRows;
#pragma GCC unroll 16
  for (int32_t i = 0; i < T::kVectors; ++i) {
    const std::byte* of_panel = panels[i / P::kVectors];
    const int32_t lane = i % P::kVectors * S::kLanes;
    const typename S::F scale = S::load(P::scales(of_panel) + lane);
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
      const typename S::F sum = S::from_int32(tile.sums[m][i], P::corrections(of_panel) + lane);
      S::store(y + m * a.y_stride + i * S::kLanes,
               S::mul(sum, S::mul(S::set(a.x_scale[row + m]), scale)));
    }
  }
  ++(kTileRows == 1 ? a.counts->single_row : a.counts->multi_row);
}

// Panels outside, rows inside, as gemm_block.
template <class S>
void int8_block(const Int8Args& a) {
  using P = Int8DotPanel<S>;
  const int64_t bytes = P::bytes(a.cols);
  for_panel_groups<S, P>(a.panel0, a.panel1, largest_tile(a.rows), [&](auto panels, int32_t panel) {
    constexpr int32_t kPanels = decltype(panels)::value;
    Ahead ahead = look_ahead<S>(a.weights + (panel + kPanels) * bytes, kPanels * bytes,
                                a.cols / P::kDepth, a.rows);
    for_row_tiles(a.rows, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      if constexpr (kPanels <= panels_at_once<S, P>(kTileRows)) {
        int8_tile<S, kTileRows, kPanels>(a, panel, row, ahead);
      }
    });
  });
}

// Rows in blocks of nearly equal size whose inputs stay in the second-level cache.
template <class S>
void int8_gemm(const Int8Args& a) {
  using Input = typename S::Int8Input;
  const int32_t blocks = row_blocks(a.rows, a.cols * int64_t{sizeof(Input)});
  int32_t row = 0;
  for (int32_t i = 0; i < blocks; ++i) {
    const auto next = static_cast<int32_t>(int64_t{a.rows} * (i + 1) / blocks);
    Int8Args part = a;
    part.x = static_cast<const Input*>(a.x) + row * a.x_stride;
    part.x_scale = a.x_scale + row;
    part.y = a.y + row * a.y_stride;
    part.rows = next - row;
    int8_block<S>(part);
    row = next;
  }
}

template <class S>
constexpr Int8Kernels make_int8_kernels() {
  return {
      .panel_rows = Int8DotPanel<S>::kRows,
      .input_bytes = sizeof(typename S::Int8Input),
      .panel_bytes = int8_panel_bytes<S>,
      .pack = pack_int8<S>,
      .unpack_row = unpack_int8<S>,
      .quantize = quantize_row<S>,
      .gemm = int8_gemm<S>,
  };
}

}  // namespace manyfold::kernels
