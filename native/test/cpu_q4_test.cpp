// 4-bit base weights: every tier against the plain functions of cpu/q4_rows.h, bit for bit, since
// sums of a group are exact and all else has one order; what a file's blocks become; and what the
// rounding of wider weights costs.
#include <algorithm>
#include <array>
#include <cmath>

#include "../core/check_model.h"
#include "../core/error.h"
#include "../cpu/fast_linear.h"
#include "../cpu/q4_rows.h"
#include "../cpu/reference/reference_stores.h"
#include "../model/dequant.h"
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

Q4Matrix rounded_weights(const std::vector<float>& dense, int32_t rows, int32_t cols) {
  Q4Matrix out(rows, cols);
  for (int32_t i = 0; i < rows; ++i) {
    quantize_q4_weight(dense.data() + int64_t{i} * cols, cols, out.from(i));
  }
  return out;
}

// A matrix packed for one tier.
struct Packed {
  const Kernels& k;
  bool wide;
  int32_t rows, cols, panels;
  Q4Matrix plain;
  std::vector<std::byte> bytes;

  Packed(const Kernels& kernels, Q4Matrix matrix, int32_t n, int32_t width, bool in_float)
      : k(kernels),
        wide(in_float),
        rows(n),
        cols(width),
        panels((n + k.q4.panel_rows - 1) / k.q4.panel_rows),
        plain(std::move(matrix)),
        bytes(static_cast<size_t>(panels) * k.q4.panel_bytes(width, wide)) {
    for (int32_t p = 0; p < panels; ++p) {
      const int32_t first = p * k.q4.panel_rows;
      k.q4.pack(plain.from(first), std::min(k.q4.panel_rows, rows - first), cols, wide, panel(p));
    }
  }
  std::byte* panel(int32_t p) {
    return bytes.data() + static_cast<size_t>(p) * k.q4.panel_bytes(cols, wide);
  }
};

struct Inputs {
  int64_t stride;  // bytes
  std::vector<std::byte> bytes;

  Inputs(const Kernels& k, const PaddedRows& x, int32_t rows, int32_t cols)
      : stride(q4_groups(cols) * int64_t{sizeof(Q4Inputs)}),
        bytes(static_cast<size_t>(rows * stride)) {
    for (int32_t i = 0; i < rows; ++i) {
      k.q4.quantize(x.values.data() + i * x.stride, cols, bytes.data() + i * stride);
    }
  }
};

std::vector<Q4Inputs> plain_inputs(const float* x, int32_t cols) {
  std::vector<Q4Inputs> out(static_cast<size_t>(q4_groups(cols)));
  quantize_q4_input(x, cols, out.data());
  return out;
}

