// Attention of a block of query rows over pages of keys: online softmax over tiles of
// kAttentionTile keys that begin at multiples of it within their segment, so that a row's bits
// depend on nothing but its own keys. Included by kernels/table.h only.
#pragma once

#include "rows.h"
#include "tiles.h"

namespace manyfold::kernels {

inline constexpr int32_t kTilePages = kAttentionTile / kPageTokens;
// The running maximum before any key: lower than every finite score, and finite, so that
// differences are never NaN.
inline constexpr float kLowest = -3.0e38f;

// A page of keys: [head_dim][kPageTokens]; bf16 tokens of eight-lane tiers stand in the order of
// S::split.
template <class S, class T>
struct KeyPage {
  using Weight = T;
  using Input = float;
  using Loaded = typename S::F;
  using Factor = typename S::F;
  static constexpr int32_t kVectors = kPageTokens / S::kLanes, kDepth = 1, kRows = kPageTokens,
                           kStep = kPageTokens;
  static constexpr bool kSplit = sizeof(T) == 2 && kVectors == 2;

  MF_INLINE void load(const Weight* p, Loaded* w) {
    if constexpr (kSplit) {
      S::split(p, w[0], w[1]);
    } else {
      for (int32_t i = 0; i < kVectors; ++i) RowPanel<S, T>::load(p + i * S::kLanes, w + i);
    }
  }
  MF_INLINE Factor broadcast(const Input* x) { return S::set(*x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::fma(w, x, sum);
  }
  MF_INLINE int32_t index(int32_t dimension, int32_t token) {
    const int32_t place = kSplit ? token % S::kLanes * 2 + token / S::kLanes : token;
    return dimension * kPageTokens + place;
  }
};

// The state of one softmax for every query of the block. A query is (row, head): row · heads +
// head.
template <class S>
struct Softmax {
  int32_t queries;
  int64_t width;  // head_dim in whole vectors
  float* scaled;  // [queries][width] queries times the scale
  float* scores;  // [queries][kAttentionTile], then weights
  float* sums;    // [queries][width]
  float* highest;
  float* total;
  float* keep;  // factor of the sums so far when the next tile joins

  Softmax(float* scratch, int32_t n, int32_t head_dim)
      : queries(n),
        width(round_up(head_dim, S::kLanes)),
        scaled(scratch),
        scores(scaled + n * width),
        sums(scores + int64_t{n} * kAttentionTile),
        highest(sums + n * width),
        total(highest + n),
        keep(total + n) {}

  void take_queries(const AttentionArgs& a) {
    for (int32_t query = 0; query < queries; ++query) {
      const float* q = a.q + query / a.heads * a.q_stride + query % a.heads * int64_t{a.head_dim};
      for (int32_t i = 0; i < a.head_dim; ++i) scaled[query * width + i] = q[i] * a.scale;
    }
  }

