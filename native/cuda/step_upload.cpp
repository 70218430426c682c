// See step_upload.h.
#include "step_upload.h"

#include <algorithm>
#include <cstring>

namespace manyfold::cuda {

struct StepUpload::Arrays {
  std::vector<int32_t> row_set, row_slot, sequence_base, sequence_page0, pages, sequence_prefixes;
  std::vector<PrefixRun> prefixes;
  std::vector<DeviceSet> sets;
  std::vector<AdapterTile> tiles, entry_tiles;
  std::vector<int32_t> tile_rows, entry_tile_rows;
};

namespace {

// One array of the upload: where it comes from, and the pointer that is to find it.
struct Part {
  const void* from;
  size_t bytes;
  const void** to;
};

template <class T>
Part part(const std::vector<T>& values, const T*& to) {
  return {values.data(), values.size() * sizeof(T), reinterpret_cast<const void**>(&to)};
}
template <class T>
Part part(std::span<const T> values, const T*& to) {
  return {values.data(), values.size_bytes(), reinterpret_cast<const void**>(&to)};
}

size_t round_up(size_t bytes) {
  return (bytes + 15) / 16 * 16;
}

}  // namespace

void StepUpload::make_rows(const StepPlan& plan, Arrays& arrays) {
  most_keys_ = 0;
  for (int32_t r = 0; r < plan.rows(); ++r) {
    const auto at = static_cast<size_t>(r);
    const auto sequence = static_cast<size_t>(plan.row_sequence[at]);
    const int32_t slot = plan.row_position[at] - arrays.sequence_base[sequence];
    const auto page = static_cast<size_t>(arrays.sequence_page0[sequence] + slot / kPageTokens);
    arrays.row_slot.push_back(arrays.pages[page] * kPageTokens + slot % kPageTokens);
    arrays.row_set.push_back(plan.row_terms[at]);
    most_keys_ = std::max(most_keys_, plan.row_position[at] + 1);
  }
}

// All page runs of a sequence become one list: check_plan has seen that all but the last fill their
// pages.
void StepUpload::make_sequences(const StepPlan& plan, const SetLookup& sets, Arrays& arrays) {
  arrays.sequence_prefixes.push_back(0);
  for (int32_t s = 0; s < plan.sequences(); ++s) {
    arrays.sequence_base.push_back(plan.sequence_base[static_cast<size_t>(s)]);
    arrays.sequence_page0.push_back(static_cast<int32_t>(arrays.pages.size()));
    int32_t next_prefix = 0;
    for (int32_t n = plan.sequence_runs[static_cast<size_t>(s)];
         n < plan.sequence_runs[static_cast<size_t>(s) + 1]; ++n) {
      const auto run = static_cast<size_t>(n);
      const int32_t ref = plan.run_ref[run];
      const auto kind = static_cast<RunKind>(plan.run_kind[run]);
      if (kind == RunKind::kPages) {
        const int32_t count = (plan.run_tokens[run] + kPageTokens - 1) / kPageTokens;
        const auto first = plan.pages.begin() + ref;
        arrays.pages.insert(arrays.pages.end(), first, first + count);
        continue;
      }
      const bool gated = kind == RunKind::kGatedPrefix;
      arrays.prefixes.push_back({ref, next_prefix, gated ? 1 : 0});
      if (!gated) {
        next_prefix += sets.shared_prefix(plan.term_sets[static_cast<size_t>(ref)]);
      }
    }
    arrays.sequence_prefixes.push_back(static_cast<int32_t>(arrays.prefixes.size()));
  }
}

// Rows by set, ascending within a set, cut into tiles; sets stand in the order of the plan.
void StepUpload::make_tiles(std::span<const int32_t> sets, std::vector<AdapterTile>& tiles,
                            std::vector<int32_t>& rows) const {
  std::vector<std::vector<int32_t>> by_set;
  for (size_t i = 0; i < sets.size(); ++i) {
    if (sets[i] < 0) continue;
    const auto set = static_cast<size_t>(sets[i]);
    if (by_set.size() <= set) by_set.resize(set + 1);
    by_set[set].push_back(static_cast<int32_t>(i));
  }
  for (size_t set = 0; set < by_set.size(); ++set) {
    const auto count = static_cast<int32_t>(by_set[set].size());
    for (int32_t first = 0; first < count; first += kTileRows) {
      tiles.push_back({static_cast<int32_t>(set), static_cast<int32_t>(rows.size()) + first,
                       std::min(kTileRows, count - first)});
    }
    rows.insert(rows.end(), by_set[set].begin(), by_set[set].end());
  }
}

void StepUpload::make_arrays(const StepPlan& plan, const SetLookup& sets, Arrays& arrays) {
  make_sequences(plan, sets, arrays);
  make_rows(plan, arrays);
  for (const int32_t handle : plan.term_sets) arrays.sets.push_back(sets.device_set(handle));
  make_tiles(arrays.row_set, arrays.tiles, arrays.tile_rows);
  std::vector<int32_t> entry_sets;
  for (const int32_t row : plan.entry_row) {
    entry_sets.push_back(arrays.row_set[static_cast<size_t>(row)]);
  }
  make_tiles(entry_sets, arrays.entry_tiles, arrays.entry_tile_rows);
  used_sets_.clear();
  for (const AdapterTile& tile : arrays.tiles) {
    if (used_sets_.empty() || used_sets_.back() != tile.set) used_sets_.push_back(tile.set);
  }
  counts_ = {plan.rows(),
             plan.entries(),
             plan.sequences(),
             static_cast<int32_t>(arrays.sets.size()),
             static_cast<int32_t>(arrays.tiles.size()),
             static_cast<int32_t>(arrays.entry_tiles.size()),
             plan.gate_width};
}

// Each array keeps room for twice what it needed when it grew last, so growth is rare.
bool StepUpload::reserve(std::span<const size_t> bytes, cudaStream_t stream) {
  capacities_.resize(bytes.size(), 0);
  bool grown = device_.get() == nullptr;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] <= capacities_[i]) continue;
    capacities_[i] = round_up(std::max<size_t>(2 * bytes[i], 256));
    grown = true;
  }
  if (pending_) MF_CUDA(cudaEventSynchronize(sent_.get()));
  if (!grown) return false;
  total_ = 0;
  for (const size_t capacity : capacities_) total_ += capacity;
  MF_CUDA(cudaStreamSynchronize(stream));
  device_ = allocate_device(total_, "the tables of a step");
  pinned_ = allocate_pinned(total_, "the tables of a step");
  std::memset(pinned_.get(), 0, total_);
  return true;
}

