// Bottleneck adapters of a residual site, over tiles: t += scale · (U act(D n + down_bias) +
// up_bias). Three launches for each term of a site: n to scratch (its norm taken), the middle
// (item: a tile and two rows of D a warp, lanes along the hidden width), and the outputs (item: a
// tile and 256 of them, a thread each). The third of a term ends before the first of the next
// begins, as a later term reads what earlier ones made of t. Not yet measured on a GPU.
#include <algorithm>

#include "../../core/error.h"
#include "adapter_common.cuh"

namespace manyfold::cuda {

namespace {

constexpr int kMiddleRows = 2 * kAdapterWarps;  // of one item
constexpr int kMiddleBlocks = 8;
constexpr int kMiddleChunk = kAdapterThreads;
constexpr int kMostTileBlocks = 512;

MF_DEVICE const DeviceBottleneck* find_bottleneck(const BottleneckArgs& p, int32_t set, int index) {
  const DeviceSite* site = site_of(p.tables, set, p.site);
  return site == nullptr || index >= site->bottleneck_count ? nullptr : site->bottlenecks + index;
}

// Scratch of a row: the middle in front, n at the end.
MF_DEVICE float* middle_of(const BottleneckArgs& p, int32_t row) {
  return p.scratch + static_cast<int64_t>(row) * p.scratch_width;
}
MF_DEVICE float* normed_of(const BottleneckArgs& p, int32_t row) {
  return middle_of(p, row) + (p.scratch_width - p.hidden);
}

MF_DEVICE float placed_input(const BottleneckArgs& p, BottleneckPlacement placement, int32_t row,
                             int i) {
  const int64_t at = static_cast<int64_t>(row) * p.hidden + i;
  switch (placement) {
    case BottleneckPlacement::kSequential:
      return p.block_out[at];
    case BottleneckPlacement::kParallel:
      return input_at(p.normed, p.dtype, static_cast<int64_t>(row) * p.normed_stride + i);
    case BottleneckPlacement::kResidual:
      return p.residual[at];
    case BottleneckPlacement::kSum:
      return p.block_out[at] + p.residual[at];
  }
  return 0.0f;
}

// n of one row by the whole block. LayerNorm takes the mean first, then the squares around it.
MF_DEVICE void write_normed(const BottleneckArgs& p, const DeviceBottleneck& term, int32_t row,
                            float* partial) {
  const int thread = static_cast<int>(threadIdx.x);
  float* n = normed_of(p, row);
  float mean = 0.0f, factor = 1.0f;
  if (term.norm_weight != nullptr) {
    float sum = 0.0f, squares = 0.0f;
    for (int i = thread; i < p.hidden; i += kAdapterThreads)
      sum += placed_input(p, term.placement, row, i);
    mean = block_sum(sum, partial) / static_cast<float>(p.hidden);
    for (int i = thread; i < p.hidden; i += kAdapterThreads) {
      const float distance = placed_input(p, term.placement, row, i) - mean;
      squares = fmaf(distance, distance, squares);
    }
    const float variance = block_sum(squares, partial) / static_cast<float>(p.hidden);
    factor = 1.0f / sqrtf(variance + term.norm_eps);
  }
  for (int i = thread; i < p.hidden; i += kAdapterThreads) {
    float value = placed_input(p, term.placement, row, i);
    if (term.norm_weight != nullptr)
      value = fmaf((value - mean) * factor, term.norm_weight[i], term.norm_bias[i]);
    n[i] = value;
  }
}

MF_KERNEL void __launch_bounds__(kAdapterThreads) normed_kernel(BottleneckArgs p, int32_t index) {
  MF_SHARED(float, partial, kAdapterWarps);
  const int items = p.tables.counts->tiles * kTileRows;
  for (int i = static_cast<int>(blockIdx.x); i < items; i += static_cast<int>(gridDim.x)) {
    const TileRows tile = tile_rows(p.tables, false, i / kTileRows);
    const DeviceBottleneck* term = find_bottleneck(p, tile.set, index);
    if (term == nullptr || i % kTileRows >= tile.count) continue;
    write_normed(p, *term, tile.rows[i % kTileRows], partial);
  }
}

MF_DEVICE float activate(BottleneckActivation activation, float x) {
  switch (activation) {
    case BottleneckActivation::kIdentity:
      return x;
    case BottleneckActivation::kRelu:
      return x > 0.0f ? x : 0.0f;
    case BottleneckActivation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case BottleneckActivation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f * x * x, x, x)));
    case BottleneckActivation::kSilu:
      return x / (1.0f + expf(-x));
    case BottleneckActivation::kTanh:
      return tanhf(x);
  }
  return x;
}

MF_DEVICE void write_middle(const BottleneckArgs& p, const DeviceBottleneck& term,
                            const TileRows& tile, int m, int f,
                            const float (&sums)[kHalves][2][kHalfTile]) {
  MF_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= tile.count) continue;
    float sum = factor_scale(term.down, m) * warp_sum(sums[r / kHalfTile][f][r % kHalfTile]);
    if (threadIdx.x % kWarpSize != 0) continue;
    if (term.down_bias != nullptr) sum += term.down_bias[m];
    middle_of(p, tile.rows[r])[m] = activate(term.activation, sum);
  }
}

