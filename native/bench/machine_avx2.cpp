// The bounds' loops of the avx2 and avxvnni tiers; see machine_loops.h.
#include <cstddef>
#include <cstdint>

#include "machine.h"

#pragma GCC target("avx2,fma,f16c")

#include "../cpu/isa/simd_avxvnni.h"
#include "machine_loops.h"

namespace manyfold::bench {

const MachineLoops& avx2_loops() {
  static constexpr MachineLoops kLoops{
      avx2::Simd::kLanes,      multiply_chains<avx2::Simd>, nullptr,
      int8_chains<avx2::Simd>, avx2::Simd::kInt8Depth,      read_all<avx2::Simd>};
  return kLoops;
}

const MachineLoops& avxvnni_loops() {
  using S = avxvnni::Simd;
  static constexpr MachineLoops kLoops{S::kLanes,      multiply_chains<S>, nullptr,
                                       int8_chains<S>, S::kInt8Depth,      read_all<S>};
  return kLoops;
}

}  // namespace manyfold::bench
