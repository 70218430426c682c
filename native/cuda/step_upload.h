// A step plan as the arrays of StepTables: laid out on the host in one pinned piece and brought to
// the device by one copy.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "../core/step.h"
#include "handles.h"
#include "step_tables.h"

namespace manyfold::cuda {

// What a step's tables need of a loaded set, by handle.
struct SetLookup {
  std::function<const DeviceSet&(int32_t handle)> device_set;
  std::function<int32_t(int32_t handle)> shared_prefix;  // keys of its shared prefix
};

class StepUpload {
 public:
  // Returns whether the addresses in tables() changed: a graph captured before must not be used
  // again. The plan has passed check_plan.
  bool upload(const StepPlan& plan, const SetLookup& sets, cudaStream_t stream);
  const StepTables& tables() const { return tables_; }
  const StepCounts& counts() const { return counts_; }
  // Keys that the row with the most of them can see.
  int32_t most_keys() const { return most_keys_; }
  // Sets which rows of the step use, as places in the plan's term_sets.
  const std::vector<int32_t>& used_sets() const { return used_sets_; }

 private:
  struct Arrays;
  void make_arrays(const StepPlan& plan, const SetLookup& sets, Arrays& arrays);
  // Room for arrays of these bytes; whether their places changed.
  bool reserve(std::span<const size_t> bytes, cudaStream_t stream);
  void make_rows(const StepPlan& plan, Arrays& arrays);
  void make_sequences(const StepPlan& plan, const SetLookup& sets, Arrays& arrays);
  void make_tiles(std::span<const int32_t> sets, std::vector<AdapterTile>& tiles,
                  std::vector<int32_t>& rows) const;

  StepCounts counts_ = {};
  StepTables tables_ = {};
  int32_t most_keys_ = 0;
  std::vector<int32_t> used_sets_;
  std::vector<size_t> capacities_;  // bytes of each array
  size_t total_ = 0;
  PinnedMemory pinned_;
  DeviceMemory device_;
  Event sent_;
  bool pending_ = false;
};

}  // namespace manyfold::cuda
