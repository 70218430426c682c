// REDUCE, SPREAD and what changes inputs and outputs of a linear, against float64: every kind and
// codec over ragged shapes, several sets in tiles, rows of the base untouched, and a row's bits the
// same alone and in any tile.
#include <cstring>
#include <string>

#include "../../core/error.h"
#include "../../cuda/adapter_kernels.h"
#include "../check.h"
#include "adapter_case.h"

namespace manyfold {
namespace {

using namespace test;

constexpr SiteRef kQ{0, Site::kQ}, kK{0, Site::kK}, kV{0, Site::kV}, kHead{-1, Site::kHead};

// The error of all outputs of rows with a set, from what the terms make of the first outputs.
double spread_error(AdapterCase& run, const CaseOptions& options,
                    const std::vector<TermSet>& sets) {
  run.restart();
  std::vector<Doubles> first;
  for (size_t s = 0; s < options.sites.size(); ++s) {
    for (int32_t r = 0; r < run.rows(); ++r) first.push_back(run.output_values(s, r));
  }
  run.reduce_and_spread();
  RelativeError error;
  for (size_t s = 0, i = 0; s < options.sites.size(); ++s) {
    for (int32_t r = 0; r < run.rows(); ++r, ++i) {
      const int32_t set = options.row_set[static_cast<size_t>(r)];
      const Doubles found = run.output_values(s, r);
      if (set < 0) {
        CHECK(found == first[i]);
        continue;
      }
      const Doubles expected =
          expected_spread(sets[static_cast<size_t>(set)], options.sites[s].site, run.input(r),
                          first[i], run.gates(r), options.gate_width);
      for (size_t o = 0; o < expected.size(); ++o) error.add(found[o], expected[o]);
    }
  }
  return error.value();
}

void check_spread(const CaseOptions& options, const std::vector<TermSet>& sets,
                  const std::string& what) {
  AdapterCase run(options, sets);
  const double error = spread_error(run, options, sets);
  CHECK_THAT(error <= 1e-5, what + ": relative error " + std::to_string(error));
}

// Under several orders of threads, which show missing barriers.
void check_orders(const CaseOptions& options, const std::vector<TermSet>& sets,
                  const std::string& what) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    simt::set_seed(seed);
    check_spread(options, sets, what + " seed " + std::to_string(seed));
  }
  simt::set_seed(1);
}

// Outputs of each row alone are those of all rows together, bit for bit.
void check_bits(const CaseOptions& options, const std::vector<TermSet>& sets) {
  AdapterCase run(options, sets);
  run.reduce_and_spread();
  std::vector<Doubles> together;
  for (int32_t r = 0; r < run.rows(); ++r) together.push_back(run.output_values(0, r));
  for (int32_t r = 0; r < run.rows(); ++r) {
    simt::set_seed(static_cast<uint64_t>(r) + 2);
    run.restart({r});
    run.reduce_and_spread();
    CHECK(run.output_values(0, r) == together[static_cast<size_t>(r)]);
  }
  simt::set_seed(1);
}

// Rows 0 .. count - 1 of three sets and the base, mixed; set 0 has more than one tile from 20 on.
std::vector<int32_t> mixed_rows(int32_t count) {
  std::vector<int32_t> sets;
  for (int32_t r = 0; r < count; ++r) sets.push_back(r % 7 == 3 ? -1 : r % 7 == 5 ? 2 : r % 3 == 1);
  return sets;
}

std::vector<TermSet> lowrank_sets(Factor factor, int32_t cols, int32_t out, int32_t rank) {
  TermMaker make(static_cast<unsigned>(rank + cols));
  return {{{kQ, make.lowrank(factor, cols, out, rank)}},
          {{kQ, make.lowrank(factor, cols, out, rank + 1)}},
          {{kQ, make.lowrank(Factor::kBf16, cols, out, 4)}}};
}

