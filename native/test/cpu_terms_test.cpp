// Kernels of adapter terms beside plain lowrank factors, on every tier: ternary and int8 factors,
// sparse slices, block-diagonal maps, and what bottlenecks need, against exact integers or float64;
// and the promise that a row's bits do not depend on its neighbours or on how the work is cut.
#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "check.h"
#include "kernel_helpers.h"

namespace manyfold {
namespace {

using test::ErrorNorm;
using test::PaddedRows;

constexpr int32_t kCounts[] = {1, 2, 4, 7, 33};

bool emulated(const Kernels& k) {
  return std::string(k.isa).starts_with("emulated");
}

// Integers that the type holds: -1 .. 1 for ternary codes, else -3 .. 3.
std::vector<float> factor_values(FactorType type, int32_t count, uint32_t seed) {
  std::vector<float> values = test::random_integers(static_cast<size_t>(count), seed);
  if (type == FactorType::kTernary) {
    for (float& v : values) v = v > 1 ? 1.0f : v < -1 ? -1.0f : 0.0f;
  }
  return values;
}

std::vector<int32_t> odd_rows(int32_t count) {
  std::vector<int32_t> rows;
  for (int32_t i = 0; i < count; ++i) rows.push_back(2 * i + 1);
  return rows;
}

struct Factors {
  const Kernels& k;
  FactorType type;
  int32_t rank, in, out;
  std::vector<float> a, b, factor, out_diag;
  std::vector<std::byte> packed_a, packed_b;

  Factors(const Kernels& kernels, FactorType t, int32_t r, int32_t cols, int32_t outs)
      : k(kernels),
        type(t),
        rank(r),
        in(cols),
        out(outs),
        a(factor_values(t, r * cols, 5)),
        b(factor_values(t, outs * r, 6)),
        factor(static_cast<size_t>(round_up(r, kRowPad)), 0.0f),
        out_diag(static_cast<size_t>(round_up(outs, kRowPad)), 0.0f),
        packed_a(k.reduce_bytes(t, r, cols)),
        packed_b(k.spread_bytes(t, outs, r)) {
    for (int32_t i = 0; i < r; ++i) factor[static_cast<size_t>(i)] = static_cast<float>(i % 3 - 1);
    for (int32_t i = 0; i < outs; ++i) out_diag[static_cast<size_t>(i)] = 0.5f * (i % 4);
    k.pack_reduce(t, a.data(), r, cols, packed_a.data());
    k.pack_spread(t, b.data(), outs, r, packed_b.data());
  }

