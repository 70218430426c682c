// Time and memory of every adapter kind on the linears of SmolLM2-135M, against LoRA r16 in bf16.
#pragma once

#include "../core/model_config.h"
#include "../cpu/kernels/kernels.h"
#include "../cpu/thread_pool.h"

namespace manyfold::bench {

// read_gbs: the machine's bandwidth, measured in this run.
void print_terms(const ModelConfig& model, const Kernels& kernels, ThreadPool& pool,
                 double read_gbs);

}  // namespace manyfold::bench
