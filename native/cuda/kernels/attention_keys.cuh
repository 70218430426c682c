// Which keys a row may see and where they lie, and softmax sums that are taken in parts: shared by
// the kernels of attention.
#pragma once

#include "../../core/step.h"
#include "../device/number.cuh"
#include "../kernels.h"
#include "sites.cuh"

namespace manyfold::cuda {

// Keys are met in tiles and tiles in chunks, at fixed absolute positions. A tile's sums are taken
// fresh, a chunk's tiles are merged in order and then the chunks in order: a row's bits depend on
// its keys alone, however the chunks are shared out between blocks.
inline constexpr int kTileKeys = 64;
inline constexpr int kChunkTiles = 4;
inline constexpr int kChunkKeys = kTileKeys * kChunkTiles;

// Query heads of one kv head that a block takes, and threads of a block: 16 for each of its heads.
inline constexpr int kHeadGroup = 8;
inline constexpr int kHeadThreads = 16;
inline constexpr int kAttentionThreads = kHeadGroup * kHeadThreads;
inline constexpr int kMostHeadDim = 256;
// Most values of a head that one thread sums: dimensions lane, lane + 16, ...
inline constexpr int kThreadDims = kMostHeadDim / kHeadThreads;

// A block's share of a row: heads first_head .. first_head + heads - 1, all of kv_head.
struct HeadShare {
  int kv_head, first_head, heads;
};

inline __host__ __device__ int head_groups(const AttentionShape& shape) {
  return (shape.heads / shape.kv_heads + kHeadGroup - 1) / kHeadGroup;
}

// share: kv head · groups + group.
MF_DEVICE HeadShare head_share(const AttentionShape& shape, int share) {
  const int groups = head_groups(shape), queries = shape.heads / shape.kv_heads;
  const int kv_head = share / groups, first = share % groups * kHeadGroup;
  return {kv_head, kv_head * queries + first, min(kHeadGroup, queries - first)};
}

// Whether a row's keys are met by prefill_kernel: its tile of tile_rows rows is full and of one
// sequence. By all threads of a warp.
MF_DEVICE bool is_prefill_row(const AttentionArgs& args, int row, int tile_rows) {
  if (tile_rows == 0) return false;
  const int first = row / tile_rows * tile_rows, sequence = args.tables.row_sequence[row];
  if (first + tile_rows > args.tables.counts->rows) return false;
  bool same = true;
  for (int i = static_cast<int>(threadIdx.x) % kWarpSize; i < tile_rows; i += kWarpSize)
    same = same && args.tables.row_sequence[first + i] == sequence;
  return __all_sync(kFullWarp, same) != 0;
}

// Positions first .. last of a sequence whose slot 0 is at position base.
struct VisibleKeys {
  int first, last, base, sequence;
  MF_DEVICE int first_chunk() const { return first / kChunkKeys; }
  MF_DEVICE int last_chunk() const { return last / kChunkKeys; }
};

MF_DEVICE VisibleKeys visible_keys(const AttentionArgs& args, int row) {
  const int sequence = args.tables.row_sequence[row], last = args.tables.row_position[row];
  const int first = args.shape.window > 0 ? max(0, last - args.shape.window + 1) : 0;
  return {first, last, args.tables.sequence_base[sequence], sequence};
}

enum class KeyKind : int32_t { kNone, kPool, kPrefix };

// Key and value of one position and kv head: [head_dim] of the pool's dtype, or float32 of a
// prefix.
struct KeyPlace {
  const void* key;
  const void* value;
  KeyKind kind;
};

MF_DEVICE KeyPlace prefix_place(const AttentionShape& shape, const DevicePrefix& prefix,
                                int kv_head, int i) {
  const int64_t at = (int64_t{i} * shape.kv_heads + kv_head) * shape.head_dim;
  return {prefix.k + at, prefix.v + at, KeyKind::kPrefix};
}

// The prefix of a run at the launch's layer; null where its set has none of the run's kind there.
MF_DEVICE const DevicePrefix* prefix_of(const AttentionArgs& args, const PrefixRun& run) {
  const DeviceSite* site = site_of(args.tables, run.set, {args.layer, Site::kAttention});
  if (site == nullptr || site->prefix.n == 0 || (site->prefix.gated != 0) != (run.gated != 0))
    return nullptr;
  return &site->prefix;
}

MF_DEVICE KeyPlace shared_prefix_place(const AttentionArgs& args, const VisibleKeys& keys,
                                       int kv_head, int position) {
  const int end = args.tables.sequence_prefixes[keys.sequence + 1];
  for (int i = args.tables.sequence_prefixes[keys.sequence]; i < end; ++i) {
    const PrefixRun run = args.tables.prefixes[i];
    if (run.gated != 0 || position < run.first) continue;
    const DevicePrefix* prefix = prefix_of(args, run);
    if (prefix != nullptr && position < run.first + prefix->n)
      return prefix_place(args.shape, *prefix, kv_head, position - run.first);
  }
  return {nullptr, nullptr, KeyKind::kNone};
}

template <class T>
MF_DEVICE KeyPlace key_place(const AttentionArgs& args, const VisibleKeys& keys, int kv_head,
                             int position) {
  if (position < keys.first || position > keys.last) return {nullptr, nullptr, KeyKind::kNone};
  if (position < keys.base) return shared_prefix_place(args, keys, kv_head, position);
  const AttentionShape& shape = args.shape;
  const int slot = position - keys.base;
  const int page =
      args.tables.pages[args.tables.sequence_page0[keys.sequence] + slot / kPageTokens];
  const T* key =
      reinterpret_cast<const T*>(args.kv.pool + static_cast<size_t>(page) * args.kv.page_bytes) +
      (kv_head * kPageTokens + slot % kPageTokens) * shape.head_dim;
  return {key, key + shape.kv_heads * kPageTokens * shape.head_dim, KeyKind::kPool};
}

template <class T>
MF_DEVICE float value_of(const void* values, KeyKind kind, int i) {
  return kind == KeyKind::kPool ? load(static_cast<const T*>(values)[i])
                                : static_cast<const float*>(values)[i];
}

// One head's softmax over some keys, as far as one thread holds it: Σ exp(score - max), and the
// values weighted so, dimensions lane + 16 i.
template <int kDims>
struct HeadSum {
  float max, sum;
  float values[kDims];
};

template <int kDims>
MF_DEVICE void clear(HeadSum<kDims>& total) {
  total.max = -INFINITY;
  total.sum = 0.0f;
  MF_UNROLL
  for (int i = 0; i < kDims; ++i) total.values[i] = 0.0f;
}

// Factors of what is there and of what joins it, when softmax sums are merged.
struct MergeFactors {
  float keep, join;
};

// Changes max and sum. The rounding of each step is spelled out: two kernels must find the same
// bits.
MF_DEVICE MergeFactors merge_factors(float& max, float& sum, float part_max, float part_sum) {
  const float most = fmaxf(max, part_max);
  const MergeFactors factors = {sum == 0.0f ? 0.0f : expf(max - most), expf(part_max - most)};
  sum = __fmaf_rn(sum, factors.keep, __fmul_rn(part_sum, factors.join));
  max = most;
  return factors;
}

// total and the part with dimension lane + 16 i at values[i · stride]; a part without keys changes
// nothing.
template <int kDims>
MF_DEVICE void merge_part(HeadSum<kDims>& total, float max, float sum, const float* values,
                          int stride, int dims) {
  if (sum == 0.0f) return;
  const MergeFactors factors = merge_factors(total.max, total.sum, max, sum);
  MF_UNROLL
  for (int i = 0; i < kDims; ++i) {
    if (i < dims)
      total.values[i] =
          __fmaf_rn(total.values[i], factors.keep, __fmul_rn(values[i * stride], factors.join));
  }
}

// Dimensions lane, lane + 16, ... below head_dim.
MF_DEVICE int thread_dims(int head_dim, int lane) {
  return (head_dim - lane + kHeadThreads - 1) / kHeadThreads;
}

// Parts of all rows: [rows][heads][parts][head_dim values, max, sum].
MF_DEVICE float* part_at(const AttentionArgs& args, int parts, int row, int head, int part) {
  const int64_t index = (int64_t{row} * args.shape.heads + head) * parts + part;
  return static_cast<float*>(args.scratch) + index * (args.shape.head_dim + 2);
}

template <int kDims>
MF_DEVICE void write_part(const HeadSum<kDims>& total, float* to, int head_dim, int lane) {
  MF_UNROLL
  for (int i = 0; i < kDims; ++i) {
    if (lane + i * kHeadThreads < head_dim) to[lane + i * kHeadThreads] = total.values[i];
  }
  if (lane == 0) {
    to[head_dim] = total.max;
    to[head_dim + 1] = total.sum;
  }
}

// One tile by a whole block on plain arithmetic, for the thread's head: any head_dim, any dtype,
// prefixes as they are. places [kTileKeys] and scores [kHeadGroup][kTileKeys] are shared; q of the
// thread's head, or null for a thread without a head. Begins and ends with barriers.
template <class T, int kDims>
MF_DEVICE void attend_tile(const KeyPlace* places, float* scores, const float* q,
                           const AttentionShape& shape, HeadSum<kDims>& tile) {
  const int lane = static_cast<int>(threadIdx.x) % kHeadThreads;
  float* mine = scores + static_cast<int>(threadIdx.x) / kHeadThreads * kTileKeys;
  clear(tile);
  __syncthreads();
  for (int i = lane; i < kTileKeys; i += kHeadThreads) {
    const KeyPlace place = places[i];
    float score = -INFINITY;
    if (q != nullptr && place.kind != KeyKind::kNone) {
      score = 0.0f;
      for (int d = 0; d < shape.head_dim; ++d)
        score += q[d] * value_of<T>(place.key, place.kind, d);
      score *= shape.scale;
    }
    mine[i] = score;
    tile.max = fmaxf(tile.max, score);
  }
  for (int other = kHeadThreads / 2; other > 0; other /= 2)
    tile.max = fmaxf(tile.max, __shfl_xor_sync(kFullWarp, tile.max, other));
  for (int i = lane; i < kTileKeys; i += kHeadThreads) {
    mine[i] = mine[i] == -INFINITY ? 0.0f : expf(mine[i] - tile.max);
    tile.sum += mine[i];
  }
  for (int other = kHeadThreads / 2; other > 0; other /= 2)
    tile.sum += __shfl_xor_sync(kFullWarp, tile.sum, other);
  __syncthreads();
  for (int key = 0; key < kTileKeys && q != nullptr; ++key) {
    const KeyPlace place = places[key];
    if (place.kind == KeyKind::kNone) continue;
    MF_UNROLL
    for (int i = 0; i < kDims; ++i) {
      const int d = lane + i * kHeadThreads;
      if (d < shape.head_dim) tile.values[i] += mine[key] * value_of<T>(place.value, place.kind, d);
    }
  }
  __syncthreads();
}

}  // namespace manyfold::cuda