  // v [count, rank] and y; cut: vector by vector and panel by panel.
  void apply(const PaddedRows& x, const std::vector<int32_t>& rows, PaddedRows& v, PaddedRows& y,
             bool cut) const {
    const int32_t vectors = (rank + k.lanes - 1) / k.lanes;
    const int32_t panels = (out + k.spread_rows() - 1) / k.spread_rows();
    ReduceArgs reduce{.dtype = type, .a = packed_a.data(), .ranks = rank, .cols = in};
    reduce.x = x.values.data();
    reduce.x_stride = x.stride;
    reduce.rows = rows.data();
    reduce.count = static_cast<int32_t>(rows.size());
    reduce.factor = factor.data();
    reduce.v = v.values.data();
    reduce.v_stride = v.stride;
    for (int32_t i = 0; i < (cut ? vectors : 1); ++i) {
      reduce.vector0 = i;
      reduce.vector1 = cut ? i + 1 : vectors;
      k.reduce(reduce);
    }
    SpreadArgs spread{.dtype = type, .b = packed_b.data(), .rank = rank};
    spread.v = v.values.data();
    spread.v_stride = v.stride;
    spread.rows = rows.data();
    spread.count = reduce.count;
    spread.out_diag = out_diag.data();
    spread.y = y.values.data();
    spread.y_stride = y.stride;
    for (int32_t p = 0; p < (cut ? panels : 1); ++p) {
      spread.panel0 = p;
      spread.panel1 = cut ? p + 1 : panels;
      k.spread(spread);
    }
  }
};

// All values are small integers and halves, so every sum is exact and the results must be equal.
void check_factors(const Kernels& k, FactorType type, int32_t rank, int32_t in, int32_t out,
                   int32_t count) {
  const Factors factors(k, type, rank, in, out);
  const int32_t all = 2 * count + 1;
  const std::vector<int32_t> rows = odd_rows(count);
  const PaddedRows x(test::random_integers(static_cast<size_t>(all * in), 11), all, in);
  PaddedRows v(count, rank), y(all, out);
  // What lies behind the last rank is nobody's business.
  std::fill(v.values.begin(), v.values.end(), std::nanf(""));
  factors.apply(x, rows, v, y, false);
  bool equal = true, untouched = true;
  for (int32_t m = 0; m < count; ++m) {
    for (int32_t r = 0; r < rank; ++r) {
      float sum = 0;
      for (int32_t c = 0; c < in; ++c) {
        sum += factors.a[static_cast<size_t>(r * in + c)] * x.at(rows[static_cast<size_t>(m)], c);
      }
      equal = equal && v.at(m, r) == sum * factors.factor[static_cast<size_t>(r)];
    }
    for (int32_t o = 0; o < out; ++o) {
      float sum = 0;
      for (int32_t r = 0; r < rank; ++r) {
        sum += factors.b[static_cast<size_t>(o * rank + r)] * v.at(m, r);
      }
      sum *= factors.out_diag[static_cast<size_t>(o)];
      equal = equal && y.at(rows[static_cast<size_t>(m)], o) == sum;
      untouched = untouched && y.at(2 * m, o) == 0.0f;
    }
  }
  const std::string name = std::string(k.isa) + " type " + std::to_string(int{type}) + " rank " +
                           std::to_string(rank) + ", " + std::to_string(in) + " x " +
                           std::to_string(out) + ", rows " + std::to_string(count);
  CHECK_THAT(equal, name + ": wrong");
  CHECK_THAT(untouched, name + ": rows of others changed");
}

// The same with values whose sums are rounded: the order of a sum must not depend on the cut.
void check_factor_bits(const Kernels& k, FactorType type, int32_t rank, int32_t count) {
  constexpr int32_t kIn = 77, kOut = 130;
  const Factors factors(k, type, rank, kIn, kOut);
  const int32_t all = 2 * count + 1;
  const std::vector<int32_t> rows = odd_rows(count);
  const PaddedRows x(test::random_floats(static_cast<size_t>(all * kIn), 12), all, kIn);
  PaddedRows v(count, rank), y(all, kOut), cut(all, kOut), single(all, kOut);
  factors.apply(x, rows, v, y, false);
  factors.apply(x, rows, v, cut, true);
  for (const int32_t row : rows) factors.apply(x, {row}, v, single, false);
  const std::string name = std::string(k.isa) + " type " + std::to_string(int{type}) + " rank " +
                           std::to_string(rank) + ", rows " + std::to_string(count);
  CHECK_THAT(y.values == cut.values, name + ": bits differ piece by piece");
  CHECK_THAT(y.values == single.values, name + ": bits differ row by row");
}

TEST(factors_are_exact_on_integers_for_every_type) {
  for (const Kernels* k : test::all_kernels()) {
    for (const FactorType type :
         {FactorType::kF32, FactorType::kBf16, FactorType::kInt8, FactorType::kTernary}) {
      for (const int32_t rank : {1, 2, 7, 8, 15, 16, 17, 31, 33, 48, 64}) {
        for (const int32_t count : kCounts) {
          if (emulated(*k) && rank * count > 120) continue;
          check_factors(*k, type, rank, 77, 100, count);
          check_factor_bits(*k, type, rank, count);
        }
      }
      for (const int32_t in : {1, 3, 15, 16, 18, 35, 576}) {
        if (!emulated(*k) || in < 40) check_factors(*k, type, 16, in, 193, 3);
      }
    }
  }
}

// Plain values alone, so that the types must agree bit by bit where each of them holds the factor.
TEST(factors_of_signs_have_the_same_bits_in_every_type) {
  constexpr int32_t kRank = 20, kIn = 100, kRows = 5;
  const std::vector<float> a = factor_values(FactorType::kTernary, kRank * kIn, 1);
  const std::vector<float> factor(kRowPad, 1.0f);
  const PaddedRows x(test::random_floats(kRows * kIn, 12), kRows, kIn);
  std::vector<int32_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  for (const Kernels* k : test::all_kernels()) {
    std::vector<std::vector<float>> results;
    for (const FactorType type :
         {FactorType::kF32, FactorType::kBf16, FactorType::kInt8, FactorType::kTernary}) {
      std::vector<std::byte> packed(k->reduce_bytes(type, kRank, kIn));
      k->pack_reduce(type, a.data(), kRank, kIn, packed.data());
      PaddedRows v(kRows, kRank);
      k->reduce({.dtype = type,
                 .a = packed.data(),
                 .ranks = kRank,
                 .cols = kIn,
                 .vector0 = 0,
                 .vector1 = (kRank + k->lanes - 1) / k->lanes,
                 .x = x.values.data(),
                 .x_stride = x.stride,
                 .rows = rows.data(),
                 .count = kRows,
                 .factor = factor.data(),
                 .v = v.values.data(),
                 .v_stride = v.stride});
      std::vector<float> used;
      for (int32_t m = 0; m < kRows; ++m) {
        for (int32_t r = 0; r < kRank; ++r) used.push_back(v.at(m, r));
      }
      results.push_back(std::move(used));
    }
    for (size_t i = 1; i < results.size(); ++i) CHECK_THAT(results[i] == results[0], k->isa);
  }
}

// A sparse matrix in slices, cut from dense values.
struct Slices {
  std::vector<uint32_t> steps{0};
  std::vector<uint8_t> places;
  std::vector<uint32_t> columns;  // of all entries
  std::vector<float> values;
  int32_t count = 0;

