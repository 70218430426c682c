// See dequant.h. Layouts are those of the GGUF specification; each block starts with what its
// struct comment lists.
#include "dequant.h"

#include <string>

#include "../core/error.h"

namespace manyfold {

namespace {

uint16_t load_u16(const uint8_t* p) {
  return static_cast<uint16_t>(p[0] | p[1] << 8);
}

uint32_t load_u32(const uint8_t* p) {
  return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8 |
         static_cast<uint32_t>(p[2]) << 16 | static_cast<uint32_t>(p[3]) << 24;
}

float load_f16(const uint8_t* p) {
  return f16_to_f32(load_u16(p));
}

void decode_f32(const uint8_t* p, float* out) {
  std::memcpy(out, p, 4);
}
void decode_f16(const uint8_t* p, float* out) {
  *out = load_f16(p);
}
void decode_bf16(const uint8_t* p, float* out) {
  *out = bf16_to_f32(load_u16(p));
}

// d f16, 32 int8.
void decode_q8_0(const uint8_t* p, float* out) {
  const float d = load_f16(p);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(p[2 + i])) * d;
}

// d f16, 16 bytes of two nibbles: low ones are values 0 to 15, high ones 16 to 31.
void decode_q4_0(const uint8_t* p, float* out) {
  const float d = load_f16(p);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((p[2 + i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((p[2 + i] >> 4) - 8);
  }
}

// d f16, m f16, nibbles as q4_0.
void decode_q4_1(const uint8_t* p, float* out) {
  const float d = load_f16(p), m = load_f16(p + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(p[4 + i] & 15) + m;
    out[i + 16] = d * static_cast<float>(p[4 + i] >> 4) + m;
  }
}

// d f16, 32 high bits, nibbles as q4_0.
void decode_q5_0(const uint8_t* p, float* out) {
  const float d = load_f16(p);
  const uint32_t high = load_u32(p + 2);
  for (int i = 0; i < 16; ++i) {
    const int low_value = (p[6 + i] & 15) | static_cast<int>(high >> i & 1u) << 4;
    const int high_value = (p[6 + i] >> 4) | static_cast<int>(high >> (i + 16) & 1u) << 4;
    out[i] = d * static_cast<float>(low_value - 16);
    out[i + 16] = d * static_cast<float>(high_value - 16);
  }
}

// d f16, m f16, 32 high bits, nibbles as q4_0.
void decode_q5_1(const uint8_t* p, float* out) {
  const float d = load_f16(p), m = load_f16(p + 2);
  const uint32_t high = load_u32(p + 4);
  for (int i = 0; i < 16; ++i) {
    const int low_value = (p[8 + i] & 15) | static_cast<int>(high >> i & 1u) << 4;
    const int high_value = (p[8 + i] >> 4) | static_cast<int>(high >> (i + 16) & 1u) << 4;
    out[i] = d * static_cast<float>(low_value) + m;
    out[i + 16] = d * static_cast<float>(high_value) + m;
  }
}

// Scale and minimum of group j of a K block, 6 bits each in 12 bytes: groups 0 to 3 lie in the low
// bits of bytes 0 to 7, groups 4 to 7 have four bits in bytes 8 to 11 and two in the top of bytes 0
// to 7.
struct ScaleMin {
  int scale, min;
};
ScaleMin k_scale_min(const uint8_t* scales, int j) {
  if (j < 4) return {scales[j] & 63, scales[j + 4] & 63};
  return {(scales[j + 4] & 15) | (scales[j - 4] >> 2 & 48),
          (scales[j + 4] >> 4) | (scales[j] >> 2 & 48)};
}

// d f16, dmin f16, 12 bytes of scales, 128 bytes of nibbles: each 32 bytes hold two groups of 32,
// low nibbles first.
void decode_q4_k(const uint8_t* p, float* out) {
  const float d = load_f16(p), dmin = load_f16(p + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleMin sm = k_scale_min(p + 4, group);
    const float scale = d * static_cast<float>(sm.scale), min = dmin * static_cast<float>(sm.min);
    const uint8_t* nibbles = p + 16 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int q = nibbles[i] >> (group % 2 * 4) & 15;
      out[group * 32 + i] = scale * static_cast<float>(q) - min;
    }
  }
}

// As q4_k with 32 bytes of high bits before the nibbles: bit `group` of byte i.
void decode_q5_k(const uint8_t* p, float* out) {
  const float d = load_f16(p), dmin = load_f16(p + 2);
  const uint8_t* high = p + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin sm = k_scale_min(p + 4, group);
    const float scale = d * static_cast<float>(sm.scale), min = dmin * static_cast<float>(sm.min);
    const uint8_t* nibbles = p + 48 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      const int q = (nibbles[i] >> (group % 2 * 4) & 15) | (high[i] >> group & 1) << 4;
      out[group * 32 + i] = scale * static_cast<float>(q) - min;
    }
  }
}

