// What kernels read of a step: arrays in device memory at addresses that never change (a captured
// graph keeps them), filled by one copy at the step's begin. Counts are read on the device too, so
// that a graph captured for a bucket of rows serves any smaller step.
#pragma once

#include <cstdint>

#include "device_terms.h"

namespace manyfold::cuda {

struct StepCounts {
  int32_t rows, entries, sequences, sets;
  int32_t tiles;        // of StepTables::tiles
  int32_t entry_tiles;  // of StepTables::entry_tiles
  int32_t gate_width;   // of row gates
};

// Rows of a set that an adapter kernel takes together: rows adapter_rows[first .. first + count -
// 1] (count <= kTileRows), all of sets[set].
inline constexpr int32_t kTileRows = 8;
struct AdapterTile {
  int32_t set, first, count;
};

// A prefix without tokens that a sequence's rows attend, of sets[set]; shared ones take positions
// first .. first + n - 1.
struct PrefixRun {
  int32_t set, first, gated;
};

struct StepTables {
  const StepCounts* counts;
  const int32_t* row_token;     // [rows]; negative: row -1 - token of embeddings
  const int32_t* row_position;  // [rows]
  const int32_t* row_sequence;  // [rows]
  const int32_t* row_set;       // [rows] place in sets, or -1
  const int32_t* row_slot;      // [rows] page · kPageTokens + place: where its key and value go
  const int32_t* row_gate;      // [rows] row of gates, or -1
  const float* gates;           // [.., gate_width]
  const float* embeddings;      // [.., hidden]
  const int32_t* entry_row;     // [entries]
  const DeviceSet* sets;        // [sets]
  const AdapterTile* tiles;     // [tiles]
  const int32_t* tile_rows;     // rows of all tiles, ascending within a set
  // The same cut for entries (the head works on entries, not rows): tile_rows are entry numbers.
  const AdapterTile* entry_tiles;
  const int32_t* entry_tile_rows;
  const int32_t* sequence_base;      // [sequences] position of slot 0
  const int32_t* sequence_page0;     // [sequences] place in pages of its slot 0
  const int32_t* pages;              // pages of all sequences, one after another
  const int32_t* sequence_prefixes;  // [sequences + 1] places in prefixes
  const PrefixRun* prefixes;
};

}  // namespace manyfold::cuda
