// What the adapter kernels share: which rows and set an item works on, factors by their codec, and
// inputs of a tile in shared memory.
#pragma once

#include "../adapter_kernels.h"
#include "../device/term_values.cuh"
#include "../handles.h"
#include "sites.cuh"

namespace manyfold::cuda {

inline constexpr int kAdapterThreads = 256;
inline constexpr int kAdapterWarps = kAdapterThreads / kWarpSize;
// Rows of a tile whose sums are taken together. A tile's second half reads its factors again, from
// the first level of cache: registers for all rows at once would halve the blocks that fit.
inline constexpr int kHalfTile = kTileRows / 2;
inline constexpr int kHalves = kTileRows / kHalfTile;

// Rows of one tile, or entries: `row` of inputs, outputs and scratch.
struct TileRows {
  int32_t set, count;
  const int32_t* rows;
};

MF_DEVICE int tile_count(const StepTables& tables, bool by_entry) {
  return by_entry ? tables.counts->entry_tiles : tables.counts->tiles;
}

MF_DEVICE TileRows tile_rows(const StepTables& tables, bool by_entry, int tile) {
  const AdapterTile found = by_entry ? tables.entry_tiles[tile] : tables.tiles[tile];
  return {found.set, found.count,
          (by_entry ? tables.entry_tile_rows : tables.tile_rows) + found.first};
}

// γ of a row or entry, or null.
MF_DEVICE const float* row_gates(const StepTables& tables, bool by_entry, int32_t row) {
  const int32_t gate = tables.row_gate[by_entry ? tables.entry_row[row] : row];
  return gate < 0 ? nullptr : tables.gates + static_cast<int64_t>(gate) * tables.counts->gate_width;
}

MF_DEVICE float input_at(const void* x, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kBf16:
      return load(static_cast<const Bf16*>(x)[i]);
    case Dtype::kF16:
      return load(static_cast<const F16*>(x)[i]);
    default:
      return static_cast<const float*>(x)[i];
  }
}

MF_DEVICE void store_input(void* x, Dtype dtype, int64_t i, float value) {
  switch (dtype) {
    case Dtype::kBf16:
      static_cast<Bf16*>(x)[i] = round_to<Bf16>(value);
      break;
    case Dtype::kF16:
      static_cast<F16*>(x)[i] = round_to<F16>(value);
      break;
    default:
      static_cast<float*>(x)[i] = value;
  }
}

MF_DEVICE FactorRow factor_row(const DeviceValues& values, int32_t row) {
  const int64_t at = static_cast<int64_t>(row) * values.stride;
  switch (values.type) {
    case ValueType::kF32:
      return {static_cast<const float*>(values.data) + at, nullptr};
    case ValueType::kInt8:
      return {static_cast<const int8_t*>(values.data) + at, nullptr};
    case ValueType::kTernary:
      return {static_cast<const uint32_t*>(values.data) + at, values.negative + at};
    default:
      return {static_cast<const uint16_t*>(values.data) + at, nullptr};
  }
}

// What products of the row's bare values are to be multiplied by.
MF_DEVICE float factor_scale(const DeviceValues& values, int32_t row) {
  switch (values.type) {
    case ValueType::kInt8:
      return values.scales[row];
    case ValueType::kTernary:
      return values.scales[0];
    default:
      return 1.0f;
  }
}

// work(chunk) with a chunk of the factor's codec: one branch for a whole block.
template <class Work>
MF_DEVICE void with_chunk(ValueType type, const Work& work) {
  switch (type) {
    case ValueType::kF32:
      return work(F32Chunk{});
    case ValueType::kF16:
      return work(HalfChunk<F16>{});
    case ValueType::kBf16:
      return work(HalfChunk<Bf16>{});
    case ValueType::kInt8:
      return work(Int8Chunk{});
    case ValueType::kTernary:
      return work(TernaryChunk{});
  }
}

// sums[f][r] += the lane's part of rows f of `values` · x[r] over the span from column `from` on.
template <int kFactors>
MF_DEVICE void dot_lanes_of(const DeviceValues& values, const FactorRow (&factor)[kFactors],
                            int from, const float* x, int rows,
                            float (&sums)[kFactors][kHalfTile]) {
  with_chunk(values.type, [&](auto chunk) {
    using Chunk = decltype(chunk);
    constexpr int kValues = Chunk::kValues;
    const int left = min(values.cols - from, kReduceSpan);
    dot_lanes<Chunk, kReduceSpan>(factor, from / kValues, (left + kValues - 1) / kValues, x, rows,
                                  sums);
  });
}

// sums[r] += row `row` of `values`, columns from .. from + count - 1, · v[r]. from: a multiple
// of 16.
MF_DEVICE void dot_thread_of(const DeviceValues& values, int32_t row, int from, int count,
                             const float* v, int stride, int rows, float (&sums)[kHalfTile]) {
  MF_KEEP_HERE(row);
  MF_KEEP_HERE(from);
  MF_KEEP_HERE(count);
  const FactorRow factor = factor_row(values, row);
  with_chunk(values.type, [&](auto chunk) {
    using Chunk = decltype(chunk);
    constexpr int kValues = Chunk::kValues;
    dot_thread<Chunk>(factor, from / kValues, (count + kValues - 1) / kValues, v, stride, rows,
                      sums);
  });
}

// x[r] = columns from .. from + kReduceSpan - 1 of row rows[r] as dot_lanes wants them, zeros from
// `cols` on. By the whole block; the caller puts barriers before and after.
MF_DEVICE void stage_inputs(const void* from_rows, Dtype dtype, int64_t stride, int from, int cols,
                            const TileRows& tile, float* x) {
  int thread = static_cast<int>(threadIdx.x);
  MF_KEEP_HERE(thread);
  for (int i = thread; i < tile.count * kReduceSpan; i += kAdapterThreads) {
    const int r = i / kReduceSpan, k = i % kReduceSpan;
    const float value =
        from + k < cols ? input_at(from_rows, dtype, tile.rows[r] * stride + from + k) : 0.0f;
    x[r * kReduceSpan + 4 * swizzled_quad(k / 4) + k % 4] = value;
  }
}

}  // namespace manyfold::cuda
