// 4-bit base weights: packing, rounding of inputs, and y = W x by groups; what the numbers mean is
// told in cpu/q4_rows.h. Included by kernels/table.h and by the VNNI tiers of isa/.
//
// A few rows multiply the codes as they lie in memory. Many rows would unpack the same nibbles
// again for every tile, so there some groups of some panels are unpacked to bytes first, in a block
// that stays in the first-level cache, and all rows pass over it; their sums wait in y meanwhile.
// Both take groups in the same order, so that a row's bits are the same.
#pragma once

#include <type_traits>

#include "../int8_rows.h"
#include "../q4_rows.h"
#include "tiles.h"

namespace manyfold::kernels {

// Four steps of a group: bytes of lane · 4 + n hold codes 4 i + n (low) and 16 + 4 i + n (high).
inline constexpr int32_t kQ4Steps = 4;
// More rows than this multiply unpacked codes, this many groups at a time.
inline constexpr int32_t kQ4DirectRows = 2 * kMaxTileRows;
inline constexpr int32_t kQ4BlockGroups = 8;

// A panel is one vector of outputs: [groups] of [4][lanes · 4] bytes, then d and m of each output.
template <class S, bool kWide>
struct Q4Panel {
  using Bytes = typename S::Bytes;
  using Scale = std::conditional_t<kWide, float, uint16_t>;
  static constexpr int32_t kRows = S::kLanes, kVectorBytes = 4 * S::kLanes;
  static constexpr int64_t kCodeBytes = kQ4Steps * kVectorBytes;
  static constexpr int64_t kStride = kCodeBytes + 2 * kRows * int64_t{sizeof(Scale)};

  MF_INLINE Bytes load(const std::byte* group, int32_t step) {
    return S::load_bytes(group + step * kVectorBytes);
  }
  MF_INLINE Bytes low(const std::byte*, int32_t, Bytes both) { return S::low_nibbles(both); }
  MF_INLINE Bytes high(const std::byte*, int32_t, Bytes both) { return S::high_nibbles(both); }
  MF_INLINE Scale* scales(std::byte* group, int32_t which) {
    return reinterpret_cast<Scale*>(group + kCodeBytes) + which * kRows;
  }
  // d (which = 0) or m (1).
  MF_INLINE typename S::F scale(const std::byte* group, int32_t which) {
    const auto* p = reinterpret_cast<const Scale*>(group + kCodeBytes) + which * kRows;
    if constexpr (kWide) {
      return S::load(p);
    } else {
      return S::load_half(p);
    }
  }
  MF_INLINE void put_scale(std::byte* group, int32_t which, const typename S::F& value) {
    if constexpr (kWide) {
      S::store(scales(group, which), value);
    } else {
      S::store_half(scales(group, which), value);
    }
  }
};

// The same unpacked: [4][low, high][lanes · 4] bytes, then d and m as float32.
template <class S>
struct Q4Unpacked {
  using Bytes = typename S::Bytes;
  static constexpr int32_t kRows = S::kLanes, kVectorBytes = 4 * S::kLanes;
  static constexpr int64_t kCodeBytes = 2 * kQ4Steps * kVectorBytes;
  static constexpr int64_t kStride = kCodeBytes + 8 * kRows;

