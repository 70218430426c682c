// Memory that kernels' tests hand to launches as device memory: aligned as the device's is, rounded
// as the device's values are, and poisoned where nothing was written. Used by gemm_test and
// attention_test.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <random>

#include "../../cuda/device/number.cuh"

namespace manyfold::test {

struct FreeAligned {
  void operator()(void* memory) const { std::free(memory); }
};

// `count` elements at a multiple of 64 bytes, without a byte behind them (the address sanitizer
// sees reads beyond); every byte is 0xcb.
template <class T>
class AlignedArray {
 public:
  explicit AlignedArray(size_t count) : count_(count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, count * sizeof(T) + 1) != 0) throw std::bad_alloc();
    memory_.reset(static_cast<T*>(memory));
    std::memset(memory, 0xcb, count * sizeof(T));
  }
  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return memory_.get()[i]; }
  const T& operator[](size_t i) const { return memory_.get()[i]; }

 private:
  size_t count_;
  std::unique_ptr<T, FreeAligned> memory_;
};

inline double normal(std::mt19937& random) {
  return std::normal_distribution<double>()(random);
}

// ‖found - expected‖ / ‖expected‖, summed up pair by pair; NaN stays NaN.
class RelativeError {
 public:
  void add(double found, double expected) {
    difference_ += (found - expected) * (found - expected);
    size_ += expected * expected;
  }
  double value() const { return std::sqrt(difference_ / size_); }

 private:
  double difference_ = 0.0, size_ = 0.0;
};

}  // namespace manyfold::test
