// Attention of the AMX tier: products of bf16 pairs on tile registers, all else as AVX512-BF16.
// Only isa/amx.cpp refers to it.
//
// A tile of sums is sixteen queries by sixteen keys (or dimensions of the values); a page of keys
// is what a tile of factors wants, and so are two pages of values that lie one after the other.
// Tile products add to each element by itself, pairs in ascending order, so a query's bits depend
// on nothing but its own keys. int8 keys and values become bf16, which holds them exactly, before
// they are multiplied.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../int8_kv.h"
#include "../kernels/kernels.h"
#include "amx_attention.h"

// From here on, so that nothing which other files share is compiled for these instructions.
// GCC 12 warns of its own intrinsics, which leave unused inputs undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,amx-tile,amx-bf16")

#include "simd_avx512bf16.h"

#include "../kernels/attention_pairs.h"
#include "amx_tiles.h"

namespace manyfold::amx_attention {

using namespace kernels;

struct Tier;

struct Simd : avx512bf16::PairLanes<avx512::Vnni<avx512::Lanes<Tier>>> {
  static constexpr const char* kName = "amx";
};

using State = Softmax<Simd>;
using Pages = KeyTile<Simd, uint16_t>;

// Keys of a page, and of half a tile of values.
constexpr int64_t kScoreBytes = kAttentionTile * 4, kWeightBytes = kAttentionTile * 2;
constexpr int32_t kHalfTile = 32;

// Intrinsics do not tell the compiler that they read and write memory.
MF_FLATTEN void memory_barrier() {
  asm volatile("" : : : "memory");
}

// Rows of the tiles of queries: fewer than sixteen cost less.
MF_FLATTEN int32_t tile_rows(int32_t queries) {
  return queries < kQueryTile ? queries : kQueryTile;
}

// Tiles 0 to 3 are sums, 4 and 5 queries or weights, 6 and 7 keys or values.
void configure(int32_t queries) {
  const int32_t rows = tile_rows(queries);
  amx::configure_tiles<Tier>({rows, rows, rows, rows, rows, rows, amx::kTileRows, amx::kTileRows});
}

// Where the keys of each page stand, step by step of kDepthTile dimensions.
struct KeySource {
  const uint16_t* k[kTilePages];     // dimension 0
  const uint16_t* last[kTilePages];  // of the last step, which may be a copy with zeros behind
  int32_t pages, steps;
};

// Reads some bytes ahead of their turn.
MF_FLATTEN void read_ahead(const void* from, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) {
    Simd::prefetch(static_cast<const char*>(from) + line);
  }
}

