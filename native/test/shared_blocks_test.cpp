// SharedBlocks: one block for one name, shape and use, gone with its last holder.
#include "../cpu/shared_blocks.h"

#include "check.h"

namespace manyfold {
namespace {

TermTensor named(std::string name, std::vector<int32_t> shape) {
  TermTensor tensor;
  tensor.shape = std::move(shape);
  tensor.shared = std::move(name);
  return tensor;
}

}  // namespace

TEST(shared_blocks_hold_equal_keys_once) {
  SharedBlocks blocks;
  int packed = 0;
  const auto get = [&](const std::vector<const TermTensor*>& tensors, const char* use) {
    return blocks.acquire(shared_key(tensors, use), 100, [&](std::byte* to) {
      ++packed;
      to[99] = std::byte{7};
    });
  };
  const TermTensor a = named("a", {4, 8}), b = named("b", {4, 8}), wide = named("a", {8, 4});
  SharedBlocks::Block first = get({&a}, "reduce"), again = get({&a}, "reduce");
  CHECK(first == again && packed == 1 && first->data()[99] == std::byte{7});
  CHECK(blocks.bytes() == first->size() && blocks.count() == 1);
  const SharedBlocks::Block other = get({&b}, "reduce"), shape = get({&wide}, "reduce"),
                            use = get({&a}, "spread"), both = get({&a, &b}, "reduce"),
                            turned = get({&b, &a}, "reduce");
  CHECK(packed == 6 && blocks.count() == 6);
  CHECK(other != first && shape != first && use != first && both != first && turned != both);
  first.reset();
  CHECK(blocks.count() == 6);
  again.reset();
  CHECK(blocks.count() == 5 && blocks.bytes() == 5 * other->size());
  CHECK(get({&a}, "reduce") != nullptr && packed == 7);  // it was packed anew
  CHECK(blocks.count() == 5);
}

TEST(shared_blocks_need_every_name) {
  const TermTensor a = named("a", {1}), plain = named("", {1});
  CHECK(shared_key({&a, &plain}, "reduce").tensors.empty());
  CHECK(shared_key({&a, &a}, "reduce").tensors.size() == 2);
}

}  // namespace manyfold