  // sorted: within windows, with places; else in order.
  Slices(const std::vector<float>& dense, int32_t out, int32_t in, int32_t lanes, bool sorted,
         uint32_t none) {
    std::vector<std::vector<int32_t>> entries(static_cast<size_t>(round_up(out, kSliceWindow)));
    for (int32_t o = 0; o < out; ++o) {
      for (int32_t c = 0; c < in; ++c) {
        if (dense[static_cast<size_t>(o * in + c)] != 0)
          entries[static_cast<size_t>(o)].push_back(c);
      }
    }
    std::vector<int32_t> order(entries.size());
    std::iota(order.begin(), order.end(), 0);
    if (sorted) {
      for (size_t w = 0; w < order.size(); w += kSliceWindow) {
        std::stable_sort(order.begin() + static_cast<ptrdiff_t>(w),
                         order.begin() + static_cast<ptrdiff_t>(w) + kSliceWindow,
                         [&](int32_t p, int32_t q) {
                           return entries[static_cast<size_t>(p)].size() >
                                  entries[static_cast<size_t>(q)].size();
                         });
      }
      for (const int32_t o : order) {
        places.push_back(o < out ? static_cast<uint8_t>(o % kSliceWindow) : kNoPlace);
      }
    }
    count =
        static_cast<int32_t>(round_up(sorted ? round_up(out, kSliceWindow) : out, lanes)) / lanes;
    for (int32_t s = 0; s < count; ++s) {
      size_t depth = 0;
      const auto lane = [&](int32_t i) -> const std::vector<int32_t>& {
        return entries[static_cast<size_t>(order[static_cast<size_t>(s * lanes + i)])];
      };
      for (int32_t i = 0; i < lanes; ++i) depth = std::max(depth, lane(i).size());
      for (size_t step = 0; step < depth; ++step) {
        for (int32_t i = 0; i < lanes; ++i) {
          const bool used = step < lane(i).size();
          const int32_t c = used ? lane(i)[step] : 0;
          columns.push_back(used ? static_cast<uint32_t>(c) : none);
          const int32_t o = order[static_cast<size_t>(s * lanes + i)];
          values.push_back(used ? dense[static_cast<size_t>(o * in + c)] : 0.0f);
        }
      }
      steps.push_back(static_cast<uint32_t>(columns.size()) / static_cast<uint32_t>(lanes));
    }
  }
};

std::vector<std::byte> narrow(const std::vector<uint32_t>& columns, int32_t bytes) {
  std::vector<std::byte> out(columns.size() * static_cast<size_t>(bytes));
  for (size_t i = 0; i < columns.size(); ++i) {
    std::memcpy(out.data() + i * static_cast<size_t>(bytes), &columns[i],
                static_cast<size_t>(bytes));
  }
  return out;
}

void check_slices(const Kernels& k, SlicedEntries kind, int32_t column_bytes, bool sorted,
                  int32_t count) {
  constexpr int32_t kOut = 150, kIn = 99;
  const bool signs = kind == SlicedEntries::kSigns;
  std::vector<float> dense = test::random_integers(kOut * kIn, 21);
  for (size_t i = 0; i < dense.size(); ++i) {
    if (i % 11 != 0 || i % 5 == 0) dense[i] = 0;
    if (signs && dense[i] != 0) dense[i] = dense[i] > 0 ? 1.0f : -1.0f;
  }
  const uint32_t none = (1u << (8 * column_bytes - 1)) - 1;
  Slices slices(dense, kOut, kIn, k.lanes, sorted, signs ? none : 0);
  if (signs) {
    for (size_t i = 0; i < slices.columns.size(); ++i) {
      if (slices.values[i] < 0) slices.columns[i] |= none + 1;
    }
  }
  const std::vector<std::byte> columns = narrow(slices.columns, column_bytes);
  std::vector<std::byte> values(slices.values.size() * 4);
  for (size_t i = 0; i < slices.values.size(); ++i) {
    const uint16_t half = f32_to_bf16(slices.values[i]);
    if (kind == SlicedEntries::kBf16) {
      std::memcpy(values.data() + 2 * i, &half, 2);
    } else {
      std::memcpy(values.data() + 4 * i, &slices.values[i], 4);
    }
  }
  const std::vector<float> factor(static_cast<size_t>(slices.count * k.lanes), 0.5f);
  const std::vector<int32_t> rows = odd_rows(count);
  const int32_t all = 2 * count + 1;
  const PaddedRows integers(test::random_integers(static_cast<size_t>(all * kIn), 3), all, kIn);
  const PaddedRows floats(test::random_floats(static_cast<size_t>(all * kIn), 4), all, kIn);
  // Results stand in rows of y by row id where there are places, else by number.
  const auto run = [&](const PaddedRows& x, const std::vector<int32_t>& ids, PaddedRows& y,
                       int32_t slice0, int32_t slice1) {
    k.sliced({.entries = kind,
              .column_bytes = column_bytes,
              .columns = columns.data(),
              .values = values.data(),
              .steps = slices.steps.data(),
              .places = sorted ? slices.places.data() : nullptr,
              .factor = factor.data(),
              .slice0 = slice0,
              .slice1 = slice1,
              .x = x.values.data(),
              .x_stride = x.stride,
              .x_rows = ids.data(),
              .count = static_cast<int32_t>(ids.size()),
              .out = y.values.data(),
              .out_stride = y.stride,
              .out_rows = ids.data()});
  };
  PaddedRows y(all, kOut), whole(all, kOut), cut(all, kOut), single(all, kOut);
  run(integers, rows, y, 0, slices.count);
  bool equal = true;
  for (int32_t m = 0; m < all; ++m) {
    for (int32_t o = 0; o < kOut; ++o) {
      float sum = 0;
      for (int32_t c = 0; c < kIn; ++c)
        sum += dense[static_cast<size_t>(o * kIn + c)] * integers.at(m, c);
      equal = equal && y.at(m, o) == (m % 2 == 1 ? 0.5f * sum : 0.0f);
    }
  }
  run(floats, rows, whole, 0, slices.count);
  for (int32_t s = 0; s < slices.count; ++s) run(floats, rows, cut, s, s + 1);
  for (const int32_t row : rows) run(floats, {row}, single, 0, slices.count);
  const std::string name = std::string(k.isa) + " entries " +
                           std::to_string(static_cast<int32_t>(kind)) + " columns of " +
                           std::to_string(column_bytes) + (sorted ? " sorted" : "") + ", rows " +
                           std::to_string(count);
  CHECK_THAT(equal, name + ": wrong");
  CHECK_THAT(whole.values == cut.values, name + ": bits differ slice by slice");
  CHECK_THAT(whole.values == single.values, name + ": bits differ row by row");
}

TEST(sparse_slices_equal_dense_products) {
  for (const Kernels* k : test::all_kernels()) {
    for (const int32_t count : kCounts) {
      for (const bool sorted : {false, true}) {
        check_slices(*k, SlicedEntries::kSigns, 1, sorted, count);
        check_slices(*k, SlicedEntries::kSigns, 2, sorted, count);
        check_slices(*k, SlicedEntries::kBf16, 2, sorted, count);
        check_slices(*k, SlicedEntries::kF32, 2, sorted, count);
        check_slices(*k, SlicedEntries::kBf16, 4, sorted, count);
        check_slices(*k, SlicedEntries::kF32, 4, sorted, count);
      }
    }
  }
}

void check_blocks(const Kernels& k, FactorType type, int32_t nb, int32_t p, int32_t q,
                  int32_t count) {
  const int32_t out = nb * p, in = nb * q;
  const std::vector<float> values = test::random_integers(static_cast<size_t>(out * q), 31);
  std::vector<std::byte> packed(k.block_bytes(type, out, q));
  k.pack_blocks(type, values.data(), out, q, packed.data());
  std::vector<uint32_t> starts(static_cast<size_t>(round_up(out, k.lanes)), 0);
  for (int32_t o = 0; o < out; ++o)
    starts[static_cast<size_t>(o)] = static_cast<uint32_t>(o / p * q);
  const PaddedRows integers(test::random_integers(static_cast<size_t>(count * in), 3), count, in);
  const PaddedRows floats(test::random_floats(static_cast<size_t>(count * in), 4), count, in);
  const auto run = [&](const PaddedRows& x, int32_t row, int32_t rows, PaddedRows& y) {
    k.blocks({.dtype = type,
              .values = packed.data(),
              .outputs = out,
              .block_outputs = p,
              .inputs = q,
              .starts = starts.data(),
              .x = x.values.data() + row * x.stride,
              .x_stride = x.stride,
              .count = rows,
              .out = y.values.data() + row * y.stride,
              .out_stride = y.stride});
  };
  PaddedRows y(count, out), whole(count, out), single(count, out);
  run(integers, 0, count, y);
  bool equal = true;
  for (int32_t m = 0; m < count; ++m) {
    for (int32_t o = 0; o < out; ++o) {
      float sum = 0;
      for (int32_t c = 0; c < q; ++c) {
        sum += values[static_cast<size_t>(o * q + c)] * integers.at(m, o / p * q + c);
      }
      equal = equal && y.at(m, o) == sum;
    }
  }
  run(floats, 0, count, whole);
  for (int32_t m = 0; m < count; ++m) run(floats, m, 1, single);
  const std::string name = std::string(k.isa) + " " + std::to_string(nb) + " blocks of " +
                           std::to_string(p) + " x " + std::to_string(q) + ", rows " +
                           std::to_string(count);
  CHECK_THAT(equal, name + ": wrong");
  CHECK_THAT(whole.values == single.values, name + ": bits differ row by row");
}

TEST(block_diagonal_maps_equal_dense_products) {
  constexpr int32_t kShapes[][3] = {{3, 32, 32}, {1, 16, 5}, {7, 3, 4}, {9, 2, 2},
                                    {5, 24, 7},  {4, 1, 1},  {2, 8, 8}, {1, 40, 40}};
  for (const Kernels* k : test::all_kernels()) {
    for (const FactorType type : {FactorType::kF32, FactorType::kBf16}) {
      for (const auto& [nb, p, q] : kShapes) {
        for (const int32_t count : kCounts) check_blocks(*k, type, nb, p, q, count);
      }
    }
  }
}

TEST(rows_are_multiplied_scaled_and_gathered) {
  constexpr int32_t kN = 96;
  const std::vector<float> x = test::random_floats(kN, 1), before = test::random_floats(kN, 2);
  std::vector<uint32_t> index(kN);
  for (uint32_t i = 0; i < kN; ++i) index[i] = i * 37 % kN;
  for (const Kernels* k : test::all_kernels()) {
    std::vector<float> product = before, sum = before, gathered(kN);
    k->multiply(x.data(), kN, product.data());
    k->add_scaled(x.data(), 0.75f, kN, sum.data());
    k->gather(x.data(), index.data(), kN, gathered.data());
    for (size_t i = 0; i < kN; ++i) {
      CHECK(product[i] == before[i] * x[i]);
      CHECK(sum[i] == std::fma(0.75f, x[i], before[i]));
      CHECK(gathered[i] == x[index[i]]);
    }
  }
}

double exact_activation(BottleneckActivation activation, double v) {
  switch (activation) {
    case BottleneckActivation::kIdentity:
      return v;
    case BottleneckActivation::kRelu:
      return v > 0 ? v : 0;
    case BottleneckActivation::kGelu:
      return 0.5 * v * std::erfc(-v / std::sqrt(2.0));
    case BottleneckActivation::kGeluTanh:
      return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v)));
    case BottleneckActivation::kSilu:
      return v / (1 + std::exp(-v));
    case BottleneckActivation::kTanh:
      return std::tanh(v);
  }
  return v;
}

