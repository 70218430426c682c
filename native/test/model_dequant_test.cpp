// Block formats: known blocks by hand, and that random bytes and every length are safe (under the
// sanitizers). Equality with the gguf package over random blocks is test/parity-gguf.test.ts.
#include "../model/dequant.h"

#include <cmath>
#include <random>
#include <vector>

#include "../core/error.h"
#include "check.h"

namespace manyfold {
namespace {

constexpr uint8_t kHalfLow = 0x00, kHalfHigh = 0x38;  // 0.5 as f16
constexpr uint8_t kTwoLow = 0x00, kTwoHigh = 0x40;    // 2 as f16

std::vector<float> decode(Dtype dtype, const std::vector<uint8_t>& bytes, size_t count) {
  std::vector<float> out(count);
  dequantize(dtype, bytes.data(), bytes.size(), count, out.data());
  return out;
}

bool refused(Dtype dtype, size_t byte_length, size_t count) {
  try {
    decode(dtype, std::vector<uint8_t>(byte_length), count);
    return false;
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInvalidArgument;
  }
}

}  // namespace

TEST(model_dequant_plain) {
  CHECK(decode(Dtype::kF32, {0, 0, 0x80, 0x3f}, 1)[0] == 1.0f);
  CHECK(decode(Dtype::kBf16, {0x80, 0x3f}, 1)[0] == 1.0f);
  CHECK(decode(Dtype::kF16, {0x01, 0x00}, 1)[0] == 0x1.0p-24f);
  CHECK(decode(Dtype::kF16, {0xff, 0x83}, 1)[0] == -1023 * 0x1.0p-24f);
  CHECK(std::isinf(decode(Dtype::kF16, {0x00, 0x7c}, 1)[0]));
}

TEST(model_dequant_blocks) {
  std::vector<uint8_t> q8(34, 0xff);  // -1 each
  q8[0] = kHalfLow, q8[1] = kHalfHigh;
  CHECK(decode(Dtype::kQ8_0, q8, 32)[31] == -0.5f);
  std::vector<uint8_t> q4(18, 0x1f);  // low 15, high 1
  q4[0] = kHalfLow, q4[1] = kHalfHigh;
  CHECK(decode(Dtype::kQ4_0, q4, 32)[0] == 3.5f);
  CHECK(decode(Dtype::kQ4_0, q4, 32)[16] == -3.5f);
  std::vector<uint8_t> q5(24, 0x1f);  // with m = 2 and the high bit of values 1 and 31
  q5[0] = kHalfLow, q5[1] = kHalfHigh, q5[2] = kTwoLow, q5[3] = kTwoHigh;
  q5[4] = 2, q5[5] = 0, q5[6] = 0, q5[7] = 0x80;
  const std::vector<float> five = decode(Dtype::kQ5_1, q5, 32);
  CHECK(five[0] == 9.5f);
  CHECK(five[1] == 17.5f);
  CHECK(five[30] == 2.5f);
  CHECK(five[31] == 10.5f);
  std::vector<uint8_t> q6(210, 0);  // all values -32, scales 1, d 2
  for (size_t i = 192; i < 208; ++i) q6[i] = 1;
  q6[208] = kTwoLow, q6[209] = kTwoHigh;
  CHECK(decode(Dtype::kQ6_K, q6, 256)[255] == -64.0f);
}

TEST(model_dequant_lengths) {
  std::mt19937 generator(1);
  for (int number = 0; number < kDtypeCount; ++number) {
    const Dtype dtype = static_cast<Dtype>(number);
    const size_t values = static_cast<size_t>(block_shape(dtype).values),
                 bytes = static_cast<size_t>(block_shape(dtype).bytes);
    CHECK(refused(dtype, bytes - 1, values));
    CHECK(refused(dtype, bytes * 2, values));
    CHECK(refused(dtype, 0, values));
    if (values > 1) CHECK(refused(dtype, bytes, values - 1));
    CHECK(decode(dtype, {}, 0).empty());
    std::vector<uint8_t> random(bytes * 3);
    for (uint8_t& b : random) b = static_cast<uint8_t>(generator());
    CHECK(decode(dtype, random, values * 3).size() == values * 3);
    CHECK(std::string(dtype_name(dtype)) != "unknown");
  }
  CHECK(refused(static_cast<Dtype>(99), 4, 1));
}

}  // namespace manyfold
