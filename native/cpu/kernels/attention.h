// Attention of a block of query rows over pages of keys: online softmax over tiles of
// kAttentionTile keys that begin at multiples of it within their segment, so that a row's bits
// depend on nothing but its own keys (M. Milakov, N. Gimelshein, "Online normalizer calculation for
// softmax", 2018; T. Dao et al., "FlashAttention", 2022). Included by kernels/table.h and
// isa/amx_attention.cpp.
//
// How scores and sums are multiplied is a type of functions (Products): attention_plain.h
// multiplies in float32, attention_pairs.h and isa/amx_attention.cpp multiply pairs of bf16 values.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace manyfold::kernels {

inline constexpr int32_t kTilePages = kAttentionTile / kPageTokens;
// Queries that a tile of matrix registers takes; rows of scratch are padded to it.
inline constexpr int32_t kQueryTile = 16;
// Inputs of a step of matrix registers; bf16 queries are padded to it.
inline constexpr int32_t kDepthTile = 32;
// The running maximum before any key: lower than every finite score, and finite, so that
// differences are never NaN.
inline constexpr float kLowest = -3.0e38f;

// 2^x within 1.5e-7 of relative error for x up to 0; exactly 0 below -126 and for -∞, so that
// hidden scores weigh nothing, and exactly 1 at 0. The polynomial is the minimax one of 2^r for |r|
// up to 1/2 with 1 at 0.
template <class S>
MF_FLATTEN typename S::F power_of_two(typename S::F x) {
  using F = typename S::F;
  const F low = S::set(-126.0f);
  const auto vanishes = S::less(x, low);
  const F bounded = S::max(x, low);
  const F n = S::round(bounded);
  const F r = S::sub(bounded, n);
  F p = S::set(1.3264727063e-3f);
  p = S::fma(p, r, S::set(9.6715126488e-3f));
  p = S::fma(p, r, S::set(5.5507337437e-2f));
  p = S::fma(p, r, S::set(2.4022242085e-1f));
  p = S::fma(p, r, S::set(6.9314697760e-1f));
  p = S::fma(p, r, S::set(1.0f));
  return S::select(vanishes, S::zero(), S::scale_by_power(p, n));
}

// The state of one softmax for every query of the block. A query is (row, head): row · heads +
// head. Arrays whose rows are whole lines stand first.
template <class S>
struct Softmax {
  int32_t queries, padded;
  int64_t width;       // head_dim in whole vectors
  int64_t half_width;  // head_dim in whole steps of bf16
  uint16_t* high;      // [padded][half_width] scaled queries as bf16
  uint16_t* low;       // what bf16 left of them, as bf16
  uint16_t* weights;   // [padded][kAttentionTile] weights as bf16
  uint16_t* rests;     // what bf16 left of them, as bf16
  float* scores;       // [padded][kAttentionTile], then float32 weights
  std::byte* tile;     // copies of a tile's keys or values: kAttentionTile · (half_width · 2 + 16)
  float* scaled;       // [queries][width] queries times scale · log2 e
  float* sums;         // [queries][width]
  float* total;        // [queries][lanes]
  float *highest, *keep;  // keep: factor of the sums so far when the next tile joins

  Softmax(float* scratch, int32_t n, int32_t head_dim)
      : queries(n),
        padded(static_cast<int32_t>(round_up(n, kQueryTile))),
        width(round_up(head_dim, S::kLanes)),
        half_width(round_up(head_dim, kDepthTile)),
        high(reinterpret_cast<uint16_t*>(scratch)),
        low(high + padded * half_width),
        weights(low + padded * half_width),
        rests(weights + int64_t{padded} * kAttentionTile),
        scores(reinterpret_cast<float*>(rests + int64_t{padded} * kAttentionTile)),
        tile(reinterpret_cast<std::byte*>(scores + int64_t{padded} * kAttentionTile)),
        scaled(reinterpret_cast<float*>(tile + tile_bytes(half_width))),
        sums(scaled + n * width),
        total(sums + n * width),
        highest(total + int64_t{n} * S::kLanes),
        keep(highest + n) {}

  static int64_t tile_bytes(int64_t half_width) { return kAttentionTile * (half_width * 2 + 16); }
  static int64_t floats(int32_t n, int32_t head_dim) {
    const int64_t rows = round_up(n, kQueryTile), half = round_up(head_dim, kDepthTile);
    return rows * half + rows * kAttentionTile * 2 + tile_bytes(half) / 4 +
           n * (2 * round_up(head_dim, S::kLanes) + S::kLanes + 2);
  }