TEST(bottleneck_activations_equal_float64) {
  std::vector<float> x(512);
  for (size_t i = 0; i < x.size(); ++i) x[i] = (static_cast<float>(i) - 250.5f) * 0.05f;
  x[0] = 1e-4f;
  x[1] = -1e-4f;
  x[2] = 80.0f;
  x[3] = -80.0f;
  const std::vector<float> bias(x.size(), 0.125f);
  for (const Kernels* k : test::all_kernels()) {
    for (int32_t a = 0; a <= static_cast<int32_t>(BottleneckActivation::kTanh); ++a) {
      const auto activation = static_cast<BottleneckActivation>(a);
      for (const bool biased : {false, true}) {
        std::vector<float> out = x;
        k->activate_bottleneck(activation, biased ? bias.data() : nullptr, 512, out.data());
        double worst = 0;
        for (size_t i = 0; i < x.size(); ++i) {
          const double expected = exact_activation(activation, x[i] + (biased ? 0.125f : 0.0f));
          worst = std::max(worst, std::fabs(out[i] - expected) / (1 + std::fabs(expected)));
        }
        CHECK_THAT(worst < 1e-6, std::string(k->isa) + " activation " + std::to_string(a) +
                                     ": error " + std::to_string(worst * 1e6) + "e-6");
      }
    }
  }
}

