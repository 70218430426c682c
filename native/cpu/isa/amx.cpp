// The kernels of the AMX tier: those of AVX512-BF16 but for products with bf16 weights and
// attention, which run on tiles. Only dispatch.cpp refers to them, after asking the machine.
//
// The panels of AVX512-BF16 ([cols / 2][64 outputs][2]) are what a tile of weights wants: pairs of
// inputs down, sixteen outputs across. A row's sums depend on nothing but the row: a tile product
// adds to each element by itself, pairs of inputs in ascending order.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../kernels/kernels.h"
#include "amx_attention.h"
#include "tiers.h"

// From here on, so that nothing which other files share is compiled for these instructions.
#pragma GCC target("amx-tile,amx-bf16,sse2")

#include "amx_tiles.h"

namespace manyfold::amx {
namespace {

// Inputs of a step, and outputs of a panel.
constexpr int32_t kStepInputs = 32, kPanelRows = 64;
// Bytes of one pair of inputs in a panel, and of a step of a panel.
constexpr int64_t kPairBytes = kPanelRows * 4, kStepBytes = 16 * kPairBytes;
// How far a panel is read ahead of its products.
constexpr int64_t kReadAhead = 4 * kStepBytes;

// Tiles 0 to 3 hold sums, 4 and 5 inputs, 6 and 7 weights. first, second: rows of sums 0 and 1, and
// of sums 2 and 3; without a second block of rows all four sums are of the first.
void configure(int32_t first, int32_t second) {
  const int32_t lower = second == 0 ? first : second;
  configure_tiles<Tier>({first, first, lower, lower, first, lower, kTileRows, kTileRows});
}

// The last inputs of a panel and of some rows where they fill no step: copies with zeros behind.
struct Tail {
  alignas(64) std::byte weights[kStepBytes];
  alignas(64) std::byte inputs[2 * kTileRows * kRowBytes];
};

// One panel for one block of rows.
struct Block {
  const std::byte* weights;  // the panel
  const std::byte* x;        // row 0
  int64_t x_bytes;           // from one row to the next
  int32_t pairs;             // of inputs
  float* y;                  // row 0, output 0 of the panel
  int64_t y_bytes;
  bool fresh;  // nobody has read this panel yet
};

void read_ahead(const std::byte* step) {
  for (int64_t line = 0; line < kStepBytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(step) + kReadAhead + line, _MM_HINT_T0);
  }
}

void fill_weights(const Block& block, int32_t done, Tail& tail) {
  const auto used = static_cast<size_t>(block.pairs - done) * kPairBytes;
  std::memcpy(tail.weights, block.weights + done * kPairBytes, used);
  std::memset(tail.weights + used, 0, sizeof(tail.weights) - used);
  asm volatile("" : : "r"(&tail) : "memory");
}

void fill_inputs(const Block& block, int32_t rows, int32_t done, Tail& tail) {
  std::memset(tail.inputs, 0, sizeof(tail.inputs));
  for (int32_t m = 0; m < rows; ++m) {
    std::memcpy(tail.inputs + m * kRowBytes, block.x + m * block.x_bytes + done * 4,
                static_cast<size_t>(block.pairs - done) * 4);
  }
  asm volatile("" : : "r"(&tail) : "memory");
}

// Sums of one block of rows with all outputs of a panel.
void step_wide(const std::byte* x, int64_t x_bytes, const std::byte* weights) {
  _tile_loadd(4, x, x_bytes);
  _tile_loadd(6, weights, kPairBytes);
  _tile_loadd(7, weights + kRowBytes, kPairBytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(6, weights + 2 * kRowBytes, kPairBytes);
  _tile_loadd(7, weights + 3 * kRowBytes, kPairBytes);
  _tile_dpbf16ps(2, 4, 6);
  _tile_dpbf16ps(3, 4, 7);
}

void multiply_wide(const Block& block, int32_t rows, Tail& tail) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  int32_t pair = 0;
  for (; pair + kStepInputs / 2 <= block.pairs; pair += kStepInputs / 2) {
    const std::byte* weights = block.weights + pair * kPairBytes;
    if (block.fresh) read_ahead(weights);
    step_wide(block.x + pair * 4, block.x_bytes, weights);
  }
  if (pair < block.pairs) {
    fill_weights(block, pair, tail);
    fill_inputs(block, rows, pair, tail);
    step_wide(tail.inputs, kRowBytes, tail.weights);
  }
  _tile_stored(0, block.y, block.y_bytes);
  _tile_stored(1, block.y + kTileRows, block.y_bytes);
  _tile_stored(2, block.y + 2 * kTileRows, block.y_bytes);
  _tile_stored(3, block.y + 3 * kTileRows, block.y_bytes);
}

// Sums of two blocks of rows with half a panel's outputs: each tile of weights is used twice.
void step_tall(const std::byte* x, const std::byte* lower, int64_t x_bytes,
               const std::byte* weights) {
  _tile_loadd(4, x, x_bytes);
  _tile_loadd(6, weights, kPairBytes);
  _tile_loadd(7, weights + kRowBytes, kPairBytes);
  _tile_loadd(5, lower, x_bytes);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

void multiply_tall(const Block& block, int32_t rows, Tail& tail) {
  const int64_t lower = kTileRows * block.x_bytes;
  for (int32_t half = 0; half < 2; ++half) {
    const int64_t at = half * 2 * kRowBytes;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    int32_t pair = 0;
    for (; pair + kStepInputs / 2 <= block.pairs; pair += kStepInputs / 2) {
      const std::byte* weights = block.weights + pair * kPairBytes;
      const std::byte* x = block.x + pair * 4;
      if (block.fresh && half == 0) read_ahead(weights);
      step_tall(x, x + lower, block.x_bytes, weights + at);
    }
    if (pair < block.pairs) {
      fill_weights(block, pair, tail);
      fill_inputs(block, rows, pair, tail);
      step_tall(tail.inputs, tail.inputs + kTileRows * kRowBytes, kRowBytes, tail.weights + at);
    }
    float* y = block.y + half * 2 * kTileRows;
    float* y_lower = y + kTileRows * (block.y_bytes / 4);
    _tile_stored(0, y, block.y_bytes);
    _tile_stored(1, y + kTileRows, block.y_bytes);
    _tile_stored(2, y_lower, block.y_bytes);
    _tile_stored(3, y_lower + kTileRows, block.y_bytes);
  }
}

// Rows row0 .. row1 - 1, in blocks of `step` rows, all of one size.
void multiply_rows(const GemmArgs& a, int32_t row0, int32_t row1, int32_t step) {
  if (row0 == row1) return;
  const int32_t second = step > kTileRows ? step - kTileRows : 0;
  configure(second == 0 ? step : kTileRows, second);
  const int32_t pairs = (a.cols + 1) / 2;
  Tail tail;
  for (int32_t panel = a.panel0; panel < a.panel1; ++panel) {
    Block block{a.weights + panel * (pairs * kPairBytes),
                nullptr,
                a.x_stride * 2,
                pairs,
                nullptr,
                a.y_stride * 4,
                row0 == 0};
    for (int32_t row = row0; row < row1; row += step) {
      block.x = static_cast<const std::byte*>(a.x) + row * block.x_bytes;
      block.y = a.y + row * a.y_stride + int64_t{panel} * kPanelRows;
      second == 0 ? multiply_wide(block, step, tail) : multiply_tall(block, step, tail);
      block.fresh = false;
      ++(step == 1 ? a.counts->single_row : a.counts->multi_row);
    }
  }
}

void gemm(const GemmArgs& a) {
  if (a.dtype == Dtype::kF32) return avx512bf16_kernels().gemm(a);
  constexpr int32_t kBlockRows = 2 * kTileRows;
  const int32_t whole = a.rows / kBlockRows * kBlockRows;
  multiply_rows(a, 0, whole, kBlockRows);
  multiply_rows(a, whole, a.rows, a.rows - whole);
  _tile_release();
}

}  // namespace
}  // namespace manyfold::amx

namespace manyfold {

const Kernels& amx_kernels() noexcept {
  static const Kernels kTable = []() noexcept {
    Kernels table = avx512bf16_kernels();
    table.isa = "amx";
    table.gemm = amx::gemm;
    table.attention = amx_attention::run;
    return table;
  }();
  return kTable;
}

}  // namespace manyfold
