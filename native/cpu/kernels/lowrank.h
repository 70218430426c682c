// Adapters' factors: REDUCE v = A x and SPREAD y += B v for the rows of one term set. True ranks:
// A's ranks stand side by side in vectors of `lanes`, the last one as narrow as it is; B is panels
// of outputs over its rank. Included by kernels/table.h only.
//
// Ternary factors are words of sixteen two-bit codes, one word a lane: sixteen inputs of a rank, or
// sixteen ranks of an output. A permutation of a table by the words gives the values of all lanes
// at once, which costs no more than widening bf16, so they are never expanded in memory.
#pragma once

#include "tiles.h"

namespace manyfold::kernels {

// How far REDUCE prefetches: a processor's own prefetcher begins anew for each adapter, and loses
// what an adapter's factors are long.
inline constexpr int64_t kReadAhead = 1536;

// Values of one ternary word.
inline constexpr int32_t kWordValues = 16;

// What a factor's element is stored as; words of ternary codes hold kWordValues steps.
template <class T>
inline constexpr bool kIsTernary = false;
template <>
inline constexpr bool kIsTernary<uint32_t> = true;

template <class T>
constexpr int64_t stored_steps(int64_t steps) {
  return kIsTernary<T> ? (steps + kWordValues - 1) / kWordValues : steps;
}

constexpr uint32_t ternary_code(float value, int32_t step) {
  return (value > 0 ? 1u : value < 0 ? 2u : 0u) << (2 * (step % kWordValues));
}

// Inner products of some rows with some vectors of ranks. Step k belongs to chain k % kChains, and
// the chains are added at the end in one order, so that neither a short rank nor a long input waits
// for the latency of a sum.
template <class S, class T, int32_t kTileRows, int32_t kVectors>
struct ReduceTile {
  using F = typename S::F;
  static constexpr int32_t kChains = S::kChains;
  // Steps written out one after the other; a multiple of kChains.
  static constexpr int32_t kSteps = 4;

  F sums[kChains][kTileRows][kVectors];

  MF_FLATTEN void clear() {
    for (int32_t c = 0; c < kChains; ++c) {
#pragma GCC unroll 8
      for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 8
        for (int32_t i = 0; i < kVectors; ++i) sums[c][m][i] = S::zero();
      }
    }
  }

  // `width` stored elements from one step to the next. first: nobody has read these factors yet.
  MF_FLATTEN void multiply(const T* const (&w)[kVectors], const float* const (&x)[kTileRows],
                           int32_t cols, int64_t width, bool first) {
    if constexpr (kIsTernary<T>) {
      // The last word's codes beyond cols are zeros, and so is the padding of x.
      for (int32_t k = 0; k < cols; k += kWordValues) {
        if (first) read_ahead(w, k / kWordValues * width);
        typename S::Codes codes[kVectors];
#pragma GCC unroll 8
        for (int32_t i = 0; i < kVectors; ++i) {
          codes[i] = S::load_codes(w[i] + k / kWordValues * width);
        }
        for (int32_t j = 0; j < kWordValues; j += kSteps) {
          ternary_pair<0>(codes, x, k + j);
          ternary_pair<2>(codes, x, k + j + 2);
        }
      }
    } else {
      int32_t k = 0;
      for (; k + kSteps <= cols; k += kSteps) {
        if (first) read_ahead(w, k * width);
        dense<0>(w, x, k, width);
        dense<1>(w, x, k + 1, width);
        dense<2>(w, x, k + 2, width);
        dense<3>(w, x, k + 3, width);
      }
      if (k < cols) dense<0>(w, x, k, width);
      if (k + 1 < cols) dense<1>(w, x, k + 1, width);
      if (k + 2 < cols) dense<2>(w, x, k + 2, width);
    }
  }

  MF_FLATTEN F sum(int32_t row, int32_t vector) const {
    if constexpr (kChains == 2) {
      return S::add(sums[0][row][vector], sums[1][row][vector]);
    } else {
      return S::add(S::add(sums[0][row][vector], sums[1][row][vector]),
                    S::add(sums[2][row][vector], sums[3][row][vector]));
    }
  }

