// One tile of attention by one warp on tensor cores, for a pool of bf16 or f16 and a head_dim that
// is a multiple of 8. Keys and values go from memory to registers in words of 16 bytes and are used
// where they land: neither shared memory nor ldmatrix stands between.
//
// The 16 rows of an mma hold 8 query heads twice. Float32 operands (queries, weights of the
// softmax, prefixes) are a rounded part and the rest: rows 0 .. 7 take the rounded parts, rows 8 ..
// 15 the rests, and the sum of both results has their 16 bits (22 with f16) of mantissa at the
// price of one.
#pragma once

#include "../device/tensor_core.cuh"
#include "attention_keys.cuh"

namespace manyfold::cuda {

inline constexpr int kOctets = kTileKeys / 8;  // columns of an mma: keys
inline constexpr int kBlockDims = 64;          // dimensions of values that a warp loads together
inline constexpr int kQueryDims = 32;          // dimensions of two steps of q · k

// Words of 8 values' rounded parts or of what rounding left, lower addresses first.
template <class T>
MF_DEVICE uint32_t split_pair(float first, float second, bool rest) {
  const uint32_t rounded = round_pair<T>(first, second);
  if (!rest) return rounded;
  const float2 back = load_pair<T>(rounded);
  return round_pair<T>(first - back.x, second - back.y);
}
template <class T>
MF_DEVICE uint4 split_eight(const float* from, bool rest) {
  return make_uint4(split_pair<T>(from[0], from[1], rest), split_pair<T>(from[2], from[3], rest),
                    split_pair<T>(from[4], from[5], rest), split_pair<T>(from[6], from[7], rest));
}

// Dimensions d .. d + 7 of a key or value, zeros where there are none. rest: the second part of a
// prefix; the pool has none.
template <class T>
MF_DEVICE uint4 eight_of(const void* from, KeyKind kind, int d, int head_dim, bool rest) {
  if (kind == KeyKind::kNone || d >= head_dim) return make_uint4(0, 0, 0, 0);
  if (kind == KeyKind::kPrefix) return split_eight<T>(static_cast<const float*>(from) + d, rest);
  return rest ? make_uint4(0, 0, 0, 0)
              : *reinterpret_cast<const uint4*>(static_cast<const T*>(from) + d);
}

// Queries of a share as every warp's left operand: [⌈head_dim / 32⌉][32 lanes][2] in shared memory,
// the rounded part of dimensions 32 i + 8 (lane % 4) .. + 7 of head lane / 4, then its rest.
template <class T>
MF_DEVICE void split_queries(uint4* queries, const float* q, const AttentionShape& shape,
                             int heads) {
  const int words = (shape.head_dim + kQueryDims - 1) / kQueryDims * kWarpSize * 2;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kAttentionThreads) {
    const int lane = i / 2 % kWarpSize, head = lane / 4;
    const int d = i / (2 * kWarpSize) * kQueryDims + lane % 4 * 8;
    queries[i] = head < heads && d < shape.head_dim
                     ? split_eight<T>(q + head * shape.head_dim + d, i % 2 != 0)
                     : make_uint4(0, 0, 0, 0);
  }
}

// sums[j] += queries · keys 8 j .. 8 j + 7; columns of an mma are the keys. A lane's 8 neighbouring
// dimensions serve two steps of 16, for both operands alike. kAhead octets are loaded together.
template <class T, int kAhead>
MF_DEVICE void score_tile(float (&sums)[kOctets][4], const uint4* queries, const KeyPlace* places,
                          int head_dim, bool rest) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  for (int first = 0; first < head_dim; first += kQueryDims) {
    const uint4* q = queries + (first / kQueryDims * kWarpSize + lane) * 2;
    const uint4 rounded = q[0], left = q[1];
    const uint32_t low[4] = {rounded.x, left.x, rounded.y, left.y};
    const uint32_t high[4] = {rounded.z, left.z, rounded.w, left.w};
    MF_UNROLL
    for (int octet = 0; octet < kOctets; octet += kAhead) {
      uint4 keys[kAhead];
      MF_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        const KeyPlace& place = places[8 * (octet + j) + lane / 4];
        keys[j] = eight_of<T>(place.key, place.kind, first + lane % 4 * 8, head_dim, rest);
      }
      MF_UNROLL
      for (int j = 0; j < kAhead; ++j) {
        const uint32_t k_low[2] = {keys[j].x, keys[j].y}, k_high[2] = {keys[j].z, keys[j].w};
        mma_16x8x16<T>(sums[octet + j], low, k_low);
        mma_16x8x16<T>(sums[octet + j], high, k_high);
      }
    }
  }
}

