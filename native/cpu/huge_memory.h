// Memory that weights, adapters, KV pages and activations live in: zeroed, 64-byte aligned, on 2
// MiB pages where the kernel grants them (streaming 4 KiB pages costs up to 40 % of the read
// bandwidth). Callers: the fast CPU backend.
#pragma once

#include <cstddef>
#include <string>

namespace manyfold {

// One owned block. Blocks of 1 MiB and more are 2 MiB aligned and advised to huge pages; smaller
// ones are plain heap.
class HugeBuffer {
 public:
  HugeBuffer() = default;
  // Zeroed bytes. Throws kOutOfMemory that names `purpose` and the size.
  HugeBuffer(size_t bytes, const std::string& purpose);
  HugeBuffer(HugeBuffer&& other) noexcept;
  HugeBuffer& operator=(HugeBuffer&& other) noexcept;
  HugeBuffer(const HugeBuffer&) = delete;
  HugeBuffer& operator=(const HugeBuffer&) = delete;
  ~HugeBuffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  size_t mapped_ = 0;  // 0: heap
};

}  // namespace manyfold
