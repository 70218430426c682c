// The bounds' loops of the amx tier: those of avx512bf16, but for the products of bf16 tiles.
#include <cstddef>
#include <cstdint>

#include "machine.h"

#pragma GCC target("amx-tile,amx-bf16,sse2")

#include "../cpu/isa/amx_tiles.h"

namespace manyfold::bench {
namespace {

// As many products as `rounds` rounds of kChains dot products of sixteen lanes: a tile product has
// 16 · 16 · 32 of them. Four independent sums.
float tile_chains(int64_t rounds) {
  amx::configure_tiles<struct Bench>({16, 16, 16, 16, 16, 16, 16, 16});
  for (int64_t i = 0; i < rounds * kChains * 32 / (16 * 16 * 32); i += 4) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return 0.0f;
}

}  // namespace

const MachineLoops& amx_loops() {
  static const MachineLoops kLoops = [] {
    MachineLoops loops = avx512bf16_loops();
    loops.dot = tile_chains;
    return loops;
  }();
  return kLoops;
}

}  // namespace manyfold::bench
