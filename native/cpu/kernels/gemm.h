// Base weights: packing, and y = W x for any number of rows. Included by kernels/table.h only.
#pragma once

#include "tiles.h"

namespace manyfold::kernels {

template <class S, class P, int32_t kTileRows, int32_t kPanels>
void gemm_tile(const GemmArgs& a, int32_t panel, int32_t row, Ahead& ahead) {
  using T = Tile<S, P, kTileRows, kPanels>;
  const int64_t stride = panel_elements<P>(a.cols);
  const typename P::Weight* w[kPanels];
  for (int32_t p = 0; p < kPanels; ++p) {
    w[p] = reinterpret_cast<const typename P::Weight*>(a.weights) + (panel + p) * stride;
  }
  const typename P::Input* x[kTileRows];
  for (int32_t m = 0; m < kTileRows; ++m) {
    x[m] = static_cast<const typename P::Input*>(a.x) + (row + m) * a.x_stride;
  }
  T tile;
  tile.clear();
  tile.multiply(w, x, (a.cols + P::kDepth - 1) / P::kDepth, P::kStep, ahead);
  float* y = a.y + row * a.y_stride + int64_t{panel} * P::kRows;
#pragma GCC unroll 8
  for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 16
    for (int32_t i = 0; i < T::kVectors; ++i) {
      S::store(y + m * a.y_stride + i * S::kLanes, tile.sums[m][i]);
    }
  }
  ++(kTileRows == 1 ? a.counts->single_row : a.counts->multi_row);
}

// Panels outside, rows inside: a panel is read once for all of these rows.
template <class S, class P>
void gemm_block(const GemmArgs& a) {
  const int64_t bytes = panel_elements<P>(a.cols) * int64_t{sizeof(typename P::Weight)};
  for_panel_groups<S, P>(a.panel0, a.panel1, largest_tile(a.rows), [&](auto panels, int32_t panel) {
    constexpr int32_t kPanels = decltype(panels)::value;
    Ahead ahead = look_ahead<S>(a.weights + (panel + kPanels) * bytes, kPanels * bytes,
                                a.cols / P::kDepth, a.rows);
    for_row_tiles(a.rows, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      // Larger tiles than the registers hold are never asked for.
      if constexpr (kPanels <= panels_at_once<S, P>(kTileRows)) {
        gemm_tile<S, P, kTileRows, kPanels>(a, panel, row, ahead);
      }
    });
  });
}

// Rows in blocks of nearly equal size. Panels come from memory for the first block and from the
// cache for the others.
template <class S, class P>
void gemm(const GemmArgs& a) {
  using Input = typename P::Input;
  const int32_t blocks = row_blocks(a.rows, a.cols * int64_t{sizeof(Input)});
  int32_t row = 0;
  for (int32_t i = 0; i < blocks; ++i) {
    const auto next = static_cast<int32_t>(int64_t{a.rows} * (i + 1) / blocks);
    GemmArgs part = a;
    part.x = static_cast<const Input*>(a.x) + row * a.x_stride;
    part.y = a.y + row * a.y_stride;
    part.rows = next - row;
    gemm_block<S, P>(part);
    row = next;
  }
}

template <class P>
void pack_panel(const float* rows, int32_t count, int32_t cols, typename P::Weight* panel) {
  const int64_t n = panel_elements<P>(cols);
  for (int64_t i = 0; i < n; ++i) panel[i] = 0;
  for (int32_t row = 0; row < count; ++row) {
    for (int32_t col = 0; col < cols; ++col) {
      const float value = rows[int64_t{row} * cols + col];
      if constexpr (sizeof(typename P::Weight) == 2) {
        panel[P::index(row, col)] = f32_to_bf16(value);
      } else {
        panel[P::index(row, col)] = static_cast<typename P::Weight>(value);
      }
    }
  }
}

template <class P>
void unpack_row(const typename P::Weight* panel, int32_t row, int32_t cols, float* out) {
  for (int32_t col = 0; col < cols; ++col) {
    const typename P::Weight value = panel[P::index(row, col)];
    if constexpr (sizeof(typename P::Weight) == 2) {
      out[col] = bf16_to_f32(value);
    } else {
      out[col] = value;
    }
  }
}

template <class S>
void round_inputs(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += S::kLanes) S::narrow(out + i, S::load(x + i));
}

// Which panel holds base weights of a dtype.
template <class S, bool kDot = S::kDotBf16>
struct BasePanels {
  using Bf16 = Bf16Panel<S>;
};
template <class S>
struct BasePanels<S, true> {
  using Bf16 = Bf16DotPanel<S>;
};

}  // namespace manyfold::kernels