// One step of sixteen queries, or of their weights (both bf16 values of them), with up to four
// tiles of factors whose rows are `stride` bytes apart.
MF_FLATTEN void multiply_step(const uint16_t* high, const uint16_t* low, int64_t row_bytes,
                              const uint16_t* const (&k)[kTilePages], int64_t stride,
                              int32_t tiles) {
  _tile_loadd(4, high, row_bytes);
  _tile_loadd(6, k[0], stride);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(5, low, row_bytes);
  if (tiles > 1) {
    _tile_loadd(7, k[1], stride);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(0, 5, 6);
    _tile_dpbf16ps(1, 5, 7);
  } else {
    _tile_dpbf16ps(0, 5, 6);
  }
  if (tiles > 2) {
    _tile_loadd(6, k[2], stride);
    _tile_dpbf16ps(2, 4, 6);
    if (tiles > 3) {
      _tile_loadd(7, k[3], stride);
      _tile_dpbf16ps(3, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbf16ps(2, 5, 6);
    }
  }
}

MF_FLATTEN void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Sums of four tiles beside each other.
MF_FLATTEN void store_sums(float* to, int64_t bytes, int32_t tiles) {
  _tile_stored(0, to, bytes);
  if (tiles > 1) _tile_stored(1, to + 16, bytes);
  if (tiles > 2) _tile_stored(2, to + 32, bytes);
  if (tiles > 3) _tile_stored(3, to + 48, bytes);
}

void score_pages(const KeySource& source, State& state) {
  memory_barrier();
  const int64_t q_bytes = state.half_width * 2;
  for (int32_t query = 0; query < state.queries; query += kQueryTile) {
    const uint16_t* high = state.high + query * state.half_width;
    const uint16_t* low = state.low + query * state.half_width;
    zero_sums();
    const uint16_t* k[kTilePages];
    for (int32_t step = 0; step < source.steps; ++step) {
      const int64_t at = int64_t{step} * kDepthTile;
      const bool last = step == source.steps - 1;
      for (int32_t p = 0; p < source.pages; ++p) {
        k[p] = last ? source.last[p] : source.k[p] + at * kPageTokens;
      }
      multiply_step(high + at, low + at, q_bytes, k, amx::kRowBytes, source.pages);
    }
    store_sums(state.scores + int64_t{query} * kAttentionTile, kScoreBytes, source.pages);
  }
  memory_barrier();
}

// The halves of a tile of values: sixteen pairs of tokens each, `stride` bytes from one to the
// next.
struct ValueSource {
  const uint16_t* v[2];
  int64_t stride[2];
  int32_t halves;
};

// sums = keep · sums + weights · v.
void add_products(const AttentionArgs& a, const ValueSource& source, State& state) {
  memory_barrier();
  const auto tiles = static_cast<int32_t>((a.head_dim + 15) / 16);
  for (int32_t query = 0; query < state.queries; query += kQueryTile) {
    const uint16_t* weights = state.weights + int64_t{query} * kAttentionTile;
    const uint16_t* rests = state.rests + int64_t{query} * kAttentionTile;
    // Scores have become weights: their place takes the products.
    float* products = state.scores + int64_t{query} * kAttentionTile;
    const int32_t rows = clamp(state.queries - query, 0, kQueryTile);
    for (int32_t tile = 0; tile < tiles; tile += 4) {
      const int32_t count = clamp(tiles - tile, 0, 4);
      zero_sums();
      for (int32_t half = 0; half < source.halves; ++half) {
        const uint16_t* v[kTilePages];
        for (int32_t i = 0; i < count; ++i) v[i] = source.v[half] + (tile + i) * 32;
        multiply_step(weights + half * kHalfTile, rests + half * kHalfTile, kWeightBytes, v,
                      source.stride[half], count);
      }
      store_sums(products, kScoreBytes, count);
      memory_barrier();
      for (int32_t m = 0; m < rows; ++m) {
        float* sums = state.sums + (query + m) * state.width + int64_t{tile} * 16;
        const float* add = products + int64_t{m} * kAttentionTile;
        const auto keep = Simd::set(state.keep[query + m]);
        for (int32_t i = 0; i < count * 16; i += 16) {
          Simd::store(sums + i, Simd::fma(Simd::load(sums + i), keep, Simd::load(add + i)));
        }
      }
    }
  }
  memory_barrier();
}

// bf16 pages as they stand, but for what is copied to have zeros where nobody has written.
struct TileProducts {
  using Value = uint16_t;
  static constexpr bool kScaled = false;

  static void score(const AttentionArgs& a, const Pages& tile, const Pages& next, State& state) {
    KeySource source{};
    source.pages = tile.pages;
    source.steps = static_cast<int32_t>(state.half_width / kDepthTile);
    const int32_t left = a.head_dim - (source.steps - 1) * kDepthTile;
    auto* copy = reinterpret_cast<uint16_t*>(state.tile);
    constexpr int32_t kStepValues = kDepthTile * kPageTokens;
    for (int32_t p = 0; p < tile.pages; ++p, copy += kStepValues) {
      source.k[p] = tile.k[p];
      source.last[p] = tile.k[p] + int64_t{source.steps - 1} * kStepValues;
      if (left == kDepthTile) continue;
      std::memset(copy, 0, kStepValues * 2);
      std::memcpy(copy, source.last[p], static_cast<size_t>(left) * kPageTokens * 2);
      source.last[p] = copy;
    }
    for (int32_t p = 0; p < next.pages; ++p) read_ahead(next.k[p], a.head_dim * kPageTokens * 2);
    score_pages(source, state);
  }

  template <size_t kCount>
  static Simd::F put_weights(const AttentionArgs&, const Pages&, int32_t query,
                             const Simd::F (&weights)[kCount], State& state) {
    put_pair_weights<Simd>(weights, query, state);
    return sum_weights<Simd>(weights);
  }

  static void add_values(const AttentionArgs& a, const Pages& tile, const Pages& next,
                         State& state) {
    ValueSource source{};
    source.halves = (tile.pages + 1) / 2;
    const int64_t page = int64_t{a.head_dim} * kPageTokens;
    auto* copy = reinterpret_cast<uint16_t*>(state.tile);
    for (int32_t half = 0; half < source.halves; ++half, copy += 2 * page) {
      const int32_t tokens = clamp(tile.tokens - half * kHalfTile, 0, kHalfTile);
      source.stride[half] = a.head_dim * 4;
      source.v[half] = tile.v[2 * half];
      if (tokens == kHalfTile && tile.v[2 * half + 1] == tile.v[2 * half] + page) continue;
      copy_values(a, tile, half, tokens, copy);
      source.v[half] = copy;
    }
    for (int32_t p = 0; p < next.pages; ++p) read_ahead(next.v[p], page * 2);
    add_products(a, source, state);
  }

 private:
  // The first `tokens` of two pages one after the other, zeros behind.
  static void copy_values(const AttentionArgs& a, const Pages& tile, int32_t half, int32_t tokens,
                          uint16_t* copy) {
    const auto page = static_cast<size_t>(a.head_dim) * kPageTokens;
    const int32_t first = clamp(tokens, 0, kPageTokens), second = tokens - first;
    std::memset(copy, 0, page * 4);
    const auto pair_values = static_cast<size_t>(a.head_dim) * 2;
    std::memcpy(copy, tile.v[2 * half], static_cast<size_t>((first + 1) / 2) * pair_values * 2);
    if (second > 0) {
      std::memcpy(copy + page, tile.v[2 * half + 1],
                  static_cast<size_t>((second + 1) / 2) * pair_values * 2);
    }
    if (tokens % 2 == 0) return;
    uint16_t* last = copy + static_cast<size_t>(tokens / 2) * pair_values;
    for (int32_t i = 0; i < a.head_dim; ++i) last[2 * i + 1] = 0;
  }
};

// Sixteen pairs of int8 from two rows as pairs of bf16.
MF_FLATTEN void widen_pairs(const int8_t* even, const int8_t* odd, uint16_t* to) {
  const __m512i low = _mm512_castps_si512(Simd::widen(even));
  const __m512i high = _mm512_castps_si512(Simd::widen(odd));
  _mm512_storeu_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(low, 16), high));
}

