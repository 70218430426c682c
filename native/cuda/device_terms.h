// A loaded adapter as kernels see it: plain structs of device pointers, written by CudaTerms on the
// host and read by kernels/. The maths of each field is told in core/terms.h.
#pragma once

#include <cstdint>

#include "../core/site.h"
#include "../core/terms.h"

namespace manyfold::cuda {

enum class ValueType : int32_t { kF32, kF16, kBf16, kInt8, kTernary };

// A matrix [rows, cols]. Dense and int8: row r begins at data + r · stride elements, a multiple of
// 16 bytes, zeros behind cols. Int8: value = scales[r] · byte. Ternary: words of the positive plane
// in data, of the negative one in negative, stride words a row; scales[0] is the scale.
struct DeviceValues {
  const void* data;
  const uint32_t* negative;
  const float* scales;
  ValueType type;
  int32_t rows, cols, stride;
};

// LowRank: A then B. `v0` is the place of its ranks in the plane of sums of the site's group.
struct DeviceLowRank {
  DeviceValues a, b;
  const float* mid;         // [rank] or null
  const float* mid_matrix;  // [rank, rank] or null
  const float* out_diag;    // [out] or null
  float scale;
  int32_t rank, v0;
};

struct DeviceRowCol {
  DeviceValues values;
  const uint32_t* index;
  float scale;
  int32_t count;
  int32_t on_inputs;  // 1: kIn, 0: kOut
};

struct DeviceSparse {
  const uint32_t* row_start;
  const uint32_t* columns;
  const float* values;
  float scale;
};

struct DeviceStage {
  const uint32_t* gather;  // [count · q] or null
  const float* blocks;     // [count, p, q]
  int32_t count, p, q;
};
struct DeviceChain {
  const DeviceStage* stages;
  const uint32_t* output;            // or null
  int32_t stage_count, out, widest;  // widest: values of the widest stage's result
  float scale;
};

struct DeviceBottleneck {
  DeviceValues down, up;
  const float *down_bias, *up_bias, *norm_weight, *norm_bias;  // or null
  float scale, norm_eps;
  int32_t middle;
  BottleneckPlacement placement;
  BottleneckActivation activation;
};

struct DevicePrefix {
  const float *k, *v;  // [n, kv_heads, head_dim]
  int32_t n;
  int32_t gated;
  float gate;
};

// Everything of one set at one site. Null or 0 where the set has nothing of a kind.
struct DeviceSite {
  const DeviceLowRank* lowrank;
  const DeviceRowCol* rowcol;
  const DeviceSparse* sparse;
  const DeviceChain *pre, *post, *additive;
  const DeviceBottleneck* bottlenecks;
  const float *h, *g, *c;
  const uint32_t* override_ids;  // null for norms
  const float* override_values;  // [max(1, overrides), width]
  DevicePrefix prefix;
  int32_t lowranks, rowcols, sparses, additives, bottleneck_count, overrides;
};

// site_at[site_index] is a place in sites, or -1.
struct DeviceSet {
  const int32_t* site_at;
  const DeviceSite* sites;
};

}  // namespace manyfold::cuda
