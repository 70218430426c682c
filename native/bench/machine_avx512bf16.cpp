// The bounds' loops of the avx512bf16 tier; see machine_loops.h.
#include <cstddef>
#include <cstdint>

#include "machine.h"

// GCC 12 warns of its own intrinsics, which leave unused inputs undefined on purpose.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")

#include "../cpu/isa/simd_avx512bf16.h"
#include "machine_loops.h"

namespace manyfold::bench {

const MachineLoops& avx512bf16_loops() {
  static constexpr MachineLoops kLoops{
      avx512bf16::Simd::kLanes,     multiply_chains<avx512bf16::Simd>,
      dot_chains<avx512bf16::Simd>, int8_chains<avx512bf16::Simd>,
      avx512bf16::Simd::kInt8Depth, read_all<avx512bf16::Simd>};
  return kLoops;
}

}  // namespace manyfold::bench