  // Scores are exponents of two.
  void take_queries(const AttentionArgs& a) {
    const float factor = a.scale * 1.44269504f;
    for (int32_t query = 0; query < queries; ++query) {
      const float* q = a.q + query / a.heads * a.q_stride + query % a.heads * int64_t{a.head_dim};
      float* to = scaled + query * width;
      for (int32_t i = 0; i < a.head_dim; ++i) to[i] = q[i] * factor;
      for (int64_t i = a.head_dim; i < width; ++i) to[i] = 0.0f;
    }
  }

  // high + low hold sixteen bits of each scaled query.
  void split_queries() {
    for (int32_t query = 0; query < queries; ++query) {
      const float* from = scaled + query * width;
      uint16_t* to_high = high + query * half_width;
      uint16_t* to_low = low + query * half_width;
      for (int64_t i = 0; i < width; i += S::kLanes) {
        const auto x = S::load(from + i);
        S::narrow(to_high + i, x);
        S::narrow(to_low + i, S::sub(x, S::widen(to_high + i)));
      }
      for (int64_t i = width; i < half_width; ++i) to_high[i] = to_low[i] = 0;
    }
  }

  void clear() {
    for (int64_t i = 0; i < queries * width; ++i) sums[i] = 0.0f;
    for (int64_t i = 0; i < int64_t{queries} * S::kLanes; ++i) total[i] = 0.0f;
    for (int32_t i = 0; i < queries; ++i) highest[i] = kLowest;
  }
};

// Tile of one segment: its pages, and how many tokens of it some row may see. Scales only of int8.
template <class S, class T>
struct KeyTile {
  const T* k[kTilePages] = {};
  const T* v[kTilePages] = {};
  int32_t pages = 0;
  int32_t tokens = 0;

  static const float* scales(const T* page, int32_t head_dim) {
    return reinterpret_cast<const float*>(page + int64_t{head_dim} * kPageTokens);
  }
};

// Of the segment's tokens before `end`.
template <class S, class T>
KeyTile<S, T> key_tile(const KeySegment& segment, int32_t end, int32_t tile, int32_t head_dim) {
  KeyTile<S, T> out;
  const int32_t left = end - tile * kAttentionTile;
  out.tokens = left < kAttentionTile ? left : kAttentionTile;
  out.pages = (out.tokens + kPageTokens - 1) / kPageTokens;
  const auto bytes = static_cast<int64_t>(kv_page_bytes(segment.type, head_dim));
  for (int32_t i = 0; i < out.pages; ++i) {
    const int32_t number = tile * kTilePages + i;
    const int64_t page = segment.pages == nullptr ? number : segment.pages[number];
    out.k[i] = reinterpret_cast<const T*>(segment.k + page * bytes);
    out.v[i] = reinterpret_cast<const T*>(segment.v + page * bytes);
  }
  return out;
}

// Scores of one query become weights; tokens from `begin` to before `end` of the tile are seen.
template <class S, class Products>
void weigh_tile(int32_t begin, int32_t end, int32_t query, const AttentionArgs& a,
                const KeyTile<S, typename Products::Value>& tile, Softmax<S>& state) {
  using F = typename S::F;
  constexpr int32_t kCount = kAttentionTile / S::kLanes, kOfPage = kPageTokens / S::kLanes;
  float* scores = state.scores + int64_t{query} * kAttentionTile;
  const F hidden = S::set(-__builtin_inff());
  F s[kCount];
  F top = S::set(state.highest[query]);
  for (int32_t i = 0; i < kCount; ++i) {
    s[i] = S::load(scores + i * S::kLanes);
    if constexpr (Products::kScaled) {
      if (i / kOfPage < tile.pages) {
        const float* scale = tile.scales(tile.k[i / kOfPage], a.head_dim);
        s[i] = S::mul(s[i], S::load(scale + i % kOfPage * S::kLanes));
      }
    }
    if (begin > 0 || end < kAttentionTile) {
      const F token = S::add(S::lane_numbers(), S::set(static_cast<float>(i * S::kLanes)));
      const auto seen = S::both(S::less(S::set(static_cast<float>(begin - 1)), token),
                                S::less(token, S::set(static_cast<float>(end))));
      s[i] = S::select(seen, s[i], hidden);
    }
    top = S::max(top, s[i]);
  }
  const float before = state.highest[query];
  const float highest = S::highest(top);
  for (int32_t i = 0; i < kCount; ++i) s[i] = power_of_two<S>(S::sub(s[i], S::set(highest)));
  const F sum = Products::put_weights(a, tile, query, s, state);
  const float keep = highest == before ? 1.0f : S::first(power_of_two<S>(S::set(before - highest)));
  float* total = state.total + int64_t{query} * S::kLanes;
  S::store(total, S::fma(S::load(total), S::set(keep), sum));
  state.keep[query] = keep;
  state.highest[query] = highest;
}

