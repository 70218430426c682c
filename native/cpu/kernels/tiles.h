// What every packed product is made of: how a panel of weights is stored, one tile of rows and
// panels with one accumulator chain for each sum, and the loops over tiles. Included by the kernels
// beside it; S is a SIMD policy of isa/.
#pragma once

#include "inline.h"
#include "kernels.h"

namespace manyfold::kernels {

// How one panel of weights is stored and multiplied. kVectors accumulators a row, kDepth inputs a
// step, kStep stored elements a step.

// [cols][2 · lanes] float32.
template <class S>
struct F32Panel {
  using Weight = float;
  using Input = float;
  using Loaded = typename S::F;
  using Factor = typename S::F;
  static constexpr int32_t kVectors = 2, kDepth = 1, kRows = 2 * S::kLanes, kStep = kRows;

  MF_INLINE void load(const Weight* p, Loaded* w) {
    w[0] = S::load(p);
    w[1] = S::load(p + S::kLanes);
  }
  MF_INLINE Factor broadcast(const Input* x) { return S::set(*x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::fma(w, x, sum);
  }
  // Element of (row of the panel, input).
  MF_INLINE int64_t index(int32_t row, int32_t col) { return int64_t{col} * kRows + row; }
};

// [cols][2 · lanes] bf16, rows i and i + lanes at places 2i and 2i + 1: a shift and a mask give two
// vectors of float32.
template <class S>
struct Bf16Panel {
  using Weight = uint16_t;
  using Input = float;
  using Loaded = typename S::F;
  using Factor = typename S::F;
  static constexpr int32_t kVectors = 2, kDepth = 1, kRows = 2 * S::kLanes, kStep = kRows;

  MF_INLINE void load(const Weight* p, Loaded* w) { S::split(p, w[0], w[1]); }
  MF_INLINE Factor broadcast(const Input* x) { return S::set(*x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::fma(w, x, sum);
  }
  MF_INLINE int64_t index(int32_t row, int32_t col) {
    return int64_t{col} * kRows + row % S::kLanes * 2 + row / S::kLanes;
  }
};

// [cols / 2][4 · lanes][2] bf16 for the dot product of pairs; inputs are bf16.
template <class S>
struct Bf16DotPanel {
  using Weight = uint16_t;
  using Input = uint16_t;
  using Loaded = typename S::Pairs;
  using Factor = typename S::Pairs;
  static constexpr int32_t kVectors = 4, kDepth = 2, kRows = 4 * S::kLanes, kStep = 2 * kRows;

  MF_INLINE void load(const Weight* p, Loaded* w) {
    for (int32_t i = 0; i < kVectors; ++i) w[i] = S::load_pairs(p + i * 2 * S::kLanes);
  }
  MF_INLINE Factor broadcast(const Input* x) { return S::set_pair(x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::dot(sum, w, x);
  }
  MF_INLINE int64_t index(int32_t row, int32_t col) {
    return int64_t{col / 2} * kStep + row * 2 + col % 2;
  }
};

// [steps][lanes] plain values (float32, bf16 or signed bytes), one vector wide. Steps may stand
// closer than a vector (kStep is the caller's then): lanes that hold the neighbour's values give
// sums that nobody reads.
template <class S, class T>
struct RowPanel {
  using Weight = T;
  using Input = float;
  using Loaded = typename S::F;
  using Factor = typename S::F;
  static constexpr int32_t kVectors = 1, kDepth = 1, kRows = S::kLanes, kStep = kRows;

  MF_INLINE void load(const Weight* p, Loaded* w) {
    if constexpr (sizeof(T) < 4) {
      w[0] = S::widen(p);
    } else {
      w[0] = S::load(p);
    }
  }
  MF_INLINE Factor broadcast(const Input* x) { return S::set(*x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::fma(w, x, sum);
  }
};

// [cols][2 · lanes] signed bytes.
template <class S>
struct Int8Panel {
  using Weight = int8_t;
  using Input = float;
  using Loaded = typename S::F;
  using Factor = typename S::F;
  static constexpr int32_t kVectors = 2, kDepth = 1, kRows = 2 * S::kLanes, kStep = kRows;

