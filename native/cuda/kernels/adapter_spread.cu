// SPREAD: everything that a set adds to the outputs of its linears, in the order of core/terms.
//
// Item: (tile, site, range of kSpreadOuts outputs), one block of 256 threads, which takes the
// tile's rows in halves. Their y of the range lies in shared memory from the first term to the last
// and is read and written once by each of two kernels: g and lowrank terms, then rowcol and sparse
// terms, launched only where some set has them, so that not all pay for their registers. Lowrank
// and input-side rowcol terms: the factor's input v (sums of REDUCE's planes, or gathered inputs)
// goes to shared memory, kRankChunk values at a time, then each thread takes one output, 16 bytes
// of its row a load. Output-side rowcol terms: lanes along the inputs, as in REDUCE. Sparse terms:
// 8 lanes a row. An item of a bf16 LoRA of rank 16 reads 8 KiB of B. Not yet measured on a GPU.
#include <algorithm>

#include "../../core/error.h"
#include "adapter_common.cuh"
#include "chains.h"

namespace manyfold::cuda {

namespace {

constexpr int kSpreadOuts = kAdapterThreads;
constexpr int kRankChunk = kAdapterThreads;  // a multiple of 16
constexpr int kOctet = 8;
// Blocks that fit a multiprocessor at once; the grid is persistent.
constexpr int kBlocksEach = 3;

struct SpreadSite {
  SiteRef site;
  float* y;
  int32_t outs, ranges;
};

struct SpreadParams {
  StepTables tables;
  SpreadSite sites[kMostGroupSites];
  int32_t site_count, ranges;  // ranges of all sites
  bool by_entry;
  Dtype dtype;
  const void* x;
  int32_t cols, x_stride, y_stride;
  const float* planes;
  int32_t plane_rows, plane_width, spans;
};

// Half a tile of an item, and the block's shared memory.
struct Item {
  TileRows tile;
  const DeviceSite* terms;
  float* site_y;         // of the site in memory
  int32_t first, count;  // outputs
  float* y;              // [kHalfTile][kSpreadOuts]
  float* v;              // [kHalfTile][kRankChunk]
  float* x;              // [kHalfTile][kReduceSpan]
};

MF_DEVICE int thread_of_block() {
  int thread = static_cast<int>(threadIdx.x);
  MF_KEEP_HERE(thread);
  return thread;
}

// v = A x of one rank: planes in ascending order.
MF_DEVICE float plane_sum(const SpreadParams& p, int32_t row, int32_t at) {
  const float* place = p.planes + static_cast<int64_t>(row) * p.plane_width + at;
  const int64_t plane = static_cast<int64_t>(p.plane_rows) * p.plane_width;
  float sum = 0.0f;
  for (int s = 0; s < p.spans; ++s) sum += place[s * plane];
  return sum;
}

MF_DEVICE float mid_and_gate(const SpreadParams& p, const DeviceLowRank& term, int32_t row,
                             int32_t rank, float value) {
  if (term.mid != nullptr) value *= term.mid[rank];
  const float* gates = row_gates(p.tables, p.by_entry, row);
  if (gates != nullptr && rank < p.tables.counts->gate_width) value *= gates[rank];
  return value;
}

// item.v = ranks from .. from + count - 1 of γ D (A x), zeros up to a multiple of 16.
MF_DEVICE void stage_ranks(const SpreadParams& p, const Item& item, const DeviceLowRank& term,
                           int from, int count) {
  const int padded = (count + 15) / 16 * 16;
  MF_NO_UNROLL
  for (int i = thread_of_block(); i < item.tile.count * padded; i += kAdapterThreads) {
    const int r = i / padded, k = i % padded;
    float value = 0.0f;
    if (k < count) {
      value = plane_sum(p, item.tile.rows[r], term.v0 + from + k);
      value = mid_and_gate(p, term, item.tile.rows[r], from + k, value);
    }
    item.v[r * kRankChunk + k] = value;
  }
}

// Adds the mid matrix's columns other .. other + others - 1 to item.v; item.x holds those ranks of
// A x. A thread keeps its places of item.v from one piece of columns to the next.
MF_DEVICE void mix_ranks(const Item& item, const DeviceLowRank& term, int from, int count,
                         int other, int others) {
  MF_NO_UNROLL
  for (int i = thread_of_block(); i < item.tile.count * count; i += kAdapterThreads) {
    const int r = i / count, k = i % count;
    const float* matrix = term.mid_matrix + static_cast<int64_t>(from + k) * term.rank + other;
    const float* ranks = item.x + r * kRankChunk;
    float sum = other == 0 ? 0.0f : item.v[r * kRankChunk + k];
    MF_NO_UNROLL
    for (int j = 0; j < others; ++j) sum = fmaf(matrix[j], ranks[j], sum);
    item.v[r * kRankChunk + k] = sum;
  }
}

// As stage_ranks where the term has a mid matrix.
MF_DEVICE void stage_mixed_ranks(const SpreadParams& p, const Item& item, const DeviceLowRank& term,
                                 int from, int count) {
  MF_NO_UNROLL
  for (int other = 0; other < term.rank; other += kRankChunk) {
    const int others = min(kRankChunk, term.rank - other);
    __syncthreads();
    MF_NO_UNROLL
    for (int i = thread_of_block(); i < item.tile.count * others; i += kAdapterThreads) {
      const int r = i / others, k = i % others;
      item.x[r * kRankChunk + k] = plane_sum(p, item.tile.rows[r], term.v0 + other + k);
    }
    __syncthreads();
    mix_ranks(item, term, from, count, other, others);
  }
  __syncthreads();
  const int padded = (count + 15) / 16 * 16;
  MF_NO_UNROLL
  for (int i = thread_of_block(); i < item.tile.count * padded; i += kAdapterThreads) {
    const int r = i / padded, k = i % padded;
    float* v = item.v + r * kRankChunk + k;
    *v = k < count ? mid_and_gate(p, term, item.tile.rows[r], from + k, *v) : 0.0f;
  }
}

// y += scale · sums of this thread's output.
MF_DEVICE void add_sums(const Item& item, float scale, const float (&sums)[kHalfTile]) {
  MF_UNROLL
  for (int r = 0; r < kHalfTile; ++r) {
    if (r >= item.tile.count) continue;
    float* y = item.y + r * kSpreadOuts + thread_of_block();
    *y = fmaf(scale, sums[r], *y);
  }
}

MF_DEVICE void add_lowrank(const SpreadParams& p, const Item& item, const DeviceLowRank& term) {
  const bool mine = thread_of_block() < item.count;
  const int out = item.first + thread_of_block();
  float sums[kHalfTile] = {};
  MF_NO_UNROLL
  for (int from = 0; from < term.rank; from += kRankChunk) {
    const int count = min(kRankChunk, term.rank - from);
    __syncthreads();
    if (term.mid_matrix == nullptr) {
      stage_ranks(p, item, term, from, count);
    } else {
      stage_mixed_ranks(p, item, term, from, count);
    }
    __syncthreads();
    if (mine) dot_thread_of(term.b, out, from, count, item.v, kRankChunk, item.tile.count, sums);
  }
  if (!mine) return;
  float scale = term.scale * factor_scale(term.b, out);
  if (term.out_diag != nullptr) scale *= term.out_diag[out];
  add_sums(item, scale, sums);
}

MF_DEVICE void add_input_rowcol(const SpreadParams& p, const Item& item, const DeviceRowCol& term) {
  const bool mine = thread_of_block() < item.count;
  const int out = item.first + thread_of_block();
  float sums[kHalfTile] = {};
  MF_NO_UNROLL
  for (int from = 0; from < term.count; from += kRankChunk) {
    const int count = min(kRankChunk, term.count - from);
    const int padded = (count + 15) / 16 * 16;
    __syncthreads();
    MF_NO_UNROLL
    for (int i = thread_of_block(); i < item.tile.count * padded; i += kAdapterThreads) {
      const int r = i / padded, k = i % padded;
      const int64_t row = static_cast<int64_t>(item.tile.rows[r]) * p.x_stride;
      item.v[r * kRankChunk + k] =
          k < count ? input_at(p.x, p.dtype, row + term.index[from + k]) : 0.0f;
    }
    __syncthreads();
    if (mine)
      dot_thread_of(term.values, out, from, count, item.v, kRankChunk, item.tile.count, sums);
  }
  if (mine) add_sums(item, term.scale * factor_scale(term.values, out), sums);
}

// Place of the first index that is not below `limit`.
MF_DEVICE int lower_bound(const uint32_t* index, int count, int limit) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (static_cast<int>(index[middle]) < limit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// One output of an output-side rowcol term, its sums still spread over the lanes.
MF_DEVICE void add_indexed(const Item& item, const DeviceRowCol& term, int place,
                           const float (&sums)[kHalfTile]) {
  const float scale = term.scale * factor_scale(term.values, place);
  const int at = static_cast<int>(term.index[place]) - item.first;
  MF_UNROLL
  for (int r = 0; r < kHalfTile; ++r) {
    if (r >= item.tile.count) continue;
    const float sum = warp_sum(sums[r]);
    if (thread_of_block() % kWarpSize != 0) continue;
    float* y = item.y + r * kSpreadOuts + at;
    *y = fmaf(scale, sum, *y);
  }
}

// All warps go through the same spans, one row of the factor each a round.
MF_DEVICE void add_output_rowcol(const SpreadParams& p, const Item& item,
                                 const DeviceRowCol& term) {
  const int begin = lower_bound(term.index, term.count, item.first);
  const int end = lower_bound(term.index, term.count, item.first + item.count);
  for (int round = begin; round < end; round += kAdapterWarps) {
    const int place = round + thread_of_block() / kWarpSize;
    float sums[1][kHalfTile] = {};
    MF_NO_UNROLL
    for (int from = 0; from < p.cols; from += kReduceSpan) {
      __syncthreads();
      stage_inputs(p.x, p.dtype, p.x_stride, from, p.cols, item.tile, item.x);
      __syncthreads();
      if (place >= end) continue;
      const FactorRow rows[1] = {factor_row(term.values, place)};
      dot_lanes_of(term.values, rows, from, item.x, item.tile.count, sums);
    }
    if (place < end) add_indexed(item, term, place, sums[0]);
  }
}

MF_DEVICE void add_sparse(const SpreadParams& p, const Item& item, const DeviceSparse& term) {
  for (int base = 0; base < item.count; base += kAdapterThreads / kOctet) {
    const int o = base + thread_of_block() / kOctet;
    const bool mine = o < item.count;
    const uint32_t begin = mine ? term.row_start[item.first + o] : 0;
    const uint32_t end = mine ? term.row_start[item.first + o + 1] : 0;
    float sums[kHalfTile] = {};
    MF_NO_UNROLL
    for (uint32_t j = begin + threadIdx.x % kOctet; j < end; j += kOctet) {
      const float weight = term.values[j];
      const uint32_t column = term.columns[j];
      MF_UNROLL
      for (int r = 0; r < kHalfTile; ++r) {
        if (r >= item.tile.count) continue;
        const int64_t at = static_cast<int64_t>(item.tile.rows[r]) * p.x_stride + column;
        sums[r] = fmaf(weight, input_at(p.x, p.dtype, at), sums[r]);
      }
    }
    MF_UNROLL
    for (int r = 0; r < kHalfTile; ++r) {
      if (r >= item.tile.count) continue;
      const float sum = octet_sum(sums[r]);
      float* y = item.y + r * kSpreadOuts + o;
      if (mine && threadIdx.x % kOctet == 0) *y = fmaf(term.scale, sum, *y);
    }
  }
}

// Whoever is last with a site adds c: additive chains, then rowcol and sparse terms, then lowrank.
MF_DEVICE bool has_others(const DeviceSite& terms) {
  return terms.rowcols > 0 || terms.sparses > 0;
}

// y from memory to shared memory, times g (or null). A thread takes one output.
MF_DEVICE void take_outputs(const SpreadParams& p, const Item& item, const float* g) {
  const int o = thread_of_block();
  if (o >= item.count) return;
  MF_NO_UNROLL
  for (int r = 0; r < item.tile.count; ++r) {
    const float y =
        item.site_y[static_cast<int64_t>(item.tile.rows[r]) * p.y_stride + item.first + o];
    item.y[r * kSpreadOuts + o] = g == nullptr ? y : y * g[item.first + o];
  }
}

// y back to memory, plus c (or null).
MF_DEVICE void give_outputs(const SpreadParams& p, const Item& item, const float* c) {
  const int o = thread_of_block();
  if (o >= item.count) return;
  MF_NO_UNROLL
  for (int r = 0; r < item.tile.count; ++r) {
    float y = item.y[r * kSpreadOuts + o];
    if (c != nullptr) y += c[item.first + o];
    item.site_y[static_cast<int64_t>(item.tile.rows[r]) * p.y_stride + item.first + o] = y;
  }
}

// g, lowrank terms and c. Threads keep to their own output.
struct LowRankPart {
  static MF_DEVICE const float* g(const DeviceSite& terms) {
    return terms.post == nullptr ? terms.g : nullptr;
  }
  static MF_DEVICE const float* c(const DeviceSite& terms) {
    return has_others(terms) || terms.additives > 0 ? nullptr : terms.c;
  }
  static MF_DEVICE bool has_work(const DeviceSite& terms) {
    return terms.lowranks > 0 || g(terms) != nullptr || c(terms) != nullptr;
  }
  static MF_DEVICE void spread(const SpreadParams& p, const Item& item) {
    take_outputs(p, item, g(*item.terms));
    MF_NO_UNROLL
    for (int t = 0; t < item.terms->lowranks; ++t) add_lowrank(p, item, item.terms->lowrank[t]);
    give_outputs(p, item, c(*item.terms));
  }
};

// Rowcol and sparse terms and c. Between terms whose threads own different outputs stands a
// barrier.
struct OthersPart {
  static MF_DEVICE bool has_work(const DeviceSite& terms) { return has_others(terms); }
  static MF_DEVICE void spread(const SpreadParams& p, const Item& item) {
    const DeviceSite& terms = *item.terms;
    take_outputs(p, item, nullptr);
    MF_NO_UNROLL
    for (int t = 0; t < terms.rowcols; ++t) {
      if (terms.rowcol[t].on_inputs != 0) {
        add_input_rowcol(p, item, terms.rowcol[t]);
      } else {
        add_output_rowcol(p, item, terms.rowcol[t]);
      }
    }
    MF_NO_UNROLL
    for (int t = 0; t < terms.sparses; ++t) {
      __syncthreads();
      add_sparse(p, item, terms.sparse[t]);
    }
    __syncthreads();
    give_outputs(p, item, terms.additives > 0 ? nullptr : terms.c);
  }
};

template <class Part>
MF_KERNEL void __launch_bounds__(kAdapterThreads, kBlocksEach) spread_kernel(SpreadParams p) {
  MF_SHARED(float, y, kHalfTile* kSpreadOuts);
  MF_SHARED(float4, v, kHalfTile * kRankChunk / 4);
  MF_SHARED(float4, x, kHalfTile * kReduceSpan / 4);
  const int items = tile_count(p.tables, p.by_entry) * p.ranges;
  for (int i = static_cast<int>(blockIdx.x); i < items; i += static_cast<int>(gridDim.x)) {
    int range = i % p.ranges, s = 0;
    while (range >= p.sites[s].ranges) range -= p.sites[s++].ranges;
    const TileRows tile = tile_rows(p.tables, p.by_entry, i / p.ranges);
    const DeviceSite* terms = site_of(p.tables, tile.set, p.sites[s].site);
    if (terms == nullptr || !Part::has_work(*terms)) continue;
    const int first = range * kSpreadOuts;
    const int count = min(kSpreadOuts, p.sites[s].outs - first);
    MF_NO_UNROLL
    for (int row = 0; row < tile.count; row += kHalfTile) {
      const TileRows half = {tile.set, min(kHalfTile, tile.count - row), tile.rows + row};
      Part::spread(p, {half, terms, p.sites[s].y, first, count, y, reinterpret_cast<float*>(v),
                       reinterpret_cast<float*>(x)});
    }
  }
}

SpreadParams spread_params(const AdapterArgs& args) {
  SpreadParams p = {};
  p.tables = args.tables;
  p.site_count = args.site_count;
  for (int32_t s = 0; s < args.site_count; ++s) {
    const AdapterSite& site = args.sites[static_cast<size_t>(s)];
    p.sites[s] = {site.site, site.y, site.outs, (site.outs + kSpreadOuts - 1) / kSpreadOuts};
    p.ranges += p.sites[s].ranges;
  }
  p.by_entry = args.by_entry;
  p.dtype = args.dtype;
  p.x = args.x;
  p.cols = args.cols;
  p.x_stride = args.x_stride;
  p.y_stride = args.y_stride;
  p.planes = args.planes;
  p.plane_rows = args.plane_rows;
  p.plane_width = args.plane_width;
  p.spans = (args.cols + kReduceSpan - 1) / kReduceSpan;
  return p;
}

void launch_additives(const AdapterArgs& args, const AdapterSite& site, cudaStream_t stream) {
  ChainArgs chain;
  chain.tables = args.tables;
  chain.site = site.site;
  chain.placement = BlockPlacement::kAdditive;
  chain.by_entry = args.by_entry;
  chain.dtype = args.dtype;
  chain.x = args.x;
  chain.y = site.y;
  chain.rows = args.plane_rows;
  chain.cols = args.cols;
  chain.outs = site.outs;
  chain.x_stride = args.x_stride;
  chain.y_stride = args.y_stride;
  chain.scratch = args.scratch;
  chain.scratch_width = args.scratch_width;
  chain.stages = args.chain_stages;
  for (int32_t i = 0; i < args.additives; ++i) {
    chain.index = i;
    launch_chain(chain, stream);
  }
}

}  // namespace

void launch_adapter_spread(const AdapterArgs& args, cudaStream_t stream) {
  MF_ASSERT(args.others >= 0 && args.additives >= 0 && args.chain_stages >= 0);
  const auto blocks = static_cast<unsigned>(args.multiprocessors * kBlocksEach);
  const SpreadParams p = spread_params(args);
  MF_LAUNCH((spread_kernel<LowRankPart>), blocks, kAdapterThreads, 0, stream, p);
  MF_CUDA(cudaGetLastError());
  if (args.others > 0) {
    MF_LAUNCH((spread_kernel<OthersPart>), blocks, kAdapterThreads, 0, stream, p);
    MF_CUDA(cudaGetLastError());
  }
  for (int32_t s = 0; s < args.site_count; ++s)
    launch_additives(args, args.sites[static_cast<size_t>(s)], stream);
}

}  // namespace manyfold::cuda
