#include "huge_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "../core/error.h"

namespace manyfold {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallest = size_t{1} << 20;
constexpr size_t kLine = 64;

size_t round_up(size_t n, size_t unit) {
  return (n + unit - 1) / unit * unit;
}

[[noreturn]] void out_of_memory(size_t bytes, const std::string& purpose) {
  fail(ErrorCode::kOutOfMemory,
       "expected " + std::to_string(bytes) + " bytes (" + std::to_string(bytes >> 20) +
           " MiB) of memory for " + purpose +
           ", but the system has not that much; free memory or ask for less");
}

}  // namespace

HugeBuffer::HugeBuffer(size_t bytes, const std::string& purpose) : bytes_(bytes) {
  if (bytes == 0) return;
  if (bytes > SIZE_MAX - 2 * kHugePage) out_of_memory(bytes, purpose);
  if (bytes < kSmallest) {
    const size_t rounded = round_up(bytes, kLine);
    data_ = static_cast<std::byte*>(std::aligned_alloc(kLine, rounded));
    if (data_ == nullptr) out_of_memory(bytes, purpose);
    std::memset(data_, 0, rounded);
    return;
  }
  // Map one huge page more than needed and give the unaligned ends back.
  mapped_ = round_up(bytes, kHugePage);
  void* raw = mmap(nullptr, mapped_ + kHugePage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) out_of_memory(bytes, purpose);
  const auto start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = round_up(start, kHugePage);
  const size_t head = aligned - start;
  if (head > 0) munmap(raw, head);
  if (head < kHugePage) munmap(reinterpret_cast<void*>(aligned + mapped_), kHugePage - head);
  data_ = reinterpret_cast<std::byte*>(aligned);
  // A kernel without huge pages refuses the advice; the memory works all the same.
  (void)madvise(data_, mapped_, MADV_HUGEPAGE);
}

HugeBuffer::HugeBuffer(HugeBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      mapped_(std::exchange(other.mapped_, 0)) {}

HugeBuffer& HugeBuffer::operator=(HugeBuffer&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    mapped_ = std::exchange(other.mapped_, 0);
  }
  return *this;
}

HugeBuffer::~HugeBuffer() {
  release();
}

void HugeBuffer::release() noexcept {
  if (data_ == nullptr) return;
  if (mapped_ > 0) {
    munmap(data_, mapped_);
  } else {
    std::free(data_);
  }
  data_ = nullptr;
}

}  // namespace manyfold