// 128 bytes of low nibbles, 64 of high bit pairs, 16 int8 scales, d f16. Each half of 128 values
// has 64 bytes of nibbles and 32 of pairs: run of 32 values number `run` takes nibbles from byte 32
// · (run % 2), shift 4 · (run / 2).
void decode_q6_k(const uint8_t* p, float* out) {
  const float d = load_f16(p + 208);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* low = p + half * 64;
    const uint8_t* high = p + 128 + half * 32;
    for (int run = 0; run < 4; ++run) {
      for (int i = 0; i < 32; ++i) {
        const int place = half * 128 + run * 32 + i;
        const float scale = d * static_cast<float>(static_cast<int8_t>(p[192 + place / 16]));
        const int q = (low[run % 2 * 32 + i] >> (run / 2 * 4) & 15) | (high[i] >> (run * 2) & 3)
                                                                          << 4;
        out[place] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

// A block's groups, each to the next place of codes, d and m.
void group_nibbles(const uint8_t* nibbles, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = nibbles[i] & 15;
    codes[i + 16] = nibbles[i] >> 4;
  }
}

void groups_of_q4_0(const uint8_t* p, uint8_t* codes, float* d, float* m) {
  *d = load_f16(p);
  *m = -8.0f * *d;
  group_nibbles(p + 2, codes);
}

void groups_of_q4_1(const uint8_t* p, uint8_t* codes, float* d, float* m) {
  *d = load_f16(p);
  *m = load_f16(p + 2);
  group_nibbles(p + 4, codes);
}

void groups_of_q4_k(const uint8_t* p, uint8_t* codes, float* d, float* m) {
  const float scale = load_f16(p), min = load_f16(p + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleMin sm = k_scale_min(p + 4, group);
    d[group] = scale * static_cast<float>(sm.scale);
    m[group] = -(min * static_cast<float>(sm.min));
    const uint8_t* nibbles = p + 16 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) codes[group * 32 + i] = nibbles[i] >> (group % 2 * 4) & 15;
  }
}

// All blocks of one dtype in one loop, so that the block's decoder is inlined.
template <Dtype dtype, void (*decode_block)(const uint8_t*, float*)>
void decode_all(const uint8_t* bytes, size_t blocks, float* out) {
  constexpr BlockShape kShape = block_shape(dtype);
  for (size_t b = 0; b < blocks; ++b) {
    decode_block(bytes + b * static_cast<size_t>(kShape.bytes),
                 out + b * static_cast<size_t>(kShape.values));
  }
}

using Decode = void (*)(const uint8_t* bytes, size_t blocks, float* out);

Decode decoder(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return decode_all<Dtype::kF32, decode_f32>;
    case Dtype::kF16:
      return decode_all<Dtype::kF16, decode_f16>;
    case Dtype::kBf16:
      return decode_all<Dtype::kBf16, decode_bf16>;
    case Dtype::kQ8_0:
      return decode_all<Dtype::kQ8_0, decode_q8_0>;
    case Dtype::kQ4_0:
      return decode_all<Dtype::kQ4_0, decode_q4_0>;
    case Dtype::kQ4_1:
      return decode_all<Dtype::kQ4_1, decode_q4_1>;
    case Dtype::kQ5_0:
      return decode_all<Dtype::kQ5_0, decode_q5_0>;
    case Dtype::kQ5_1:
      return decode_all<Dtype::kQ5_1, decode_q5_1>;
    case Dtype::kQ4_K:
      return decode_all<Dtype::kQ4_K, decode_q4_k>;
    case Dtype::kQ5_K:
      return decode_all<Dtype::kQ5_K, decode_q5_k>;
    case Dtype::kQ6_K:
      return decode_all<Dtype::kQ6_K, decode_q6_k>;
  }
  fail(ErrorCode::kInvalidArgument,
       "dtype: unknown number " + std::to_string(static_cast<int>(dtype)));
}

// Blocks of `count` values, which must be those of the bytes.
size_t count_blocks(Dtype dtype, size_t byte_length, size_t count) {
  const BlockShape shape = block_shape(dtype);
  const size_t values = static_cast<size_t>(shape.values),
               block_bytes = static_cast<size_t>(shape.bytes);
  MF_CHECK(count % values == 0, std::string(dtype_name(dtype)) + ": expected a multiple of " +
                                    std::to_string(values) + " values, found " +
                                    std::to_string(count));
  const size_t blocks = count / values;
  MF_CHECK(byte_length % block_bytes == 0 && byte_length / block_bytes == blocks,
           std::string(dtype_name(dtype)) + ": expected " + std::to_string(block_bytes) +
               " bytes for each of " + std::to_string(blocks) + " blocks, found " +
               std::to_string(byte_length) + " in all");
  return blocks;
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  static constexpr const char* kNames[kDtypeCount] = {
      "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_k", "q5_k", "q6_k"};
  const int index = static_cast<int>(dtype);
  return index >= 0 && index < kDtypeCount ? kNames[index] : "unknown";
}

void dequantize(Dtype dtype, const uint8_t* bytes, size_t byte_length, size_t count, float* out) {
  const Decode decode = decoder(dtype);
  decode(bytes, count_blocks(dtype, byte_length, count), out);
}

void decode_q4(Dtype dtype, const uint8_t* bytes, size_t byte_length, int32_t rows, int32_t cols,
               const Q4Rows& out) {
  MF_CHECK(is_q4(dtype), std::string(dtype_name(dtype)) + ": expected q4_0, q4_1 or q4_k");
  const BlockShape shape = block_shape(dtype);
  MF_CHECK(cols % shape.values == 0, std::string(dtype_name(dtype)) + ": expected rows of whole " +
                                         "blocks, found " + std::to_string(cols) + " values");
  const auto count = static_cast<size_t>(rows) * static_cast<size_t>(cols);
  const size_t blocks = count_blocks(dtype, byte_length, count);
  const int groups = shape.values / kQ4Group;
  uint8_t* codes = out.codes;
  float *d = out.d, *m = out.m;
  for (size_t b = 0; b < blocks; ++b) {
    if (dtype == Dtype::kQ4_0) groups_of_q4_0(bytes, codes, d, m);
    if (dtype == Dtype::kQ4_1) groups_of_q4_1(bytes, codes, d, m);
    if (dtype == Dtype::kQ4_K) groups_of_q4_k(bytes, codes, d, m);
    bytes += shape.bytes;
    codes += shape.values;
    d += groups;
    m += groups;
  }
}

}  // namespace manyfold