TEST(adapter_lowrank_shapes) {
  const int32_t shapes[][2] = {{576, 33}, {130, 192}, {24, 300}};
  int32_t rows = 1;
  for (const auto& shape : shapes) {
    for (const int32_t rank : {1, 2, 3, 8, 16, 17, 64, 128}) {
      for (const Factor factor : kFactors) {
        CaseOptions options;
        options.cols = shape[0];
        options.sites = {{kQ, shape[1]}};
        options.row_set = mixed_rows(rows);
        options.zero_y = true;
        options.seed = static_cast<unsigned>(rank);
        rows = rows % 20 + 3;
        check_spread(options, lowrank_sets(factor, shape[0], shape[1], rank),
                     "cols " + std::to_string(shape[0]) + " rank " + std::to_string(rank) +
                         " factor " + std::to_string(static_cast<int>(factor)));
      }
    }
  }
}

TEST(adapter_lowrank_large_rank) {
  CaseOptions options;
  options.cols = 530;
  options.sites = {{kQ, 40}};
  options.row_set = {0, 1, 0};
  options.zero_y = true;
  for (const Factor factor : kFactors)
    check_spread(options, lowrank_sets(factor, 530, 40, 1030), "rank 1030");
}

TEST(adapter_lowrank_parts) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    TermMaker make(5);
    LowRank diagonal = make.lowrank(Factor::kBf16, 130, 33, 24);
    diagonal.mid = make.floats(24);
    diagonal.out_diag = make.floats(33);
    LowRank mixed = make.lowrank(Factor::kInt8, 130, 33, 300);
    mixed.mid_matrix = make.tensor(Factor::kF16, {300, 300});
    LowRank second = make.lowrank(Factor::kTernary, 130, 33, 5);
    second.mid_matrix = make.tensor(Factor::kF32, {5, 5});
    CaseOptions options;
    options.dtype = dtype;
    options.cols = 130;
    options.sites = {{kQ, 33}};
    options.row_set = {0, 1, 1, 0, 0, -1, 0, 1, 1};
    options.gate_width = 290;
    options.zero_y = true;
    check_orders(options, {{{kQ, diagonal}, {kQ, second}}, {{kQ, mixed}}}, "parts of lowrank");
  }
}

TEST(adapter_group) {
  for (const bool by_entry : {false, true}) {
    TermMaker make(6);
    CaseOptions options;
    options.cols = 576;
    options.sites = {{kQ, 270}, {kK, 64}, {kV, 33}};
    options.row_set = mixed_rows(20);
    options.by_entry = by_entry;
    options.gate_width = 7;
    const std::vector<TermSet> sets = {{{kV, make.lowrank(Factor::kBf16, 576, 33, 8)},
                                        {kQ, make.lowrank(Factor::kF32, 576, 270, 3)},
                                        {kQ, make.lowrank(Factor::kTernary, 576, 270, 16)}},
                                       {{kK, make.lowrank(Factor::kInt8, 576, 64, 9)}},
                                       {{kV, make.lowrank(Factor::kF16, 576, 33, 2)},
                                        {kK, make.lowrank(Factor::kF16, 576, 64, 1)}}};
    check_spread(options, sets, "group");
    check_bits(options, sets);
  }
}

TEST(adapter_rowcol) {
  for (const Factor factor : kFactors) {
    for (const RowColSide side : {RowColSide::kIn, RowColSide::kOut}) {
      TermMaker make(7);
      CaseOptions options;
      options.cols = 576;
      options.sites = {{kQ, 270}};
      options.row_set = mixed_rows(12);
      options.zero_y = true;
      const std::vector<TermSet> sets = {{{kQ, make.rowcol(factor, side, 576, 270, 2)}},
                                         {{kQ, make.rowcol(factor, side, 576, 270, 90)}},
                                         {{kQ, make.rowcol(factor, side, 576, 270, 1)}}};
      check_orders(options, sets, "rowcol");
      check_bits(options, sets);
    }
  }
}

