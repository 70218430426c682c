// What a row's set has at a site, as every kernel that knows adapters asks for it.
#pragma once

#include "../device/number.cuh"
#include "../step_tables.h"

namespace manyfold::cuda {

// Null for base rows (set -1) and for sets with nothing at the site.
MF_DEVICE const DeviceSite* site_of(const StepTables& tables, int32_t set, SiteRef ref) {
  if (set < 0) return nullptr;
  const DeviceSet& device = tables.sets[set];
  const int32_t place =
      device.site_at[(ref.layer + 1) * kSiteCount + static_cast<int32_t>(ref.site)];
  return place < 0 ? nullptr : device.sites + place;
}

// Place of id in ascending ids, or -1.
MF_DEVICE int32_t find_id(const uint32_t* ids, int32_t count, uint32_t id) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (ids[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && ids[low] == id ? low : -1;
}

// One value, whatever its type: for kernels that read few of them.
MF_DEVICE float value_at(const DeviceValues& values, int32_t row, int32_t column) {
  const int64_t at = int64_t{row} * values.stride + column;
  switch (values.type) {
    case ValueType::kF32:
      return static_cast<const float*>(values.data)[at];
    case ValueType::kF16:
      return load(static_cast<const F16*>(values.data)[at]);
    case ValueType::kBf16:
      return load(static_cast<const Bf16*>(values.data)[at]);
    case ValueType::kInt8:
      return values.scales[row] * static_cast<float>(static_cast<const int8_t*>(values.data)[at]);
    case ValueType::kTernary: {
      const int64_t word = int64_t{row} * values.stride + column / 32;
      const uint32_t bit = 1u << (column % 32);
      if ((static_cast<const uint32_t*>(values.data)[word] & bit) != 0) return values.scales[0];
      return (values.negative[word] & bit) != 0 ? -values.scales[0] : 0.0f;
    }
  }
  return 0.0f;
}

}  // namespace manyfold::cuda
