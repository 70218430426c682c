// Attention of every row over its sequence (kernels.h): flash-decoding. Blocks take chunks of 256
// keys of a row and write parts (maximum, sum, weighted values) to scratch; a second kernel merges
// a row's parts in order and applies gated prefixes. Tiles of a prefill's rows have a kernel of
// their own, unless the batch must not show in the bits. See attention_keys.cuh for the order of
// sums.
//
// Not yet measured on a GPU.
#include <algorithm>
#include <type_traits>

#include "../../core/error.h"
#include "../handles.h"
#include "attention_keys.cuh"
#include "attention_prefill.cuh"
#include "attention_tensor.cuh"

namespace manyfold::cuda {
namespace {

// How a launch is cut. A row has `parts` parts: its chunks, one each (the last part takes all that
// are left). `slots` blocks share them out. tile_rows: rows of a tile of prefill_kernel, 0 where it
// is not launched. shares: blocks along heads.
struct Cut {
  int parts, slots, tile_rows, shares;
};

// Chunks of a part.
struct ChunkSpan {
  int begin, end;
};
MF_DEVICE ChunkSpan chunk_span(const VisibleKeys& keys, int part, int parts) {
  const int begin = keys.first_chunk() + part;
  return {begin, part == parts - 1 ? keys.last_chunk() + 1 : begin + 1};
}
MF_DEVICE int used_parts(const VisibleKeys& keys, int parts) {
  return min(parts, keys.last_chunk() - keys.first_chunk() + 1);
}

// ---- Any element type and head_dim ----

// An item is (row, part, up to 8 query heads of one kv head); 16 threads take a head. For float32,
// where exactness is what counts, and for head_dims that tensor cores do not take.
template <class T>
MF_KERNEL void __launch_bounds__(kAttentionThreads)
    plain_parts_kernel(AttentionArgs args, Cut cut) {
  MF_SHARED(KeyPlace, places, kTileKeys);
  MF_SHARED(float, scores, kHeadGroup* kTileKeys);
  const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
  const int row = block / cut.slots;
  if (row >= args.tables.counts->rows) return;
  const VisibleKeys keys = visible_keys(args, row);
  const HeadShare share = head_share(args.shape, static_cast<int>(blockIdx.y));
  const int mine = thread / kHeadThreads, lane = thread % kHeadThreads;
  const int head = share.first_head + mine, dims = thread_dims(args.shape.head_dim, lane);
  const float* q = mine < share.heads ? args.q + static_cast<size_t>(row) * args.q_stride +
                                            head * args.shape.head_dim
                                      : nullptr;
  HeadSum<kThreadDims> total, chunk_sum, tile_sum;
  for (int part = block % cut.slots; part < used_parts(keys, cut.parts); part += cut.slots) {
    const ChunkSpan span = chunk_span(keys, part, cut.parts);
    clear(total);
    for (int chunk = span.begin; chunk < span.end; ++chunk) {
      clear(chunk_sum);
      for (int tile = 0; tile < kChunkTiles; ++tile) {
        const int first = chunk * kChunkKeys + tile * kTileKeys;
        if (first > keys.last || first + kTileKeys <= keys.first) continue;
        if (thread < kTileKeys)
          places[thread] = key_place<T>(args, keys, share.kv_head, first + thread);
        attend_tile<T>(places, scores, q, args.shape, tile_sum);
        merge_part(chunk_sum, tile_sum.max, tile_sum.sum, tile_sum.values, 1, dims);
      }
      merge_part(total, chunk_sum.max, chunk_sum.sum, chunk_sum.values, 1, dims);
    }
    if (q != nullptr)
      write_part(total, part_at(args, cut.parts, row, head, part), args.shape.head_dim, lane);
  }
}

// ---- bf16 and f16 on tensor cores ----

constexpr int kWarps = kAttentionThreads / kWarpSize;
static_assert(kWarps == kChunkTiles, "a warp takes one tile of every chunk");

// Shared memory of a block of tensor_parts_kernel: bytes of its parts, in this order.
struct TensorShared {
  size_t queries, places, values, stats;
};
inline __host__ __device__ TensorShared tensor_shared(int head_dim) {
  const size_t steps = static_cast<size_t>((head_dim + kQueryDims - 1) / kQueryDims);
  return {steps * kWarpSize * 2 * sizeof(uint4), sizeof(KeyPlace) * kWarps * kTileKeys,
          sizeof(float) * kWarps * kHeadGroup * static_cast<size_t>(tile_stride(head_dim)),
          sizeof(float) * kWarps * kHeadGroup * 2};
}

// Merges the four tiles of a chunk, which lie in shared memory, for head `mine` of the share.
template <int kDims>
MF_DEVICE void merge_chunk(HeadSum<kDims>& total, const float* values, const float* stats, int mine,
                           int lane, int head_dim) {
  const int stride = tile_stride(head_dim), dims = thread_dims(head_dim, lane);
  HeadSum<kDims> chunk_sum;
  clear(chunk_sum);
  for (int tile = 0; tile < kWarps; ++tile) {
    const int at = tile * kHeadGroup + mine;
    merge_part(chunk_sum, stats[2 * at], stats[2 * at + 1], values + at * stride + lane,
               kHeadThreads, dims);
  }
  merge_part(total, chunk_sum.max, chunk_sum.sum, chunk_sum.values, 1, dims);
}

// An item is (row, part, up to 8 query heads of one kv head): 4 warps take the tiles of a chunk, 16
// threads a head then merge them. Bytes of a chunk: keys and values of 256 tokens, once.
template <class T, int kBlocks>
MF_KERNEL void __launch_bounds__(kAttentionThreads, kBlocks == 1 ? 4 : 2)
    tensor_parts_kernel(AttentionArgs args, Cut cut) {
  MF_DYNAMIC_SHARED(unsigned char, shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
  const int block = static_cast<int>(blockIdx.x), row = block / cut.slots;
  if (row >= args.tables.counts->rows || is_prefill_row(args, row, cut.tile_rows)) return;
  const VisibleKeys keys = visible_keys(args, row);
  const int head_dim = args.shape.head_dim;
  const TensorShared sizes = tensor_shared(head_dim);
  uint4* queries = reinterpret_cast<uint4*>(shared);
  KeyPlace* places = reinterpret_cast<KeyPlace*>(shared + sizes.queries) + warp * kTileKeys;
  float* values = reinterpret_cast<float*>(shared + sizes.queries + sizes.places);
  float* stats = values + kWarps * kHeadGroup * tile_stride(head_dim);
  const HeadShare share = head_share(args.shape, static_cast<int>(blockIdx.y));
  const int mine = thread / kHeadThreads, lane = thread % kHeadThreads;
  split_queries<T>(queries,
                   args.q + static_cast<size_t>(row) * args.q_stride + share.first_head * head_dim,
                   args.shape, share.heads);
  HeadSum<kBlocks * kBlockDims / kHeadThreads> total;
  for (int part = block % cut.slots; part < used_parts(keys, cut.parts); part += cut.slots) {
    const ChunkSpan span = chunk_span(keys, part, cut.parts);
    clear(total);
    for (int chunk = span.begin; chunk < span.end; ++chunk) {
      __syncthreads();  // queries are there, and sums of the chunk before have been taken
      tensor_tile<T, kBlocks>(args, keys, share.kv_head, chunk * kChunkKeys + warp * kTileKeys,
                              queries, places, values + warp * kHeadGroup * tile_stride(head_dim),
                              stats + warp * kHeadGroup * 2);
      __syncthreads();
      merge_chunk(total, values, stats, mine, lane, head_dim);
    }
    if (mine < share.heads)
      write_part(total, part_at(args, cut.parts, row, share.first_head + mine, part), head_dim,
                 lane);
  }
}

// ---- Many rows of one sequence ----

// An item is (tile of rows, up to 8 query heads of one kv head); tiles that are not full or not of
// one sequence are left to tensor_parts_kernel. Bytes of an item: the keys and values that its last
// row sees, from L2 once and from L1 for each warp.
template <class T, int kBlocks>
MF_KERNEL void __launch_bounds__(kAttentionThreads, 2) prefill_kernel(AttentionArgs args, Cut cut) {
  MF_DYNAMIC_SHARED(uint4, queries);
  MF_SHARED(KeyPlace, places, kChunkKeys);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarpSize;
  const RowTile tile = {static_cast<int>(blockIdx.x) * cut.tile_rows, cut.tile_rows};
  if (tile.first >= args.tables.counts->rows || !is_prefill_row(args, tile.first, cut.tile_rows))
    return;
  const HeadShare share = head_share(args.shape, static_cast<int>(blockIdx.y));
  const VisibleKeys keys = tile_keys(args, tile);
  pair_queries<T>(queries, args, tile, share);
  const int steps = (args.shape.head_dim + kQueryDims - 1) / kQueryDims;
  const uint4* mine = queries + warp * steps * kWarpSize * 2;
  const int first_pair = warp * kWarpPairs + thread % kWarpSize / 4;
  PairState pairs[2] = {pair_state(args, tile, share, first_pair),
                        pair_state(args, tile, share, first_pair + 8)};
  // The warp's last key; its later tiles have nothing to see.
  int last = max(pairs[0].last_key, pairs[1].last_key);
  for (int other = 4; other < kWarpSize; other *= 2)
    last = max(last, __shfl_xor_sync(kFullWarp, last, other));
  float out[kBlocks][8][4] = {};
  for (int chunk = keys.first_chunk(); chunk <= keys.last_chunk(); ++chunk) {
    __syncthreads();
    for (int i = thread; i < kChunkKeys; i += kAttentionThreads)
      places[i] = key_place<T>(args, keys, share.kv_head, chunk * kChunkKeys + i);
    __syncthreads();
    for (int i = 0; i < kChunkTiles; ++i) {
      const int first = chunk * kChunkKeys + i * kTileKeys;
      if (first <= last && first + kTileKeys > keys.first)
        prefill_tile<T>(args.shape, places + i * kTileKeys, first, mine, pairs, out);
    }
  }
  write_pairs(args, cut.parts, tile, share, first_pair, pairs, out);
}

// ---- Merge ----

// total = softmax of a gated prefix alone, tile by tile from its first key on.
template <int kDims>
MF_DEVICE void attend_prefix(const AttentionArgs& args, const DevicePrefix& prefix, int kv_head,
                             KeyPlace* places, float* scores, const float* q,
                             HeadSum<kDims>& total) {
  const int thread = static_cast<int>(threadIdx.x);
  const int dims = thread_dims(args.shape.head_dim, thread % kHeadThreads);
  HeadSum<kDims> tile;
  clear(total);
  for (int first = 0; first < prefix.n; first += kTileKeys) {
    if (thread < kTileKeys) {
      places[thread] = first + thread < prefix.n
                           ? prefix_place(args.shape, prefix, kv_head, first + thread)
                           : KeyPlace{nullptr, nullptr, KeyKind::kNone};
    }
    attend_tile<float>(places, scores, q, args.shape, tile);
    merge_part(total, tile.max, tile.sum, tile.values, 1, dims);
  }
}

// total = the parts of a row and head in order. Several are loaded ahead: they come from L2.
template <int kDims>
MF_DEVICE void merge_parts(HeadSum<kDims>& total, const float* first, int parts, int head_dim,
                           int lane) {
  constexpr int kAhead = kDims == kThreadDims ? 4 : 8;
  const int dims = thread_dims(head_dim, lane), stride = head_dim + 2;
  for (int part = 0; part < parts; part += kAhead) {
    HeadSum<kDims> ahead[kAhead];
    MF_UNROLL
    for (int j = 0; j < kAhead; ++j) {
      clear(ahead[j]);
      const float* from = first + static_cast<int64_t>(part + j) * stride;
      if (part + j >= parts) continue;
      ahead[j].max = from[head_dim];
      ahead[j].sum = from[head_dim + 1];
      MF_UNROLL
      for (int i = 0; i < kDims; ++i) {
        if (i < dims) ahead[j].values[i] = from[lane + i * kHeadThreads];
      }
    }
    MF_UNROLL
    for (int j = 0; j < kAhead; ++j)
      merge_part(total, ahead[j].max, ahead[j].sum, ahead[j].values, 1, dims);
  }
}

// An item is (row, up to 8 query heads of one kv head): parts in order, then gated prefixes in
// order. kDims: values that a thread sums, at least head_dim / 16.
template <class T, int kDims>
MF_KERNEL void __launch_bounds__(kAttentionThreads) merge_kernel(AttentionArgs args, Cut cut) {
  MF_SHARED(KeyPlace, places, kTileKeys);
  MF_SHARED(float, scores, kHeadGroup* kTileKeys);
  const int row = static_cast<int>(blockIdx.x);
  if (row >= args.tables.counts->rows) return;
  const VisibleKeys keys = visible_keys(args, row);
  const AttentionShape& shape = args.shape;
  const HeadShare share = head_share(shape, static_cast<int>(blockIdx.y));
  const int mine = static_cast<int>(threadIdx.x) / kHeadThreads;
  const int lane = static_cast<int>(threadIdx.x) % kHeadThreads;
  const int head = share.first_head + mine, dims = thread_dims(shape.head_dim, lane);
  const bool has_head = mine < share.heads;
  HeadSum<kDims> total, prefix_sum;
  clear(total);
  const int used = is_prefill_row(args, row, cut.tile_rows) ? 1 : used_parts(keys, cut.parts);
  if (has_head)
    merge_parts(total, part_at(args, cut.parts, row, head, 0), used, shape.head_dim, lane);
  const float share_of_one = total.sum > 0.0f ? 1.0f / total.sum : 0.0f;
  MF_UNROLL
  for (int i = 0; i < kDims; ++i) total.values[i] *= share_of_one;
  const float* q = has_head
                       ? args.q + static_cast<size_t>(row) * args.q_stride + head * shape.head_dim
                       : nullptr;
  const int end = args.tables.sequence_prefixes[keys.sequence + 1];
  for (int n = args.tables.sequence_prefixes[keys.sequence]; n < end; ++n) {
    const PrefixRun run = args.tables.prefixes[n];
    const DevicePrefix* prefix = run.gated != 0 ? prefix_of(args, run) : nullptr;
    if (prefix == nullptr) continue;
    attend_prefix(args, *prefix, share.kv_head, places, scores, q, prefix_sum);
    const float factor = has_head ? prefix->gate / prefix_sum.sum : 0.0f;
    MF_UNROLL
    for (int i = 0; i < kDims; ++i) total.values[i] += factor * prefix_sum.values[i];
  }
  if (!has_head) return;
  T* out = static_cast<T*>(args.context) + static_cast<size_t>(row) * args.context_stride +
           head * shape.head_dim;
  MF_UNROLL
  for (int i = 0; i < kDims; ++i) {
    if (i < dims) out[lane + i * kHeadThreads] = round_to<T>(total.values[i]);
  }
}

// ---- Launch ----

// Parts of a row: its chunks where there are few rows, else one block takes them all.
constexpr int64_t kMostSplitItems = 4096;
constexpr int64_t kMostSplitBytes = int64_t{128} << 20;

int64_t part_bytes(const AttentionShape& shape, int32_t rows) {
  return int64_t{rows} * shape.heads * (shape.head_dim + 2) * int64_t{sizeof(float)};
}

int32_t part_count(const AttentionShape& shape, int32_t rows, int32_t most_keys) {
  // A window may begin anywhere in its first chunk.
  const bool windowed = shape.window > 0 && shape.window < most_keys;
  const int32_t seen = windowed ? shape.window + kChunkKeys - 1 : most_keys;
  const int32_t chunks = (seen + kChunkKeys - 1) / kChunkKeys;
  const bool few = int64_t{rows} * shape.kv_heads * head_groups(shape) <= kMostSplitItems;
  return few && chunks * part_bytes(shape, rows) <= kMostSplitBytes ? chunks : 1;
}

void check_shape(const AttentionShape& shape, int32_t rows, int32_t most_keys) {
  MF_ASSERT(shape.dtype == Dtype::kF32 || shape.dtype == Dtype::kBf16 ||
            shape.dtype == Dtype::kF16);
  MF_ASSERT(shape.kv_heads > 0 && shape.heads > 0 && shape.heads % shape.kv_heads == 0);
  MF_ASSERT(shape.head_dim > 0 && shape.head_dim <= kMostHeadDim);
  MF_ASSERT(shape.window >= 0 && rows >= 0 && most_keys > 0);
}

void check_args(const AttentionArgs& args) {
  check_shape(args.shape, args.rows, args.most_keys);
  MF_ASSERT(args.q != nullptr && args.context != nullptr && args.kv.pool != nullptr);
  MF_ASSERT(args.scratch != nullptr && args.tables.counts != nullptr && args.layer >= 0);
  const int32_t width = args.shape.heads * args.shape.head_dim;
  MF_ASSERT(args.q_stride >= width && args.context_stride >= width);
  const int64_t page_values = int64_t{2} * args.shape.kv_heads * kPageTokens * args.shape.head_dim;
  MF_ASSERT(static_cast<int64_t>(args.kv.page_bytes) >=
            page_values * block_shape(args.shape.dtype).bytes);
}

// Rows from which a batch may hold prefills that are worth a launch.
constexpr int32_t kPrefillBatch = 256;

// Tensor cores read 8 dimensions of the pool as one word of 16 bytes.
bool fits_tensor_cores(const AttentionArgs& args) {
  return args.shape.dtype != Dtype::kF32 && args.shape.head_dim % 8 == 0 &&
         args.kv.page_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(args.kv.pool) % 16 == 0;
}

// Blocks beyond which more only cost their start.
constexpr int64_t kMostBlocks = 4096;

Cut cut_of(const AttentionArgs& args) {
  const bool prefill =
      fits_tensor_cores(args) && !args.batch_invariant && args.rows >= kPrefillBatch;
  const int parts = part_count(args.shape, args.rows, args.most_keys);
  const int shares = args.shape.kv_heads * head_groups(args.shape);
  const int64_t slots = std::max(int64_t{1}, kMostBlocks / (int64_t{args.rows} * shares));
  return {parts, static_cast<int>(std::min(int64_t{parts}, slots)),
          prefill ? prefill_rows(args.shape) : 0, shares};
}

dim3 grid_of(int64_t items, const Cut& cut) {
  return {static_cast<unsigned>(items), static_cast<unsigned>(cut.shares)};
}

template <class T, int kBlocks>
void launch_tensor(const AttentionArgs& args, const Cut& cut, cudaStream_t stream) {
  const TensorShared sizes = tensor_shared(args.shape.head_dim);
  const size_t bytes = sizes.queries + sizes.places + sizes.values + sizes.stats;
  MF_CUDA(cudaFuncSetAttribute(tensor_parts_kernel<T, kBlocks>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
  MF_LAUNCH((tensor_parts_kernel<T, kBlocks>), grid_of(int64_t{args.rows} * cut.slots, cut),
            kAttentionThreads, bytes, stream, args, cut);
  if (cut.tile_rows == 0 || args.rows < cut.tile_rows) return;
  const size_t queries = kBlockPairs / kWarpPairs * sizes.queries;
  MF_LAUNCH((prefill_kernel<T, kBlocks>), grid_of(args.rows / cut.tile_rows, cut),
            kAttentionThreads, queries, stream, args, cut);
}

template <class T>
void launch_parts(const AttentionArgs& args, const Cut& cut, cudaStream_t stream) {
  if constexpr (!std::is_same_v<T, float>) {
    if (fits_tensor_cores(args)) {
      if (args.shape.head_dim <= 64) return launch_tensor<T, 1>(args, cut, stream);
      if (args.shape.head_dim <= 128) return launch_tensor<T, 2>(args, cut, stream);
      return launch_tensor<T, 4>(args, cut, stream);
    }
  }
  MF_LAUNCH((plain_parts_kernel<T>), grid_of(int64_t{args.rows} * cut.slots, cut),
            kAttentionThreads, 0, stream, args, cut);
}

template <class T>
void launch_merge(const AttentionArgs& args, const Cut& cut, cudaStream_t stream) {
  const dim3 grid = grid_of(args.rows, cut);
  if (args.shape.head_dim <= 64) {
    MF_LAUNCH((merge_kernel<T, 4>), grid, kAttentionThreads, 0, stream, args, cut);
  } else if (args.shape.head_dim <= 128) {
    MF_LAUNCH((merge_kernel<T, 8>), grid, kAttentionThreads, 0, stream, args, cut);
  } else {
    MF_LAUNCH((merge_kernel<T, 16>), grid, kAttentionThreads, 0, stream, args, cut);
  }
}

template <class T>
void launch_all(const AttentionArgs& args, cudaStream_t stream) {
  const Cut cut = cut_of(args);
  launch_parts<T>(args, cut, stream);
  MF_CUDA(cudaGetLastError());
  launch_merge<T>(args, cut, stream);
  MF_CUDA(cudaGetLastError());
}

}  // namespace

size_t attention_scratch_bytes(const AttentionShape& shape, int32_t rows, int32_t most_keys) {
  check_shape(shape, rows, most_keys);
  return static_cast<size_t>(part_count(shape, rows, most_keys) * part_bytes(shape, rows));
}

void launch_attention(const AttentionArgs& args, cudaStream_t stream) {
  check_args(args);
  if (args.rows == 0) return;
  if (args.shape.dtype == Dtype::kF32) return launch_all<float>(args, stream);
  if (args.shape.dtype == Dtype::kBf16) return launch_all<Bf16>(args, stream);
  launch_all<F16>(args, stream);
}

}  // namespace manyfold::cuda
