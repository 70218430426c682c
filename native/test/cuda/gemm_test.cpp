// launch_gemm against sums in double of the same rounded operands: every element type, every kernel
// that the number of rows chooses, ragged outs, rows and columns, rows that are not live; bits of a
// row alone and in batches; misuse.
#include "../../core/error.h"
#include "../../cuda/kernels.h"
#include "../check.h"
#include "aligned_data.h"

namespace manyfold {
namespace {

using namespace cuda;
using test::AlignedArray;

template <class T>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::kF32;
}
template <>
constexpr Dtype dtype_of<Bf16>() {
  return Dtype::kBf16;
}
template <>
constexpr Dtype dtype_of<F16>() {
  return Dtype::kF16;
}

struct GemmShape {
  int32_t rows, outs, cols;
  int32_t used_cols;  // zeros from there to the stride
};

// One product's operands; strides are cols rounded up to 16, and one word of zeros more.
template <class T>
struct GemmData {
  GemmData(GemmShape s, unsigned seed)
      : shape(s),
        stride((s.cols + 15) / 16 * 16 + 16),
        out_stride(s.outs + 3),
        weight(static_cast<size_t>(s.outs) * stride),
        input(static_cast<size_t>(s.rows) * stride),
        out(static_cast<size_t>(s.rows) * out_stride) {
    std::mt19937 random(seed);
    fill(weight, random);
    fill(input, random);
  }

  void fill(AlignedArray<T>& matrix, std::mt19937& random) {
    for (size_t i = 0; i < matrix.size(); ++i) {
      const bool used = static_cast<int32_t>(i % stride) < shape.used_cols;
      matrix[i] = round_to<T>(used ? static_cast<float>(test::normal(random)) : 0.0f);
    }
  }

  GemmArgs args() {
    GemmArgs args;
    args.dtype = dtype_of<T>();
    args.weight = weight.data();
    args.input = input.data();
    args.out = out.data();
    args.rows = shape.rows;
    args.outs = shape.outs;
    args.cols = shape.cols;
    args.weight_stride = args.input_stride = static_cast<int32_t>(stride);
    args.out_stride = static_cast<int32_t>(out_stride);
    return args;
  }

  double expected(int32_t r, int32_t o) const {
    double sum = 0.0;
    for (int32_t k = 0; k < shape.cols; ++k)
      sum += double{load(input[r * stride + k])} * double{load(weight[o * stride + k])};
    return sum;
  }

  GemmShape shape;
  size_t stride, out_stride;
  AlignedArray<T> weight, input;
  AlignedArray<float> out;
};

bool is_poison(float value) {
  return __float_as_uint(value) == 0xcbcbcbcbu;
}

template <class T>
void check_product(GemmShape shape, int32_t live, unsigned seed) {
  GemmData<T> data(shape, seed);
  GemmArgs args = data.args();
  if (live >= 0) args.live = &live;
  launch_gemm(args, nullptr);
  const int32_t rows = live < 0 ? shape.rows : std::min(live, shape.rows);
  test::RelativeError error;
  bool untouched = true;
  for (int32_t r = 0; r < shape.rows; ++r) {
    for (size_t o = 0; o < data.out_stride; ++o) {
      const float found = data.out[r * data.out_stride + o];
      if (r < rows && o < static_cast<size_t>(shape.outs)) {
        error.add(found, data.expected(r, static_cast<int32_t>(o)));
      } else {
        untouched = untouched && is_poison(found);
      }
    }
  }
  const std::string name = std::to_string(shape.rows) + " x " + std::to_string(shape.outs) + " x " +
                           std::to_string(shape.cols) + " of dtype " +
                           std::to_string(static_cast<int>(dtype_of<T>()));
  CHECK_THAT(untouched, name + ": something was written outside the product");
  if (rows > 0) CHECK_THAT(error.value() < 1e-6, name + ": error " + std::to_string(error.value()));
}

template <class T>
void check_products() {
  const GemmShape shapes[] = {{1, 40, 48, 41},   {7, 37, 16, 16},    {8, 97, 272, 270},
                              {9, 33, 576, 576}, {16, 64, 80, 80},   {17, 31, 96, 96},
                              {33, 5, 304, 300}, {64, 65, 160, 160}, {65, 130, 112, 99},
                              {150, 70, 48, 48}};
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    simt::set_seed(seed);
    for (const GemmShape& shape : shapes) {
      check_product<T>(shape, -1, static_cast<unsigned>(seed));
      check_product<T>(shape, shape.rows - 1, static_cast<unsigned>(seed));
    }
  }
  simt::set_seed(1);
  check_product<T>({64, 16, 16, 16}, 0, 1);
  check_product<T>({70, 16, 16, 16}, 0, 1);
  check_product<T>({4, 16, 16, 16}, 9, 1);
}

