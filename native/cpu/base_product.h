// The base product of one packed matrix in whichever format it is held: the form of inputs that its
// kernel reads, the rounding to it, and the call. Used by FastLinear.
#pragma once

#include <cstdint>

#include "fast_weights.h"
#include "kernels/kernels.h"

namespace manyfold {

// float32, or rounded to bf16, to int8 (int8_rows.h) or to int8 in groups (q4_rows.h).
enum class InputForm : uint8_t { kFloat, kBf16, kInt8, kQ4 };

// rounds_bf16: products with plain weights read bf16 inputs.
InputForm input_form(const PackedMatrix& matrix, bool rounds_bf16);

// Of a rounded row of `width` inputs, a multiple of kRowPad: at most two bytes an input.
int64_t input_row_bytes(const Kernels& kernels, InputForm form, int64_t width);

// One row of inputs [cols] to a form that is not kFloat; returns the scale of kInt8, else 0.
// scratch: [cols, padded], for kInt8.
float round_input(const Kernels& kernels, InputForm form, const float* x, int32_t cols,
                  float* scratch, std::byte* out);

// y = W x for the outputs of panels panel0 .. panel1 - 1, all rows.
struct BaseProduct {
  const PackedMatrix& matrix;
  InputForm form;
  const void* x;
  int64_t x_stride;      // elements; bytes of kQ4
  const float* x_scale;  // by row, of kInt8
  float* y;
  int64_t y_stride;
  int32_t rows;
  int32_t panel0, panel1;
  TileCounts* counts;
};
void multiply(const Kernels& kernels, const BaseProduct& product);

}  // namespace manyfold