 private:
  // The lines that a block of steps will read kReadAhead bytes later; behind the last factor stand
  // those of the outputs, which are read next.
  MF_FLATTEN void read_ahead(const T* const (&w)[kVectors], int64_t at) {
    constexpr int64_t kBytes = (kIsTernary<T> ? 1 : kSteps) * S::kLanes * int64_t{sizeof(T)};
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) {
      const char* from = reinterpret_cast<const char*>(w[i] + at) + kReadAhead;
      for (int64_t byte = 0; byte < kBytes; byte += 64) S::prefetch(from + byte);
    }
  }

  template <int32_t kStep>
  MF_FLATTEN void add(const F (&values)[kVectors], const float* const (&x)[kTileRows], int32_t k) {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
      const F factor = S::set(x[m][k]);
#pragma GCC unroll 8
      for (int32_t i = 0; i < kVectors; ++i) {
        F& to = sums[kStep % kChains][m][i];
        to = S::fma(values[i], factor, to);
      }
    }
  }

  template <int32_t kStep>
  MF_FLATTEN void dense(const T* const (&w)[kVectors], const float* const (&x)[kTileRows],
                        int32_t k, int64_t width) {
    F values[kVectors];
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) RowPanel<S, T>::load(w[i] + k * width, values + i);
    add<kStep>(values, x, k);
  }

  template <int32_t kStep>
  MF_FLATTEN void ternary_pair(typename S::Codes (&codes)[kVectors],
                               const float* const (&x)[kTileRows], int32_t k) {
    F values[kVectors];
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) values[i] = S::ternary(codes[i]);
    add<kStep>(values, x, k);
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) {
      values[i] = S::ternary_next(codes[i]);
      codes[i] = S::skip_two(codes[i]);
    }
    add<kStep + 1>(values, x, k + 1);
  }
};

// What panels_at_once asks: registers of one vector for each row, with all its chains.
template <class S>
struct ReduceShape {
  static constexpr int32_t kVectors = S::kChains;
};

template <class S, class T, int32_t kTileRows, int32_t kVectors>
void reduce_tile(const ReduceArgs& a, int32_t vector, int32_t row, int64_t width) {
  const T* w[kVectors];
  for (int32_t i = 0; i < kVectors; ++i) {
    w[i] =
        reinterpret_cast<const T*>(a.a) + int64_t{vector + i} * S::kLanes * stored_steps<T>(a.cols);
  }
  const float* x[kTileRows];
  for (int32_t m = 0; m < kTileRows; ++m) x[m] = a.x + a.rows[row + m] * a.x_stride;
  ReduceTile<S, T, kTileRows, kVectors> tile;
  tile.clear();
  tile.multiply(w, x, a.cols, width, row == 0);
#pragma GCC unroll 8
  for (int32_t m = 0; m < kTileRows; ++m) {
    float* v = a.v + (row + m) * a.v_stride + int64_t{vector} * S::kLanes;
#pragma GCC unroll 8
    for (int32_t i = 0; i < kVectors; ++i) {
      const auto factor = S::load(a.factor + (vector + i) * S::kLanes);
      S::store(v + i * S::kLanes, S::mul(tile.sum(m, i), factor));
    }
  }
}

