// The machine's own bounds, measured in the same run as everything that is compared with them.
#pragma once

#include <cstdint>
#include <string>

#include "../cpu/thread_pool.h"

namespace manyfold::bench {

struct Bounds {
  double f32_gflops = 0;   // fused multiply-adds of the tier, all threads of the pool
  double bf16_gflops = 0;  // bf16 dot products; 0 where the tier has none
  double int8_gops = 0;    // int8 products and sums, likewise
  double read_gbs = 0;     // one long read from memory, all threads
};

// isa: a tier of cpu_isas() other than 'scalar'.
Bounds measure_bounds(const std::string& isa, ThreadPool& pool);

// Loops of one tier (machine_loops.h): `rounds` times kChains multiply-adds a lane; and a sum over
// floats.
struct MachineLoops {
  int32_t lanes;
  float (*multiply)(int64_t rounds);
  float (*dot)(int64_t rounds);  // null: none
  float (*int8)(int64_t rounds);
  int32_t int8_depth;  // products of one sum's step
  float (*read)(const float* p, int64_t n);
};
inline constexpr int32_t kChains = 12;
const MachineLoops& avx2_loops();
const MachineLoops& avxvnni_loops();
const MachineLoops& avx512_loops();
const MachineLoops& avx512vnni_loops();
const MachineLoops& avx512bf16_loops();
const MachineLoops& amx_loops();

}  // namespace manyfold::bench