// Sums of head lane / 4 over one tile; the same in the four lanes of a head.
struct TileStat {
  float max, sum;
};

// Scores become exp(score - max) and 0 where no key is: [j][0 and 1] are keys 8 j + 2 (lane % 4)
// and the next of head lane / 4. present: bit i of word i / 32 says that key i is there.
MF_DEVICE TileStat soften_tile(float (&sums)[kOctets][4], const unsigned (&present)[2],
                               float scale) {
  const int pair = static_cast<int>(threadIdx.x) % 4 * 2;
  TileStat stat = {-INFINITY, 0.0f};
  MF_UNROLL
  for (int j = 0; j < kOctets; ++j) {
    MF_UNROLL
    for (int i = 0; i < 2; ++i) {
      const bool there = (present[j / 4] >> (j % 4 * 8 + pair + i) & 1u) != 0;
      sums[j][i] = there ? (sums[j][i] + sums[j][i + 2]) * scale : -INFINITY;
      stat.max = fmaxf(stat.max, sums[j][i]);
    }
  }
  stat.max = fmaxf(stat.max, __shfl_xor_sync(kFullWarp, stat.max, 1));
  stat.max = fmaxf(stat.max, __shfl_xor_sync(kFullWarp, stat.max, 2));
  MF_UNROLL
  for (int j = 0; j < kOctets; ++j) {
    MF_UNROLL
    for (int i = 0; i < 2; ++i) {
      sums[j][i] = sums[j][i] == -INFINITY ? 0.0f : __expf(sums[j][i] - stat.max);
      stat.sum += sums[j][i];
    }
  }
  stat.sum += __shfl_xor_sync(kFullWarp, stat.sum, 1);
  stat.sum += __shfl_xor_sync(kFullWarp, stat.sum, 2);
  return stat;
}

// Words (value i of the first key, value i of the second) of 8 neighbouring dimensions.
MF_DEVICE uint32_t pair_values(const uint4& first, const uint4& second, int i) {
  const uint32_t a[4] = {first.x, first.y, first.z, first.w};
  const uint32_t b[4] = {second.x, second.y, second.z, second.w};
  return i % 2 == 0 ? (a[i / 2] & 0xffffu) | b[i / 2] << 16
                    : a[i / 2] >> 16 | (b[i / 2] & 0xffff0000u);
}

// Left operand of 16 keys from the weights of two octets: of 8 heads in two parts (kSplit), or of
// 16 pairs (attention_prefill.cuh) rounded.
template <class T, bool kSplit>
MF_DEVICE void weight_words(uint32_t (&words)[4], const float (&first)[4],
                            const float (&second)[4]) {
  constexpr int kBelow = kSplit ? 0 : 2;  // where the weights of rows 8 .. 15 stand
  words[0] = split_pair<T>(first[0], first[1], false);
  words[1] = split_pair<T>(first[kBelow], first[kBelow + 1], kSplit);
  words[2] = split_pair<T>(second[0], second[1], false);
  words[3] = split_pair<T>(second[kBelow], second[kBelow + 1], kSplit);
}