bool StepUpload::upload(const StepPlan& plan, const SetLookup& sets, cudaStream_t stream) {
  Arrays arrays;
  make_arrays(plan, sets, arrays);
  const std::vector<StepCounts> counts = {counts_};
  StepTables& t = tables_;
  const std::vector<Part> parts = {
      part(counts, t.counts),
      part(plan.row_token, t.row_token),
      part(plan.row_position, t.row_position),
      part(plan.row_sequence, t.row_sequence),
      part(arrays.row_set, t.row_set),
      part(arrays.row_slot, t.row_slot),
      part(plan.row_gate, t.row_gate),
      part(plan.rank_gates, t.gates),
      part(plan.embeddings, t.embeddings),
      part(plan.entry_row, t.entry_row),
      part(arrays.sets, t.sets),
      part(arrays.tiles, t.tiles),
      part(arrays.tile_rows, t.tile_rows),
      part(arrays.entry_tiles, t.entry_tiles),
      part(arrays.entry_tile_rows, t.entry_tile_rows),
      part(arrays.sequence_base, t.sequence_base),
      part(arrays.sequence_page0, t.sequence_page0),
      part(arrays.pages, t.pages),
      part(arrays.sequence_prefixes, t.sequence_prefixes),
      part(arrays.prefixes, t.prefixes),
  };
  std::vector<size_t> bytes;
  for (const Part& one : parts) bytes.push_back(one.bytes);
  const bool grown = reserve(bytes, stream);
  size_t offset = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i].bytes > 0) {
      std::memcpy(static_cast<std::byte*>(pinned_.get()) + offset, parts[i].from, parts[i].bytes);
    }
    *parts[i].to = static_cast<std::byte*>(device_.get()) + offset;
    offset += capacities_[i];
  }
  MF_CUDA(cudaMemcpyAsync(device_.get(), pinned_.get(), total_, cudaMemcpyHostToDevice, stream));
  if (sent_.get() == nullptr) sent_ = make_event();
  MF_CUDA(cudaEventRecord(sent_.get(), stream));
  pending_ = true;
  return grown;
}

}  // namespace manyfold::cuda
