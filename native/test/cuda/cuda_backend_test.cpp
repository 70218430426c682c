// The whole CUDA backend over the emulation against the reference backend: every kind of adapter in
// one batch, prefill and decode, captured graphs replayed with other adapters than at capture, and
// what happens when the device fails.
#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "../../core/check_plan.h"
#include "../../core/error.h"
#include "../../cpu/cpu_backend.h"
#include "../../cuda/cuda_ops.h"
#include "../../model/forward.h"
#include "../check.h"
#include "../tiny_model.h"

namespace manyfold {
namespace {

using test::PlanArrays;
using test::SequencePart;

constexpr int32_t kPages = 96, kRows = 80;

// A backend with the tiny model's weights and one set of every kind.
struct Setup {
  ModelConfig model = test::tiny_model();
  std::unique_ptr<Backend> backend;
  std::vector<TermHandle> handles;
  LoadedTerms loaded;

  Setup(bool cuda, Dtype dtype) {
    BackendOptions options;
    options.model = model;
    options.dtype = dtype;
    options.kv_pages = kPages;
    options.max_rows = kRows;
    options.max_entries = kRows;
    backend = cuda ? make_cuda_backend(options) : make_reference_backend(options);
    test::fill_weights(model, backend->weights());
    for (int32_t kind = 0; kind < test::kTermKinds; ++kind) {
      TermSet terms = test::tiny_terms(model, kind);
      const TermFacts facts = term_facts(terms);
      handles.push_back(backend->terms().load_terms(std::move(terms)));
      loaded.emplace(handles.back(), facts);
    }
  }

  SequencePart part(int32_t kind, int32_t first, int32_t count, int32_t first_page) const {
    SequencePart part;
    part.tokens = test::random_tokens(model.vocab, 200, static_cast<uint32_t>(kind + 10));
    part.first = first;
    part.count = count;
    for (int32_t p = 0; p * kPageTokens < first + count; ++p) part.pages.push_back(first_page + p);
    if (kind < 0) return part;
    part.terms = handles[static_cast<size_t>(kind)];
    part.shared_prefix = loaded.at(part.terms).shared_prefix;
    part.gated_prefix = loaded.at(part.terms).gated_prefix;
    return part;
  }

  // Sequences of `kinds` (-1: the base), each on eight pages of its own.
  PlanArrays plan(const std::vector<int32_t>& kinds, int32_t first, int32_t count) const {
    PlanArrays plan;
    for (const int32_t kind : kinds) {
      test::add_sequence(plan, part(kind, first, count, 8 * (kind + 1)));
    }
    plan.gate_width = 3;
    plan.rank_gates = {0.5f, 2.0f, -1.0f, 0.0f, 1.5f, 1.0f};
    for (size_t r = 0; r < plan.row_gate.size(); ++r) {
      plan.row_gate[r] = plan.row_position[r] % 3 == 0 ? plan.row_position[r] % 2 : -1;
    }
    return plan;
  }