  void clear() {
    for (int64_t i = 0; i < queries * width; ++i) sums[i] = 0.0f;
    for (int32_t i = 0; i < queries; ++i) {
      highest[i] = kLowest;
      total[i] = 0.0f;
    }
  }
};

// Tile of one segment: its pages, and how many tokens of it some row may see.
template <class S, class T>
struct KeyTile {
  const T* k[kTilePages] = {};
  const T* v[kTilePages] = {};
  int32_t pages = 0;
  int32_t tokens = 0;
};

// Of the segment's tokens before `end`.
template <class S, class T>
KeyTile<S, T> key_tile(const KeySegment& segment, int32_t end, int32_t tile, int32_t head_dim) {
  KeyTile<S, T> out;
  const int32_t left = end - tile * kAttentionTile;
  out.tokens = left < kAttentionTile ? left : kAttentionTile;
  out.pages = (out.tokens + kPageTokens - 1) / kPageTokens;
  for (int32_t i = 0; i < out.pages; ++i) {
    const int32_t number = tile * kTilePages + i;
    const int64_t page = segment.pages == nullptr ? number : segment.pages[number];
    const int64_t offset = page * head_dim * kPageTokens;
    out.k[i] = reinterpret_cast<const T*>(segment.k) + offset;
    out.v[i] = reinterpret_cast<const T*>(segment.v) + offset;
  }
  return out;
}

// scores = q · k of every query and every token of the tile's pages; `next` is read ahead.
template <class S, class T>
void score_tile(const AttentionArgs& a, const KeyTile<S, T>& tile, const KeyTile<S, T>& next,
                Softmax<S>& state) {
  using P = KeyPage<S, T>;
  const int64_t bytes = int64_t{a.head_dim} * kPageTokens * int64_t{sizeof(T)};
  const int32_t largest = largest_tile(state.queries);
  for_panel_groups<S, P>(0, tile.pages, largest, [&](auto group, int32_t page) {
    constexpr int32_t kPages = decltype(group)::value;
    Ahead ahead = page < next.pages
                      ? look_ahead<S>(next.k[page], kPages * bytes, a.head_dim, state.queries)
                      : Ahead{};
    for_row_tiles(state.queries, [&](auto rows, int32_t query) {
      constexpr int32_t kQueries = decltype(rows)::value;
      if constexpr (kPages <= panels_at_once<S, P>(kQueries)) {
        const T* k[kPages];
        for (int32_t i = 0; i < kPages; ++i) k[i] = tile.k[page + i];
        const float* q[kQueries];
        for (int32_t i = 0; i < kQueries; ++i) q[i] = state.scaled + (query + i) * state.width;
        Tile<S, P, kQueries, kPages> products;
        products.clear();
        products.multiply(k, q, a.head_dim, P::kStep, ahead);
        for (int32_t m = 0; m < kQueries; ++m) {
          float* to = state.scores + int64_t{query + m} * kAttentionTile + page * kPageTokens;
          for (int32_t i = 0; i < kPages * P::kVectors; ++i) {
            S::store(to + i * S::kLanes, products.sums[m][i]);
          }
        }
      }
    });
  });
}

// Scores of one query become weights; tokens from `begin` to before `end` of the tile are seen.
template <class S>
void weigh_tile(int32_t begin, int32_t end, int32_t query, Softmax<S>& state) {
  using F = typename S::F;
  constexpr int32_t kCount = kAttentionTile / S::kLanes;
  float* scores = state.scores + int64_t{query} * kAttentionTile;
  const F hidden = S::set(-__builtin_inff());
  F s[kCount];
  F top = S::set(state.highest[query]);
  for (int32_t i = 0; i < kCount; ++i) {
    s[i] = S::load(scores + i * S::kLanes);
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
  F sum = S::zero();
  for (int32_t i = 0; i < kCount; ++i) {
    const F weight = exponential<S>(S::sub(s[i], S::set(highest)));
    S::store(scores + i * S::kLanes, weight);
    sum = S::add(sum, weight);
  }
  const float keep = highest == before ? 1.0f : S::first(exponential<S>(S::set(before - highest)));
  state.keep[query] = keep;
  state.total[query] = S::fused(state.total[query], keep, S::sum(sum));
  state.highest[query] = highest;
}

// sums = keep · sums + weights · v; `next` is read ahead, each group of vectors its share.
template <class S, class T>
void add_values(const AttentionArgs& a, const KeyTile<S, T>& tile, const KeyTile<S, T>& next,
                Softmax<S>& state) {
  using P = RowPanel<S, T>;
  const int64_t bytes = int64_t{a.head_dim} * kPageTokens * int64_t{sizeof(T)};
  const int32_t vectors = static_cast<int32_t>(state.width / S::kLanes);
  const int32_t largest = largest_tile(state.queries);
  for_panel_groups<S, P>(0, vectors, largest, [&](auto group, int32_t vector) {
    constexpr int32_t kVectors = decltype(group)::value;
    for_row_tiles(state.queries, [&](auto rows, int32_t query) {
      constexpr int32_t kQueries = decltype(rows)::value;
      if constexpr (kVectors <= panels_at_once<S, P>(kQueries)) {
        Tile<S, P, kQueries, kVectors> products;
        products.clear();
        for (int32_t page = 0; page < tile.pages; ++page) {
          const T* v[kVectors];
          for (int32_t i = 0; i < kVectors; ++i) v[i] = tile.v[page] + (vector + i) * S::kLanes;
          const float* weights[kQueries];
          for (int32_t i = 0; i < kQueries; ++i) {
            weights[i] = state.scores + int64_t{query + i} * kAttentionTile + page * kPageTokens;
          }
          const int32_t left = tile.tokens - page * kPageTokens;
          Ahead ahead;
          if (query == 0 && page < next.pages) {
            const auto* from = reinterpret_cast<const char*>(next.v[page]);
            ahead = look_ahead<S>(from + bytes * vector / vectors, bytes * kVectors / vectors,
                                  kPageTokens, 1);
          }
          products.multiply(v, weights, left < kPageTokens ? left : kPageTokens, a.head_dim, ahead);
        }
        for (int32_t m = 0; m < kQueries; ++m) {
          float* to = state.sums + (query + m) * state.width + vector * S::kLanes;
          const auto keep = S::set(state.keep[query + m]);
          for (int32_t i = 0; i < kVectors; ++i) {
            S::store(to + i * S::kLanes,
                     S::fma(S::load(to + i * S::kLanes), keep, products.sums[m][i]));
          }
        }
      }
    });
  });
}

MF_FLATTEN int32_t clamp(int32_t x, int32_t low, int32_t high) {
  return x < low ? low : x > high ? high : x;
}

// All tiles of a segment that some row of the block sees. causal: by position and window; else
// every token.
template <class S, class T>
void attend_segment(const AttentionArgs& a, const KeySegment& segment, bool causal,
                    Softmax<S>& state) {
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
    score_tile<S, T>(a, keys, next, state);
    for (int32_t row = 0; row < a.rows; ++row) {
      int32_t begin = 0, end = keys.tokens;
      if (causal) {
        const int32_t newest = a.positions[row] - segment.position - tile * kAttentionTile;
        end = clamp(newest + 1, 0, keys.tokens);
        begin = a.window > 0 ? clamp(newest - a.window + 1, 0, end) : 0;
      }
      for (int32_t head = 0; head < a.heads; ++head) {
        weigh_tile<S>(begin, end, row * a.heads + head, state);
      }
    }
    add_values<S, T>(a, keys, next, state);
    keys = next;
  }
}

template <class S>
void attend(const AttentionArgs& a, const KeySegment& segment, bool causal, Softmax<S>& state) {
  if (segment.dtype == Dtype::kF32) {
    attend_segment<S, float>(a, segment, causal, state);
  } else {
    attend_segment<S, uint16_t>(a, segment, causal, state);
  }
}

// out = sums / total, or out += gate · sums / total.
template <class S>
void put_context(const AttentionArgs& a, const float* gate, const Softmax<S>& state) {
  for (int32_t query = 0; query < state.queries; ++query) {
    const int32_t row = query / a.heads, head = query % a.heads;
    float* out = a.out + row * a.out_stride + int64_t{head} * a.head_dim;
    const float* sums = state.sums + query * state.width;
    const float factor = (gate == nullptr ? 1.0f : *gate) / state.total[query];
    if (gate == nullptr) {
      for (int32_t i = 0; i < a.head_dim; ++i) out[i] = sums[i] * factor;
    } else {
      for (int32_t i = 0; i < a.head_dim; ++i) out[i] = S::fused(sums[i], factor, out[i]);
    }
  }
}

template <class S>
void attention(const AttentionArgs& a) {
  Softmax<S> state(a.scratch, a.rows * a.heads, a.head_dim);
  state.take_queries(a);
  state.clear();
  for (int32_t i = 0; i < a.shared_count; ++i) attend<S>(a, a.shared[i], true, state);
  put_context<S>(a, nullptr, state);
  for (int32_t i = 0; i < a.gated_count; ++i) {
    state.clear();
    attend<S>(a, a.gated[i], false, state);
    put_context<S>(a, a.gates + i, state);
  }
}

template <class S>
int64_t attention_scratch(int32_t queries, int32_t head_dim) {
  return queries * (kAttentionTile + 2 * round_up(head_dim, S::kLanes) + 3);
}

template <class S, class T>
void append_key(const float* k, int32_t head_dim, int32_t token, T* page) {
  for (int32_t i = 0; i < head_dim; ++i) {
    if constexpr (sizeof(T) == 2) {
      page[KeyPage<S, T>::index(i, token)] = f32_to_bf16(k[i]);
    } else {
      page[KeyPage<S, T>::index(i, token)] = k[i];
    }
  }
}

template <class S, class T>
void append_value(const float* v, int32_t head_dim, int32_t token, T* page) {
  for (int32_t i = 0; i < head_dim; ++i) {
    if constexpr (sizeof(T) == 2) {
      page[token * head_dim + i] = f32_to_bf16(v[i]);
    } else {
      page[token * head_dim + i] = v[i];
    }
  }
}

}  // namespace manyfold::kernels