TEST(layer_norm_equals_float64) {
  for (const Kernels* k : test::all_kernels()) {
    for (const int32_t n : {1, 5, 16, 72, 577}) {
      const auto padded = static_cast<size_t>(round_up(n, kRowPad));
      std::vector<float> x = test::random_floats(padded, 1), out(padded, 7.0f);
      std::vector<float> weight = test::random_floats(padded, 2),
                         bias = test::random_floats(padded, 3);
      for (size_t i = static_cast<size_t>(n); i < padded; ++i) weight[i] = bias[i] = 0;
      double mean = 0, variance = 0;
      for (int32_t i = 0; i < n; ++i) mean += x[static_cast<size_t>(i)] + 0.0;
      mean /= n;
      for (int32_t i = 0; i < n; ++i) variance += std::pow(x[static_cast<size_t>(i)] - mean, 2);
      variance /= n;
      k->layer_norm(x.data(), weight.data(), bias.data(), n, 1e-5f, out.data());
      double worst = 0;
      for (int32_t i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        const double expected = (x[at] - mean) / std::sqrt(variance + 1e-5) * weight[at] + bias[at];
        worst = std::max(worst, std::fabs(out[at] - expected));
      }
      CHECK_THAT(worst < 1e-5, std::string(k->isa) + " width " + std::to_string(n) + ": error " +
                                   std::to_string(worst * 1e6) + "e-6");
      if (n % k->lanes != 0) CHECK(out[static_cast<size_t>(n)] == 0.0f);
    }
  }
}

}  // namespace
}  // namespace manyfold
