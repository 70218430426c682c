// Attention of many rows of one sequence on tensor cores: the 16 rows of an mma are 16 pairs of a
// row and a query head that shares the kv head, so that one load of keys and values serves 64 pairs
// of a block, four warps reading the same lines. Queries and weights of the softmax are rounded to
// the pool's dtype, and a running maximum is kept from tile to tile: for batches of many rows where
// speed counts, not for --batch-invariant.
#pragma once

#include "attention_tensor.cuh"

namespace manyfold::cuda {

inline constexpr int kWarpPairs = 16;
inline constexpr int kBlockPairs = kAttentionThreads / kWarpSize * kWarpPairs;

// Rows of a tile: as many as the fullest share of heads leaves room for.
inline int prefill_rows(const AttentionShape& shape) {
  const int queries = shape.heads / shape.kv_heads;
  return kBlockPairs / (queries < kHeadGroup ? queries : kHeadGroup);
}

// The rows first .. first + rows - 1 of a step, all of one sequence.
struct RowTile {
  int first, rows;
};

// A pair that a lane holds sums of: pairs lane / 4 and lane / 4 + 8 of its warp. row is -1 where
// the block has fewer pairs.
struct PairState {
  int first_key, last_key;
  float max, sum;
};

// pair: of the block.
MF_DEVICE PairState pair_state(const AttentionArgs& args, const RowTile& tile,
                               const HeadShare& share, int pair) {
  PairState state = {0, -1, -INFINITY, 0.0f};
  if (pair / share.heads >= tile.rows) return state;
  const VisibleKeys keys = visible_keys(args, tile.first + pair / share.heads);
  state.first_key = keys.first;
  state.last_key = keys.last;
  return state;
}

// Queries of every warp as left operands: [4 warps][⌈head_dim / 32⌉][32 lanes][2] in shared memory,
// dimensions 32 i + 8 (lane % 4) .. + 7 of pair lane / 4 of the warp, then of pair lane / 4 + 8.
template <class T>
MF_DEVICE void pair_queries(uint4* queries, const AttentionArgs& args, const RowTile& tile,
                            const HeadShare& share) {
  const int head_dim = args.shape.head_dim, steps = (head_dim + kQueryDims - 1) / kQueryDims;
  const int words = kBlockPairs / kWarpPairs * steps * kWarpSize * 2;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kAttentionThreads) {
    const int lane = i / 2 % kWarpSize, step = i / (2 * kWarpSize) % steps;
    const int pair = i / (2 * kWarpSize * steps) * kWarpPairs + lane / 4 + i % 2 * 8;
    const int row = pair / share.heads, d = step * kQueryDims + lane % 4 * 8;
    const int64_t at = int64_t{tile.first + row} * args.q_stride +
                       (share.first_head + pair % share.heads) * head_dim + d;
    queries[i] = row < tile.rows && d < head_dim ? split_eight<T>(args.q + at, false)
                                                 : make_uint4(0, 0, 0, 0);
  }
}

// Keys that any row of the tile sees. By all threads of a warp.
MF_DEVICE VisibleKeys tile_keys(const AttentionArgs& args, const RowTile& tile) {
  VisibleKeys all = visible_keys(args, tile.first);
  for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < tile.rows; i += kWarpSize) {
    const VisibleKeys keys = visible_keys(args, tile.first + i);
    all.first = min(all.first, keys.first);
    all.last = max(all.last, keys.last);
  }
  MF_UNROLL
  for (int other = kWarpSize / 2; other > 0; other /= 2) {
    all.first = min(all.first, __shfl_xor_sync(kFullWarp, all.first, other));
    all.last = max(all.last, __shfl_xor_sync(kFullWarp, all.last, other));
  }
  return all;
}

