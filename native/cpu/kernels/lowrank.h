// Adapters' factors: REDUCE v = A x and SPREAD y += B v for the rows of one term set. True ranks:
// A's ranks stand side by side in vectors of `lanes`, the last one as narrow as it is; B is panels
// of outputs over its rank. Included by kernels/table.h only.
#pragma once

#include "tiles.h"

namespace manyfold::kernels {

template <class S, class T, int32_t kTileRows, int32_t kVectors>
void reduce_tile(const ReduceArgs& a, int32_t vector, int32_t row, int64_t stride, Ahead& ahead) {
  using P = RowPanel<S, T>;
  const T* w[kVectors];
  for (int32_t i = 0; i < kVectors; ++i) {
    w[i] = reinterpret_cast<const T*>(a.a) + int64_t{vector + i} * S::kLanes * a.cols;
  }
  const float* x[kTileRows];
  for (int32_t m = 0; m < kTileRows; ++m) x[m] = a.x + a.rows[row + m] * a.x_stride;
  Tile<S, P, kTileRows, kVectors> tile;
  tile.clear();
  tile.multiply(w, x, a.cols, stride, ahead);
  for (int32_t m = 0; m < kTileRows; ++m) {
    float* v = a.v + (row + m) * a.v_stride + int64_t{vector} * S::kLanes;
    for (int32_t i = 0; i < kVectors; ++i) {
      const auto factor = S::load(a.factor + (vector + i) * S::kLanes);
      S::store(v + i * S::kLanes, S::mul(tile.sums[m][i], factor));
    }
  }
}

template <class S, class T>
void reduce_vectors(const ReduceArgs& a, int32_t vector0, int32_t vector1, int64_t stride) {
  using P = RowPanel<S, T>;
  for_panel_groups<S, P>(vector0, vector1, largest_tile(a.count), [&](auto group, int32_t vector) {
    constexpr int32_t kVectors = decltype(group)::value;
    const int64_t bytes = kVectors * a.cols * stride * int64_t{sizeof(T)};
    Ahead ahead =
        look_ahead<S>(a.a + int64_t{vector + kVectors} * S::kLanes * a.cols * int64_t{sizeof(T)},
                      bytes, a.cols, a.count);
    for_row_tiles(a.count, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      if constexpr (kVectors <= panels_at_once<S, P>(kTileRows)) {
        reduce_tile<S, T, kTileRows, kVectors>(a, vector, row, stride, ahead);
      }
    });
  });
}

// Full vectors first, then the narrow one if the range has it.
template <class S, class T>
void reduce(const ReduceArgs& a) {
  const int32_t full = a.ranks / S::kLanes;
  const int32_t end = a.vector1 < full ? a.vector1 : full;
  reduce_vectors<S, T>(a, a.vector0, end, S::kLanes);
  if (a.vector1 > full) reduce_vectors<S, T>(a, full, full + 1, a.ranks % S::kLanes);
}

// The last vector is read whole, so that much slack follows it.
template <class S, class T>
size_t reduce_bytes(int32_t ranks, int32_t cols) {
  return (static_cast<size_t>(ranks) * static_cast<size_t>(cols) + S::kLanes) * sizeof(T);
}

template <class S, class T>
void pack_reduce(const float* a, int32_t ranks, int32_t cols, T* packed) {
  for (int32_t r = 0; r < ranks; ++r) {
    const int32_t first = r / S::kLanes * S::kLanes;
    const int32_t width = ranks - first < S::kLanes ? ranks - first : S::kLanes;
    T* vector = packed + int64_t{first} * cols;
    for (int32_t k = 0; k < cols; ++k) {
      const float value = a[int64_t{r} * cols + k];
      if constexpr (sizeof(T) == 2) {
        vector[int64_t{k} * width + r - first] = f32_to_bf16(value);
      } else {
        vector[int64_t{k} * width + r - first] = value;
      }
    }
  }
  for (int32_t i = 0; i < S::kLanes; ++i) packed[int64_t{ranks} * cols + i] = 0;
}

template <class S, class P, int32_t kTileRows, int32_t kPanels>
void spread_tile(const SpreadArgs& a, int32_t panel, int32_t row, Ahead& ahead) {
  using T = Tile<S, P, kTileRows, kPanels>;
  const typename P::Weight* w[kPanels];
  for (int32_t p = 0; p < kPanels; ++p) {
    w[p] =
        reinterpret_cast<const typename P::Weight*>(a.b) + (panel + p) * panel_elements<P>(a.rank);
  }
  const float* v[kTileRows];
  for (int32_t m = 0; m < kTileRows; ++m) v[m] = a.v + (row + m) * a.v_stride;
  T tile;
  tile.clear();
  tile.multiply(w, v, a.rank, P::kStep, ahead);
  const int64_t first = int64_t{panel} * P::kRows;
#pragma GCC unroll 8
  for (int32_t m = 0; m < kTileRows; ++m) {
    float* y = a.y + a.rows[row + m] * a.y_stride + first;
#pragma GCC unroll 16
    for (int32_t i = 0; i < T::kVectors; ++i) {
      float* at = y + i * S::kLanes;
      if (a.out_diag == nullptr) {
        S::store(at, S::add(S::load(at), tile.sums[m][i]));
      } else {
        const auto e = S::load(a.out_diag + first + i * S::kLanes);
        S::store(at, S::fma(e, tile.sums[m][i], S::load(at)));
      }
    }
  }
}

template <class S, class P>
void spread(const SpreadArgs& a) {
  const int64_t bytes = panel_elements<P>(a.rank) * int64_t{sizeof(typename P::Weight)};
  for_panel_groups<S, P>(a.panel0, a.panel1, largest_tile(a.count), [&](auto group, int32_t panel) {
    constexpr int32_t kPanels = decltype(group)::value;
    Ahead ahead = look_ahead<S>(a.b + (panel + kPanels) * bytes, kPanels * bytes, a.rank, a.count);
    for_row_tiles(a.count, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      if constexpr (kPanels <= panels_at_once<S, P>(kTileRows)) {
        spread_tile<S, P, kTileRows, kPanels>(a, panel, row, ahead);
      }
    });
  });
}

}  // namespace manyfold::kernels