struct Int8TileProducts {
  using Value = int8_t;
  using Int8Pages = KeyTile<Simd, int8_t>;
  static constexpr bool kScaled = true;

  static void score(const AttentionArgs& a, const Int8Pages& tile, const Int8Pages& next,
                    State& state) {
    KeySource source{};
    source.pages = tile.pages;
    source.steps = static_cast<int32_t>(state.half_width / kDepthTile);
    auto* copy = reinterpret_cast<uint16_t*>(state.tile);
    for (int32_t p = 0; p < tile.pages; ++p) {
      source.k[p] = copy;
      source.last[p] = copy + int64_t{source.steps - 1} * kDepthTile * kPageTokens;
      for (int32_t i = 0; i < a.head_dim; i += 2, copy += 2 * kPageTokens) {
        const int8_t* row = tile.k[p] + i * kPageTokens;
        widen_pairs(row, row + kPageTokens, copy);
      }
      const int64_t left = (state.half_width - a.head_dim) * kPageTokens;
      std::memset(copy, 0, static_cast<size_t>(left) * 2);
      copy += left;
    }
    read_next(a, next, next.k);
    score_pages(source, state);
  }

  // Weights times the values' scales; zero where nobody has written. Returns the sums of the
  // weights.
  template <size_t kCount>
  static Simd::F put_weights(const AttentionArgs& a, const Int8Pages& tile, int32_t query,
                             const Simd::F (&weights)[kCount], State& state) {
    static_assert(kCount == kTilePages);
    Simd::F scaled[kCount];
    for (int32_t p = 0; p < kTilePages; ++p) {
      scaled[p] = Simd::zero();
      if (p >= tile.pages) continue;
      const Simd::F scale = Simd::load(tile.scales(tile.v[p], a.head_dim));
      const auto seen = Simd::less(Simd::zero(), weights[p]);
      scaled[p] = Simd::select(seen, Simd::mul(weights[p], scale), Simd::zero());
    }
    put_pair_weights<Simd>(scaled, query, state);
    return sum_weights<Simd>(weights);
  }

  static void add_values(const AttentionArgs& a, const Int8Pages& tile, const Int8Pages& next,
                         State& state) {
    ValueSource source{};
    source.halves = (tile.pages + 1) / 2;
    auto* copy = reinterpret_cast<uint16_t*>(state.tile);
    const int64_t pair = state.half_width * 2;
    for (int32_t half = 0; half < source.halves; ++half) {
      source.v[half] = copy;
      source.stride[half] = pair * 2;
      for (int32_t i = 0; i < 2; ++i, copy += kPageTokens / 2 * pair) {
        const int32_t p = 2 * half + i;
        if (p < tile.pages) {
          widen_values(a, tile.v[p], copy, pair);
        } else {
          std::memset(copy, 0, static_cast<size_t>(kPageTokens / 2 * pair) * 2);
        }
      }
    }
    read_next(a, next, next.v);
    add_products(a, source, state);
  }

 private:
  static void widen_values(const AttentionArgs& a, const int8_t* page, uint16_t* to, int64_t pair) {
    for (int32_t token = 0; token < kPageTokens; token += 2, to += pair) {
      const int8_t* row = page + int64_t{token} * a.head_dim;
      for (int32_t i = 0; i < a.head_dim; i += 16) {
        widen_pairs(row + i, row + a.head_dim + i, to + i * 2);
      }
    }
  }
  static void read_next(const AttentionArgs& a, const Int8Pages& next,
                        const int8_t* const (&pages)[kTilePages]) {
    const auto bytes = static_cast<int64_t>(kv_page_bytes(KvType::kInt8, a.head_dim));
    for (int32_t p = 0; p < next.pages; ++p) read_ahead(pages[p], bytes);
  }
};

struct TileTypes {
  static void begin(State& state) {
    state.split_queries();
    configure(state.queries);
  }
  static void end() { _tile_release(); }
  static void attend(const AttentionArgs& a, const KeySegment& segment, bool causal, State& state) {
    switch (segment.type) {
      case KvType::kF32:
        return attend_segment<Simd, PlainProducts<Simd, float>>(a, segment, causal, state);
      case KvType::kBf16:
        return attend_segment<Simd, TileProducts>(a, segment, causal, state);
      case KvType::kInt8:
        return attend_segment<Simd, Int8TileProducts>(a, segment, causal, state);
    }
  }
};

void run(const AttentionArgs& a) {
  attention<Simd, TileTypes>(a);
}

}  // namespace manyfold::amx_attention
