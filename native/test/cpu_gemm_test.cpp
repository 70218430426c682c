// Packed products of every tier: base weights, and the two halves of lowrank adapters, against
// float64; and the promise that a sum's bits depend on nothing but its own inputs.
#include <algorithm>

#include "check.h"
#include "kernel_helpers.h"

namespace manyfold {
namespace {

using test::ErrorNorm;
using test::PaddedRows;

bool emulated(const Kernels& k) {
  return std::string(k.isa).starts_with("emulated");
}

// A packed matrix and its values as served.
struct Packed {
  const Kernels& kernels;
  Dtype dtype;
  int32_t rows, cols, panels;
  std::vector<float> values;
  std::vector<std::byte> bytes;

  Packed(const Kernels& k, Dtype type, int32_t n, int32_t width, std::vector<float> weights)
      : kernels(k),
        dtype(type),
        rows(n),
        cols(width),
        panels((n + k.panel_rows(type) - 1) / k.panel_rows(type)),
        values(std::move(weights)),
        bytes(static_cast<size_t>(panels) * k.panel_bytes(type, width)) {
    const int32_t height = k.panel_rows(dtype);
    for (int32_t p = 0; p < panels; ++p) {
      k.pack_panel(dtype, values.data() + static_cast<ptrdiff_t>(p) * height * cols,
                   std::min(height, rows - p * height), cols, panel(p));
    }
    test::round_all(values, dtype);
  }
  std::byte* panel(int32_t p) {
    return bytes.data() + static_cast<size_t>(p) * kernels.panel_bytes(dtype, cols);
  }

  // Rows first .. first + count - 1 of x into the same rows of y.
  TileCounts multiply(const PaddedRows& x, int32_t first, int32_t count, PaddedRows& y,
                      int32_t panel0, int32_t panel1) {
    TileCounts counts;
    std::vector<uint16_t> halves;
    GemmArgs args{.dtype = dtype,
                  .weights = bytes.data(),
                  .cols = cols,
                  .panel0 = panel0,
                  .panel1 = panel1,
                  .x = x.values.data() + first * x.stride,
                  .x_stride = x.stride,
                  .y = y.values.data() + first * y.stride,
                  .y_stride = y.stride,
                  .rows = count,
                  .counts = &counts};
    if (kernels.rounds_inputs && dtype == Dtype::kBf16) {
      halves.resize(x.values.size());
      kernels.round_inputs(x.values.data(), static_cast<int64_t>(halves.size()), halves.data());
      args.x = halves.data() + first * x.stride;
    }
    kernels.gemm(args);
    return counts;
  }
};

void check_product(const Kernels& k, Dtype dtype, int32_t rows, int32_t n, int32_t cols) {
  const std::string name = std::string(k.isa) + test::dtype_name(dtype) + std::to_string(rows) +
                           " x " + std::to_string(n) + " x " + std::to_string(cols);
  Packed w(k, dtype, n, cols, test::random_floats(static_cast<size_t>(n * cols), 3));
  const PaddedRows x(test::random_floats(static_cast<size_t>(rows * cols), 4), rows, cols);
  PaddedRows y(rows, n);
  std::fill(y.values.begin(), y.values.end(), std::nanf(""));
  w.multiply(x, 0, rows, y, 0, w.panels);
  ErrorNorm error;
  for (int32_t m = 0; m < rows; ++m) {
    for (int32_t i = 0; i < n; ++i) {
      double sum = 0;
      for (int32_t c = 0; c < cols; ++c) {
        sum += static_cast<double>(w.values[static_cast<size_t>(i * cols + c)]) * x.at(m, c);
      }
      error.add(y.at(m, i), sum);
    }
  }
  const double limit = k.rounds_inputs && dtype == Dtype::kBf16 ? 4e-3 : 2e-6;
  CHECK_THAT(error.relative() < limit, name + ": error " + std::to_string(error.relative()));

  // Row by row, and panel by panel: the same bits.
  PaddedRows single(rows, n);
  for (int32_t m = 0; m < rows; ++m) {
    const TileCounts counts = w.multiply(x, m, 1, single, 0, w.panels);
    CHECK(counts.single_row > 0 && counts.multi_row == 0);
  }
  PaddedRows parts(rows, n);
  for (int32_t p = 0; p < w.panels; ++p) w.multiply(x, 0, rows, parts, p, p + 1);
  bool equal = true;
  for (int32_t m = 0; m < rows; ++m) {
    for (int32_t i = 0; i < n; ++i) {
      equal = equal && y.at(m, i) == single.at(m, i) && y.at(m, i) == parts.at(m, i);
    }
  }
  CHECK_THAT(equal, name + ": bits of one row or one panel differ");
}

TEST(gemm_equals_float64_whatever_the_tile) {
  constexpr int32_t kShapes[][2] = {{576, 64}, {192, 65}, {1, 17},   {17, 1},  {63, 576},
                                    {65, 63},  {33, 8},   {100, 40}, {48, 33}, {130, 1536}};
  for (const Kernels* k : test::float_kernels()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
      for (const auto& [n, cols] : kShapes) {
        for (const int32_t rows : {1, 2, 3, 4, 5, 6, 7, 16, 23, 33, 64}) {
          // The emulated tiers are slow: one large shape and few row counts say the same.
          if (emulated(*k) && (n * cols > 8000 || rows > 16)) continue;
          check_product(*k, dtype, rows, n, cols);
        }
      }
    }
  }
}

TEST(gemm_is_exact_on_integers) {
  for (const Kernels* k : test::float_kernels()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
      constexpr int32_t kRows = 8, kOut = 70, kCols = 45;
      Packed w(*k, dtype, kOut, kCols, test::random_integers(kOut * kCols, 1));
      const PaddedRows x(test::random_integers(kRows * kCols, 2), kRows, kCols);
      PaddedRows y(kRows, kOut);
      w.multiply(x, 0, kRows, y, 0, w.panels);
      bool equal = true;
      for (int32_t m = 0; m < kRows; ++m) {
        for (int32_t i = 0; i < kOut; ++i) {
          float sum = 0;
          for (int32_t c = 0; c < kCols; ++c) {
            sum += w.values[static_cast<size_t>(i * kCols + c)] * x.at(m, c);
          }
          equal = equal && y.at(m, i) == sum;
        }
      }
      CHECK_THAT(equal, std::string(k->isa) + test::dtype_name(dtype));
    }
  }
}