void multiply(const Packed& w, const Inputs& x, int32_t first, int32_t count, PaddedRows& y,
              int32_t panel0, int32_t panel1) {
  TileCounts counts;
  w.k.q4.gemm({.weights = w.bytes.data(),
               .wide = w.wide,
               .cols = w.cols,
               .panel0 = panel0,
               .panel1 = panel1,
               .x = x.bytes.data() + first * x.stride,
               .x_stride = x.stride,
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

float plain_product(const Q4Matrix& w, int32_t row, const std::vector<Q4Inputs>& x, int32_t cols) {
  float total = 0.0f;
  for (int32_t g = 0; g < q4_groups(cols); ++g) {
    const Q4Inputs& of = x[static_cast<size_t>(g)];
    int32_t sum = 0;
    for (int32_t c = g * kQ4Group; c < std::min(cols, (g + 1) * kQ4Group); ++c) {
      sum += w.codes(row)[c] * of.values[c - g * kQ4Group];
    }
    total = std::fma(static_cast<float>(sum), w.d(row, g) * of.scale, total);
    total = std::fma(w.m(row, g), of.sum, total);
  }
  return total;
}

struct Shape {
  int32_t rows, n, cols;
};

void check_product(const Kernels& k, const Q4Matrix& weights, const std::vector<float>& inputs,
                   Shape s, bool wide) {
  const std::string name = std::string(k.isa) + (wide ? " wide " : " ") + std::to_string(s.rows) +
                           " x " + std::to_string(s.n) + " x " + std::to_string(s.cols);
  const Packed w(k, weights, s.n, s.cols, wide);
  const Inputs x(k, PaddedRows(inputs, s.rows, s.cols), s.rows, s.cols);
  PaddedRows y(s.rows, s.n), expected = y, single = y, parts = y;
  for (int32_t m = 0; m < s.rows; ++m) {
    const auto row = plain_inputs(inputs.data() + int64_t{m} * s.cols, s.cols);
    for (int32_t i = 0; i < s.n; ++i) expected.at(m, i) = plain_product(weights, i, row, s.cols);
  }
  std::fill(y.values.begin(), y.values.end(), std::nanf(""));
  multiply(w, x, 0, s.rows, y, 0, w.panels);
  CHECK_THAT(equal_rows(y, expected, s.rows, s.n), name + ": not what the reference gives");
  for (int32_t m = 0; m < s.rows; ++m) multiply(w, x, m, 1, single, 0, w.panels);
  for (int32_t p = 0; p < w.panels; ++p) multiply(w, x, 0, s.rows, parts, p, p + 1);
  CHECK_THAT(equal_rows(y, single, s.rows, s.n), name + ": bits of one row differ");
  CHECK_THAT(equal_rows(y, parts, s.rows, s.n), name + ": bits of one panel differ");
}

TEST(q4_products_equal_the_reference_bit_for_bit) {
  constexpr int32_t kShapes[][2] = {{192, 64}, {65, 65}, {1, 17},   {17, 1},    {63, 576},
                                    {33, 8},   {48, 33}, {66, 130}, {70, 1536}, {9, 512}};
  for (const Kernels* k : test::all_kernels()) {
    for (const auto& [n, cols] : kShapes) {
      if (emulated(*k) && n * cols > 9000) continue;
      const Q4Matrix w =
          rounded_weights(test::random_floats(static_cast<size_t>(n * cols), 3), n, cols);
      for (const int32_t rows : {1, 2, 3, 5, 6, 7, 12, 13, 16, 33}) {
        if (emulated(*k) && rows > 13) continue;
        const auto x = test::random_floats(static_cast<size_t>(rows * cols), 4);
        check_product(*k, w, x, {rows, n, cols}, false);
        if (rows == 5 || rows == 13) check_product(*k, w, x, {rows, n, cols}, true);
      }
    }
  }
}

TEST(q4_products_do_not_depend_on_the_number_of_rows) {
  const Q4Matrix w = rounded_weights(test::random_floats(35 * 300, 5), 35, 300);
  for (const Kernels* k : test::all_kernels()) {
    if (emulated(*k)) continue;
    for (int32_t rows = 1; rows <= 140; rows += rows < 40 ? 1 : 17) {
      const auto x = test::random_floats(static_cast<size_t>(rows) * 300, 6);
      check_product(*k, w, x, {rows, 35, 300}, false);
    }
  }
}

// Every code 15 and every input at its limit: the sums of a group stay within what tiers without
// VNNI add up in.
TEST(q4_sums_hold_the_largest_values) {
  constexpr int32_t kCols = 96;
  for (const Kernels* k : test::all_kernels()) {
    for (const float sign : {1.0f, -1.0f}) {
      Q4Matrix w(1, kCols);
      std::fill_n(w.from(0).codes, kCols, uint8_t{15});
      std::fill_n(w.from(0).d, q4_groups(kCols), 1.0f);
      for (const int32_t rows : {1, 14}) {
        const std::vector<float> x(static_cast<size_t>(rows) * kCols, 3.0f * sign);
        check_product(*k, w, x, {rows, 1, kCols}, false);
      }
    }
  }
}

TEST(q4_inputs_are_rounded_as_the_reference_rounds_them) {
  for (const Kernels* k : test::all_kernels()) {
    for (const int32_t cols : {1, 6, 31, 32, 33, 63, 64, 96, 130, 576}) {
      constexpr int32_t kRows = 5;
      std::vector<float> dense = test::random_floats(static_cast<size_t>(kRows * cols), 8);
      for (int32_t c = 0; c < cols; ++c) {
        dense[static_cast<size_t>(c)] = 0.0f;
        dense[static_cast<size_t>(cols + c)] *= 1e-33f;
        dense[static_cast<size_t>(2 * cols + c)] = static_cast<float>(c % 7) - 3.5f;  // ties
      }
      const Inputs found(*k, PaddedRows(dense, kRows, cols), kRows, cols);
      bool equal = true;
      for (int32_t m = 0; m < kRows; ++m) {
        const auto expected = plain_inputs(dense.data() + int64_t{m} * cols, cols);
        const auto* row = reinterpret_cast<const Q4Inputs*>(found.bytes.data() + m * found.stride);
        for (size_t g = 0; g < expected.size(); ++g) {
          equal = equal && row[g].scale == expected[g].scale && row[g].sum == expected[g].sum &&
                  std::equal(row[g].values, row[g].values + kQ4Group, expected[g].values);
        }
      }
      CHECK_THAT(equal, std::string(k->isa) + ", width " + std::to_string(cols));
    }
  }
}

TEST(q4_inputs_that_are_not_finite_make_their_row_nan) {
  const Q4Matrix weights = rounded_weights(test::random_floats(40 * 70, 3), 40, 70);
  for (const Kernels* k : test::all_kernels()) {
    for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
      for (const int32_t place : {0, 31, 69}) {
        std::vector<float> dense = test::random_floats(3 * 70, 9);
        dense[static_cast<size_t>(70 + place)] = bad;
        const Packed w(*k, weights, 40, 70, false);
        const Inputs x(*k, PaddedRows(dense, 3, 70), 3, 70);
        PaddedRows y(3, 40);
        multiply(w, x, 0, 3, y, 0, w.panels);
        bool right = std::isnan(plain_product(weights, 0, plain_inputs(dense.data() + 70, 70), 70));
        for (int32_t i = 0; i < 40; ++i) {
          right = right && std::isfinite(y.at(0, i)) && std::isnan(y.at(1, i)) &&
                  std::isfinite(y.at(2, i));
        }
        CHECK_THAT(right, k->isa);
      }
    }
  }
}

TEST(q4_unpacks_what_it_packed) {
  constexpr int32_t kOut = 75, kCols = 70;
  for (const Kernels* k : test::all_kernels()) {
    for (const bool wide : {false, true}) {
      Packed w(*k, rounded_weights(test::random_floats(kOut * kCols, 1), kOut, kCols), kOut, kCols,
               wide);
      Q4Matrix row(1, kCols);
      bool equal = true;
      for (int32_t i = 0; i < kOut; ++i) {
        k->q4.unpack_row(w.panel(i / k->q4.panel_rows), i % k->q4.panel_rows, kCols, wide,
                         row.from(0));
        equal = equal && std::equal(row.codes(0), row.codes(0) + kCols, w.plain.codes(i));
        for (int32_t g = 0; g < q4_groups(kCols); ++g) {
          equal = equal && row.d(0, g) == w.plain.d(i, g) && row.m(0, g) == w.plain.m(i, g);
        }
      }
      CHECK_THAT(equal, k->isa);
    }
  }
}

// Random blocks of a 4-bit type with finite scales.
std::vector<uint8_t> random_blocks(Dtype dtype, size_t count) {
  const auto size = static_cast<size_t>(block_shape(dtype).bytes);
  std::vector<uint8_t> bytes(count * size);
  std::mt19937 generator(7);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  for (size_t b = 0; b < count; ++b) {
    for (const size_t high : {1, 3}) bytes[b * size + high] &= 0xbf;  // exponents below 16
  }
  return bytes;
}

TEST(q4_groups_are_exactly_what_the_file_has) {
  constexpr int32_t kRows = 3, kCols = 512;
  for (const Dtype dtype : {Dtype::kQ4_0, Dtype::kQ4_1, Dtype::kQ4_K}) {
    const auto blocks = static_cast<size_t>(kRows * kCols / block_shape(dtype).values);
    const std::vector<uint8_t> bytes = random_blocks(dtype, blocks);
    std::vector<float> expected(kRows * kCols), found(kRows * kCols);
    dequantize(dtype, bytes.data(), bytes.size(), expected.size(), expected.data());
    Q4Matrix matrix(kRows, kCols);
    decode_q4(dtype, bytes.data(), bytes.size(), kRows, kCols, matrix.from(0));
    for (int32_t i = 0; i < kRows; ++i) {
      dequantize_q4_weight(matrix.from(i), kCols, found.data() + i * kCols);
    }
    CHECK_THAT(found == expected, manyfold::dtype_name(dtype));
    CHECK(matrix.fits_half() == (dtype != Dtype::kQ4_K));
  }
}

TEST(q4_half_precision_goes_there_and_back) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    if ((half & 0x7c00u) == 0x7c00u && (half & 0x3ffu) != 0) continue;  // NaN
    CHECK(f32_to_f16(f16_to_f32(static_cast<uint16_t>(half))) == half);
  }
  CHECK(f32_to_f16(65519.0f) == 0x7bff && f32_to_f16(65520.0f) == 0x7c00);
  CHECK(f32_to_f16(1.0f + 1.0f / 2048) == 0x3c00 && f32_to_f16(1.0f + 3.0f / 2048) == 0x3c02);
  CHECK(f32_to_f16(std::ldexp(1.0f, -25)) == 0 && f32_to_f16(std::ldexp(1.5f, -25)) == 1);
  CHECK((f32_to_f16(std::nanf("")) & 0x7fff) > 0x7c00);
}