template <class S, class T>
void reduce_vectors(const ReduceArgs& a, int32_t vector0, int32_t vector1, int64_t width) {
  using P = ReduceShape<S>;
  for_panel_groups<S, P>(vector0, vector1, largest_tile(a.count), [&](auto group, int32_t vector) {
    constexpr int32_t kVectors = decltype(group)::value;
    for_row_tiles(a.count, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      if constexpr (kVectors <= panels_at_once<S, P>(kTileRows)) {
        reduce_tile<S, T, kTileRows, kVectors>(a, vector, row, width);
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
  return (static_cast<size_t>(ranks) * static_cast<size_t>(stored_steps<T>(cols)) + S::kLanes) *
         sizeof(T);
}

template <class S, class T>
void pack_reduce(const float* a, int32_t ranks, int32_t cols, T* packed) {
  const int64_t steps = stored_steps<T>(cols);
  for (int64_t i = 0; i < ranks * steps + S::kLanes; ++i) packed[i] = 0;
  for (int32_t r = 0; r < ranks; ++r) {
    const int32_t first = r / S::kLanes * S::kLanes;
    const int32_t width = ranks - first < S::kLanes ? ranks - first : S::kLanes;
    T* vector = packed + int64_t{first} * steps + r - first;
    for (int32_t k = 0; k < cols; ++k) {
      const float value = a[int64_t{r} * cols + k];
      if constexpr (kIsTernary<T>) {
        vector[int64_t{k / kWordValues} * width] |= ternary_code(value, k);
      } else if constexpr (sizeof(T) == 2) {
        vector[int64_t{k} * width] = f32_to_bf16(value);
      } else {
        vector[int64_t{k} * width] = static_cast<T>(value);
      }
    }
  }
}

// [rank / 16][2 · lanes] words of ternary codes.
template <class S>
struct TernaryPanel {
  using Weight = uint32_t;
  static constexpr int32_t kVectors = 2, kDepth = kWordValues, kRows = 2 * S::kLanes, kStep = kRows;
};

// The tile of TernaryPanels, with the interface of Tile: one chain for each sum.
template <class S, int32_t kTileRows, int32_t kPanels>
struct TernaryTile {
  using F = typename S::F;
  static constexpr int32_t kVectors = kPanels * 2;

  F sums[kTileRows][kVectors];

  MF_FLATTEN void clear() {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 16
      for (int32_t i = 0; i < kVectors; ++i) sums[m][i] = S::zero();
    }
  }

  MF_FLATTEN void multiply(const uint32_t* const (&w)[kPanels], const float* const (&x)[kTileRows],
                           int32_t steps, int64_t stride, Ahead& ahead) {
    for (int32_t k = 0; k < steps; k += kWordValues) {
      for (int64_t line = 0; line < ahead.lines; ++line) S::prefetch(ahead.next + line * 64);
      ahead.next += ahead.lines * 64;
      typename S::Codes codes[kVectors];
#pragma GCC unroll 16
      for (int32_t i = 0; i < kVectors; ++i) {
        codes[i] = S::load_codes(w[i / 2] + k / kWordValues * stride + i % 2 * S::kLanes);
      }
      const int32_t end = steps - k < kWordValues ? steps - k : kWordValues;
      int32_t j = 0;
      for (; j + 2 <= end; j += 2) {
        F values[kVectors];
#pragma GCC unroll 16
        for (int32_t i = 0; i < kVectors; ++i) values[i] = S::ternary(codes[i]);
        add(values, x, k + j);
#pragma GCC unroll 16
        for (int32_t i = 0; i < kVectors; ++i) {
          values[i] = S::ternary_next(codes[i]);
          codes[i] = S::skip_two(codes[i]);
        }
        add(values, x, k + j + 1);
      }
      if (j < end) {
        F values[kVectors];
#pragma GCC unroll 16
        for (int32_t i = 0; i < kVectors; ++i) values[i] = S::ternary(codes[i]);
        add(values, x, k + j);
      }
    }
  }

 private:
  MF_FLATTEN void add(const F (&values)[kVectors], const float* const (&x)[kTileRows], int32_t k) {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
      const F factor = S::set(x[m][k]);
#pragma GCC unroll 16
      for (int32_t i = 0; i < kVectors; ++i) sums[m][i] = S::fma(values[i], factor, sums[m][i]);
    }
  }
};

template <class S, class P, int32_t kTileRows, int32_t kPanels>
struct SpreadTile {
  using Type = Tile<S, P, kTileRows, kPanels>;
};
template <class S, int32_t kTileRows, int32_t kPanels>
struct SpreadTile<S, TernaryPanel<S>, kTileRows, kPanels> {
  using Type = TernaryTile<S, kTileRows, kPanels>;
};

template <class S, class P, int32_t kTileRows, int32_t kPanels>
void spread_tile(const SpreadArgs& a, int32_t panel, int32_t row, Ahead& ahead) {
  using T = typename SpreadTile<S, P, kTileRows, kPanels>::Type;
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

// Panels of a tile; those of ternary codes need registers for their words too.
template <class S, class P>
struct SpreadShape {
  static constexpr int32_t at_once(int32_t rows) {
    if constexpr (P::kDepth != kWordValues) {
      return panels_at_once<S, P>(rows);
    } else {
      const int32_t fit = (S::kRegisters - 4) / ((rows + 2) * P::kVectors);
      return fit < 1 ? 1 : fit > 4 ? 4 : fit;
    }
  }
};

template <class S, class P>
void spread(const SpreadArgs& a) {
  using Shape = SpreadShape<S, P>;
  const int64_t bytes = panel_elements<P>(a.rank) * int64_t{sizeof(typename P::Weight)};
  const int32_t most = Shape::at_once(largest_tile(a.count));
  const int64_t blocks =
      P::kDepth == kWordValues ? stored_steps<uint32_t>(a.rank) : a.rank / S::kUnroll;
  for_groups(a.panel0, a.panel1, most, [&](auto group, int32_t panel) {
    constexpr int32_t kPanels = decltype(group)::value;
    const bool last = panel + kPanels >= a.panel1;
    Ahead ahead =
        look_ahead_in<S>(last ? a.next : a.b + (panel + kPanels) * bytes,
                         last ? a.next_bytes : kPanels * bytes, blocks, row_tiles(a.count));
    for_row_tiles(a.count, [&](auto rows, int32_t row) {
      constexpr int32_t kTileRows = decltype(rows)::value;
      if constexpr (kPanels <= Shape::at_once(kTileRows)) {
        spread_tile<S, P, kTileRows, kPanels>(a, panel, row, ahead);
      }
    });
  });
}

// A panel of ternary codes; pack_panel packs the others.
template <class S>
void pack_ternary_panel(const float* rows, int32_t count, int32_t rank, uint32_t* panel) {
  using P = TernaryPanel<S>;
  for (int64_t i = 0; i < panel_elements<P>(rank); ++i) panel[i] = 0;
  for (int32_t row = 0; row < count; ++row) {
    for (int32_t r = 0; r < rank; ++r) {
      panel[int64_t{r / kWordValues} * P::kStep + row] |=
          ternary_code(rows[int64_t{row} * rank + r], r);
    }
  }
}

}  // namespace manyfold::kernels
