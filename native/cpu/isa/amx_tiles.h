// The tile registers of AMX: their shapes. Intel, "Architecture Instruction Set Extensions
// Programming Reference", chapter 3. Included by isa/amx.cpp and the bench's loops, after they have
// asked the compiler for AMX.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace manyfold::amx {

struct Tier;

// Rows of a tile, and their bytes.
inline constexpr int32_t kTileRows = 16;
inline constexpr int64_t kRowBytes = 64;

// What the processor loads: bytes of each tile's rows, and its rows.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Gives tiles 0 to 7 these rows of kRowBytes; all values become zero. A template, so that files
// which are compiled for other instructions share no copy of it.
template <class OfTier>
void configure_tiles(const int32_t (&rows)[8]) {
  TileConfig config;
  for (int32_t i = 0; i < 8; ++i) {
    config.row_bytes[i] = kRowBytes;
    config.rows[i] = static_cast<uint8_t>(rows[i]);
  }
  asm volatile("" : : "r"(&config) : "memory");  // intrinsics do not say that they read it
  _tile_loadconfig(&config);
}

}  // namespace manyfold::amx
