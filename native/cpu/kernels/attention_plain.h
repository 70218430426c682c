// Attention's products in float32, for keys and values of any type, and their pages. Included by
// kernels/table.h only.
#pragma once

#include "../int8_kv.h"
#include "attention.h"

namespace manyfold::kernels {

// A page of keys: [head_dim][kPageTokens]; bf16 tokens of eight-lane tiers stand in the order of
// S::split. Behind a page of int8 stand the tokens' scales.
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

template <class S, class T>
struct PlainProducts {
  using Value = T;
  static constexpr bool kScaled = sizeof(T) == 1;

  // scores = q · k of every query and every token of the tile's pages; `next` is read ahead.
  static void score(const AttentionArgs& a, const KeyTile<S, T>& tile, const KeyTile<S, T>& next,
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

  // Keeps weights, times the values' scales where they have some, and returns their sums.
  template <size_t kCount>
  static typename S::F put_weights(const AttentionArgs& a, const KeyTile<S, T>& tile, int32_t query,
                                   const typename S::F (&weights)[kCount], Softmax<S>& state) {
    constexpr auto kVectors = static_cast<int32_t>(kCount);
    float* to = state.scores + int64_t{query} * kAttentionTile;
    typename S::F sum = S::zero();
    for (int32_t i = 0; i < kVectors; ++i) {
      sum = S::add(sum, weights[i]);
      auto weight = weights[i];
      if constexpr (kScaled) {
        constexpr int32_t kOfPage = kPageTokens / S::kLanes;
        if (i / kOfPage < tile.pages) {
          const float* scale = tile.scales(tile.v[i / kOfPage], a.head_dim);
          weight = S::mul(weight, S::load(scale + i % kOfPage * S::kLanes));
        }
      }
      S::store(to + i * S::kLanes, weight);
    }
    return sum;
  }

  // sums = keep · sums + weights · v; `next` is read ahead, each group of vectors its share.
  static void add_values(const AttentionArgs& a, const KeyTile<S, T>& tile,
                         const KeyTile<S, T>& next, Softmax<S>& state) {
    using P = RowPanel<S, T>;
    const int32_t vectors = static_cast<int32_t>(state.width / S::kLanes);
    for_panel_groups<S, P>(0, vectors, largest_tile(state.queries),
                           [&](auto group, int32_t vector) {
                             constexpr int32_t kVectors = decltype(group)::value;
                             for_row_tiles(state.queries, [&](auto rows, int32_t query) {
                               constexpr int32_t kQueries = decltype(rows)::value;
                               if constexpr (kVectors <= panels_at_once<S, P>(kQueries)) {
                                 Tile<S, P, kQueries, kVectors> products;
                                 products.clear();
                                 add_pages(a, tile, next, query, vector, state, products);
                                 join_sums<S>(products.sums, query, vector, state);
                               }
                             });
                           });
  }

 private:
  template <int32_t kQueries, int32_t kVectors>
  MF_INLINE void add_pages(const AttentionArgs& a, const KeyTile<S, T>& tile,
                           const KeyTile<S, T>& next, int32_t query, int32_t vector,
                           const Softmax<S>& state,
                           Tile<S, RowPanel<S, T>, kQueries, kVectors>& products) {
    const int64_t bytes = int64_t{a.head_dim} * kPageTokens * int64_t{sizeof(T)};
    const int32_t vectors = static_cast<int32_t>(state.width / S::kLanes);
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
  }
};

// Calls use(PlainProducts) of a type.
template <class S>
struct PlainTypes {
  static void begin(Softmax<S>&) {}
  static void end() {}
  static void attend(const AttentionArgs& a, const KeySegment& segment, bool causal,
                     Softmax<S>& state) {
    switch (segment.type) {
      case KvType::kF32:
        return attend_segment<S, PlainProducts<S, float>>(a, segment, causal, state);
      case KvType::kBf16:
        return attend_segment<S, PlainProducts<S, uint16_t>>(a, segment, causal, state);
      case KvType::kInt8:
        return attend_segment<S, PlainProducts<S, int8_t>>(a, segment, causal, state);
    }
  }

  static void append_key(KvType type, const float* k, int32_t head_dim, int32_t token,
                         std::byte* page) {
    append(type, k, head_dim, token, page,
           [&](auto value, int32_t i) { return KeyPage<S, decltype(value)>::index(i, token); });
  }
  static void append_value(KvType type, const float* v, int32_t head_dim, int32_t token,
                           std::byte* page) {
    append(type, v, head_dim, token, page, [&](auto, int32_t i) { return token * head_dim + i; });
  }

 private:
  // index(T{}, i): where dimension i of the token stands.
  template <class Index>
  static void append(KvType type, const float* x, int32_t head_dim, int32_t token, std::byte* page,
                     const Index& index) {
    if (type == KvType::kF32) {
      auto* to = reinterpret_cast<float*>(page);
      for (int32_t i = 0; i < head_dim; ++i) to[index(float{}, i)] = x[i];
    } else if (type == KvType::kBf16) {
      auto* to = reinterpret_cast<uint16_t*>(page);
      for (int32_t i = 0; i < head_dim; ++i) to[index(uint16_t{}, i)] = f32_to_bf16(x[i]);
    } else {
      auto* to = reinterpret_cast<int8_t*>(page);
      const float scale = int8_kv_scale(x, head_dim);
      const float inverse = int8_kv_inverse(scale);
      for (int32_t i = 0; i < head_dim; ++i) to[index(int8_t{}, i)] = int8_kv(x[i], inverse);
      reinterpret_cast<float*>(to + int64_t{head_dim} * kPageTokens)[token] = scale;
    }
  }
};

}  // namespace manyfold::kernels