  MF_INLINE Bytes load(const std::byte* group, int32_t step) {
    return S::load_bytes(group + 2 * step * kVectorBytes);
  }
  MF_INLINE Bytes low(const std::byte*, int32_t, Bytes loaded) { return loaded; }
  MF_INLINE Bytes high(const std::byte* group, int32_t step, Bytes) {
    return S::load_bytes(group + (2 * step + 1) * kVectorBytes);
  }
  MF_INLINE typename S::F scale(const std::byte* group, int32_t which) {
    return S::load(reinterpret_cast<const float*>(group + kCodeBytes) + which * kRows);
  }
};

template <class S, bool kWide>
void unpack_q4_groups(const std::byte* panel, int32_t groups, std::byte* out) {
  using P = Q4Panel<S, kWide>;
  using U = Q4Unpacked<S>;
  for (int32_t group = 0; group < groups; ++group, panel += P::kStride, out += U::kStride) {
#pragma GCC unroll 4
    for (int32_t step = 0; step < kQ4Steps; ++step) {
      const typename S::Bytes both = P::load(panel, step);
      S::store_bytes(out + 2 * step * U::kVectorBytes, S::low_nibbles(both));
      S::store_bytes(out + (2 * step + 1) * U::kVectorBytes, S::high_nibbles(both));
    }
    auto* scales = reinterpret_cast<float*>(out + U::kCodeBytes);
    S::store(scales, P::scale(panel, 0));
    S::store(scales + S::kLanes, P::scale(panel, 1));
  }
}

template <class S>
size_t q4_panel_bytes(int32_t cols, bool wide) {
  const int64_t stride = wide ? Q4Panel<S, true>::kStride : Q4Panel<S, false>::kStride;
  return static_cast<size_t>(q4_groups(cols) * stride);
}

// Where the code of an input lies in its group: the byte, and the shift.
template <class S>
MF_FLATTEN int32_t q4_byte(int32_t row, int32_t col) {
  return col % 16 / 4 * 4 * S::kLanes + row * 4 + col % 4;
}
MF_INLINE int32_t q4_shift(int32_t col) {
  return col % kQ4Group / 16 * 4;
}

template <class S, bool kWide>
void pack_q4_as(const Q4Rows& rows, int32_t count, int32_t cols, std::byte* panel) {
  using P = Q4Panel<S, kWide>;
  const int32_t groups = q4_groups(cols);
  for (int64_t i = 0; i < groups * P::kStride; ++i) panel[i] = std::byte{0};
  for (int32_t row = 0; row < count; ++row) {
    for (int32_t col = 0; col < cols; ++col) {
      const uint8_t code = rows.codes[int64_t{row} * cols + col];
      panel[col / kQ4Group * P::kStride + q4_byte<S>(row, col)] |=
          static_cast<std::byte>(code << q4_shift(col));
    }
  }
  for (int32_t group = 0; group < groups; ++group) {
    float d[S::kLanes] = {}, m[S::kLanes] = {};
    for (int32_t row = 0; row < count; ++row) {
      d[row] = rows.d[int64_t{row} * groups + group];
      m[row] = rows.m[int64_t{row} * groups + group];
    }
    P::put_scale(panel + group * P::kStride, 0, S::load(d));
    P::put_scale(panel + group * P::kStride, 1, S::load(m));
  }
}

template <class S>
void pack_q4(const Q4Rows& rows, int32_t count, int32_t cols, bool wide, std::byte* panel) {
  wide ? pack_q4_as<S, true>(rows, count, cols, panel)
       : pack_q4_as<S, false>(rows, count, cols, panel);
}

template <class S, bool kWide>
void unpack_q4_row_as(const std::byte* panel, int32_t row, int32_t cols, const Q4Rows& out) {
  using P = Q4Panel<S, kWide>;
  for (int32_t col = 0; col < cols; ++col) {
    const std::byte both = panel[col / kQ4Group * P::kStride + q4_byte<S>(row, col)];
    out.codes[col] = static_cast<uint8_t>(both >> q4_shift(col) & std::byte{15});
  }
  for (int32_t group = 0; group < q4_groups(cols); ++group) {
    float d[S::kLanes], m[S::kLanes];
    S::store(d, P::scale(panel + group * P::kStride, 0));
    S::store(m, P::scale(panel + group * P::kStride, 1));
    out.d[group] = d[row];
    out.m[group] = m[row];
  }
}

template <class S>
void unpack_q4_row(const std::byte* panel, int32_t row, int32_t cols, bool wide,
                   const Q4Rows& out) {
  wide ? unpack_q4_row_as<S, true>(panel, row, cols, out)
       : unpack_q4_row_as<S, false>(panel, row, cols, out);
}

// A row of inputs in groups. x is zero from cols on.
template <class S>
void quantize_q4_row(const float* x, int32_t cols, std::byte* out) {
  constexpr int32_t kVectors = kQ4Group / S::kLanes;
  const typename S::F zero = S::zero();
  const int32_t groups = q4_groups(cols);
  auto* to = reinterpret_cast<Q4Inputs*>(out);
  for (int32_t group = 0; group < groups; ++group, x += kQ4Group) {
    typename S::F most = zero, total = zero;
#pragma GCC unroll 4
    for (int32_t i = 0; i < kVectors; ++i) {
      const typename S::F value = S::load(x + i * S::kLanes);
      most = S::max(most, S::max(value, S::sub(zero, value)));
    }
    const Int8Scale scale = int8_scale(S::highest(most));
    const typename S::F inverse = S::set(scale.inverse);
#pragma GCC unroll 4
    for (int32_t i = 0; i < kVectors; ++i) {
      const typename S::F value = S::round(S::mul(S::load(x + i * S::kLanes), inverse));
      S::store_signed(to[group].values + i * S::kLanes, value);
      total = S::add(total, value);
    }
    const float sum = S::sum(total);  // NaN if any value is not finite: infinity comes as ∞ · 0
    to[group].scale = scale.scale + sum * 0.0f;
    to[group].sum = to[group].scale * sum;
  }
}

// Panels that a tile of `rows` rows takes at once: integer and float sums, one step's weights, and
// an input.
template <class S>
constexpr int32_t q4_panels_at_once(int32_t rows) {
  const int32_t fit = (S::kRegisters - 4) / (2 * rows + 2);
  return fit < 1 ? 1 : fit > 4 ? 4 : fit;
}

// Products of some rows and panels over some groups; P says how the codes lie.
template <class S, class P, int32_t kTileRows, int32_t kPanels>
struct Q4Tile {
  typename S::F totals[kTileRows][kPanels];