TEST(gemm_unpacks_what_it_packed) {
  for (const Kernels* k : test::float_kernels()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
      constexpr int32_t kOut = 75, kCols = 31;
      Packed w(*k, dtype, kOut, kCols, test::random_floats(kOut * kCols, 1));
      const int32_t height = k->panel_rows(dtype);
      std::vector<float> row(kCols);
      bool equal = true;
      for (int32_t i = 0; i < kOut; ++i) {
        k->unpack_row(dtype, w.panel(i / height), i % height, kCols, row.data());
        equal = equal && std::equal(row.begin(), row.end(), w.values.begin() + i * kCols);
      }
      CHECK_THAT(equal, std::string(k->isa) + test::dtype_name(dtype));
    }
  }
}

TEST(gemm_rounds_inputs_to_nearest_even) {
  std::vector<float> x = test::random_floats(64, 9);
  const float special[] = {0.0f, -0.0f,           1.00390625f, 1.01171875f, INFINITY, -INFINITY,
                           NAN,  1.17549435e-38f, 1e-40f,      3.4e38f,     -2.5f,    65280.5f};
  std::copy(std::begin(special), std::end(special), x.begin());
  for (const Kernels* k : test::float_kernels()) {
    std::vector<uint16_t> halves(64);
    k->round_inputs(x.data(), 64, halves.data());
    bool equal = true;
    for (size_t i = 0; i < 64; ++i) equal = equal && halves[i] == f32_to_bf16(x[i]);
    CHECK_THAT(equal, k->isa);
  }
}

// One adapter's factors at one site, packed.
struct Adapter {
  const Kernels& k;
  Dtype dtype;
  int32_t rank, in, out;
  std::vector<float> a, b, factor, out_diag;
  std::vector<std::byte> packed_a, packed_b;

  Adapter(const Kernels& kernels, Dtype type, int32_t r, int32_t cols, int32_t rows)
      : k(kernels),
        dtype(type),
        rank(r),
        in(cols),
        out(rows),
        a(test::random_floats(static_cast<size_t>(r * cols), 5)),
        b(test::random_floats(static_cast<size_t>(rows * r), 6)),
        factor(test::random_floats(static_cast<size_t>(round_up(r, kRowPad)), 7)),
        out_diag(test::random_floats(static_cast<size_t>(round_up(rows, kRowPad)), 8)),
        packed_a(k.reduce_bytes(dtype, rank, in)),
        packed_b(k.spread_bytes(dtype, out, rank)) {
    k.pack_reduce(dtype, a.data(), rank, in, packed_a.data());
    k.pack_spread(dtype, b.data(), out, rank, packed_b.data());
    test::round_all(a, dtype);
    test::round_all(b, dtype);
  }