// sums = keep · sums + products, of some queries and vectors.
template <class S, int32_t kQueries, int32_t kVectors>
MF_FLATTEN void join_sums(const typename S::F (&products)[kQueries][kVectors], int32_t query,
                          int32_t vector, Softmax<S>& state) {
  for (int32_t m = 0; m < kQueries; ++m) {
    float* to = state.sums + (query + m) * state.width + vector * S::kLanes;
    const auto keep = S::set(state.keep[query + m]);
    for (int32_t i = 0; i < kVectors; ++i) {
      S::store(to + i * S::kLanes, S::fma(S::load(to + i * S::kLanes), keep, products[m][i]));
    }
  }
}

MF_FLATTEN int32_t clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : x > high ? high : x;
}

// All tiles of a segment that some row of the block sees. causal: by position and window; else
// every token.
template <class S, class Products>
void attend_segment(const AttentionArgs& a, const KeySegment& segment, bool causal,
                    Softmax<S>& state) {
  using T = typename Products::Value;
  int32_t first = 0, last = segment.tokens - 1;
  if (causal) {
    const int32_t newest = a.positions[a.rows - 1] - segment.position;
    last = newest < last ? newest : last;
    const int32_t oldest = a.positions[0] - segment.position - a.window + 1;
    first = a.window > 0 && oldest > 0 ? oldest : 0;
  }
  if (last < first) return;
  const int32_t last_tile = last / kAttentionTile;
  KeyTile<S, T> keys = key_tile<S, T>(segment, last + 1, first / kAttentionTile, a.head_dim);
  for (int32_t tile = first / kAttentionTile; tile <= last_tile; ++tile) {
    const KeyTile<S, T> next = tile < last_tile
                                   ? key_tile<S, T>(segment, last + 1, tile + 1, a.head_dim)
                                   : KeyTile<S, T>{};
    Products::score(a, keys, next, state);
    for (int32_t row = 0; row < a.rows; ++row) {
      int32_t begin = 0, end = keys.tokens;
      if (causal) {
        const int32_t newest = a.positions[row] - segment.position - tile * kAttentionTile;
        end = clamp(newest + 1, 0, keys.tokens);
        begin = a.window > 0 ? clamp(newest - a.window + 1, 0, end) : 0;
      }
      for (int32_t head = 0; head < a.heads; ++head) {
        weigh_tile<S, Products>(begin, end, row * a.heads + head, a, keys, state);
      }
    }
    Products::add_values(a, keys, next, state);
    keys = next;
  }
}

// out = sums / total, or out += gate · sums / total. A zero is always positive: which sign it had
// may depend on what else was in the block.
template <class S>
void put_context(const AttentionArgs& a, const float* gate, const Softmax<S>& state) {
  for (int32_t query = 0; query < state.queries; ++query) {
    const int32_t row = query / a.heads, head = query % a.heads;
    float* out = a.out + row * a.out_stride + int64_t{head} * a.head_dim;
    const float* sums = state.sums + query * state.width;
    const float total = S::sum(S::load(state.total + int64_t{query} * S::kLanes));
    const float factor = (gate == nullptr ? 1.0f : *gate) / total;
    if (gate == nullptr) {
      for (int32_t i = 0; i < a.head_dim; ++i) out[i] = sums[i] * factor + 0.0f;
    } else {
      for (int32_t i = 0; i < a.head_dim; ++i) out[i] = S::fused(sums[i], factor, out[i]);
    }
  }
}

// Types says which products a type of keys takes: Types::attend(a, segment, causal, state).
template <class S, class Types>
void attention(const AttentionArgs& a) {
  Softmax<S> state(a.scratch, a.rows * a.heads, a.head_dim);
  state.take_queries(a);
  Types::begin(state);
  state.clear();
  for (int32_t i = 0; i < a.shared_count; ++i) Types::attend(a, a.shared[i], true, state);
  put_context<S>(a, nullptr, state);
  for (int32_t i = 0; i < a.gated_count; ++i) {
    state.clear();
    Types::attend(a, a.gated[i], false, state);
    put_context<S>(a, a.gates + i, state);
  }
  Types::end();
}

template <class S>
int64_t attention_scratch(int32_t queries, int32_t head_dim) {
  return Softmax<S>::floats(queries, head_dim);
}

}  // namespace manyfold::kernels