  std::vector<float> run(const PlanArrays& arrays) {
    const StepPlan plan = arrays.view();
    check_plan(plan, model, {kPages, kRows, kRows}, loaded);
    StepResult result;
    run_step(model, backend->ops(), plan, result);
    return result.raw_logits;
  }
  std::vector<float> run(const std::vector<int32_t>& kinds, int32_t first, int32_t count) {
    return run(plan(kinds, first, count));
  }
};

double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  if (found.size() != expected.size()) return 1e9;
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(found[i]) - expected[i];
    error += d * d;
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(error / norm);
}

void check_equal_error(const char* what, double error, double most) {
  CHECK_THAT(error <= most, std::string(what) + ": relative error " + std::to_string(error) +
                                ", at most " + std::to_string(most) + " expected");
}

const std::vector<int32_t> kAllKinds = {-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

TEST(cuda_backend_each_kind) {
  Setup cuda(true, Dtype::kF32), reference(false, Dtype::kF32);
  for (const int32_t kind : kAllKinds) {
    const std::string what = "kind " + std::to_string(kind);
    check_equal_error(what.c_str(),
                      relative_error(cuda.run({kind}, 0, 9), reference.run({kind}, 0, 9)), 2e-5);
    check_equal_error((what + ", decode").c_str(),
                      relative_error(cuda.run({kind}, 9, 1), reference.run({kind}, 9, 1)), 2e-5);
  }
}

// Every kind in one batch: a prompt in chunks of 5 (one graph), then of 7 (77 rows: no graph), then
// one token each.
void check_mixed(Dtype dtype, double most) {
  Setup cuda(true, dtype), reference(false, dtype);
  for (const auto& [first, count] : std::vector<std::pair<int32_t, int32_t>>{
           {0, 5}, {5, 5}, {10, 7}, {17, 7}, {24, 1}, {25, 1}, {26, 1}}) {
    const std::string what = "rows from " + std::to_string(first);
    check_equal_error(
        what.c_str(),
        relative_error(cuda.run(kAllKinds, first, count), reference.run(kAllKinds, first, count)),
        most);
  }
}

TEST(cuda_backend_mixed_f32) {
  check_mixed(Dtype::kF32, 2e-5);
}

TEST(cuda_backend_mixed_bf16) {
  check_mixed(Dtype::kBf16, 3e-2);
}

// A sequence's bits are the same alone, in any batch and in any chunks.
TEST(cuda_backend_batch_invariance) {
  Setup cuda(true, Dtype::kBf16);
  const std::vector<float> together = cuda.run(kAllKinds, 0, 5);
  const size_t logits = static_cast<size_t>(cuda.model.vocab) * 5;
  for (size_t i = 0; i < kAllKinds.size(); ++i) {
    const std::vector<float> alone = cuda.run({kAllKinds[i]}, 0, 5);
    const auto begin = together.begin() + static_cast<ptrdiff_t>(i * logits);
    CHECK_THAT(std::equal(alone.begin(), alone.end(), begin),
               "kind " + std::to_string(kAllKinds[i]) + " has other bits alone than in a batch");
    std::vector<float> chunks = cuda.run({kAllKinds[i]}, 0, 2);
    const std::vector<float> rest = cuda.run({kAllKinds[i]}, 2, 3);
    chunks.insert(chunks.end(), rest.begin(), rest.end());
    CHECK_THAT(chunks == alone,
               "kind " + std::to_string(kAllKinds[i]) + " has other bits in chunks");
  }
}

// One graph serves other adapters, and more or fewer of them, than it was captured with.
TEST(cuda_backend_graph_replay) {
  Setup cuda(true, Dtype::kF32), reference(false, Dtype::kF32);
  for (const int32_t kind : kAllKinds) {
    cuda.run({kind}, 0, 6);
    reference.run({kind}, 0, 6);
  }
  const std::vector<std::vector<int32_t>> batches = {
      {0, 0, 0, 0}, {0, 9, 0, 9}, {9, -1, 0, 6}, {-1, -1, -1, 9}, {6, 9, 0}};
  for (size_t i = 0; i < batches.size(); ++i) {
    // A kind may stand once in a batch: its pages hold one sequence.
    std::vector<int32_t> kinds = batches[i];
    std::sort(kinds.begin(), kinds.end());
    kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
    check_equal_error("a replayed graph",
                      relative_error(cuda.run(kinds, 6, 1), reference.run(kinds, 6, 1)), 2e-5);
  }
}

std::string message_of(const std::function<void()>& job, ErrorCode expected) {
  try {
    job();
  } catch (const Error& error) {
    CHECK(error.code() == expected);
    return error.what();
  }
  CHECK_THAT(false, "an error was expected");
  return "";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

TEST(cuda_backend_refuses_machines) {
  simt::set_devices(0);
  CHECK(contains(message_of([] { Setup(true, Dtype::kF32); }, ErrorCode::kUnavailable),
                 "NVIDIA GPU"));
  simt::set_devices(1);
  simt::set_driver_version(0);
  CHECK(contains(message_of([] { Setup(true, Dtype::kF32); }, ErrorCode::kUnavailable), "driver"));
  simt::set_driver_version(13000);
  simt::set_compute_capability(7, 5);
  CHECK(contains(message_of([] { Setup(true, Dtype::kF32); }, ErrorCode::kUnavailable), "7.5"));
  simt::set_compute_capability(9, 0);
}

// Whichever allocation fails: a typed error, nothing leaked, and the next try works.
TEST(cuda_backend_out_of_memory) {
  for (int after = 0; after < 200; after += 9) {
    simt::plan_fault(simt::Fault::kAllocation, after, cudaErrorMemoryAllocation);
    bool failed = false;
    try {
      Setup cuda(true, Dtype::kBf16);
      cuda.run({0}, 0, 3);
    } catch (const Error& error) {
      failed = true;
      CHECK(error.code() == ErrorCode::kOutOfMemory);
      CHECK(contains(error.what(), "fewer KV pages"));
    }
    simt::clear_faults();
    CHECK(simt::device_bytes() == 0);
    CHECK(simt::pinned_bytes() == 0);
    if (!failed) return;
  }
  CHECK_THAT(false, "no try without a failing allocation came about");
}

TEST(cuda_backend_lost_device) {
  {
    Setup cuda(true, Dtype::kF32);
    cuda.run({0}, 0, 3);
    simt::plan_fault(simt::Fault::kLaunch, 1, cudaErrorIllegalAddress);
    for (int i = 0; i < 2; ++i) {
      CHECK(contains(message_of([&] { cuda.run({0}, 3, 1); }, ErrorCode::kUnavailable),
                     "start the engine again"));
    }
  }
  simt::clear_faults();
  CHECK(simt::device_bytes() == 0);
  Setup again(true, Dtype::kF32);
  CHECK(!again.run({0}, 0, 3).empty());
}

}  // namespace
}  // namespace manyfold
