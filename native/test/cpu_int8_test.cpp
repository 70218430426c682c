// Int8 base weights: every tier against the plain functions of cpu/int8_rows.h, bit for bit, since
// sums are exact and all else has one order; and what the rounding costs.
#include <algorithm>
#include <limits>

#include "../core/check_model.h"
#include "../core/error.h"
#include "../cpu/fast_linear.h"
#include "../cpu/int8_rows.h"
#include "check.h"
#include "kernel_helpers.h"
#include "tiny_model.h"

namespace manyfold {
namespace {

using test::ErrorNorm;
using test::PaddedRows;

bool emulated(const Kernels& k) {
  return std::string(k.isa).starts_with("emulated");
}

// Rows of int8 with their scales, by the plain functions.
struct Rounded {
  std::vector<int8_t> values;
  std::vector<float> scales;
};

template <class Quantize>
Rounded round_rows(const std::vector<float>& dense, int32_t rows, int32_t cols,
                   const Quantize& quantize) {
  Rounded out{std::vector<int8_t>(dense.size()), {}};
  for (int32_t i = 0; i < rows; ++i) {
    const auto first = dense.begin() + static_cast<ptrdiff_t>(i) * cols;
    std::vector<float> row(first, first + cols);
    out.scales.push_back(
        quantize(row.data(), cols, out.values.data() + static_cast<ptrdiff_t>(i) * cols));
  }
  return out;
}

// A matrix packed for one tier.
struct Packed {
  const Kernels& k;
  int32_t rows, cols, panels;
  Rounded plain;
  std::vector<std::byte> bytes;

  Packed(const Kernels& kernels, const std::vector<float>& dense, int32_t n, int32_t width)
      : k(kernels),
        rows(n),
        cols(width),
        panels((n + k.int8.panel_rows - 1) / k.int8.panel_rows),
        plain(round_rows(dense, n, width, quantize_weight)),
        bytes(static_cast<size_t>(panels) * k.int8.panel_bytes(width)) {
    const int32_t height = k.int8.panel_rows;
    for (int32_t p = 0; p < panels; ++p) {
      k.int8.pack(plain.values.data() + static_cast<ptrdiff_t>(p) * height * cols,
                  plain.scales.data() + static_cast<ptrdiff_t>(p) * height,
                  std::min(height, rows - p * height), cols, panel(p));
    }
  }
  std::byte* panel(int32_t p) {
    return bytes.data() + static_cast<size_t>(p) * k.int8.panel_bytes(cols);
  }
};

// Rows of inputs as a tier's kernels round them.
struct Inputs {
  int64_t stride;
  std::vector<std::byte> bytes;
  std::vector<float> scales;

