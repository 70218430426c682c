// Packed values that several term sets bring under one name (TermTensor::shared) are held once:
// VeRA's projections, skill inventories. A block lives as long as a set that uses it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/terms.h"
#include "huge_memory.h"

namespace manyfold {

// What must agree for two blocks to be one: the names of the tensors in it, their shapes, and how
// they are packed ("reduce", "spread", … with the type of the kernel).
struct SharedKey {
  std::vector<std::pair<std::string, std::vector<int32_t>>> tensors;
  std::string use;
  auto operator<=>(const SharedKey&) const = default;
};

// The key of a block that is made of these tensors in this order; no tensors when one of them has
// no name, and then the block cannot be shared.
SharedKey shared_key(const std::vector<const TermTensor*>& tensors, std::string use);

// Calls come from one thread at a time.
class SharedBlocks {
 public:
  using Block = std::shared_ptr<HugeBuffer>;

  // The block of this key: the one that some set holds, or a new one of `bytes` (64 more are
  // readable behind them, as kernels want) filled by `pack`. The key must have tensors.
  Block acquire(const SharedKey& key, size_t bytes, const std::function<void(std::byte*)>& pack);

  // Of all blocks that live, each counted once.
  size_t bytes() const;
  // How many live.
  size_t count() const;

 private:
  void forget_dead();

  std::map<SharedKey, std::weak_ptr<HugeBuffer>> blocks_;
};

}  // namespace manyfold
