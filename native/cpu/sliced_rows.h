// Sparse matrices packed for Kernels::sliced: SPARSE terms, and ternary factors with few entries.
#pragma once

#include <optional>
#include <vector>

#include "../core/terms.h"
#include "packed_memory.h"

namespace manyfold {

// What SlicedArgs wants of the matrix; pointers into the set's memory.
struct SlicedRows {
  SlicedEntries entries = SlicedEntries::kSigns;
  int32_t column_bytes = 2;
  int32_t slices = 0;
  const std::byte* columns = nullptr;
  const std::byte* values = nullptr;
  const uint32_t* steps = nullptr;
  const uint8_t* places = nullptr;
  const float* factor = nullptr;

  SlicedArgs args() const;
};

// Nonzero values by row, columns ascending within a row.
struct SparseMatrix {
  int32_t rows = 0, cols = 0;
  std::vector<uint32_t> row_start, columns;
  std::vector<float> values;

  // The signs of a ternary tensor [rows, cols].
  static SparseMatrix of_planes(const TermTensor& tensor);
};

// A matrix cut into slices and not yet in its place.
class SliceCutter {
 public:
  // signs: values are ±1, and their columns have room for a sign. sorted: rows are sorted within
  // windows, for sums that are added to outputs; else they keep their order, for inner products.
  SliceCutter(const SparseMatrix& matrix, int32_t lanes, bool signs, bool sorted);

  size_t bytes() const;
  // factor: of each row, empty for 1 everywhere. rows must stay until the memory is laid out.
  void place(SlicedRows* rows, const std::vector<float>& factor, PackedMemory& memory);

 private:
  void sort_rows(const SparseMatrix& matrix, bool sorted);
  void cut(const SparseMatrix& matrix);

  int32_t lanes_;
  bool signs_;
  int32_t rows_ = 0, column_bytes_ = 2, slices_ = 0;
  bool halves_ = false;  // all values are exact in bf16
  std::vector<int32_t> order_;
  std::vector<uint8_t> places_;
  std::vector<uint32_t> steps_, columns_;
  std::vector<float> values_;
};

// A ternary factor as columns and signs where few of its values are not zero and that is smaller
// than two bits a value by a third, padding included. Empty: two-bit codes it is. plane_bytes: of
// the codes. sorted: see SliceCutter.
std::optional<SliceCutter> slices_of_ternary(const TermTensor& tensor, size_t plane_bytes,
                                             int32_t lanes, bool sorted);

}  // namespace manyfold