// Products on weights that were rounded to 4 bits here, against float64 of the unrounded ones: what
// random normal values lose. A group that is constant loses nothing but the half precision.
TEST(q4_rounding_costs_what_four_bits_cost) {
  constexpr int32_t kOut = 64, kCols = 576;
  const std::vector<float> weights = test::random_floats(kOut * kCols, 1);
  Q4Matrix w = rounded_weights(weights, kOut, kCols);
  ErrorNorm error;
  std::vector<float> served(kCols);
  for (int32_t i = 0; i < kOut; ++i) {
    dequantize_q4_weight(w.from(i), kCols, served.data());
    for (int32_t c = 0; c < kCols; ++c) {
      error.add(served[static_cast<size_t>(c)], weights[static_cast<size_t>(i * kCols + c)]);
    }
  }
  CHECK_THAT(error.relative() < 0.075, std::to_string(error.relative()));
  CHECK(w.fits_half());
  const std::vector<float> same(40, -0.75f);
  Q4Matrix constant = rounded_weights(same, 1, 40);
  dequantize_q4_weight(constant.from(0), 40, served.data());
  CHECK(std::equal(same.begin(), same.end(), served.begin()));
}

// Stores with embedding and head in int8, linears in 4 bits, and one linear of its own format: what
// they serve is the same in the reference and in every tier.
TEST(q4_stores_serve_the_same_weights) {
  const ModelConfig model = test::tiny_model();
  std::vector<WeightFormat> formats((model.layers.size() + 1) * kSiteCount);
  for (size_t i = 0; i < formats.size(); ++i) {
    formats[i] = matrix_format(WeightFormat::kQ4, static_cast<Site>(i % kSiteCount));
  }
  formats[static_cast<size_t>(site_index({1, Site::kV}))] = WeightFormat::kInt8;
  ReferenceWeights reference(model, Dtype::kBf16, WeightFormat::kQ4, formats);
  test::fill_weights(model, reference);
  for (const Kernels* k : test::all_kernels()) {
    ThreadPool pool(2);
    FastWeights fast(model, Dtype::kBf16, *k, pool, WeightFormat::kQ4, formats);
    test::fill_weights(model, fast);
    for (const SiteRef site : {SiteRef{-1, Site::kEmbedding}, SiteRef{0, Site::kQ},
                               SiteRef{1, Site::kV}, SiteRef{2, Site::kDown}}) {
      const WeightShape shape = weight_shape(model, site.site);
      std::vector<float> a(static_cast<size_t>(shape.rows * shape.cols)), b(a.size());
      reference.read_weight(site, WeightPart::kWeight, 0, shape.rows, a.data());
      fast.read_weight(site, WeightPart::kWeight, 0, shape.rows, b.data());
      CHECK_THAT(a == b, k->isa + (" " + site_label(site)));
      CHECK(fast.holds_q4(site) == reference.holds_q4(site));
    }
    CHECK(!fast.holds_q4({1, Site::kV}) && fast.holds_q4({0, Site::kV}));
    CHECK(!fast.holds_q4({-1, Site::kHead}) && !fast.holds_q4({0, Site::kAttnNorm}));
  }
}