// out[b][i] += weights · values: columns n of its mma are dimensions 64 b + 8 n + i, so that a lane
// that loads 8 neighbouring dimensions of two keys holds the words of 8 products.
template <class T, int kBlocks, bool kSplit>
MF_DEVICE void weigh_values(float (&out)[kBlocks][8][4], const float (&weights)[kOctets][4],
                            const KeyPlace* places, int head_dim, bool rest) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  MF_UNROLL
  for (int step = 0; step < kOctets / 2; ++step) {
    uint32_t left[4];
    weight_words<T, kSplit>(left, weights[2 * step], weights[2 * step + 1]);
    const KeyPlace* at = places + 16 * step + lane % 4 * 2;
    MF_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      const int d = b * kBlockDims + lane / 4 * 8;
      const uint4 v0 = eight_of<T>(at[0].value, at[0].kind, d, head_dim, rest);
      const uint4 v1 = eight_of<T>(at[1].value, at[1].kind, d, head_dim, rest);
      const uint4 v2 = eight_of<T>(at[8].value, at[8].kind, d, head_dim, rest);
      const uint4 v3 = eight_of<T>(at[9].value, at[9].kind, d, head_dim, rest);
      MF_UNROLL
      for (int i = 0; i < 8; ++i) {
        const uint32_t right[2] = {pair_values(v0, v1, i), pair_values(v2, v3, i)};
        mma_16x8x16<T>(out[b][i], left, right);
      }
    }
  }
}

// Row stride of tiles' values in shared memory.
inline __host__ __device__ int tile_stride(int head_dim) {
  return head_dim + 1;
}

// Writes the warp's values [kHeadGroup][tile_stride] of one tile.
template <int kBlocks>
MF_DEVICE void write_tile(const float (&out)[kBlocks][8][4], float* values, int head_dim) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  MF_UNROLL
  for (int b = 0; b < kBlocks; ++b) {
    MF_UNROLL
    for (int i = 0; i < 8; ++i) {
      MF_UNROLL
      for (int n = 0; n < 2; ++n) {
        const int d = b * kBlockDims + (lane % 4 * 2 + n) * 8 + i;
        if (d < head_dim)
          values[lane / 4 * tile_stride(head_dim) + d] = out[b][i][n] + out[b][i][n + 2];
      }
    }
  }
}

// The whole tile: values to `values`, max and sum of head h to stats[2 h] and [2 h + 1]. places
// [kTileKeys] of the warp is written here.
template <class T, int kBlocks>
MF_DEVICE void tensor_tile(const AttentionArgs& args, const VisibleKeys& keys, int kv_head,
                           int first, const uint4* queries, KeyPlace* places, float* values,
                           float* stats) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, head_dim = args.shape.head_dim;
  unsigned present[2];
  bool prefixes = false;
  __syncwarp();  // all lanes are done with the places of the tile before
  MF_UNROLL
  for (int i = 0; i < 2; ++i) {
    const KeyPlace place = key_place<T>(args, keys, kv_head, first + i * kWarpSize + lane);
    places[i * kWarpSize + lane] = place;
    present[i] = __ballot_sync(kFullWarp, place.kind != KeyKind::kNone);
    prefixes = prefixes || place.kind == KeyKind::kPrefix;
  }
  const int pieces = __any_sync(kFullWarp, prefixes) != 0 ? 2 : 1;
  __syncwarp();
  float scores[kOctets][4] = {};
  for (int piece = 0; piece < pieces; ++piece)
    score_tile<T, kOctets>(scores, queries, places, head_dim, piece != 0);
  const TileStat stat = soften_tile(scores, present, args.shape.scale);
  float out[kBlocks][8][4] = {};
  for (int piece = 0; piece < pieces; ++piece)
    weigh_values<T, kBlocks, true>(out, scores, places, head_dim, piece != 0);
  write_tile(out, values, head_dim);
  if (lane % 4 == 0) {
    stats[lane / 4 * 2] = stat.max;
    stats[lane / 4 * 2 + 1] = stat.sum;
  }
}

}  // namespace manyfold::cuda