  MF_INLINE void load(const Weight* p, Loaded* w) {
    w[0] = S::widen(p);
    w[1] = S::widen(p + S::kLanes);
  }
  MF_INLINE Factor broadcast(const Input* x) { return S::set(*x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::fma(w, x, sum);
  }
  MF_INLINE int64_t index(int32_t row, int32_t col) { return int64_t{col} * kRows + row; }
};

template <class P>
MF_FLATTEN int64_t panel_elements(int32_t cols) {
  return (int64_t{cols} + P::kDepth - 1) / P::kDepth * P::kStep;
}

// Panels that a tile of `rows` rows takes at once: what the registers hold of sums and of one
// step's weights, beside a broadcast and a mask (a sum that is spilled in the loop halves the
// speed), and at most four memory streams.
template <class S, class P>
constexpr int32_t panels_at_once(int32_t rows) {
  const int32_t fit = (S::kRegisters - 2) / ((rows + 1) * P::kVectors);
  return fit < 1 ? 1 : fit > 4 ? 4 : fit;
}

// A number that a template can take: for_row_tiles and for_panel_groups call with one of these.
template <int32_t kValue>
struct Count {
  static constexpr int32_t value = kValue;
};

// Calls tile(Count<rows of the tile>, first row); tiles are of nearly equal size.
template <class Tile>
MF_FLATTEN void for_row_tiles(int32_t rows, const Tile& tile) {
  const int32_t tiles = (rows + kMaxTileRows - 1) / kMaxTileRows;
  int32_t row = 0;
  for (int32_t i = 0; i < tiles; ++i) {
    const int32_t next = static_cast<int32_t>(int64_t{rows} * (i + 1) / tiles);
    switch (next - row) {
      case 1:
        tile(Count<1>{}, row);
        break;
      case 2:
        tile(Count<2>{}, row);
        break;
      case 3:
        tile(Count<3>{}, row);
        break;
      case 4:
        tile(Count<4>{}, row);
        break;
      case 5:
        tile(Count<5>{}, row);
        break;
      default:
        tile(Count<6>{}, row);
        break;
    }
    row = next;
  }
}

// Tiles that for_row_tiles makes, and rows of the largest one.
MF_FLATTEN int32_t row_tiles(int32_t rows) {
  return (rows + kMaxTileRows - 1) / kMaxTileRows;
}
MF_FLATTEN int32_t largest_tile(int32_t rows) {
  const int32_t tiles = row_tiles(rows);
  return tiles == 0 ? 1 : (rows + tiles - 1) / tiles;
}

// Inputs of a block of rows: they stay in the second-level cache while the panels of a chunk pass
// by.
inline constexpr int64_t kBlockBytes = 128 * 1024;
inline constexpr int32_t kLeastBlockRows = 4 * kMaxTileRows;

// Blocks to cut rows of row_bytes bytes into.
MF_FLATTEN int32_t row_blocks(int32_t rows, int64_t row_bytes) {
  const int64_t fit = kBlockBytes / row_bytes;
  const int64_t most = fit < kLeastBlockRows ? kLeastBlockRows : fit;
  return static_cast<int32_t>((rows + most - 1) / most);
}

// Calls group(Count<panels>, first panel) for panel0 .. panel1 - 1, at most `most` (1 to 4) at
// once.
template <class Group>
MF_FLATTEN void for_groups(int32_t panel0, int32_t panel1, int32_t most, const Group& group) {
  for (int32_t panel = panel0; panel < panel1;) {
    const int32_t left = panel1 - panel;
    const int32_t n = left < most ? left : most;
    switch (n) {
      case 1:
        group(Count<1>{}, panel);
        break;
      case 2:
        group(Count<2>{}, panel);
        break;
      case 3:
        group(Count<3>{}, panel);
        break;
      default:
        group(Count<4>{}, panel);
        break;
    }
    panel += n;
  }
}

// As many at once as tiles of `rows` rows can hold.
template <class S, class P, class Group>
MF_FLATTEN void for_panel_groups(int32_t panel0, int32_t panel1, int32_t rows, const Group& group) {
  for_groups(panel0, panel1, panels_at_once<S, P>(rows), group);
}

// Where to look ahead: `lines` cache lines are prefetched every S::kUnroll steps, from `next` on.
struct Ahead {
  const char* next = nullptr;
  int64_t lines = 0;
};

// Spreads the prefetch of `bytes` from `next` on over `tiles` passes that look ahead `blocks` times
// each.
template <class S>
MF_FLATTEN Ahead look_ahead_in(const void* next, int64_t bytes, int64_t blocks, int32_t tiles) {
  const int64_t times = blocks * tiles;
  return {static_cast<const char*>(next), times == 0 ? 0 : (bytes / 64 + times - 1) / times};
}

// The same for tiles of `rows` rows over `steps` steps.
template <class S>
MF_FLATTEN Ahead look_ahead(const void* next, int64_t bytes, int64_t steps, int32_t rows) {
  return look_ahead_in<S>(next, bytes, steps / S::kUnroll, row_tiles(rows));
}

// The accumulators of one tile.
template <class S, class P, int32_t kTileRows, int32_t kPanels>
struct Tile {
  static constexpr int32_t kVectors = kPanels * P::kVectors;
  using Weight = typename P::Weight;
  using Input = typename P::Input;

  typename S::F sums[kTileRows][kVectors];

  MF_FLATTEN void clear() {
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
#pragma GCC unroll 16
      for (int32_t i = 0; i < kVectors; ++i) sums[m][i] = S::zero();
    }
  }

  // sums[m][…] += panel w[p] times x[m], over `steps` steps in ascending order, `stride` stored
  // elements a step.
  MF_FLATTEN void multiply(const Weight* const (&w)[kPanels], const Input* const (&x)[kTileRows],
                           int32_t steps, int64_t stride, Ahead& ahead) {
    int32_t k = 0;
    for (; k + S::kUnroll <= steps; k += S::kUnroll) {
      for (int64_t line = 0; line < ahead.lines; ++line) S::prefetch(ahead.next + line * 64);
      ahead.next += ahead.lines * 64;
#pragma GCC unroll 8
      for (int32_t i = 0; i < S::kUnroll; ++i) step(w, x, k + i, stride);
    }
    for (; k < steps; ++k) step(w, x, k, stride);
  }

 private:
  MF_FLATTEN void step(const Weight* const (&w)[kPanels], const Input* const (&x)[kTileRows],
                       int32_t k, int64_t stride) {
    typename P::Loaded loaded[kVectors];
#pragma GCC unroll 8
    for (int32_t p = 0; p < kPanels; ++p) {
      P::load(w[p] + int64_t{k} * stride, loaded + p * P::kVectors);
    }
#pragma GCC unroll 8
    for (int32_t m = 0; m < kTileRows; ++m) {
      const typename P::Factor factor = P::broadcast(x[m] + int64_t{k} * P::kDepth);
#pragma GCC unroll 16
      for (int32_t i = 0; i < kVectors; ++i) {
        sums[m][i] = P::multiply(loaded[i], factor, sums[m][i]);
      }
    }
  }
};

}  // namespace manyfold::kernels