// kMiddleRows rows of D from `first` on, two for each warp.
MF_DEVICE void middle_item(const BottleneckArgs& p, const DeviceBottleneck& term,
                           const TileRows& tile, int first, float* x) {
  const int m = first + 2 * (static_cast<int>(threadIdx.x) / kWarpSize);
  const int second = min(m + 1, term.middle - 1);
  float sums[kHalves][2][kHalfTile] = {};
  for (int from = 0; from < p.hidden; from += kReduceSpan) {
    __syncthreads();
    const float* n = normed_of(p, 0);
    stage_inputs(n, Dtype::kF32, p.scratch_width, from, p.hidden, tile, x);
    __syncthreads();
    if (m >= term.middle) continue;
    const FactorRow rows[2] = {factor_row(term.down, m), factor_row(term.down, second)};
    MF_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const int row = h * kHalfTile;
      if (row < tile.count)
        dot_lanes_of(term.down, rows, from, x + row * kReduceSpan, tile.count - row, sums[h]);
    }
  }
  if (m < term.middle) write_middle(p, term, tile, m, 0, sums);
  if (m + 1 < term.middle) write_middle(p, term, tile, m + 1, 1, sums);
}

MF_KERNEL void __launch_bounds__(kAdapterThreads) middle_kernel(BottleneckArgs p, int32_t index) {
  MF_SHARED(float4, x, kTileRows * kReduceSpan / 4);
  const int tiles = p.tables.counts->tiles;
  for (int t = static_cast<int>(blockIdx.y); t < tiles; t += static_cast<int>(gridDim.y)) {
    const TileRows tile = tile_rows(p.tables, false, t);
    const DeviceBottleneck* term = find_bottleneck(p, tile.set, index);
    if (term == nullptr) continue;
    for (int first = static_cast<int>(blockIdx.x) * kMiddleRows; first < term->middle;
         first += static_cast<int>(gridDim.x) * kMiddleRows) {
      middle_item(p, *term, tile, first, reinterpret_cast<float*>(x));
    }
  }
}

MF_DEVICE void output_item(const BottleneckArgs& p, const DeviceBottleneck& term,
                           const TileRows& tile, int i, float* v) {
  float sums[kHalves][kHalfTile] = {};
  for (int from = 0; from < term.middle; from += kMiddleChunk) {
    const int count = min(kMiddleChunk, term.middle - from), padded = (count + 15) / 16 * 16;
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < tile.count * padded; at += kAdapterThreads) {
      const int r = at / padded, k = at % padded;
      v[r * kMiddleChunk + k] = k < count ? middle_of(p, tile.rows[r])[from + k] : 0.0f;
    }
    __syncthreads();
    if (i >= p.hidden) continue;
    MF_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const int row = h * kHalfTile;
      if (row < tile.count)
        dot_thread_of(term.up, i, from, count, v + row * kMiddleChunk, kMiddleChunk,
                      tile.count - row, sums[h]);
    }
  }
  if (i >= p.hidden) return;
  const float unit = factor_scale(term.up, i);
  const float bias = term.up_bias == nullptr ? 0.0f : term.up_bias[i];
  MF_UNROLL
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= tile.count) continue;
    float* t = p.block_out + static_cast<int64_t>(tile.rows[r]) * p.hidden + i;
    *t = fmaf(term.scale, fmaf(unit, sums[r / kHalfTile][r % kHalfTile], bias), *t);
  }
}

MF_KERNEL void __launch_bounds__(kAdapterThreads) outputs_kernel(BottleneckArgs p, int32_t index) {
  MF_SHARED(float4, v, kTileRows * kMiddleChunk / 4);
  const int tiles = p.tables.counts->tiles;
  const int i = static_cast<int>(blockIdx.x) * kAdapterThreads + static_cast<int>(threadIdx.x);
  for (int t = static_cast<int>(blockIdx.y); t < tiles; t += static_cast<int>(gridDim.y)) {
    const TileRows tile = tile_rows(p.tables, false, t);
    const DeviceBottleneck* term = find_bottleneck(p, tile.set, index);
    if (term != nullptr) output_item(p, *term, tile, i, reinterpret_cast<float*>(v));
  }
}

}  // namespace

void launch_bottlenecks(const BottleneckArgs& args, cudaStream_t stream) {
  MF_ASSERT(args.most_terms >= 0);
  // A step has no more tiles than rows.
  const auto rows = static_cast<unsigned>(std::clamp(args.rows, 1, kMostTileBlocks));
  const auto ranges = static_cast<unsigned>((args.hidden + kAdapterThreads - 1) / kAdapterThreads);
  for (int32_t index = 0; index < args.most_terms; ++index) {
    MF_LAUNCH(normed_kernel, rows, kAdapterThreads, 0, stream, args, index);
    MF_CUDA(cudaGetLastError());
    MF_LAUNCH(middle_kernel, dim3(kMiddleBlocks, rows), kAdapterThreads, 0, stream, args, index);
    MF_CUDA(cudaGetLastError());
    MF_LAUNCH(outputs_kernel, dim3(ranges, rows), kAdapterThreads, 0, stream, args, index);
    MF_CUDA(cudaGetLastError());
  }
}

}  // namespace manyfold::cuda