  Inputs(const Kernels& k, const PaddedRows& x, int32_t rows, int32_t cols)
      : stride(x.stride), bytes(x.values.size() * static_cast<size_t>(k.int8.input_bytes)) {
    std::vector<float> rotated(static_cast<size_t>(x.stride));
    for (int32_t i = 0; i < rows; ++i) {
      scales.push_back(k.int8.quantize(x.values.data() + i * x.stride, cols, rotated.data(),
                                       bytes.data() + i * x.stride * k.int8.input_bytes));
    }
  }
  int32_t at(const Kernels& k, int32_t row, int32_t col) const {
    const std::byte* p = bytes.data() + (row * stride + col) * k.int8.input_bytes;
    if (k.int8.input_bytes == 1) return static_cast<int32_t>(*p) - 128;
    int16_t value;
    std::memcpy(&value, p, 2);
    return value;
  }
};

void multiply(const Kernels& k, const Packed& w, const Inputs& x, int32_t first, int32_t count,
              PaddedRows& y, int32_t panel0, int32_t panel1) {
  TileCounts counts;
  k.int8.gemm({.weights = w.bytes.data(),
               .cols = w.cols,
               .panel0 = panel0,
               .panel1 = panel1,
               .x = x.bytes.data() + first * x.stride * k.int8.input_bytes,
               .x_stride = x.stride,
               .x_scale = x.scales.data() + first,
               .y = y.values.data() + first * y.stride,
               .y_stride = y.stride,
               .rows = count,
               .counts = &counts});
  CHECK(count == 1 ? counts.multi_row == 0 : counts.single_row == 0);
}

bool equal_rows(const PaddedRows& a, const PaddedRows& b, int32_t rows, int32_t width) {
  for (int32_t m = 0; m < rows; ++m) {
    for (int32_t i = 0; i < width; ++i) {
      if (a.at(m, i) != b.at(m, i)) return false;
    }
  }
  return true;
}

PaddedRows plain_products(const Rounded& w, const Rounded& x, int32_t rows, int32_t n,
                          int32_t cols) {
  PaddedRows y(rows, n);
  for (int32_t m = 0; m < rows; ++m) {
    for (int32_t i = 0; i < n; ++i) {
      int64_t sum = 0;
      for (int32_t c = 0; c < cols; ++c) {
        sum += w.values[static_cast<size_t>(i * cols + c)] *
               x.values[static_cast<size_t>(m * cols + c)];
      }
      y.at(m, i) = static_cast<float>(sum) *
                   (x.scales[static_cast<size_t>(m)] * w.scales[static_cast<size_t>(i)]);
    }
  }
  return y;
}

void check_product(const Kernels& k, const std::vector<float>& weights,
                   const std::vector<float>& inputs, int32_t rows, int32_t n, int32_t cols) {
  const std::string name = std::string(k.isa) + " " + std::to_string(rows) + " x " +
                           std::to_string(n) + " x " + std::to_string(cols);
  const Packed w(k, weights, n, cols);
  const PaddedRows x(inputs, rows, cols);
  const Inputs rounded(k, x, rows, cols);
  const PaddedRows expected =
      plain_products(w.plain, round_rows(inputs, rows, cols, quantize_input), rows, n, cols);
  PaddedRows y(rows, n), single(rows, n), parts(rows, n);
  std::fill(y.values.begin(), y.values.end(), std::nanf(""));
  multiply(k, w, rounded, 0, rows, y, 0, w.panels);
  CHECK_THAT(equal_rows(y, expected, rows, n), name + ": not what the reference gives");
  for (int32_t m = 0; m < rows; ++m) multiply(k, w, rounded, m, 1, single, 0, w.panels);
  for (int32_t p = 0; p < w.panels; ++p) multiply(k, w, rounded, 0, rows, parts, p, p + 1);
  CHECK_THAT(equal_rows(y, single, rows, n), name + ": bits of one row differ");
  CHECK_THAT(equal_rows(y, parts, rows, n), name + ": bits of one panel differ");
}

TEST(int8_products_equal_the_reference_bit_for_bit) {
  constexpr int32_t kShapes[][2] = {{576, 64}, {192, 65}, {1, 17},  {17, 1},   {63, 576},
                                    {65, 63},  {33, 8},   {48, 33}, {66, 130}, {130, 1536}};
  for (const Kernels* k : test::all_kernels()) {
    for (const auto& [n, cols] : kShapes) {
      for (const int32_t rows : {1, 2, 3, 5, 6, 7, 16, 33}) {
        if (emulated(*k) && (n * cols > 9000 || rows > 7)) continue;
        check_product(*k, test::random_floats(static_cast<size_t>(n * cols), 3),
                      test::random_floats(static_cast<size_t>(rows * cols), 4), rows, n, cols);
      }
    }
    for (int32_t rows = 1; rows <= 67; ++rows) {
      check_product(*k, test::random_floats(35 * 37, 5),
                    test::random_floats(static_cast<size_t>(rows) * 37, 6), rows, 35, 37);
    }
  }
}

// An odd width is not rotated, so every value stays at its limit.
TEST(int8_sums_hold_the_largest_values) {
  constexpr int32_t kCols = kMostInt8Inputs - 1;
  for (const Kernels* k : test::all_kernels()) {
    if (emulated(*k)) continue;
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> weights(kCols, sign), inputs(2 * kCols, 3.0f);
      check_product(*k, weights, inputs, 2, 1, kCols);
      const Packed w(*k, weights, 1, kCols);
      CHECK(w.plain.values[0] == static_cast<int8_t>(127 * sign));
    }
  }
}

TEST(int8_inputs_are_rounded_as_the_reference_rounds_them) {
  for (const Kernels* k : test::all_kernels()) {
    for (const int32_t cols :
         {1, 2, 6, 20, 24, 63, 64, 72, 96, 128, 160, 256, 512, 576, 1536, 3 * kMostRotated}) {
      constexpr int32_t kRows = 5;
      std::vector<float> dense = test::random_floats(static_cast<size_t>(kRows * cols), 8);
      for (int32_t c = 0; c < cols; ++c) {
        dense[static_cast<size_t>(c)] = 0.0f;
        dense[static_cast<size_t>(cols + c)] *= 1e-33f;
        dense[static_cast<size_t>(2 * cols + c)] = static_cast<float>(c % 7) - 3.5f;  // ties
      }
      dense[static_cast<size_t>(3 * cols)] = 3000.0f;
      const Rounded expected = round_rows(dense, kRows, cols, quantize_input);
      const Inputs found(*k, PaddedRows(dense, kRows, cols), kRows, cols);
      bool equal = found.scales == expected.scales && expected.scales[0] == 0.0f;
      for (int32_t m = 0; m < kRows; ++m) {
        for (int32_t c = 0; c < cols; ++c) {
          equal = equal && found.at(*k, m, c) == expected.values[static_cast<size_t>(m * cols + c)];
        }
      }
      CHECK_THAT(equal, std::string(k->isa) + ", width " + std::to_string(cols));
    }
  }
}

TEST(int8_inputs_that_are_not_finite_make_their_row_nan) {
  for (const Kernels* k : test::all_kernels()) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const int32_t place : {0, 31, 69}) {
        std::vector<float> dense = test::random_floats(3 * 70, 9);
        dense[static_cast<size_t>(70 + place)] = bad;
        const Packed w(*k, test::random_floats(40 * 70, 3), 40, 70);
        const Inputs x(*k, PaddedRows(dense, 3, 70), 3, 70);
        PaddedRows y(3, 40);
        multiply(*k, w, x, 0, 3, y, 0, w.panels);
        bool right = true;
        for (int32_t i = 0; i < 40; ++i) {
          right = right && std::isfinite(y.at(0, i)) && std::isnan(y.at(1, i)) &&
                  std::isfinite(y.at(2, i));
        }
        CHECK_THAT(right, k->isa);
        std::vector<int8_t> values(70);
        CHECK(std::isnan(quantize_input(dense.data() + 70, 70, values.data())));
      }
    }
  }
}