TEST(gemm_f32) {
  check_products<float>();
}
TEST(gemm_bf16) {
  check_products<Bf16>();
}
TEST(gemm_f16) {
  check_products<F16>();
}

// 17 × 8 tiles of 128 × 128: the kernel of long prefills.
TEST(gemm_large_tiles) {
  check_product<Bf16>({2100, 1000, 48, 48}, 2090, 3);
}

// Row 0 of batches of every kernel's size has the bits that it has alone.
template <class T>
void check_row_bits() {
  for (const int32_t cols : {48, 560}) {
    GemmData<T> data({150, 70, cols, cols}, 5);
    GemmArgs args = data.args();
    args.batch_invariant = true;
    args.rows = 1;
    launch_gemm(args, nullptr);
    AlignedArray<float> alone(70);
    std::memcpy(alone.data(), data.out.data(), 70 * sizeof(float));
    for (const int32_t rows : {5, 12, 30, 64, 65, 150}) {
      args.rows = rows;
      launch_gemm(args, nullptr);
      CHECK(std::memcmp(alone.data(), data.out.data(), 70 * sizeof(float)) == 0);
    }
  }
}

TEST(gemm_row_bits) {
  check_row_bits<float>();
  check_row_bits<Bf16>();
  check_row_bits<F16>();
}

// The same for the largest tiles, which only many rows get.
TEST(gemm_row_bits_of_large_tiles) {
  GemmData<Bf16> data({16300, 10, 80, 80}, 7);
  GemmArgs args = data.args();
  launch_gemm(args, nullptr);
  AlignedArray<float> batch(10);
  const size_t last = static_cast<size_t>(args.rows - 1);
  std::memcpy(batch.data(), data.out.data() + last * data.out_stride, 10 * sizeof(float));
  args.input = data.input.data() + last * data.stride;
  args.rows = 1;
  launch_gemm(args, nullptr);
  CHECK(std::memcmp(batch.data(), data.out.data(), 10 * sizeof(float)) == 0);
}

bool refused(const GemmArgs& args) {
  try {
    launch_gemm(args, nullptr);
  } catch (const Error& error) {
    return error.code() == ErrorCode::kBug;
  }
  return false;
}

TEST(gemm_misuse) {
  GemmData<Bf16> data({4, 8, 32, 32}, 9);
  GemmArgs args = data.args();
  args.rows = 0;
  CHECK(!refused(args));
  CHECK(is_poison(data.out[0]));
  const auto with = [&](auto change) {
    GemmArgs changed = data.args();
    change(changed);
    return refused(changed);
  };
  CHECK(with([](GemmArgs& a) { a.cols = 24; }));
  CHECK(with([](GemmArgs& a) { a.cols = 64; }));
  CHECK(with([](GemmArgs& a) { a.rows = -1; }));
  CHECK(with([](GemmArgs& a) { a.weight = nullptr; }));
  CHECK(with([](GemmArgs& a) { a.out_stride = 7; }));
  CHECK(with([](GemmArgs& a) { a.input_stride = 40; }));
  CHECK(with([](GemmArgs& a) { a.dtype = Dtype::kQ8_0; }));
  CHECK(with([](GemmArgs& a) { a.input = static_cast<const Bf16*>(a.input) + 8; }));
}

}  // namespace
}  // namespace manyfold
