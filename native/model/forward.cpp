// See forward.h. A family differs only by values of ModelConfig; what is not written here does not
// happen.
#include "forward.h"

#include <array>
#include <chrono>

namespace manyfold {

namespace {

void attention_block(const ModelConfig& model, StepOps& ops, int32_t layer) {
  const std::array<LinearOut, 3> qkv = {{{{layer, Site::kQ}, Buffer::kQ},
                                         {{layer, Site::kK}, Buffer::kK},
                                         {{layer, Site::kV}, Buffer::kV}}};
  const std::array<LinearOut, 1> o = {{{{layer, Site::kO}, Buffer::kBlockOut}}};
  ops.norm({layer, Site::kAttnNorm}, Buffer::kResidual, Buffer::kNormed);
  ops.linear(qkv, Buffer::kNormed);
  ops.rope_append(layer);
  ops.attention(layer);
  ops.linear(o, Buffer::kContext);
  if (model.post_norms)
    ops.norm({layer, Site::kPostAttnNorm}, Buffer::kBlockOut, Buffer::kBlockOut);
  ops.add({layer, Site::kResidualAttn});
}

void mlp_block(const ModelConfig& model, StepOps& ops, int32_t layer) {
  const std::array<LinearOut, 2> gate_up = {
      {{{layer, Site::kGate}, Buffer::kGate}, {{layer, Site::kUp}, Buffer::kUp}}};
  const std::array<LinearOut, 1> down = {{{{layer, Site::kDown}, Buffer::kBlockOut}}};
  ops.norm({layer, Site::kMlpNorm}, Buffer::kResidual, Buffer::kNormed);
  ops.linear(gate_up, Buffer::kNormed);
  ops.activate();
  ops.linear(down, Buffer::kFfn);
  if (model.post_norms) ops.norm({layer, Site::kPostMlpNorm}, Buffer::kBlockOut, Buffer::kBlockOut);
  ops.add({layer, Site::kResidualMlp});
}

}  // namespace

void run_step(const ModelConfig& model, StepOps& ops, const StepPlan& plan, StepResult& result) {
  const auto start = std::chrono::steady_clock::now();
  ops.begin(plan);
  ops.embed();
  for (int32_t layer = 0; layer < static_cast<int32_t>(model.layers.size()); ++layer) {
    attention_block(model, ops, layer);
    mlp_block(model, ops, layer);
  }
  ops.finish(result);
  result.step_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start)
          .count();
}

}  // namespace manyfold
