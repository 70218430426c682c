// See base_product.h.
#include "base_product.h"

#include "q4_rows.h"

namespace manyfold {

InputForm input_form(const PackedMatrix& matrix, bool rounds_bf16) {
  if (is_q4(matrix.format)) return InputForm::kQ4;
  if (matrix.format == WeightFormat::kInt8) return InputForm::kInt8;
  return rounds_bf16 ? InputForm::kBf16 : InputForm::kFloat;
}

int64_t input_row_bytes(const Kernels& kernels, InputForm form, int64_t width) {
  switch (form) {
    case InputForm::kQ4:
      return width / kQ4Group * int64_t{sizeof(Q4Inputs)};
    case InputForm::kInt8:
      return width * kernels.int8.input_bytes;
    default:
      return width * int64_t{sizeof(uint16_t)};
  }
}

float round_input(const Kernels& kernels, InputForm form, const float* x, int32_t cols,
                  float* scratch, std::byte* out) {
  if (form == InputForm::kInt8) return kernels.int8.quantize(x, cols, scratch, out);
  if (form == InputForm::kQ4) {
    kernels.q4.quantize(x, cols, out);
  } else {
    kernels.round_inputs(x, round_up(cols, kRowPad), reinterpret_cast<uint16_t*>(out));
  }
  return 0.0f;
}

void multiply(const Kernels& kernels, const BaseProduct& p) {
  const PackedMatrix& matrix = p.matrix;
  if (p.form == InputForm::kQ4) {
    kernels.q4.gemm({.weights = matrix.panels,
                     .wide = matrix.wide(),
                     .cols = matrix.cols,
                     .panel0 = p.panel0,
                     .panel1 = p.panel1,
                     .x = static_cast<const std::byte*>(p.x),
                     .x_stride = p.x_stride,
                     .y = p.y,
                     .y_stride = p.y_stride,
                     .rows = p.rows,
                     .counts = p.counts});
  } else if (p.form == InputForm::kInt8) {
    kernels.int8.gemm({.weights = matrix.panels,
                       .cols = matrix.cols,
                       .panel0 = p.panel0,
                       .panel1 = p.panel1,
                       .x = p.x,
                       .x_stride = p.x_stride,
                       .x_scale = p.x_scale,
                       .y = p.y,
                       .y_stride = p.y_stride,
                       .rows = p.rows,
                       .counts = p.counts});
  } else {
    kernels.gemm({.dtype = matrix.dtype,
                  .weights = matrix.panels,
                  .cols = matrix.cols,
                  .panel0 = p.panel0,
                  .panel1 = p.panel1,
                  .x = p.x,
                  .x_stride = p.x_stride,
                  .y = p.y,
                  .y_stride = p.y_stride,
                  .rows = p.rows,
                  .counts = p.counts});
  }
}

}  // namespace manyfold
