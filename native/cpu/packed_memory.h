// The memory of one packed term set: whatever is packed asks for a block, and when all have asked,
// one allocation is made and filled. Values that other sets bring too are held once for all of
// them, elsewhere. Callers: fast_terms.cpp and the packers beside it.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "huge_memory.h"
#include "kernels/kernels.h"
#include "shared_blocks.h"

namespace manyfold {

class PackedMemory {
 public:
  // Shared blocks are kept by reference, and by `held` for as long as the set lives.
  PackedMemory(SharedBlocks& shared, std::vector<SharedBlocks::Block>& held)
      : shared_(shared), held_(held) {}

  // A zeroed block of `count` T, 64-byte aligned, filled by `fill`. *place is set by lay_out, until
  // when it must stay where it is.
  template <class T>
  void ask(const T** place, size_t count, std::function<void(T*)> fill) {
    const size_t bytes = count * sizeof(T);
    bytes_ += bytes;
    blocks_.push_back({total_, [place, fill = std::move(fill)](std::byte* block) {
                         T* values = reinterpret_cast<T*>(block);
                         *place = values;
                         fill(values);
                       }});
    total_ += static_cast<size_t>(round_up(static_cast<int64_t>(bytes), 64));
  }

  // The block of this key, which is filled at once if no other set holds it; one of the set's own
  // when the key has no tensors.
  void ask_shared(const std::byte** place, const SharedKey& key, size_t bytes,
                  const std::function<void(std::byte*)>& fill) {
    if (key.tensors.empty()) return ask<std::byte>(place, bytes, fill);
    bytes_ += bytes;
    held_.push_back(shared_.acquire(key, bytes, fill));
    *place = held_.back()->data();
  }

  // A copy of `values`; null when there are none.
  template <class T>
  void keep(const T** place, std::vector<T> values) {
    if (values.empty()) return;
    const size_t count = values.size();
    ask<T>(place, count, [values = std::move(values)](T* block) {
      std::copy(values.begin(), values.end(), block);
    });
  }

  // Bytes asked for so far, shared ones too.
  size_t bytes() const { return bytes_; }

  HugeBuffer lay_out() {
    if (total_ == 0) return {};
    // Kernels read whole vectors, so past the end of the last block.
    HugeBuffer memory(total_ + 64, "an adapter");
    for (const Block& block : blocks_) block.fill(memory.data() + block.offset);
    blocks_.clear();
    return memory;
  }

 private:
  struct Block {
    size_t offset;
    std::function<void(std::byte*)> fill;
  };
  SharedBlocks& shared_;
  std::vector<SharedBlocks::Block>& held_;
  std::vector<Block> blocks_;
  size_t total_ = 0, bytes_ = 0;
};

}  // namespace manyfold
