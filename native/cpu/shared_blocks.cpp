// See shared_blocks.h.
#include "shared_blocks.h"

#include "../core/error.h"

namespace manyfold {

SharedKey shared_key(const std::vector<const TermTensor*>& tensors, std::string use) {
  SharedKey key{{}, std::move(use)};
  for (const TermTensor* tensor : tensors) {
    if (tensor->shared.empty()) return {};
    key.tensors.emplace_back(tensor->shared, tensor->shape);
  }
  return key;
}

SharedBlocks::Block SharedBlocks::acquire(const SharedKey& key, size_t bytes,
                                          const std::function<void(std::byte*)>& pack) {
  MF_ASSERT(!key.tensors.empty());
  const auto place = blocks_.find(key);
  if (place != blocks_.end()) {
    if (Block block = place->second.lock()) return block;
  }
  forget_dead();
  auto block = std::make_shared<HugeBuffer>(bytes + 64, "values that adapters share");
  pack(block->data());
  blocks_[key] = block;
  return block;
}

size_t SharedBlocks::bytes() const {
  size_t bytes = 0;
  for (const auto& [key, weak] : blocks_) {
    if (const Block block = weak.lock()) bytes += block->size();
  }
  return bytes;
}

size_t SharedBlocks::count() const {
  size_t count = 0;
  for (const auto& [key, weak] : blocks_) count += weak.expired() ? 0 : 1;
  return count;
}

void SharedBlocks::forget_dead() {
  std::erase_if(blocks_, [](const auto& item) { return item.second.expired(); });
}

}  // namespace manyfold
