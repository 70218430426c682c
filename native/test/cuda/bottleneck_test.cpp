// Bottleneck terms of a residual site against float64: placements, activations, norms, types of
// factors, several terms in order, several sets and rows of the base.
#include <string>

#include "../check.h"
#include "adapter_case.h"

namespace manyfold {
namespace {

using namespace test;

constexpr SiteRef kSite{0, Site::kResidualAttn};

double activation(BottleneckActivation kind, double x) {
  switch (kind) {
    case BottleneckActivation::kIdentity:
      return x;
    case BottleneckActivation::kRelu:
      return std::max(x, 0.0);
    case BottleneckActivation::kGelu:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case BottleneckActivation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case BottleneckActivation::kSilu:
      return x / (1.0 + std::exp(-x));
    case BottleneckActivation::kTanh:
      return std::tanh(x);
  }
  return NAN;
}

Doubles placed_input(const Bottleneck& term, const Doubles& t, const Doubles& normed,
                     const Doubles& residual) {
  if (term.placement == BottleneckPlacement::kParallel) return normed;
  if (term.placement == BottleneckPlacement::kResidual) return residual;
  Doubles input = t;
  if (term.placement != BottleneckPlacement::kSum) return input;
  for (size_t i = 0; i < input.size(); ++i) input[i] += residual[i];
  return input;
}

void layer_norm(const LayerNorm& norm, Doubles& x) {
  double mean = 0.0, squares = 0.0;
  for (const double v : x) mean += v / static_cast<double>(x.size());
  for (const double v : x) squares += (v - mean) * (v - mean) / static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = (x[i] - mean) / std::sqrt(squares + double{norm.eps}) * norm.weight[i] + norm.bias[i];
}

void apply(const Bottleneck& term, const Doubles& normed, const Doubles& residual, Doubles& t) {
  Doubles n = placed_input(term, t, normed, residual);
  if (term.norm) layer_norm(*term.norm, n);
  const size_t hidden = t.size(), middle = static_cast<size_t>(term.down.shape[0]);
  Doubles inner(middle, 0.0);
  for (size_t m = 0; m < middle; ++m) {
    for (size_t i = 0; i < hidden; ++i) inner[m] += double{term.down.at(m * hidden + i)} * n[i];
    if (!term.down_bias.empty()) inner[m] += term.down_bias[m];
    inner[m] = activation(term.activation, inner[m]);
  }
  for (size_t i = 0; i < hidden; ++i) {
    double sum = term.up_bias.empty() ? 0.0 : term.up_bias[i];
    for (size_t m = 0; m < middle; ++m) sum += double{term.up.at(i * middle + m)} * inner[m];
    t[i] += double{term.scale} * sum;
  }
}

Bottleneck make_term(TermMaker& make, Factor factor, int32_t hidden, int32_t middle, int kind) {
  Bottleneck term;
  term.placement = static_cast<BottleneckPlacement>(kind % 4);
  term.activation = static_cast<BottleneckActivation>(kind % 6);
  term.down = make.tensor(factor, {middle, hidden});
  term.up = make.tensor(factor, {hidden, middle});
  term.scale = 0.1f;
  if (kind % 2 == 0) term.down_bias = make.floats(middle);
  if (kind % 3 == 0) term.up_bias = make.floats(hidden);
  if (kind % 5 < 2) term.norm = LayerNorm{make.floats(hidden), make.floats(hidden), 1e-5f};
  return term;
}

// Rows of a residual stream, the sub-block's output and the normed input.
struct Streams {
  Streams(const CaseOptions& options, unsigned seed)
      : hidden(options.cols), residual(0), block_out(0) {
    TermMaker make(seed);
    const auto count = static_cast<size_t>(options.row_set.size()) * static_cast<size_t>(hidden);
    residual = AlignedArray<float>(count);
    block_out = AlignedArray<float>(count);
    for (size_t i = 0; i < count; ++i) {
      residual[i] = 1.0f + make.value();
      block_out[i] = make.value();
    }
  }
  Doubles row(const AlignedArray<float>& of, int32_t r) const {
    return Doubles(of.data() + r * hidden, of.data() + (r + 1) * hidden);
  }
  int32_t hidden;
  AlignedArray<float> residual, block_out;
};

void launch(AdapterCase& tables, const CaseOptions& options, Streams& streams, int32_t middle,
            int32_t most_terms) {
  cuda::BottleneckArgs args;
  args.tables = tables.tables();
  args.site = kSite;
  args.dtype = options.dtype;
  args.normed = tables.input_data();
  args.normed_stride = tables.input_stride();
  args.residual = streams.residual.data();
  args.block_out = streams.block_out.data();
  args.rows = tables.rows();
  args.hidden = streams.hidden;
  args.scratch_width = middle + streams.hidden + 1;
  AlignedArray<float> scratch(static_cast<size_t>(args.rows * args.scratch_width));
  args.scratch = scratch.data();
  args.most_terms = most_terms;
  cuda::launch_bottlenecks(args, nullptr);
}

void check_terms_of(const CaseOptions& options, const std::vector<TermSet>& sets, int32_t middle,
                    int32_t most_terms) {
  AdapterCase tables(options, sets);
  Streams streams(options, 9);
  std::vector<Doubles> first;
  for (int32_t r = 0; r < tables.rows(); ++r) first.push_back(streams.row(streams.block_out, r));
  launch(tables, options, streams, middle, most_terms);
  RelativeError error;
  for (int32_t r = 0; r < tables.rows(); ++r) {
    const Doubles& before = first[static_cast<size_t>(r)];
    Doubles expected = before;
    Doubles normed = tables.input(r);
    normed.resize(static_cast<size_t>(options.cols));
    const int32_t set = options.row_set[static_cast<size_t>(r)];
    if (set >= 0) {
      for (const Term& term : sets[static_cast<size_t>(set)])
        apply(std::get<Bottleneck>(term.op), normed, streams.row(streams.residual, r), expected);
    }
    const Doubles found = streams.row(streams.block_out, r);
    if (set < 0) CHECK(found == before);
    for (size_t i = 0; set >= 0 && i < found.size(); ++i)
      error.add(found[i] - before[i], expected[i] - before[i]);
  }
  CHECK_THAT(error.value() <= 1e-5, "relative error " + std::to_string(error.value()));
}

TEST(bottleneck_kinds) {
  for (int kind = 0; kind < 12; ++kind) {
    for (const Factor factor : {Factor::kF32, Factor::kBf16, Factor::kF16}) {
      TermMaker make(static_cast<unsigned>(kind) + 1);
      CaseOptions options;
      options.dtype = kind % 2 == 0 ? Dtype::kBf16 : Dtype::kF32;
      options.cols = kind % 3 == 0 ? 576 : 130;
      options.row_set = {0, 1, -1, 0, 0, 1, 0, 0, 0, 0, 0, 0};
      check_terms_of(options,
                     {{{kSite, make_term(make, factor, options.cols, 17, kind)}},
                      {{kSite, make_term(make, factor, options.cols, 300, kind + 1)}}},
                     300, 1);
    }
  }
}

TEST(bottleneck_several_terms) {
  TermMaker make(3);
  CaseOptions options;
  options.cols = 24;
  options.row_set = {1, 0, -1, 0};
  const auto term = [&](int kind) { return make_term(make, Factor::kBf16, 24, 8 + kind, kind); };
  check_terms_of(
      options, {{{kSite, term(0)}, {kSite, term(3)}, {kSite, term(4)}}, {{kSite, term(2)}}}, 20, 3);
}

}  // namespace
}  // namespace manyfold
