// The paged keys and values of all sequences. For one (layer, kv head) the pages lie one after the
// other in memory, so consecutive page numbers are one long run: keys of the whole pool, then
// values.
#pragma once

#include <cstdint>
#include <string>

#include "../core/model_config.h"
#include "../core/step.h"
#include "huge_memory.h"
#include "kernels/kernels.h"

namespace manyfold {

class KvPool {
 public:
  KvPool(const ModelConfig& model, KvType type, int32_t pages)
      : type_(type),
        kv_heads_(model.kv_heads),
        page_(kv_page_bytes(type, model.head_dim)),
        run_(page_ * static_cast<size_t>(pages)),
        bytes_(run_ * 2 * static_cast<size_t>(model.kv_heads) * model.layers.size()),
        pages_(pages),
        memory_(bytes_ + kSlack,
                "a pool of " + std::to_string(pages) + " pages of keys and values") {}

  KvType type() const { return type_; }
  // Page 0 of one head.
  std::byte* keys(int32_t layer, int32_t head) {
    return memory_.data() + run_ * index(layer, head);
  }
  std::byte* values(int32_t layer, int32_t head) { return keys(layer, head) + run_; }
  // Bytes of one page of one head's keys (or values).
  size_t head_page_bytes() const { return page_; }
  size_t bytes() const { return bytes_; }
  size_t page_bytes() const { return bytes_ / static_cast<size_t>(pages_); }

 private:
  // Kernels read whole vectors of values, so past the last one.
  static constexpr size_t kSlack = 64;

  size_t index(int32_t layer, int32_t head) const {
    return 2 * (static_cast<size_t>(layer) * static_cast<size_t>(kv_heads_) +
                static_cast<size_t>(head));
  }

  KvType type_;
  int32_t kv_heads_;
  size_t page_, run_, bytes_;
  int32_t pages_;
  HugeBuffer memory_;
};

}  // namespace manyfold