// q, k and v of a store whose v is int8, together and one by one, some rows with an adapter that
// changes their inputs: each form of the inputs is rounded once and read by its own members.
TEST(q4_and_int8_linears_share_one_input) {
  constexpr int32_t kRows = 9;
  const ModelConfig model = test::tiny_model();
  std::vector<WeightFormat> formats((model.layers.size() + 1) * kSiteCount, WeightFormat::kQ4);
  formats[static_cast<size_t>(site_index({0, Site::kV}))] = WeightFormat::kInt8;
  const PaddedRows x(test::random_floats(static_cast<size_t>(kRows * model.hidden), 12), kRows,
                     model.hidden);
  for (const Kernels* k : test::all_kernels()) {
    ThreadPool pool(2);
    FastWeights weights(model, Dtype::kBf16, *k, pool, WeightFormat::kQ4, formats);
    test::fill_weights(model, weights);
    FastTerms terms(model, *k);
    const FastTermSet* set = &terms.get(terms.load_terms(test::tiny_terms(model, 1)));
    FastLinear linear(*k, pool, weights, Dtype::kBf16, kRows, model.ffn);
    linear.reserve(terms.limits());
    std::vector<const FastTermSet*> sets(kRows, nullptr);
    sets[2] = sets[7] = set;
    RowGroups groups;
    groups.reserve(kRows);
    groups.build(sets);
    const std::vector<int32_t> gates(kRows, -1);
    const auto run = [&](std::span<const Site> sites) {
      std::vector<PaddedRows> y(
          sites.size(), PaddedRows(kRows, static_cast<int32_t>(round_up(model.q_width(), 128))));
      std::vector<LinearTarget> targets;
      for (size_t i = 0; i < sites.size(); ++i) {
        targets.push_back({{0, sites[i]}, y[i].values.data(), y[i].stride});
      }
      Counters counters;
      linear.run({.targets = targets,
                  .x = x.values.data(),
                  .x_stride = x.stride,
                  .rows = kRows,
                  .groups = &groups,
                  .gates = {{}, 0, gates}},
                 counters);
      return y;
    };
    const std::array sites{Site::kQ, Site::kK, Site::kV};
    const std::vector<PaddedRows> together = run(sites);
    for (size_t i = 0; i < sites.size(); ++i) {
      const std::vector<PaddedRows> alone = run(std::span(sites).subspan(i, 1));
      const int32_t width = weight_shape(model, sites[i]).rows;
      CHECK_THAT(equal_rows(together[i], alone[0], kRows, width), k->isa);
      std::vector<float> dense(static_cast<size_t>(width * model.hidden));
      weights.read_weight({0, sites[i]}, WeightPart::kWeight, 0, width, dense.data());
      ErrorNorm error;
      for (int32_t o = 0; o < width; ++o) {
        double sum = weights.bias({0, sites[i]}) != nullptr ? weights.bias({0, sites[i]})[o] : 0.0f;
        for (int32_t c = 0; c < model.hidden; ++c) {
          sum += double{dense[static_cast<size_t>(o * model.hidden + c)]} * x.at(0, c);
        }
        error.add(together[i].at(0, o), sum);
      }
      CHECK_THAT(error.relative() < 0.02, k->isa + (" " + std::to_string(error.relative())));
    }
  }
}

TEST(q4_stores_refuse_scales_that_half_precision_lacks) {
  const ModelConfig model = test::tiny_model();
  ThreadPool pool(1);
  FastWeights weights(model, Dtype::kBf16, *test::all_kernels().front(), pool, WeightFormat::kQ4);
  std::string refusal;
  try {
    weights.add_q4_weight({0, Site::kQ}, model.q_width(), model.hidden,
                          [&](int32_t, int32_t count, const Q4Rows& out) {
                            const int32_t groups = count * q4_groups(model.hidden);
                            for (int32_t g = 0; g < groups; ++g) {
                              out.d[g] = 9000.0f;
                              out.m[g] = -72000.0f;
                            }
                          });
  } catch (const Error& error) {
    refusal = error.what();
  }
  CHECK_THAT(refusal.find("layer 0 q: expected scales below 8188") != std::string::npos, refusal);
}

}  // namespace
}  // namespace manyfold
