// What the tests of single kernels share: random arrays, padded rows, and the tiers to run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../core/backend.h"
#include "../cpu/dispatch.h"
#include "../cpu/isa/tiers.h"

namespace manyfold::test {

// Every tier of the machine, and the emulated ones.
inline std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> all{&emulated_kernels(), &emulated_bf16_kernels()};
  for (const std::string& isa : cpu_isas()) {
    if (isa != "scalar") all.push_back(&kernels_for(isa));
  }
  return all;
}

// Whether two tiers are one but for their quantised base weights: between panel_rows and int8, and
// from spread_rows to the end, a table is nothing but functions.
inline bool same_float_kernels(const Kernels& a, const Kernels& b) {
  const auto equal = [&](size_t from, size_t to) {
    return std::memcmp(reinterpret_cast<const std::byte*>(&a) + from,
                       reinterpret_cast<const std::byte*>(&b) + from, to - from) == 0;
  };
  return a.lanes == b.lanes && a.rounds_inputs == b.rounds_inputs &&
         equal(offsetof(Kernels, panel_rows), offsetof(Kernels, int8)) &&
         equal(offsetof(Kernels, spread_rows), sizeof(Kernels));
}

// Of all_kernels(), each set of float kernels once. A tier that takes its float kernels from
// another one (avx512vnni, avxvnni) is left out only while its functions are the same ones.
inline std::vector<const Kernels*> float_kernels() {
  std::vector<const Kernels*> distinct;
  for (const Kernels* k : all_kernels()) {
    const auto same = [&](const Kernels* other) { return same_float_kernels(*k, *other); };
    if (std::none_of(distinct.begin(), distinct.end(), same)) distinct.push_back(k);
  }
  return distinct;
}

inline std::vector<float> random_floats(size_t count, uint32_t seed, float spread = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> values(count);
  for (float& v : values) v = normal(generator);
  return values;
}

// Small integers: sums of their products are exact in float32 whatever the order, so results must
// be equal.
inline std::vector<float> random_integers(size_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(static_cast<int32_t>(generator() % 7) - 3);
  return values;
}

inline void round_all(std::vector<float>& values, Dtype dtype) {
  if (dtype == Dtype::kF32) return;
  for (float& v : values) v = bf16_to_f32(f32_to_bf16(v));
}

// Rows at a stride of whole kRowPad, the padding zero.
struct PaddedRows {
  int64_t stride;
  std::vector<float> values;

  PaddedRows(int32_t rows, int32_t width)
      : stride(round_up(width, kRowPad)),
        values(static_cast<size_t>(rows) * static_cast<size_t>(stride), 0.0f) {}
  PaddedRows(const std::vector<float>& dense, int32_t rows, int32_t width)
      : PaddedRows(rows, width) {
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t i = 0; i < width; ++i) at(r, i) = dense[static_cast<size_t>(r * width + i)];
    }
  }
  float& at(int32_t row, int32_t i) { return values[static_cast<size_t>(row * stride + i)]; }
  float at(int32_t row, int32_t i) const { return values[static_cast<size_t>(row * stride + i)]; }
};

// ‖found - expected‖ / ‖expected‖, gathered value by value.
class ErrorNorm {
 public:
  void add(double found, double expected) {
    error_ += (found - expected) * (found - expected);
    norm_ += expected * expected;
  }
  double relative() const { return std::sqrt(error_ / norm_); }

 private:
  double error_ = 0, norm_ = 0;
};

inline const char* dtype_name(Dtype dtype) {
  return dtype == Dtype::kF32 ? " f32 " : " bf16 ";
}

}  // namespace manyfold::test