  MF_FLATTEN void clear() {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) totals[m][p] = S::zero();
    }
  }
  MF_FLATTEN void load(const float* y, int64_t stride) {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) totals[m][p] = S::load(y + m * stride + p * S::kLanes);
    }
  }
  MF_FLATTEN void store(float* y, int64_t stride) {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) S::store(y + m * stride + p * S::kLanes, totals[m][p]);
    }
  }

  // w: panel 0; panels are panel_bytes apart. x: row 0; rows are x_stride bytes apart.
  MF_FLATTEN void multiply(const std::byte* w, int64_t panel_bytes, const std::byte* x,
                           int64_t x_stride, int32_t groups, Ahead& ahead) {
    for (int32_t group = 0; group < groups; ++group) {
      for (int64_t line = 0; line < ahead.lines; ++line) S::prefetch(ahead.next + line * 64);
      ahead.next += ahead.lines * 64;
      add_group(w, panel_bytes, x, x_stride);
      w += P::kStride;
      x += sizeof(Q4Inputs);
    }
  }

 private:
  MF_FLATTEN void add_group(const std::byte* w, int64_t panel_bytes, const std::byte* x,
                            int64_t x_stride) {
    typename S::Q4Sum sums[kTileRows][kPanels];
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) sums[m][p] = S::q4_zero();
    }
#pragma GCC unroll 4
    for (int32_t step = 0; step < kQ4Steps; ++step) {
      typename S::Bytes loaded[kPanels], codes[kPanels];
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) {
        loaded[p] = P::load(w + p * panel_bytes, step);
        codes[p] = P::low(w + p * panel_bytes, step, loaded[p]);
      }
      add_products(sums, codes, x + 4 * step, x_stride);
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) {
        codes[p] = P::high(w + p * panel_bytes, step, loaded[p]);
      }
      add_products(sums, codes, x + 16 + 4 * step, x_stride);
    }
    add_sums(sums, w, panel_bytes, x, x_stride);
  }

  MF_FLATTEN void add_products(typename S::Q4Sum (&sums)[kTileRows][kPanels],
                               const typename S::Bytes (&codes)[kPanels], const std::byte* x,
                               int64_t x_stride) {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
      const typename S::Q4Four four =
          S::set_four(reinterpret_cast<const int8_t*>(x + m * x_stride));
#pragma GCC unroll 4
      for (int32_t p = 0; p < kPanels; ++p) sums[m][p] = S::dot_q4(sums[m][p], codes[p], four);
    }
  }

  MF_FLATTEN void add_sums(const typename S::Q4Sum (&sums)[kTileRows][kPanels], const std::byte* w,
                           int64_t panel_bytes, const std::byte* x, int64_t x_stride) {
#pragma GCC unroll 4
    for (int32_t p = 0; p < kPanels; ++p) {
      const typename S::F d = P::scale(w + p * panel_bytes, 0);
      const typename S::F min = P::scale(w + p * panel_bytes, 1);
#pragma GCC unroll 8
      for (int32_t m = 0; m < kTileRows; ++m) {
        const auto* of_group = reinterpret_cast<const Q4Inputs*>(x + m * x_stride);
        const typename S::F scale = S::mul(d, S::set(of_group->scale));
        totals[m][p] = S::fma(S::q4_float(sums[m][p]), scale, totals[m][p]);
        totals[m][p] = S::fma(min, S::set(of_group->sum), totals[m][p]);
      }
    }
  }
};