TEST(adapter_sparse) {
  for (const Factor factor : {Factor::kF32, Factor::kBf16, Factor::kTernary}) {
    TermMaker make(8);
    CaseOptions options;
    options.cols = 130;
    options.sites = {{kQ, 300}};
    options.row_set = mixed_rows(12);
    options.zero_y = true;
    const std::vector<TermSet> sets = {{{kQ, make.sparse(factor, 130, 300, 40)}},
                                       {{kQ, make.sparse(factor, 130, 300, 1)}},
                                       {{kQ, make.sparse(factor, 130, 300, 5)}}};
    check_orders(options, sets, "sparse");
    check_bits(options, sets);
  }
}

TEST(adapter_additive_chains) {
  TermMaker make(9);
  const BlockPlacement additive = BlockPlacement::kAdditive;
  CaseOptions options;
  options.cols = 130;
  options.sites = {{kQ, 300}, {kK, 33}};
  options.row_set = mixed_rows(12);
  BlockDiag plain;  // without an output map
  plain.placement = additive;
  plain.stages = {{{}, make.tensor(Factor::kBf16, {33, 1, 3})}};
  plain.stages[0].gather = make.below(99, 130);
  const std::vector<TermSet> sets = {{{kQ, make.chain(additive, 130, 300, 1, 60)},
                                      {kQ, make.chain(additive, 130, 300, 3, 42)},
                                      {kQ, Diag{{}, make.floats(300), make.floats(300)}},
                                      {kQ, make.lowrank(Factor::kBf16, 130, 300, 4)}},
                                     {{kK, plain}, {kK, Diag{{}, {}, make.floats(33)}}},
                                     {{kK, make.chain(additive, 130, 33, 2, 300)}}};
  check_spread(options, sets, "additive chains");
  check_bits(options, sets);
}

// Every kind at one site at once, in the order of core/terms.
std::vector<TermSet> all_kinds(TermMaker& make, int32_t cols, int32_t out) {
  const auto set = [&](Factor factor) {
    return TermSet{{kQ, make.sparse(Factor::kF32, cols, out, 9)},
                   {kQ, make.chain(BlockPlacement::kAdditive, cols, out, 2, 64)},
                   {kQ, make.rowcol(factor, RowColSide::kOut, cols, out, 3)},
                   {kQ, make.lowrank(factor, cols, out, 12)},
                   {kQ, make.rowcol(factor, RowColSide::kIn, cols, out, 3)},
                   {kQ, Diag{make.floats(cols), make.floats(out), make.floats(out)}}};
  };
  return {set(Factor::kBf16), set(Factor::kInt8), set(Factor::kTernary)};
}

TEST(adapter_all_kinds) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    TermMaker make(10);
    CaseOptions options;
    options.dtype = dtype;
    options.cols = 576;
    options.sites = {{kQ, 192}};
    options.row_set = mixed_rows(20);
    const std::vector<TermSet> sets = all_kinds(make, 576, 192);
    check_orders(options, sets, "all kinds");
    check_bits(options, sets);
  }
}

TEST(adapter_nothing_to_do) {
  TermMaker make(11);
  CaseOptions options;
  options.cols = 64;
  options.sites = {{kQ, 64}};
  options.row_set = {0, 0, -1};
  AdapterCase run(options, {{{kK, make.lowrank(Factor::kBf16, 64, 64, 4)}}});
  const Doubles first = run.output_values(0, 0), second = run.output_values(0, 1);
  run.reduce_and_spread();
  CHECK(run.output_values(0, 0) == first && run.output_values(0, 1) == second);
  run.restart({});
  run.reduce_and_spread();
  CHECK(run.output_values(0, 0) == first && run.output_values(0, 1) == second);
}