  int32_t vectors() const { return (rank + k.lanes - 1) / k.lanes; }
  int32_t panels() const { return (out + k.spread_rows() - 1) / k.spread_rows(); }

  void apply(const PaddedRows& x, const std::vector<int32_t>& rows, PaddedRows& y, bool diag,
             bool piecewise) const {
    const auto count = static_cast<int32_t>(rows.size());
    PaddedRows v(count, rank);
    ReduceArgs reduce{.dtype = dtype,
                      .a = packed_a.data(),
                      .ranks = rank,
                      .cols = in,
                      .vector0 = 0,
                      .vector1 = vectors(),
                      .x = x.values.data(),
                      .x_stride = x.stride,
                      .rows = rows.data(),
                      .count = count,
                      .factor = factor.data(),
                      .v = v.values.data(),
                      .v_stride = v.stride};
    SpreadArgs spread{.dtype = dtype,
                      .b = packed_b.data(),
                      .rank = rank,
                      .panel0 = 0,
                      .panel1 = panels(),
                      .v = v.values.data(),
                      .v_stride = v.stride,
                      .rows = rows.data(),
                      .count = count,
                      .out_diag = diag ? out_diag.data() : nullptr,
                      .y = y.values.data(),
                      .y_stride = y.stride};
    if (!piecewise) {
      k.reduce(reduce);
      k.spread(spread);
      return;
    }
    for (int32_t i = 0; i < vectors(); ++i) {
      reduce.vector0 = i;
      reduce.vector1 = i + 1;
      k.reduce(reduce);
    }
    for (int32_t p = 0; p < panels(); ++p) {
      spread.panel0 = p;
      spread.panel1 = p + 1;
      k.spread(spread);
    }
  }
};

void check_adapter(const Kernels& k, Dtype dtype, int32_t rank, int32_t count, int32_t in,
                   int32_t out) {
  const std::string name = std::string(k.isa) + test::dtype_name(dtype) + "rank " +
                           std::to_string(rank) + ", rows " + std::to_string(count);
  const Adapter adapter(k, dtype, rank, in, out);
  // Rows 1, 3, 5, …: those between belong to others.
  const int32_t all = 2 * count + 1;
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < count; ++i) rows.push_back(2 * i + 1);
  const PaddedRows x(test::random_floats(static_cast<size_t>(all * in), 11), all, in);
  for (const bool diag : {false, true}) {
    PaddedRows y(all, out), piecewise(all, out), single(all, out);
    adapter.apply(x, rows, y, diag, false);
    adapter.apply(x, rows, piecewise, diag, true);
    for (const int32_t row : rows) adapter.apply(x, {row}, single, diag, false);
    ErrorNorm error;
    bool others_untouched = true;
    for (int32_t m = 0; m < all; ++m) {
      std::vector<double> v(static_cast<size_t>(rank), 0.0);
      for (int32_t r = 0; r < rank; ++r) {
        for (int32_t c = 0; c < in; ++c) {
          v[static_cast<size_t>(r)] +=
              static_cast<double>(adapter.a[static_cast<size_t>(r * in + c)]) * x.at(m, c);
        }
        v[static_cast<size_t>(r)] *= adapter.factor[static_cast<size_t>(r)];
      }
      for (int32_t i = 0; i < out; ++i) {
        if (m % 2 == 0) {
          others_untouched = others_untouched && y.at(m, i) == 0.0f;
          continue;
        }
        double sum = 0;
        for (int32_t r = 0; r < rank; ++r) {
          sum += adapter.b[static_cast<size_t>(i * rank + r)] * v[static_cast<size_t>(r)];
        }
        error.add(y.at(m, i), diag ? sum * adapter.out_diag[static_cast<size_t>(i)] : sum);
      }
    }
    CHECK_THAT(error.relative() < 1e-5, name + ": error " + std::to_string(error.relative()));
    CHECK_THAT(others_untouched, name + ": rows of others changed");
    CHECK_THAT(y.values == piecewise.values, name + ": bits differ piece by piece");
    CHECK_THAT(y.values == single.values, name + ": bits differ row by row");
  }
}

TEST(lowrank_equals_float64_for_every_rank) {
  for (const Kernels* k : test::float_kernels()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16}) {
      for (const int32_t rank : {1, 2, 3, 8, 16, 17, 48, 64, 128}) {
        for (const int32_t count : {1, 2, 5, 7, 16, 33}) {
          if (emulated(*k) && rank * count > 200) continue;
          check_adapter(*k, dtype, rank, count, 72, 100);
        }
      }
      check_adapter(*k, dtype, 16, 3, 577, 193);
    }
  }
}

}  // namespace
}  // namespace manyfold
