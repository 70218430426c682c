// Sparse terms: rows of a matrix with few entries each, in slices of `lanes` outputs that hold as
// many steps as their longest output (sorted within a window, so that little is padding). One
// accumulator an output, entries in ascending order of columns. Included by kernels/table.h only.
#pragma once

#include "tiles.h"

namespace manyfold::kernels {

// The entries of a slice, one vector of outputs a step: what a step adds to the sum of a row.
template <class S, class Column>
struct SignedEntries {
  const Column* columns;
  explicit SignedEntries(const SlicedArgs& a)
      : columns(reinterpret_cast<const Column*>(a.columns)) {}
  MF_FLATTEN typename S::F add(int64_t step, const float* x, typename S::F sum) const {
    return S::add(sum, S::gather_signed(x, columns + step * S::kLanes));
  }
};

template <class S, class Column, class T>
struct ValuedEntries {
  const Column* columns;
  const T* values;
  explicit ValuedEntries(const SlicedArgs& a)
      : columns(reinterpret_cast<const Column*>(a.columns)),
        values(reinterpret_cast<const T*>(a.values)) {}
  MF_FLATTEN typename S::F add(int64_t step, const float* x, typename S::F sum) const {
    typename S::F value;
    RowPanel<S, T>::load(values + step * S::kLanes, &value);
    return S::fma(value, S::gather(x, S::load_index(columns + step * S::kLanes)), sum);
  }
};

template <class S>
MF_FLATTEN void put_slice(const SlicedArgs& a, int32_t slice, int32_t row, typename S::F sum) {
  const int64_t first = int64_t{slice} * S::kLanes;
  if (a.factor != nullptr) sum = S::mul(sum, S::load(a.factor + first));
  float* out = a.out + (a.out_rows == nullptr ? row : a.out_rows[row]) * a.out_stride;
  if (a.places == nullptr) {
    S::store(out + first, sum);
    return;
  }
  float lane[S::kLanes];
  S::store(lane, sum);
  for (int32_t i = 0; i < S::kLanes; ++i) {
    const int32_t place = a.places[first + i];
    if (place != kNoPlace) {
      float* to = out + first / kSliceWindow * kSliceWindow + place;
      *to = *to + lane[i];
    }
  }
}

template <class S, class Entries>
void sliced_rows(const SlicedArgs& a) {
  const Entries entries(a);
  for (int32_t slice = a.slice0; slice < a.slice1; ++slice) {
    const int64_t begin = a.steps[slice], end = a.steps[slice + 1];
    const auto tile = [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      typename S::F sums[kTileRows];
      const float* x[kTileRows];
      for (int32_t m = 0; m < kTileRows; ++m) {
        sums[m] = S::zero();
        x[m] = a.x + (a.x_rows == nullptr ? row + m : a.x_rows[row + m]) * a.x_stride;
      }
      for (int64_t step = begin; step < end; ++step) {
#pragma GCC unroll 4
        for (int32_t m = 0; m < kTileRows; ++m) sums[m] = entries.add(step, x[m], sums[m]);
      }
      for (int32_t m = 0; m < kTileRows; ++m) put_slice<S>(a, slice, row + m, sums[m]);
    };
    int32_t row = 0;
    for (; row + 4 <= a.count; row += 4) tile(Count<4>{}, row);
    for (; row < a.count; ++row) tile(Count<1>{}, row);
  }
}

template <class S, class Column>
void sliced_by_values(const SlicedArgs& a) {
  if (a.entries == SlicedEntries::kBf16) {
    sliced_rows<S, ValuedEntries<S, Column, uint16_t>>(a);
  } else {
    sliced_rows<S, ValuedEntries<S, Column, float>>(a);
  }
}

template <class S>
void sliced(const SlicedArgs& a) {
  if (a.entries == SlicedEntries::kSigns && a.column_bytes == 1) {
    sliced_rows<S, SignedEntries<S, uint8_t>>(a);
  } else if (a.entries == SlicedEntries::kSigns) {
    sliced_rows<S, SignedEntries<S, uint16_t>>(a);
  } else if (a.column_bytes == 2) {
    sliced_by_values<S, uint16_t>(a);
  } else {
    sliced_by_values<S, uint32_t>(a);
  }
}

}  // namespace manyfold::kernels