// Scores of the keys from `first` on become weights exp(score - max) of the pairs, which take the
// new maximum; what `out` holds is scaled to it. [j][0 and 1] are the first pair's, [2 and 3] the
// second's.
template <int kBlocks>
MF_DEVICE void soften_pairs(float (&scores)[kOctets][4], const unsigned (&present)[2], int first,
                            float scale, PairState (&pairs)[2], float (&out)[kBlocks][8][4]) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  MF_UNROLL
  for (int x = 0; x < 2; ++x) {
    float most = pairs[x].max;
    MF_UNROLL
    for (int j = 0; j < kOctets; ++j) {
      MF_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int key = 8 * j + column + i;
        const bool seen = (present[j / 4] >> (key % kWarpSize) & 1u) != 0 &&
                          first + key >= pairs[x].first_key && first + key <= pairs[x].last_key;
        scores[j][2 * x + i] = seen ? scores[j][2 * x + i] * scale : -INFINITY;
        most = fmaxf(most, scores[j][2 * x + i]);
      }
    }
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 1));
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, 2));
    const float keep = pairs[x].max == -INFINITY ? 0.0f : __expf(pairs[x].max - most);
    float sum = 0.0f;
    MF_UNROLL
    for (int j = 0; j < kOctets; ++j) {
      MF_UNROLL
      for (int i = 0; i < 2; ++i) {
        float& score = scores[j][2 * x + i];
        score = score == -INFINITY ? 0.0f : __expf(score - most);
        sum += score;
      }
    }
    pairs[x].max = most;
    pairs[x].sum = pairs[x].sum * keep + sum;
    MF_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      MF_UNROLL
      for (int i = 0; i < 8; ++i) {
        out[b][i][2 * x] *= keep;
        out[b][i][2 * x + 1] *= keep;
      }
    }
  }
}

// One tile of 64 keys, whose places are given, for the warp's 16 pairs.
template <class T, int kBlocks>
MF_DEVICE void prefill_tile(const AttentionShape& shape, const KeyPlace* places, int first,
                            const uint4* queries, PairState (&pairs)[2],
                            float (&out)[kBlocks][8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const KeyKind low = places[lane].kind, high = places[lane + kWarpSize].kind;
  const unsigned present[2] = {__ballot_sync(kFullWarp, low != KeyKind::kNone),
                               __ballot_sync(kFullWarp, high != KeyKind::kNone)};
  const bool prefixes = low == KeyKind::kPrefix || high == KeyKind::kPrefix;
  const int pieces = __any_sync(kFullWarp, prefixes) != 0 ? 2 : 1;
  float scores[kOctets][4] = {};
  for (int piece = 0; piece < pieces; ++piece)
    score_tile<T, kBlocks == 4 ? 4 : kOctets>(scores, queries, places, shape.head_dim, piece != 0);
  soften_pairs(scores, present, first, shape.scale, pairs, out);
  for (int piece = 0; piece < pieces; ++piece)
    weigh_values<T, kBlocks, false>(out, scores, places, shape.head_dim, piece != 0);
}

// The pairs' sums as part 0 of their rows. Eight dimensions of a lane lie in a row.
template <int kBlocks>
MF_DEVICE void write_pairs(const AttentionArgs& args, int parts, const RowTile& tile,
                           const HeadShare& share, int first_pair, const PairState (&pairs)[2],
                           const float (&out)[kBlocks][8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize, head_dim = args.shape.head_dim;
  MF_UNROLL
  for (int x = 0; x < 2; ++x) {
    float sum = pairs[x].sum;
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    const int pair = first_pair + 8 * x, row = pair / share.heads;
    if (row >= tile.rows) continue;
    float* to = part_at(args, parts, tile.first + row, share.first_head + pair % share.heads, 0);
    MF_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      MF_UNROLL
      for (int n = 0; n < 2; ++n) {
        const int d = b * kBlockDims + (lane % 4 * 2 + n) * 8;
        MF_UNROLL
        for (int i = 0; i < 8; ++i) {
          if (d < head_dim) to[d + i] = out[b][i][2 * x + n];
        }
      }
    }
    if (lane % 4 == 0) {
      to[head_dim] = pairs[x].max;
      to[head_dim + 1] = sum;
    }
  }
}

}  // namespace manyfold::cuda
