// Attention's products of bf16 pairs, for tiers that multiply two bf16 values at a time: queries
// and weights as two bf16 values each (sixteen bits). Keys of other types are multiplied
// in float32. Included by kernels/table.h and isa/amx_attention.cpp.
#pragma once

#include "attention_plain.h"

namespace manyfold::kernels {

// A page of keys is [head_dim / 2][kPageTokens][2], a page of values
// [kPageTokens / 2][head_dim][2]: one vector of pairs a step.
template <class S>
struct PairPanel {
  using Weight = uint16_t;
  using Input = uint16_t;
  using Loaded = typename S::Pairs;
  using Factor = typename S::Pairs;
  static constexpr int32_t kVectors = 1, kDepth = 2, kRows = S::kLanes, kStep = 2 * S::kLanes;

  MF_INLINE void load(const Weight* p, Loaded* w) { w[0] = S::load_pairs(p); }
  MF_INLINE Factor broadcast(const Input* x) { return S::set_pair(x); }
  MF_INLINE typename S::F multiply(Loaded w, Factor x, typename S::F sum) {
    return S::dot(sum, w, x);
  }
};

// Weights of one query as two bf16 values each.
template <class S, size_t kCount>
MF_FLATTEN void put_pair_weights(const typename S::F (&weights)[kCount], int32_t query,
                                 Softmax<S>& state) {
  uint16_t* high = state.weights + int64_t{query} * kAttentionTile;
  uint16_t* low = state.rests + int64_t{query} * kAttentionTile;
  for (size_t i = 0; i < kCount; i += 2, high += 2 * S::kLanes, low += 2 * S::kLanes) {
    S::store_pairs(high, S::round_pairs(weights[i], weights[i + 1]));
    S::store_pairs(low, S::round_pairs(S::sub(weights[i], S::widen(high)),
                                       S::sub(weights[i + 1], S::widen(high + S::kLanes))));
  }
}

template <class S, size_t kCount>
MF_FLATTEN typename S::F sum_weights(const typename S::F (&weights)[kCount]) {
  typename S::F sum = S::zero();
  for (const auto& weight : weights) sum = S::add(sum, weight);
  return sum;
}

template <class S>
struct PairProducts {
  static_assert(S::kLanes == kPageTokens);
  using Value = uint16_t;
  using P = PairPanel<S>;
  static constexpr bool kScaled = false;

  static void score(const AttentionArgs& a, const KeyTile<S, Value>& tile,
                    const KeyTile<S, Value>& next, Softmax<S>& state) {
    const int64_t bytes = int64_t{a.head_dim} * kPageTokens * 2;
    for_panel_groups<S, P>(
        0, tile.pages, largest_tile(state.queries), [&](auto group, int32_t page) {
          constexpr int32_t kPages = decltype(group)::value;
          const Value* k[kPages];
          for (int32_t i = 0; i < kPages; ++i) k[i] = tile.k[page + i];
          Ahead ahead = page < next.pages ? look_ahead<S>(next.k[page], kPages * bytes,
                                                          a.head_dim / 2, state.queries)
                                          : Ahead{};
          for_row_tiles(state.queries, [&](auto rows, int32_t query) {
            constexpr int32_t kQueries = decltype(rows)::value;
            if constexpr (kPages <= panels_at_once<S, P>(kQueries)) {
              const uint16_t* high[kQueries];
              const uint16_t* low[kQueries];
              for (int32_t i = 0; i < kQueries; ++i) {
                high[i] = state.high + (query + i) * state.half_width;
                low[i] = state.low + (query + i) * state.half_width;
              }
              Tile<S, P, kQueries, kPages> products;
              Ahead none;
              products.clear();
              products.multiply(k, high, a.head_dim / 2, P::kStep, ahead);
              products.multiply(k, low, a.head_dim / 2, P::kStep, none);
              for (int32_t m = 0; m < kQueries; ++m) {
                float* to = state.scores + int64_t{query + m} * kAttentionTile + page * kPageTokens;
                for (int32_t i = 0; i < kPages; ++i) {
                  S::store(to + i * S::kLanes, products.sums[m][i]);
                }
              }
            }
          });
        });
  }

  template <size_t kCount>
  static typename S::F put_weights(const AttentionArgs&, const KeyTile<S, Value>&, int32_t query,
                                   const typename S::F (&weights)[kCount], Softmax<S>& state) {
    put_pair_weights<S>(weights, query, state);
    return sum_weights<S>(weights);
  }

  static void add_values(const AttentionArgs& a, const KeyTile<S, Value>& tile,
                         const KeyTile<S, Value>& next, Softmax<S>& state) {
    const KeyTile<S, Value> whole = whole_pairs(a, tile, state);
    const int32_t vectors = static_cast<int32_t>(state.width / S::kLanes);
    for_panel_groups<S, P>(0, vectors, largest_tile(state.queries),
                           [&](auto group, int32_t vector) {
                             constexpr int32_t kVectors = decltype(group)::value;
                             for_row_tiles(state.queries, [&](auto rows, int32_t query) {
                               constexpr int32_t kQueries = decltype(rows)::value;
                               if constexpr (kVectors <= panels_at_once<S, P>(kQueries)) {
                                 Tile<S, P, kQueries, kVectors> products;
                                 products.clear();
                                 add_pages(a, whole, next, query, vector, state, products);
                                 join_sums<S>(products.sums, query, vector, state);
                               }
                             });
                           });
  }