void check_inputs(const CaseOptions& options, const std::vector<TermSet>& sets) {
  AdapterCase run(options, sets);
  run.inputs(0);
  RelativeError error;
  for (int32_t r = 0; r < run.rows(); ++r) {
    const int32_t set = options.row_set[static_cast<size_t>(r)];
    const Doubles found = run.changed(r);
    if (set < 0) {
      CHECK(found == run.input(r));
      continue;
    }
    Doubles x = run.input(r);
    const size_t stride = x.size();
    x.resize(static_cast<size_t>(options.cols));
    const Doubles expected =
        expected_input(sets[static_cast<size_t>(set)], options.sites[0].site, x);
    for (size_t k = 0; k < expected.size(); ++k) error.add(found[k], expected[k]);
    for (size_t k = expected.size(); k < stride; ++k) CHECK(found[k] == 0.0);
  }
  CHECK(error.value() <= (options.dtype == Dtype::kF32 ? 1e-5 : 4e-3));
}

TEST(adapter_inputs) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    for (const bool by_entry : {false, true}) {
      TermMaker make(12);
      CaseOptions options;
      options.dtype = dtype;
      options.cols = 130;
      options.sites = {{kQ, 33}};
      options.row_set = mixed_rows(20);
      options.by_entry = by_entry;
      check_inputs(options, {{{kQ, Diag{make.floats(130), {}, {}}}},
                             {{kQ, make.chain(BlockPlacement::kPre, 130, 130, 2, 200)},
                              {kQ, Diag{make.floats(130), {}, {}}}},
                             {{kQ, make.chain(BlockPlacement::kPre, 130, 130, 1, 60)}}});
    }
  }
}

void check_outputs(const CaseOptions& options, const std::vector<TermSet>& sets) {
  AdapterCase run(options, sets);
  std::vector<Doubles> first;
  for (int32_t r = 0; r < run.rows(); ++r) first.push_back(run.output_values(0, r));
  run.outputs(0);
  RelativeError error;
  for (int32_t r = 0; r < run.rows(); ++r) {
    const int32_t set = options.row_set[static_cast<size_t>(r)];
    const Doubles found = run.output_values(0, r);
    const Doubles& before = first[static_cast<size_t>(r)];
    const Doubles expected = set < 0 ? before
                                     : expected_output(sets[static_cast<size_t>(set)],
                                                       options.sites[0].site, run.input(r), before);
    if (set < 0) CHECK(found == before);
    for (size_t o = 0; o < expected.size(); ++o) error.add(found[o], expected[o]);
  }
  CHECK(error.value() <= 1e-5);
}

TEST(adapter_outputs) {
  for (const bool by_entry : {false, true}) {
    TermMaker make(13);
    CaseOptions options;
    options.cols = 576;
    options.sites = {{kHead, 300}};
    options.row_set = mixed_rows(12);
    options.by_entry = by_entry;
    const auto override_rows = [&](int32_t every) {
      Override op;
      op.rows = make.ascending(every, 300);
      op.values = make.tensor(Factor::kBf16, {static_cast<int32_t>(op.rows.size()), 576});
      return op;
    };
    check_outputs(options, {{{kHead, override_rows(4)}},
                            {{kHead, override_rows(60)},
                             {kHead, Diag{{}, make.floats(300), make.floats(300)}},
                             {kHead, make.chain(BlockPlacement::kPost, 300, 300, 2, 240)}},
                            {{kHead, make.chain(BlockPlacement::kPost, 300, 300, 1, 90)}}});
  }
}

// g is applied in front of a post chain and not again; c is added by SPREAD all the same.
TEST(adapter_post_then_spread) {
  TermMaker make(14);
  CaseOptions options;
  options.cols = 130;
  options.sites = {{kQ, 33}};
  options.row_set = {0, -1, 0, 0};
  check_spread(options,
               {{{kQ, Diag{{}, make.floats(33), make.floats(33)}},
                 {kQ, make.chain(BlockPlacement::kPost, 33, 33, 1, 40)},
                 {kQ, make.lowrank(Factor::kBf16, 130, 33, 4)}}},
               "behind a post chain");
}

TEST(adapter_refuses_forgotten_counts) {
  bool refused = false;
  try {
    cuda::launch_adapter_spread({}, nullptr);
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::kBug;
  }
  CHECK(refused);
}

}  // namespace
}  // namespace manyfold
