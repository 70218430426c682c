// A chain of block-diagonal maps for one row, plain and scalar: the maths of BlockDiag of
// core/terms.h. Sums are taken in double and in index order, results of a stage are float32, so no
// bit depends on neighbours or on how outputs are cut.
#pragma once

#include <cstdint>
#include <vector>

#include "../../core/terms.h"

namespace manyfold {

struct BlockStageValues {
  std::vector<uint32_t> gather;  // [blocks · q] or empty
  std::vector<float> blocks;     // [blocks, p, q]
  int32_t count = 0, p = 0, q = 0;

  int32_t outputs() const { return count * p; }
  // Value i of the stage's result for input t.
  float value(const float* t, int32_t i) const;
};

struct BlockChain {
  std::vector<BlockStageValues> stages;  // at least one
  std::vector<uint32_t> output;          // empty: the last stage's values as they are
  int32_t out = 0;                       // values of the result
  float scale = 1.0f;

  explicit BlockChain(const BlockDiag& term);

  // Values of the last stage's input where other stages make it, else 0.
  int32_t inner_width() const;
  // Floats of scratch that the functions below want.
  int32_t scratch_floats() const;
  size_t bytes() const;

  // inner [inner_width()] = all stages but the last of x.
  void run_inner(const float* x, float* scratch, float* inner) const;
  // y[o] += scale · chain(x)[o] for o in out0 .. out1 - 1. last_input is what run_inner gave, or x
  // when inner_width() is 0.
  void add_outputs(const float* last_input, int32_t out0, int32_t out1, float* y) const;
  // t [out] = chain(t).
  void replace(float* t, float* scratch) const;

 private:
  float result(const float* last_input, int32_t o) const;
  // Stages 0 .. stages - 1 of x; the result lies in scratch, or is x when there is none.
  const float* run(size_t stages, const float* x, float* scratch) const;
};

}  // namespace manyfold