 private:
  template <int32_t kQueries, int32_t kVectors>
  MF_INLINE void add_pages(const AttentionArgs& a, const KeyTile<S, Value>& tile,
                           const KeyTile<S, Value>& next, int32_t query, int32_t vector,
                           const Softmax<S>& state, Tile<S, P, kQueries, kVectors>& products) {
    const int64_t bytes = int64_t{a.head_dim} * kPageTokens * 2;
    const int32_t vectors = static_cast<int32_t>(state.width / S::kLanes);
    for (int32_t page = 0; page < tile.pages; ++page) {
      const Value* v[kVectors];
      for (int32_t i = 0; i < kVectors; ++i) v[i] = tile.v[page] + (vector + i) * P::kStep;
      const uint16_t* weights[kQueries];
      const uint16_t* rests[kQueries];
      for (int32_t i = 0; i < kQueries; ++i) {
        const int64_t at = int64_t{query + i} * kAttentionTile + page * kPageTokens;
        weights[i] = state.weights + at;
        rests[i] = state.rests + at;
      }
      const int32_t left = tile.tokens - page * kPageTokens;
      const int32_t tokens = left < kPageTokens ? left : kPageTokens;
      Ahead ahead;
      if (query == 0 && page < next.pages) {
        const auto* from = reinterpret_cast<const char*>(next.v[page]);
        ahead = look_ahead<S>(from + bytes * vector / vectors, bytes * kVectors / vectors,
                              kPageTokens / 2, 1);
      }
      Ahead none;
      products.multiply(v, weights, (tokens + 1) / 2, int64_t{a.head_dim} * 2, ahead);
      products.multiply(v, rests, (tokens + 1) / 2, int64_t{a.head_dim} * 2, none);
    }
  }

  // The last pair of an odd number of tokens has a half that nobody wrote, which may be NaN: its
  // page is copied, that half zero.
  static KeyTile<S, Value> whole_pairs(const AttentionArgs& a, const KeyTile<S, Value>& tile,
                                       Softmax<S>& state) {
    KeyTile<S, Value> whole = tile;
    if (tile.tokens % 2 == 0) return whole;
    auto* copy = reinterpret_cast<Value*>(state.tile);
    const int32_t tokens = tile.tokens - (tile.pages - 1) * kPageTokens;
    const Value* page = tile.v[tile.pages - 1];
    __builtin_memcpy(copy, page, static_cast<size_t>((tokens + 1) * a.head_dim) * 2);
    Value* last = copy + int64_t{tokens / 2} * a.head_dim * 2;
    for (int32_t i = 0; i < a.head_dim; ++i) last[2 * i + 1] = 0;
    whole.v[tile.pages - 1] = copy;
    return whole;
  }
};

// A token's key or value in a page of pairs. Neighbours in a pair may be written by other threads:
// each half is written by itself.
MF_FLATTEN void append_key_pairs(const float* k, int32_t head_dim, int32_t token, uint16_t* page) {
  for (int32_t i = 0; i < head_dim; i += 2) {
    const uint16_t pair[2] = {f32_to_bf16(k[i]), f32_to_bf16(k[i + 1])};
    __builtin_memcpy(page + i * kPageTokens + token * 2, pair, 4);
  }
}
MF_FLATTEN void append_value_pairs(const float* v, int32_t head_dim, int32_t token,
                                   uint16_t* page) {
  uint16_t* to = page + token / 2 * head_dim * 2 + token % 2;
  for (int32_t i = 0; i < head_dim; ++i) to[2 * i] = f32_to_bf16(v[i]);
}

template <class S>
struct PairTypes {
  static void begin(Softmax<S>& state) { state.split_queries(); }
  static void end() {}
  static void attend(const AttentionArgs& a, const KeySegment& segment, bool causal,
                     Softmax<S>& state) {
    if (segment.type != KvType::kBf16) return PlainTypes<S>::attend(a, segment, causal, state);
    attend_segment<S, PairProducts<S>>(a, segment, causal, state);
  }

  static void append_key(KvType type, const float* k, int32_t head_dim, int32_t token,
                         std::byte* page) {
    if (type != KvType::kBf16) return PlainTypes<S>::append_key(type, k, head_dim, token, page);
    append_key_pairs(k, head_dim, token, reinterpret_cast<uint16_t*>(page));
  }
  static void append_value(KvType type, const float* v, int32_t head_dim, int32_t token,
                           std::byte* page) {
    if (type != KvType::kBf16) return PlainTypes<S>::append_value(type, v, head_dim, token, page);
    append_value_pairs(v, head_dim, token, reinterpret_cast<uint16_t*>(page));
  }
};

// What a tier does with keys and values.
template <class S, bool kDot = S::kDotBf16>
struct KvTypes {
  using Types = PlainTypes<S>;
};
template <class S>
struct KvTypes<S, true> {
  using Types = PairTypes<S>;
};

}  // namespace manyfold::kernels
