// The rows of a step (or of its entries) by term set: what kernels for adapters run over.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fast_terms.h"

namespace manyfold {

struct RowGroup {
  const FastTermSet* set = nullptr;
  int32_t begin = 0, count = 0;  // of RowGroups::rows
};

class RowGroups {
 public:
  void reserve(int32_t rows) {
    rows_.reserve(static_cast<size_t>(rows));
    groups_.reserve(static_cast<size_t>(rows));
  }

  // sets[i]: the term set of row i, null for the base. Groups stand in the order of their first
  // row, rows ascend.
  void build(std::span<const FastTermSet* const> sets) {
    groups_.clear();
    for (const FastTermSet* set : sets) {
      if (set != nullptr) ++group_of(set).count;
    }
    int32_t begin = 0;
    for (RowGroup& group : groups_) {
      group.begin = begin;
      begin += group.count;
      group.count = 0;
    }
    rows_.resize(static_cast<size_t>(begin));
    for (size_t i = 0; i < sets.size(); ++i) {
      if (sets[i] == nullptr) continue;
      RowGroup& group = group_of(sets[i]);
      rows_[static_cast<size_t>(group.begin + group.count++)] = static_cast<int32_t>(i);
    }
  }

  std::span<const RowGroup> groups() const { return groups_; }
  std::span<const int32_t> rows(const RowGroup& group) const {
    return std::span<const int32_t>(rows_).subspan(static_cast<size_t>(group.begin),
                                                   static_cast<size_t>(group.count));
  }

 private:
  // Neighbouring rows mostly share a set, so the search begins at the last hit.
  RowGroup& group_of(const FastTermSet* set) {
    if (last_ < groups_.size() && groups_[last_].set == set) return groups_[last_];
    for (last_ = 0; last_ < groups_.size(); ++last_) {
      if (groups_[last_].set == set) return groups_[last_];
    }
    return groups_.emplace_back(RowGroup{set, 0, 0});
  }

  std::vector<RowGroup> groups_;
  std::vector<int32_t> rows_;
  size_t last_ = 0;
};

}  // namespace manyfold
