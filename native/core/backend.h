// What a device must do. The forward pass (native/model) is written once against this; native/cpu
// and native/cuda implement it and never see each other. Three small interfaces and a struct that
// holds them.
//
// Threads: all calls come from one thread at a time. Activations are float32 [rows, width],
// row-major in backend memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model_config.h"
#include "site.h"
#include "step.h"
#include "terms.h"

namespace manyfold {

// Fills `out` with rows row0 .. row0 + count - 1 as float32 [count, cols]. Called from several
// threads at once.
using RowReader = std::function<void(int32_t row0, int32_t count, float* out)>;

// As RowReader, but the rows of a file that has them in 4 bits: exactly its codes, scales and
// minima.
using Q4Reader = std::function<void(int32_t row0, int32_t count, const Q4Rows& out)>;

enum class WeightPart { kWeight, kBias };

// Base weights, packed once at load.
class WeightStore {
 public:
  virtual ~WeightStore() = default;
  // Packs [rows, cols] (norms and biases: rows = 1). A site may be given once; a tied head is not
  // given at all.
  virtual void add_weight(SiteRef site, WeightPart part, int32_t rows, int32_t cols,
                          const RowReader& read) = 0;
  // Whether the matrix of a site is held in 4 bits; then add_q4_weight takes it as a 4-bit file has
  // it, and add_weight rounds what it reads.
  virtual bool holds_q4(SiteRef site) const = 0;
  virtual void add_q4_weight(SiteRef site, int32_t rows, int32_t cols, const Q4Reader& read) = 0;
  // Weights as served: after packing and rounding. out is [count, cols].
  virtual void read_weight(SiteRef site, WeightPart part, int32_t row0, int32_t count,
                           float* out) const = 0;
  // Whether the model has this weight or bias; false for a site that it lacks.
  virtual bool has_weight(SiteRef site, WeightPart part) const = 0;
  virtual size_t weight_bytes() const = 0;
};

// Adapters' terms, packed once each.
class TermStore {
 public:
  virtual ~TermStore() = default;
  // Checks shapes against the model; throws kInvalidArgument naming layer, site, expected and found
  // shape.
  virtual TermHandle load_terms(TermSet&& terms) = 0;
  virtual void free_terms(TermHandle handle) = 0;
  virtual size_t term_bytes() const = 0;
  virtual int32_t term_sets() const = 0;
};

// Activation buffers of a step, each float32 [max_rows, width]. Widths: kResidual, kNormed,
// kBlockOut hidden; kQ, kContext q_width; kK, kV kv_width; kGate, kUp, kFfn ffn.
enum class Buffer { kResidual, kNormed, kQ, kK, kV, kContext, kBlockOut, kGate, kUp, kFfn };

struct LinearOut {
  SiteRef site;
  Buffer out;
};

// The operations of one forward pass, in the order that native/model calls them.
class StepOps {
 public:
  virtual ~StepOps() = default;
  // Reads the plan (already checked by check_plan), groups rows by term set, prepares RoPE angles.
  virtual void begin(const StepPlan& plan) = 0;
  // kResidual = embed_scale · row of the embedding (override rows and lowrank terms of its site
  // included), or the plan's embedding row, which is taken as it is.
  virtual void embed() = 0;
  // out = RMSNorm(in) ⊙ weight of the site, in one float32 pass; override terms replace the weight
  // for their rows. in may be out.
  virtual void norm(SiteRef site, Buffer in, Buffer out) = 0;
  // Linears that share one input (q, k, v; gate, up; o; down): the normal form of core/terms, bias
  // included.
  virtual void linear(std::span<const LinearOut> outs, Buffer in) = 0;
  // q/k norms if the model has them, RoPE on kQ and kK, then kK and kV go to the rows' KV slots.
  virtual void rope_append(int32_t layer) = 0;
  // kContext = attention of kQ over the rows' runs, causal by position, within the layer's window.
  virtual void attention(int32_t layer) = 0;
  // kFfn = act(kGate) ⊙ kUp.
  virtual void activate() = 0;
  // kResidual += kBlockOut, bottleneck terms of the site applied; kNormed still holds the
  // sub-block's input.
  virtual void add(SiteRef residual_site) = 0;
  // Final norm and head for the plan's entries only, then sampling and log-probabilities.
  virtual void finish(StepResult& result) = 0;
};

struct Counters {
  int64_t steps = 0, rows = 0;
  int64_t base_linear_reads = 0, base_bytes_read = 0;
  int64_t term_reads = 0, term_bytes_read = 0;
  int64_t single_row_tiles = 0, multi_row_tiles = 0;
};

struct BackendInfo {
  std::string name, isa;
  int32_t threads = 0;
  size_t kv_bytes = 0, page_bytes = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual WeightStore& weights() = 0;
  virtual TermStore& terms() = 0;
  virtual StepOps& ops() = 0;
  virtual Counters counters() const = 0;
  virtual BackendInfo info() const = 0;
};

// The format of a site's matrix where all matrices come from wider types: under 4 bits, embedding
// and head keep 8, which they need more than linears do and which llama.cpp gives them too.
constexpr WeightFormat matrix_format(WeightFormat format, Site site) {
  const bool end = site == Site::kEmbedding || site == Site::kHead;
  return is_q4(format) && end ? WeightFormat::kInt8 : format;
}

struct BackendOptions {
  ModelConfig model;
  Dtype dtype = Dtype::kBf16;                  // of weights and of the KV pool: kF32 or kBf16
  WeightFormat format = WeightFormat::kPlain;  // of matrices; plain: dtype
  std::vector<WeightFormat> formats;           // by site_index; none: matrix_format(format, site)
  KvFormat kv_format = KvFormat::kPlain;       // of the KV pool; plain: dtype
  int32_t threads = 0;                         // 0: one for each core
  std::string isa = "auto";
  int32_t kv_pages = 0;
  int32_t max_rows = 0;
  int32_t max_entries = 0;
};

// The build links exactly one definition of each; a missing backend throws kUnavailable with a
// sentence.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

// Whether this build has the CUDA backend.
bool has_cuda_backend();

// CPU tiers that this machine runs, best first, 'scalar' last.
std::span<const std::string> cpu_isas();

}  // namespace manyfold