TEST(int8_unpacks_what_it_packed) {
  for (const Kernels* k : test::all_kernels()) {
    constexpr int32_t kOut = 75, kCols = 31;
    Packed w(*k, test::random_floats(kOut * kCols, 1), kOut, kCols);
    std::vector<int8_t> row(kCols);
    bool equal = true;
    for (int32_t i = 0; i < kOut; ++i) {
      const float scale = k->int8.unpack_row(w.panel(i / k->int8.panel_rows),
                                             i % k->int8.panel_rows, kCols, row.data());
      equal = equal && scale == w.plain.scales[static_cast<size_t>(i)] &&
              std::equal(row.begin(), row.end(), w.plain.values.begin() + i * kCols);
    }
    CHECK_THAT(equal, k->isa);
  }
}

TEST(int8_rotation_turns_back) {
  for (const int32_t cols : {1, 3, 6, 64, 96, 576, 2 * kMostRotated}) {
    const std::vector<float> before = test::random_integers(static_cast<size_t>(cols), 5);
    std::vector<float> after = before;
    rotate_blocks(after.data(), cols);
    rotate_blocks(after.data(), cols);
    const auto block = static_cast<float>(rotation_block(cols));
    bool equal = cols % rotation_block(cols) == 0;
    for (size_t i = 0; i < before.size(); ++i) equal = equal && after[i] == before[i] * block;
    CHECK_THAT(equal, "width " + std::to_string(cols));
  }
}

TEST(int8_refuses_linears_whose_sums_might_overflow) {
  BackendOptions options;
  options.model = test::tiny_model();
  options.kv_pages = options.max_rows = options.max_entries = 1;
  options.model.ffn = kMostInt8Inputs + 1;
  check_options(options);
  options.format = WeightFormat::kInt8;
  std::string refusal;
  try {
    check_options(options);
  } catch (const Error& error) {
    refusal = error.what();
  }
  CHECK_THAT(refusal.find("65536 inputs, found 65537") != std::string::npos, refusal);
}

