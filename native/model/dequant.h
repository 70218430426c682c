// Values of weight files as float32, block formats included, with exactly the arithmetic of the
// `gguf` Python package. Callers: weight_loader, and the addon's test door.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/backend.h"

namespace manyfold {

// Decodes `count` values from `bytes` to `out`; count must be a multiple of the dtype's block.
// Throws kInvalidArgument when the bytes are not exactly those of count values.
void dequantize(Dtype dtype, const uint8_t* bytes, size_t byte_length, size_t count, float* out);

// The codes, scales and minima of `rows` rows of [cols] in a 4-bit dtype (is_q4), exactly as they
// stand: d · code + m is what dequantize gives. Q4_0 and Q4_1 have d and m in half
// precision; those of Q4_K are products that only float32 holds. byte_length as above.
void decode_q4(Dtype dtype, const uint8_t* bytes, size_t byte_length, int32_t rows, int32_t cols,
               const Q4Rows& out);

// 'q4_k' and so on, as in DTYPES of src/native/binding-types.ts.
const char* dtype_name(Dtype dtype);

}  // namespace manyfold
