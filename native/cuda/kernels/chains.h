// Launches of chains of block-diagonal maps (BlockDiag of core/terms.h), which the launches of
// adapters' inputs, outputs and SPREAD are made of.
#pragma once

#include "../adapter_kernels.h"

namespace manyfold::cuda {

struct ChainArgs {
  StepTables tables;
  SiteRef site = {0, Site::kQ};
  BlockPlacement placement = BlockPlacement::kPre;
  int32_t index = 0;  // of the site's additive chains
  bool by_entry = false;
  Dtype dtype = Dtype::kBf16;  // of x and u
  const void* x = nullptr;     // [rows, x_stride] an additive chain's input
  void* u = nullptr;           // [rows, x_stride] a pre chain's output
  float* y = nullptr;          // [rows, y_stride] of post (replaced) and additive (added to)
  int32_t rows = 0, cols = 0, outs = 0, x_stride = 0, y_stride = 0;
  float* scratch = nullptr;  // [rows, 2, scratch_width]
  int32_t scratch_width = 0;
  int32_t stages = 0;  // of the longest chain
};

// For rows whose set has the chain. Pre: u = M t, t = h ⊙ x lying in the first half of scratch
// already. Post: y = Q (g ⊙ y). Additive: y += scale · D x, and + c behind the last one.
void launch_chain(const ChainArgs& args, cudaStream_t stream);

}  // namespace manyfold::cuda
