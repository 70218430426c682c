// Block-diagonal maps: every output is the product of one row of its block with the block's inputs.
// Included by kernels/table.h only.
#pragma once

#include "tiles.h"

namespace manyfold::kernels {

// Outputs of one vector for some rows. kShared: all its outputs lie in one block, so that they
// share each input; else each lane reads its own.
template <class S, class T, bool kShared, int32_t kTileRows>
void block_tile(const BlockArgs& a, int32_t vector, int32_t row) {
  const T* w = reinterpret_cast<const T*>(a.values) + int64_t{vector} * a.inputs * S::kLanes;
  const uint32_t* starts = a.starts + int64_t{vector} * S::kLanes;
  typename S::F sums[kTileRows];
  const float* x[kTileRows];
  for (int32_t m = 0; m < kTileRows; ++m) {
    sums[m] = S::zero();
    x[m] = a.x + (row + m) * a.x_stride + (kShared ? starts[0] : 0);
  }
  const auto index = S::load_index(starts);
  for (int32_t c = 0; c < a.inputs; ++c) {
    typename S::F value;
    RowPanel<S, T>::load(w + int64_t{c} * S::kLanes, &value);
#pragma GCC unroll 4
    for (int32_t m = 0; m < kTileRows; ++m) {
      if constexpr (kShared) {
        sums[m] = S::fma(value, S::set(x[m][c]), sums[m]);
      } else {
        sums[m] = S::fma(value, S::gather(x[m] + c, index), sums[m]);
      }
    }
  }
  for (int32_t m = 0; m < kTileRows; ++m) {
    S::store(a.out + (row + m) * a.out_stride + int64_t{vector} * S::kLanes, sums[m]);
  }
}

template <class S, class T, bool kShared>
void block_rows(const BlockArgs& a) {
  const auto vectors = static_cast<int32_t>((a.outputs + S::kLanes - 1) / S::kLanes);
  for (int32_t vector = 0; vector < vectors; ++vector) {
    int32_t row = 0;
    for (; row + 4 <= a.count; row += 4) block_tile<S, T, kShared, 4>(a, vector, row);
    for (; row < a.count; ++row) block_tile<S, T, kShared, 1>(a, vector, row);
  }
}

template <class S>
void blocks(const BlockArgs& a) {
  const bool shared = a.block_outputs % S::kLanes == 0;
  if (a.dtype == FactorType::kBf16) {
    shared ? block_rows<S, uint16_t, true>(a) : block_rows<S, uint16_t, false>(a);
  } else {
    shared ? block_rows<S, float, true>(a) : block_rows<S, float, false>(a);
  }
}

// [vectors][inputs][lanes]; blocks [outputs / block_outputs, block_outputs, inputs].
template <class S, class T>
void pack_blocks(const float* values, int32_t outputs, int32_t inputs, T* packed) {
  const int64_t vectors = (outputs + S::kLanes - 1) / S::kLanes;
  for (int64_t i = 0; i < vectors * inputs * S::kLanes; ++i) packed[i] = 0;
  for (int32_t o = 0; o < outputs; ++o) {
    T* vector = packed + int64_t{o / S::kLanes} * inputs * S::kLanes + o % S::kLanes;
    for (int32_t c = 0; c < inputs; ++c) {
      const float value = values[int64_t{o} * inputs + c];
      if constexpr (sizeof(T) == 2) {
        vector[int64_t{c} * S::kLanes] = f32_to_bf16(value);
      } else {
        vector[int64_t{c} * S::kLanes] = value;
      }
    }
  }
}

}  // namespace manyfold::kernels
