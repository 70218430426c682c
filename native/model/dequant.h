// Values of weight files as float32, block formats included, with exactly the arithmetic of the
// `gguf` Python package. Callers: weight_loader, and the addon's test door.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/dtype.h"

namespace manyfold {

// Decodes `count` values from `bytes` to `out`; count must be a multiple of the dtype's block.
// Throws kInvalidArgument when the bytes are not exactly those of count values.
void dequantize(Dtype dtype, const uint8_t* bytes, size_t byte_length, size_t count, float* out);

// 'q4_k' and so on, as in DTYPES of src/native/binding-types.ts.
const char* dtype_name(Dtype dtype);

}  // namespace manyfold