// Few rows: panels outside, rows inside, codes as they lie.
template <class S, bool kWide>
void q4_direct(const Q4Args& a) {
  using P = Q4Panel<S, kWide>;
  const int32_t groups = q4_groups(a.cols);
  const int64_t bytes = groups * P::kStride;
  const int32_t most = q4_panels_at_once<S>(largest_tile(a.rows));
  for_groups(a.panel0, a.panel1, most, [&](auto panels, int32_t panel) {
    constexpr int32_t kPanels = decltype(panels)::value;
    const std::byte* w = a.weights + panel * bytes;
    Ahead ahead = look_ahead_in<S>(w + kPanels * bytes, kPanels * bytes, groups, row_tiles(a.rows));
    for_row_tiles(a.rows, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      if constexpr (kPanels <= q4_panels_at_once<S>(kTileRows)) {
        Q4Tile<S, P, kTileRows, kPanels> tile;
        tile.clear();
        tile.multiply(w, bytes, a.x + row * a.x_stride, a.x_stride, groups, ahead);
        tile.store(a.y + row * a.y_stride + panel * S::kLanes, a.y_stride);
        ++(kTileRows == 1 ? a.counts->single_row : a.counts->multi_row);
      }
    });
  });
}

// One block of unpacked codes, groups group0 .. of kPanels panels, for all rows.
template <class S, int32_t kPanels>
void q4_unpacked_rows(const Q4Args& a, const std::byte* codes, int32_t panel, int32_t group0,
                      int32_t groups, Ahead& ahead) {
  using U = Q4Unpacked<S>;
  for_row_tiles(a.rows, [&](auto rows, int32_t row) {
    constexpr int32_t kTileRows = decltype(rows)::value;
    if constexpr (kPanels <= q4_panels_at_once<S>(kTileRows)) {
      float* y = a.y + row * a.y_stride + panel * S::kLanes;
      Q4Tile<S, U, kTileRows, kPanels> tile;
      group0 == 0 ? tile.clear() : tile.load(y, a.y_stride);
      tile.multiply(codes, kQ4BlockGroups * U::kStride,
                    a.x + row * a.x_stride + group0 * int64_t{sizeof(Q4Inputs)}, a.x_stride, groups,
                    ahead);
      tile.store(y, a.y_stride);
      if (group0 == 0) ++(kTileRows == 1 ? a.counts->single_row : a.counts->multi_row);
    }
  });
}

// Many rows.
template <class S, bool kWide>
void q4_unpacked(const Q4Args& a) {
  using P = Q4Panel<S, kWide>;
  using U = Q4Unpacked<S>;
  constexpr int32_t kMost = q4_panels_at_once<S>(kMaxTileRows - 1);
  alignas(64) std::byte codes[kMost * kQ4BlockGroups * U::kStride];
  const int32_t groups = q4_groups(a.cols);
  const int64_t bytes = groups * P::kStride;
  const int32_t most = q4_panels_at_once<S>(largest_tile(a.rows));
  for_groups(a.panel0, a.panel1, most, [&](auto panels, int32_t panel) {
    constexpr int32_t kPanels = decltype(panels)::value;
    if constexpr (kPanels <= kMost) {
      const std::byte* w = a.weights + panel * bytes;
      Ahead ahead =
          look_ahead_in<S>(w + kPanels * bytes, kPanels * bytes, groups, row_tiles(a.rows));
      for (int32_t group0 = 0; group0 < groups; group0 += kQ4BlockGroups) {
        const int32_t left = groups - group0;
        const int32_t count = left < kQ4BlockGroups ? left : kQ4BlockGroups;
        for (int32_t p = 0; p < kPanels; ++p) {
          unpack_q4_groups<S, kWide>(w + p * bytes + group0 * P::kStride, count,
                                     codes + p * kQ4BlockGroups * U::kStride);
        }
        q4_unpacked_rows<S, kPanels>(a, codes, panel, group0, count, ahead);
      }
    }
  });
}

// Rows in blocks of nearly equal size whose inputs stay in the second-level cache.
template <class S>
void q4_gemm(const Q4Args& a) {
  if (a.rows <= kQ4DirectRows) return a.wide ? q4_direct<S, true>(a) : q4_direct<S, false>(a);
  const int32_t blocks = row_blocks(a.rows, q4_groups(a.cols) * int64_t{sizeof(Q4Inputs)});
  int32_t row = 0;
  for (int32_t i = 0; i < blocks; ++i) {
    const auto next = static_cast<int32_t>(int64_t{a.rows} * (i + 1) / blocks);
    Q4Args part = a;
    part.x = a.x + row * a.x_stride;
    part.y = a.y + row * a.y_stride;
    part.rows = next - row;
    part.wide ? q4_unpacked<S, true>(part) : q4_unpacked<S, false>(part);
    row = next;
  }
}

template <class S>
constexpr Q4Kernels make_q4_kernels() {
  return {
      .panel_rows = S::kLanes,
      .panel_bytes = q4_panel_bytes<S>,
      .pack = pack_q4<S>,
      .unpack_row = unpack_q4_row<S>,
      .quantize = quantize_q4_row<S>,
      .gemm = q4_gemm<S>,
  };
}

}  // namespace manyfold::kernels
