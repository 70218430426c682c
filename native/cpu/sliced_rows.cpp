// See sliced_rows.h.
#include "sliced_rows.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

namespace manyfold {
namespace {

// Densest factor that slices are tried for: 1 / 16.
constexpr size_t kSparsest = 16;

size_t width_of(SlicedEntries entries) {
  return entries == SlicedEntries::kSigns ? 0 : entries == SlicedEntries::kBf16 ? 2 : 4;
}

}  // namespace

SlicedArgs SlicedRows::args() const {
  SlicedArgs args;
  args.entries = entries;
  args.column_bytes = column_bytes;
  args.columns = columns;
  args.values = values;
  args.steps = steps;
  args.places = places;
  args.factor = factor;
  args.slice1 = slices;
  return args;
}

SparseMatrix SparseMatrix::of_planes(const TermTensor& tensor) {
  SparseMatrix out;
  out.rows = tensor.shape[0];
  out.cols = tensor.shape[1];
  out.row_start.push_back(0);
  const size_t stride = tensor.plane_stride();
  for (size_t row = 0; row < static_cast<size_t>(out.rows); ++row) {
    for (size_t word = 0; word < stride; ++word) {
      const uint32_t positive = tensor.positive[row * stride + word];
      uint32_t left = positive | tensor.negative[row * stride + word];
      for (; left != 0; left &= left - 1) {
        const int32_t bit = std::countr_zero(left);
        out.columns.push_back(static_cast<uint32_t>(word * 32) + static_cast<uint32_t>(bit));
        out.values.push_back((positive >> bit & 1) != 0 ? 1.0f : -1.0f);
      }
    }
    out.row_start.push_back(static_cast<uint32_t>(out.columns.size()));
  }
  return out;
}

SliceCutter::SliceCutter(const SparseMatrix& matrix, int32_t lanes, bool signs, bool sorted)
    : lanes_(lanes), signs_(signs), rows_(matrix.rows) {
  if (signs_) {
    column_bytes_ = matrix.cols < 0x7f ? 1 : 2;
  } else {
    column_bytes_ = matrix.cols <= 0x10000 ? 2 : 4;
  }
  halves_ = std::all_of(matrix.values.begin(), matrix.values.end(),
                        [](float v) { return bf16_to_f32(f32_to_bf16(v)) == v; });
  sort_rows(matrix, sorted);
  cut(matrix);
}

void SliceCutter::sort_rows(const SparseMatrix& matrix, bool sorted) {
  const int64_t padded = round_up(rows_, sorted ? kSliceWindow : lanes_);
  slices_ = static_cast<int32_t>(padded / lanes_);
  order_.resize(static_cast<size_t>(padded));
  std::iota(order_.begin(), order_.end(), 0);
  if (!sorted) return;
  const auto length = [&](int32_t row) {
    const auto at = static_cast<size_t>(row);
    return row < rows_ ? matrix.row_start[at + 1] - matrix.row_start[at] : 0;
  };
  for (auto window = order_.begin(); window != order_.end(); window += kSliceWindow) {
    std::stable_sort(window, window + kSliceWindow,
                     [&](int32_t a, int32_t b) { return length(a) > length(b); });
  }
  for (const int32_t row : order_) {
    places_.push_back(row < rows_ ? static_cast<uint8_t>(row % kSliceWindow) : kNoPlace);
  }
}

void SliceCutter::cut(const SparseMatrix& matrix) {
  const uint32_t sign = 1u << (8 * column_bytes_ - 1);
  const auto lanes = static_cast<size_t>(lanes_);
  steps_.push_back(0);
  for (size_t slice = 0; slice < static_cast<size_t>(slices_); ++slice) {
    const size_t base = columns_.size();
    for (size_t lane = 0; lane < lanes; ++lane) {
      const int32_t row = order_[slice * lanes + lane];
      if (row >= rows_) continue;
      const uint32_t begin = matrix.row_start[static_cast<size_t>(row)];
      const uint32_t end = matrix.row_start[static_cast<size_t>(row) + 1];
      const size_t needed = base + (end - begin) * lanes;
      if (needed > columns_.size()) {
        columns_.resize(needed, signs_ ? sign - 1 : 0);
        values_.resize(needed, 0.0f);
      }
      for (uint32_t i = begin; i < end; ++i) {
        const size_t at = base + (i - begin) * lanes + lane;
        const bool negative = signs_ && matrix.values[i] < 0;
        columns_[at] = matrix.columns[i] + (negative ? sign : 0);
        values_[at] = matrix.values[i];
      }
    }
    steps_.push_back(static_cast<uint32_t>(columns_.size() / lanes));
  }
}

size_t SliceCutter::bytes() const {
  const size_t value = signs_ ? 0 : halves_ ? 2 : 4;
  return columns_.size() * (static_cast<size_t>(column_bytes_) + value) + 4 * steps_.size() +
         places_.size();
}

void SliceCutter::place(SlicedRows* rows, const std::vector<float>& factor, PackedMemory& memory) {
  rows->entries = signs_    ? SlicedEntries::kSigns
                  : halves_ ? SlicedEntries::kBf16
                            : SlicedEntries::kF32;
  rows->column_bytes = column_bytes_;
  rows->slices = slices_;
  const auto bytes = static_cast<size_t>(column_bytes_);
  const size_t count = columns_.size();
  memory.ask<std::byte>(&rows->columns, count * bytes,
                        [columns = std::move(columns_), bytes](std::byte* block) {
                          for (size_t i = 0; i < columns.size(); ++i) {
                            std::memcpy(block + i * bytes, &columns[i], bytes);
                          }
                        });
  if (!signs_) {
    memory.ask<std::byte>(&rows->values, count * width_of(rows->entries),
                          [values = std::move(values_), halves = halves_](std::byte* block) {
                            for (size_t i = 0; i < values.size(); ++i) {
                              const uint16_t half = f32_to_bf16(values[i]);
                              if (halves) {
                                std::memcpy(block + 2 * i, &half, 2);
                              } else {
                                std::memcpy(block + 4 * i, &values[i], 4);
                              }
                            }
                          });
  }
  memory.keep(&rows->steps, std::move(steps_));
  memory.keep(&rows->places, std::move(places_));
  if (factor.empty()) return;
  std::vector<float> ordered;
  for (const int32_t row : order_) {
    ordered.push_back(row < rows_ ? factor[static_cast<size_t>(row)] : 0.0f);
  }
  memory.keep(&rows->factor, std::move(ordered));
}

std::optional<SliceCutter> slices_of_ternary(const TermTensor& tensor, size_t plane_bytes,
                                             int32_t lanes, bool sorted) {
  size_t used = 0;
  for (size_t i = 0; i < tensor.positive.size(); ++i) {
    used += static_cast<size_t>(std::popcount(tensor.positive[i] | tensor.negative[i]));
  }
  if (used * kSparsest > tensor.count() || tensor.shape[1] >= 0x7fff) return std::nullopt;
  SliceCutter cutter(SparseMatrix::of_planes(tensor), lanes, true, sorted);
  if (3 * cutter.bytes() > 2 * plane_bytes) return std::nullopt;
  return cutter;
}

}  // namespace manyfold