// What a lowrank adapter adds to q of layer 0 on a base in `format`.
std::vector<float> adapter_part(const Kernels& k, WeightFormat format, const PaddedRows& x,
                                int32_t rows) {
  const ModelConfig model = test::tiny_model();
  ThreadPool pool(2);
  FastWeights weights(model, Dtype::kF32, k, pool, format);
  test::fill_weights(model, weights);
  FastTerms terms(model, k);
  const FastTermSet* set = &terms.get(terms.load_terms(test::tiny_terms(model, 0)));
  FastLinear linear(k, pool, weights, Dtype::kF32, rows, model.hidden);
  linear.reserve(terms.limits());
  const std::vector<int32_t> gates(static_cast<size_t>(rows), -1);
  RowGroups groups;
  groups.reserve(rows);
  Counters counters;
  std::vector<float> difference;
  for (const FastTermSet* of_rows : {static_cast<const FastTermSet*>(nullptr), set}) {
    const std::vector<const FastTermSet*> sets(static_cast<size_t>(rows), of_rows);
    groups.build(sets);
    PaddedRows y(rows, static_cast<int32_t>(round_up(model.q_width(), 2 * kRowPad)));
    const LinearTarget target{{0, Site::kQ}, y.values.data(), y.stride};
    linear.run({.targets = std::span<const LinearTarget>(&target, 1),
                .x = x.values.data(),
                .x_stride = x.stride,
                .rows = rows,
                .groups = &groups,
                .gates = {{}, 0, gates}},
               counters);
    difference.resize(y.values.size());
    for (size_t i = 0; i < difference.size(); ++i) difference[i] = y.values[i] - difference[i];
  }
  return difference;
}

TEST(int8_bases_leave_adapters_exact) {
  constexpr int32_t kRows = 9;
  const int32_t cols = test::tiny_model().hidden;
  const PaddedRows x(test::random_floats(static_cast<size_t>(kRows * cols), 12), kRows, cols);
  for (const Kernels* k : test::all_kernels()) {
    const std::vector<float> expected = adapter_part(*k, WeightFormat::kPlain, x, kRows);
    const std::vector<float> found = adapter_part(*k, WeightFormat::kInt8, x, kRows);
    ErrorNorm error;
    for (size_t i = 0; i < expected.size(); ++i) error.add(found[i], expected[i]);
    CHECK_THAT(error.relative() < 1e-5, k->isa + (" " + std::to_string(error.relative())));
  }
}

// Products of rounded rows against float64: nearly as good with one input a thousand times as large
// as the others, which a single scale would leave nothing of the rest of.
TEST(int8_rounding_costs_little_with_outliers_too) {
  constexpr int32_t kRows = 8, kOut = 96, kCols = 576;
  for (const float outlier : {1.0f, 1000.0f}) {
    std::vector<float> inputs = test::random_floats(kRows * kCols, 2);
    for (int32_t m = 0; m < kRows; ++m) inputs[static_cast<size_t>(m * kCols + 100)] *= outlier;
    std::vector<float> weights = test::random_floats(kOut * kCols, 1);
    // The outlier's own products would hide the error of the others.
    for (int32_t i = 0; i < kOut; ++i) weights[static_cast<size_t>(i * kCols + 100)] = 0.0f;
    const Rounded w = round_rows(weights, kOut, kCols, quantize_weight);
    const Rounded x = round_rows(inputs, kRows, kCols, quantize_input);
    const PaddedRows y = plain_products(w, x, kRows, kOut, kCols);
    ErrorNorm error, of_weights;
    std::vector<float> served(kCols);
    for (int32_t i = 0; i < kOut; ++i) {
      dequantize_weight(w.values.data() + i * kCols, w.scales[static_cast<size_t>(i)], kCols,
                        served.data());
      for (int32_t c = 0; c < kCols; ++c) {
        of_weights.add(served[static_cast<size_t>(c)], weights[static_cast<size_t>(i * kCols + c)]);
      }
      for (int32_t m = 0; m < kRows; ++m) {
        double sum = 0;
        for (int32_t c = 0; c < kCols; ++c) {
          sum += static_cast<double>(weights[static_cast<size_t>(i * kCols + c)]) *
                 inputs[static_cast<size_t>(m * kCols + c)];
        }
        error.add(y.at(m, i), sum);
      }
    }
    CHECK_THAT(of_weights.relative() < 0.01, "weights " + std::to_string(of_weights.relative()));
    CHECK_THAT(error.relative() < (outlier > 1 ? 0.5 : 0.015),
               "products " + std::to_string(error.relative()));
  }
}

}  // namespace
}  // namespace manyfold
