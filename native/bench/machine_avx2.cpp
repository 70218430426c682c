// The bounds' loops of the avx2 tier; see machine_loops.h.
#include <cstddef>
#include <cstdint>

#include "machine.h"

#pragma GCC target("avx2,fma")

#include "../cpu/isa/simd_avx2.h"
#include "machine_loops.h"

namespace manyfold::bench {

const MachineLoops& avx2_loops() {
  static constexpr MachineLoops kLoops{avx2::Simd::kLanes, multiply_chains<avx2::Simd>, nullptr,
                                       read_all<avx2::Simd>};
  return kLoops;
}

}  // namespace manyfold::bench
