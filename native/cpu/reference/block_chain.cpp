// See block_chain.h.
#include "block_chain.h"

#include <algorithm>

#include "unpacked_terms.h"

namespace manyfold {

float BlockStageValues::value(const float* t, int32_t i) const {
  const int64_t first = int64_t{i / p} * q;
  const float* row = blocks.data() + int64_t{i} * q;
  double sum = 0;
  for (int32_t j = 0; j < q; ++j) {
    const int64_t from = gather.empty() ? first + j : gather[static_cast<size_t>(first + j)];
    sum += static_cast<double>(row[j]) * t[from];
  }
  return static_cast<float>(sum);
}

BlockChain::BlockChain(const BlockDiag& term) : output(term.output), scale(term.scale) {
  for (const BlockStage& stage : term.stages) {
    const std::vector<int32_t>& shape = stage.blocks.shape;
    stages.push_back({stage.gather, tensor_values(stage.blocks), shape[0], shape[1], shape[2]});
  }
  out = output.empty() ? stages.back().outputs() : static_cast<int32_t>(output.size());
}

int32_t BlockChain::inner_width() const {
  return stages.size() < 2 ? 0 : stages[stages.size() - 2].outputs();
}

int32_t BlockChain::scratch_floats() const {
  int32_t widest = out;
  for (const BlockStageValues& stage : stages) widest = std::max(widest, stage.outputs());
  return 2 * widest;
}

size_t BlockChain::bytes() const {
  size_t bytes = output.size() * sizeof(uint32_t);
  for (const BlockStageValues& stage : stages) {
    bytes += stage.blocks.size() * sizeof(float) + stage.gather.size() * sizeof(uint32_t);
  }
  return bytes;
}

const float* BlockChain::run(size_t count, const float* x, float* scratch) const {
  const float* from = x;
  const int32_t half = scratch_floats() / 2;
  for (size_t s = 0; s < count; ++s) {
    float* to = scratch + (s % 2 == 0 ? 0 : half);
    for (int32_t i = 0; i < stages[s].outputs(); ++i) to[i] = stages[s].value(from, i);
    from = to;
  }
  return from;
}

void BlockChain::run_inner(const float* x, float* scratch, float* inner) const {
  std::copy_n(run(stages.size() - 1, x, scratch), inner_width(), inner);
}

float BlockChain::result(const float* last_input, int32_t o) const {
  const int32_t i = output.empty() ? o : static_cast<int32_t>(output[static_cast<size_t>(o)]);
  return stages.back().value(last_input, i);
}

void BlockChain::add_outputs(const float* last_input, int32_t out0, int32_t out1, float* y) const {
  for (int32_t o = out0; o < out1; ++o) y[o] += scale * result(last_input, o);
}

void BlockChain::replace(float* t, float* scratch) const {
  const float* last_input = run(stages.size() - 1, t, scratch);
  // The half of the scratch that the last input does not lie in.
  float* to = scratch + (stages.size() % 2 == 0 ? scratch_floats() / 2 : 0);
  for (int32_t o = 0; o < out; ++o) to[o] = result(last_input, o);
  std::copy_n(to, out, t);
}

}  // namespace manyfold
