// See cuda_ops.h.
#include "cuda_ops.h"

#include <algorithm>

#include "../core/error.h"

namespace manyfold::cuda {

namespace {

int32_t power_of_two(int32_t least, int32_t value) {
  int32_t result = least;
  while (result < value) result *= 2;
  return result;
}

// Grows `memory` to `bytes`; true if it had to.
bool grow(DeviceMemory& memory, size_t& held, size_t bytes, const char* what) {
  if (bytes <= held) return false;
  memory.reset();
  held = 0;
  memory = allocate_device(bytes, what);
  held = bytes;
  return true;
}

AttentionShape attention_shape(const ModelConfig& model, Dtype dtype, int32_t window) {
  return {dtype, model.heads, model.kv_heads, model.head_dim, window, model.attn_scale};
}

}  // namespace

CudaKv::CudaKv(const BackendOptions& options) {
  const ModelConfig& model = options.model;
  page_bytes = size_t{2} * static_cast<size_t>(model.kv_width()) * kPageTokens *
               (options.dtype == Dtype::kF32 ? 4 : 2);
  layer_bytes = page_bytes * static_cast<size_t>(options.kv_pages);
  bytes = layer_bytes * model.layers.size();
  memory = allocate_device(
      bytes, "a pool of " + std::to_string(options.kv_pages) + " pages of keys and values");
}

LayerKv CudaKv::layer(int32_t index) const {
  return {static_cast<std::byte*>(memory.get()) + layer_bytes * static_cast<size_t>(index),
          page_bytes};
}

CudaOps::CudaOps(const BackendOptions& options, const CudaWeights& weights, const CudaTerms& terms,
                 const CudaKv& kv, cudaStream_t stream)
    : options_(options),
      model_(options.model),
      weights_(weights),
      terms_(terms),
      kv_(kv),
      stream_(stream),
      buffers_(options) {
  for (const RopeTable& rope : model_.ropes) {
    const size_t bytes = rope.inv_freq.size() * sizeof(float);
    inv_freq_.push_back(allocate_device(bytes, "frequencies"));
    MF_CUDA(
        cudaMemcpy(inv_freq_.back().get(), rope.inv_freq.data(), bytes, cudaMemcpyHostToDevice));
  }
  host_logits_ = allocate_pinned(
      static_cast<size_t>(options.max_entries) * static_cast<size_t>(model_.vocab) * sizeof(float),
      "logits on the host");
  MF_CUDA(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0));
}

const int32_t* CudaOps::live(bool by_entry) const {
  const StepCounts* counts = upload_.tables().counts;
  return by_entry ? &counts->entries : &counts->rows;
}

StepShape CudaOps::shape_of(const StepPlan& plan) const {
  StepShape shape;
  shape.rows = std::min(options_.max_rows, power_of_two(1, plan.rows()));
  shape.entries = std::min(options_.max_entries, power_of_two(1, plan.entries()));
  shape.keys = power_of_two(256, upload_.most_keys());
  for (const int32_t set : upload_.used_sets()) {
    const SetFacts& facts = terms_.facts(plan.term_sets[static_cast<size_t>(set)]);
    shape.adapters |= facts.linears;
    shape.others |= facts.others;
    shape.inputs |= facts.changes_inputs;
    shape.outputs |= facts.changes_outputs;
    shape.bottlenecks |= facts.bottlenecks > 0;
  }
  return shape;
}

// Scratch grows when a set that wants more is first used, or a longer context; never while a graph
// is captured. Growth ends what was captured with the old addresses.
void CudaOps::reserve_scratch() {
  bool grown = false;
  const auto raise = [&](int32_t& most, int32_t wanted) {
    grown |= wanted > most;
    most = std::max(most, wanted);
  };
  for (const int32_t set : upload_.used_sets()) {
    const SetFacts& facts = terms_.facts(plan_.term_sets[static_cast<size_t>(set)]);
    raise(plane_width_, facts.plane_width);
    raise(scratch_width_, facts.scratch_width);
    raise(chain_stages_, facts.chain_stages);
    raise(additives_, facts.additives);
    raise(bottleneck_terms_, facts.bottlenecks);
  }
  const auto most_rows = static_cast<size_t>(std::max(options_.max_rows, options_.max_entries));
  const int32_t most_cols = std::max({model_.hidden, model_.q_width(), model_.ffn});
  const auto spans = static_cast<size_t>((most_cols + kReduceSpan - 1) / kReduceSpan);
  size_t attention = 0;
  for (const LayerConfig& layer : model_.layers) {
    attention = std::max(
        attention, attention_scratch_bytes(attention_shape(model_, options_.dtype, layer.window),
                                           shape_.rows, shape_.keys));
  }
  grown |= grow(planes_, planes_bytes_,
                spans * most_rows * static_cast<size_t>(plane_width_) * sizeof(float),
                "sums of adapters");
  grown |= grow(scratch_, scratch_bytes_,
                2 * most_rows * static_cast<size_t>(scratch_width_) * sizeof(float),
                "scratch of adapters");
  grown |= grow(attention_scratch_, attention_bytes_, attention, "scratch of attention");
  if (grown) graphs_.clear();
}

void CudaOps::start_graph(bool addresses_changed) {
  if (addresses_changed) graphs_.clear();
  if (shape_.rows > kMostGraphRows) return;
  const auto found = graphs_.find(shape_);
  replaying_ = found != graphs_.end();
  if (replaying_) return;
  MF_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
}

void CudaOps::begin(const StepPlan& plan) {
  if (capturing_) {  // the last step threw between begin() and finish()
    cudaGraph_t graph = nullptr;
    static_cast<void>(cudaStreamEndCapture(stream_, &graph));
    if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
    static_cast<void>(cudaGetLastError());
  }
  capturing_ = replaying_ = false;
  // Weights came and buffers were cleared on the default stream, which this one does not wait for.
  if (counters_.steps == 0) MF_CUDA(cudaDeviceSynchronize());
  plan_ = plan;
  const SetLookup sets = {
      [&](int32_t handle) -> const DeviceSet& { return terms_.device_set(handle); },
      [&](int32_t handle) { return terms_.facts(handle).prefix.shared_prefix; }};
  const bool changed = upload_.upload(plan, sets, stream_);
  shape_ = shape_of(plan);
  reserve_scratch();
  start_graph(changed);
  if (!replaying_) launch_angles();
  ++counters_.steps;
  counters_.rows += plan.rows();
  for (const int32_t set : upload_.used_sets()) {
    ++counters_.term_reads;
    counters_.term_bytes_read +=
        static_cast<int64_t>(terms_.facts(plan.term_sets[static_cast<size_t>(set)]).bytes);
  }
}

void CudaOps::launch_angles() {
  for (size_t i = 0; i < model_.ropes.size(); ++i) {
    launch_rope_angles(
        {upload_.tables(), static_cast<const float*>(inv_freq_[i].get()), buffers_.cos[i],
         buffers_.sin[i], shape_.rows, model_.head_dim / 2, model_.ropes[i].scale},
        stream_);
  }
}

void CudaOps::embed() {
  if (replaying_) return;
  EmbedArgs args;
  args.tables = upload_.tables();
  args.dtype = options_.dtype;
  args.table = weights_.matrix({-1, Site::kEmbedding});
  args.residual = buffers_.floats(Buffer::kResidual).data;
  args.rows = shape_.rows;
  args.hidden = model_.hidden;
  args.table_stride = padded_columns(model_.hidden);
  args.scale = model_.embed_scale;
  launch_embed(args, stream_);
}

void CudaOps::norm(SiteRef site, Buffer in, Buffer out) {
  if (replaying_) return;
  const StepBuffers::Floats from = buffers_.floats(in);
  NormArgs args;
  args.tables = upload_.tables();
  args.site = site;
  args.in = from.data;
  args.in_stride = from.stride;
  args.weight = weights_.vector(site);
  args.rows = shape_.rows;
  args.width = model_.hidden;
  args.eps = model_.norm_eps;
  if (out == Buffer::kNormed) {
    const StepBuffers::Inputs to = buffers_.inputs(out);
    args.out_dtype = options_.dtype;
    args.out = to.data;
    args.out_stride = to.stride;
  } else {
    const StepBuffers::Floats to = buffers_.floats(out);
    args.out = to.data;
    args.out_stride = to.stride;
  }
  launch_norm(args, stream_);
}

void CudaOps::linear(std::span<const LinearOut> outs, Buffer in) {
  count_linear({outs, buffers_.inputs(in), nullptr, nullptr, 0, 0, false});
  if (replaying_) return;
  const StepBuffers::Floats y = buffers_.floats(outs.front().out);
  apply_linear({outs, buffers_.inputs(in), buffers_.changed_inputs.data, y.data, shape_.rows,
                y.stride, false});
}

// y of outs first_out .. first_out + outs - 1 = the base's product; k, v and up lie behind their
// first site both in the weights and in a row of y.
void CudaOps::multiply(const LinearCall& call, SiteRef site, const void* input, int32_t first_out,
                       int32_t outs) {
  GemmArgs args;
  args.dtype = options_.dtype;
  args.weight = weights_.matrix(site);
  args.input = input;
  args.out = call.y + first_out;
  args.rows = call.rows;
  args.outs = outs;
  args.cols = padded_columns(call.in.cols);
  args.weight_stride = padded_columns(call.in.cols);
  args.input_stride = call.in.stride;
  args.out_stride = call.y_stride;
  args.live = live(call.by_entry);
  args.batch_invariant = true;
  launch_gemm(args, stream_);
}

AdapterArgs CudaOps::adapter_args(const LinearCall& call) const {
  AdapterArgs args;
  args.tables = upload_.tables();
  args.by_entry = call.by_entry;
  args.dtype = options_.dtype;
  args.x = call.in.data;
  args.cols = call.in.cols;
  args.x_stride = call.in.stride;
  args.y_stride = call.y_stride;
  args.planes = static_cast<float*>(planes_.get());
  args.plane_rows = std::max(options_.max_rows, options_.max_entries);
  args.plane_width = plane_width_;
  args.multiprocessors = multiprocessors_;
  args.scratch = static_cast<float*>(scratch_.get());
  args.scratch_width = scratch_width_;
  args.additives = additives_;
  args.others = shape_.others ? 1 : 0;
  args.chain_stages = chain_stages_;
  float* y = call.y;
  for (const LinearOut& out : call.outs) {
    const int32_t outs = weight_shape(model_, out.site.site).rows;
    args.sites[static_cast<size_t>(args.site_count++)] = {out.site, y, outs};
    y += outs;
  }
  return args;
}

// u of one site for sets that change its inputs, its product, then what changes whole rows of y.
void CudaOps::apply_site_outputs(const LinearCall& call, size_t place, const void* u,
                                 int32_t first_out) {
  AdapterOutputArgs args;
  args.tables = upload_.tables();
  const SiteRef site = call.outs[place].site;
  args.site = {site, call.y + first_out, weight_shape(model_, site.site).rows};
  args.by_entry = call.by_entry;
  args.dtype = options_.dtype;
  args.u = u;
  args.rows = call.rows;
  args.cols = call.in.cols;
  args.u_stride = call.in.stride;
  args.y_stride = call.y_stride;
  args.scratch = static_cast<float*>(scratch_.get());
  args.scratch_width = scratch_width_;
  args.chain_stages = chain_stages_;
  launch_adapter_outputs(args, stream_);
}

void CudaOps::apply_linear(const LinearCall& call) {
  int32_t all = 0;
  for (const LinearOut& out : call.outs) all += weight_shape(model_, out.site.site).rows;
  if (!shape_.inputs) multiply(call, call.outs.front().site, call.in.data, 0, all);
  int32_t first_out = 0;
  for (size_t i = 0; i < call.outs.size(); ++i) {
    const SiteRef site = call.outs[i].site;
    const int32_t outs = weight_shape(model_, site.site).rows;
    const void* u = call.in.data;
    if (shape_.inputs) {
      AdapterInputArgs args;
      args.tables = upload_.tables();
      args.site = site;
      args.by_entry = call.by_entry;
      args.dtype = options_.dtype;
      args.x = call.in.data;
      args.u = call.changed;
      args.rows = call.rows;
      args.cols = call.in.cols;
      args.x_stride = call.in.stride;
      args.scratch = static_cast<float*>(scratch_.get());
      args.scratch_width = scratch_width_;
      args.chain_stages = chain_stages_;
      launch_adapter_inputs(args, stream_);
      multiply(call, site, call.changed, first_out, outs);
      u = call.changed;
    }
    if (shape_.outputs) apply_site_outputs(call, i, u, first_out);
    first_out += outs;
  }
  if (shape_.adapters) {
    const AdapterArgs args = adapter_args(call);
    if (plane_width_ > 0) launch_adapter_reduce(args, stream_);
    launch_adapter_spread(args, stream_);
  }
  add_biases(call);
}

void CudaOps::add_biases(const LinearCall& call) {
  float* y = call.y;
  for (const LinearOut& out : call.outs) {
    const int32_t outs = weight_shape(model_, out.site.site).rows;
    const float* bias = weights_.bias(out.site);
    if (bias != nullptr) {
      launch_add({live(call.by_entry), bias, y, call.rows, outs, 0, call.y_stride}, stream_);
    }
    y += outs;
  }
}

// The same numbers as the CPU's: a weight counts once a step, however many rows use it.
void CudaOps::count_linear(const LinearCall& call) {
  for (const LinearOut& out : call.outs) {
    const WeightShape shape = weight_shape(model_, out.site.site);
    ++counters_.base_linear_reads;
    counters_.base_bytes_read +=
        int64_t{shape.rows} * shape.cols * (options_.dtype == Dtype::kF32 ? 4 : 2);
  }
}

void CudaOps::rope_append(int32_t layer) {
  if (replaying_) return;
  const auto rope = static_cast<size_t>(model_.layers[static_cast<size_t>(layer)].rope);
  RopeAppendArgs args;
  args.tables = upload_.tables();
  args.layer = layer;
  args.dtype = options_.dtype;
  args.q = buffers_.floats(Buffer::kQ).data;
  args.k = buffers_.floats(Buffer::kK).data;
  args.v = buffers_.floats(Buffer::kV).data;
  args.stride = buffers_.floats(Buffer::kQ).stride;
  if (model_.qk_norm) {
    args.q_weight = weights_.vector({layer, Site::kQNorm});
    args.k_weight = weights_.vector({layer, Site::kKNorm});
  }
  args.cos = buffers_.cos[rope];
  args.sin = buffers_.sin[rope];
  args.kv = kv_.layer(layer);
  args.rows = shape_.rows;
  args.heads = model_.heads;
  args.kv_heads = model_.kv_heads;
  args.head_dim = model_.head_dim;
  args.eps = model_.norm_eps;
  launch_rope_append(args, stream_);
}

void CudaOps::attention(int32_t layer) {
  if (replaying_) return;
  const StepBuffers::Inputs context = buffers_.inputs(Buffer::kContext);
  AttentionArgs args;
  args.shape =
      attention_shape(model_, options_.dtype, model_.layers[static_cast<size_t>(layer)].window);
  args.tables = upload_.tables();
  args.layer = layer;
  args.rows = shape_.rows;
  args.most_keys = shape_.keys;
  args.kv = kv_.layer(layer);
  args.q = buffers_.floats(Buffer::kQ).data;
  args.q_stride = buffers_.floats(Buffer::kQ).stride;
  args.context = context.data;
  args.context_stride = context.stride;
  args.scratch = attention_scratch_.get();
  args.batch_invariant = true;
  launch_attention(args, stream_);
}

void CudaOps::activate() {
  if (replaying_) return;
  const StepBuffers::Floats gate = buffers_.floats(Buffer::kGate);
  const StepBuffers::Inputs ffn = buffers_.inputs(Buffer::kFfn);
  launch_activate({upload_.tables(), model_.activation, options_.dtype, gate.data,
                   buffers_.floats(Buffer::kUp).data, ffn.data, shape_.rows, model_.ffn,
                   gate.stride, ffn.stride},
                  stream_);
}

void CudaOps::add(SiteRef residual_site) {
  if (replaying_) return;
  float* block_out = buffers_.floats(Buffer::kBlockOut).data;
  float* residual = buffers_.floats(Buffer::kResidual).data;
  if (shape_.bottlenecks) {
    const StepBuffers::Inputs normed = buffers_.inputs(Buffer::kNormed);
    BottleneckArgs args;
    args.tables = upload_.tables();
    args.site = residual_site;
    args.dtype = options_.dtype;
    args.normed = normed.data;
    args.normed_stride = normed.stride;
    args.residual = residual;
    args.block_out = block_out;
    args.rows = shape_.rows;
    args.hidden = model_.hidden;
    args.scratch = static_cast<float*>(scratch_.get());
    args.scratch_width = scratch_width_;
    args.most_terms = bottleneck_terms_;
    launch_bottlenecks(args, stream_);
  }
  launch_add(
      {live(false), block_out, residual, shape_.rows, model_.hidden, model_.hidden, model_.hidden},
      stream_);
}

void CudaOps::launch_head() {
  const StepBuffers::Floats residual = buffers_.floats(Buffer::kResidual);
  NormArgs norm;
  norm.tables = upload_.tables();
  norm.site = {-1, Site::kFinalNorm};
  norm.out_dtype = options_.dtype;
  norm.in = residual.data;
  norm.in_stride = residual.stride;
  norm.weight = weights_.vector(norm.site);
  norm.out = buffers_.head_inputs.data;
  norm.out_stride = buffers_.head_inputs.stride;
  norm.rows = shape_.entries;
  norm.width = model_.hidden;
  norm.eps = model_.norm_eps;
  norm.by_entry = true;
  launch_norm(norm, stream_);
  const LinearOut head{{-1, Site::kHead}, Buffer::kBlockOut};
  apply_linear({std::span<const LinearOut>(&head, 1), buffers_.head_inputs,
                buffers_.changed_head_inputs.data, buffers_.logits, shape_.entries, model_.vocab,
                true});
}

void CudaOps::finish(StepResult& result) {
  if (plan_.entries() > 0) {
    const LinearOut head{{-1, Site::kHead}, Buffer::kBlockOut};
    count_linear(
        {std::span<const LinearOut>(&head, 1), buffers_.head_inputs, nullptr, nullptr, 0, 0, true});
    if (!replaying_) launch_head();
  }
  if (capturing_) {
    capturing_ = false;
    cudaGraph_t graph = nullptr;
    MF_CUDA(cudaStreamEndCapture(stream_, &graph));
    cudaGraphExec_t exec = nullptr;
    const cudaError_t made = cudaGraphInstantiate(&exec, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    check(made, "cudaGraphInstantiate");
    if (graphs_.size() >= kMostGraphs) graphs_.clear();
    graphs_[shape_] = GraphExec(exec);
    ++graphs_captured_;
    replaying_ = true;
  }
  if (replaying_) {
    MF_CUDA(cudaGraphLaunch(graphs_.at(shape_).get(), stream_));
    ++graphs_replayed_;
  }
  sample(result);
}

// Logits come to the host, where core/sampler draws as on the CPU.
void CudaOps::sample(StepResult& result) {
  prepare_result(plan_, model_.vocab, result);
  const auto vocab = static_cast<size_t>(model_.vocab);
  const size_t count = static_cast<size_t>(plan_.entries()) * vocab;
  if (count > 0) {
    MF_CUDA(cudaMemcpyAsync(host_logits_.get(), buffers_.logits, count * sizeof(float),
                            cudaMemcpyDeviceToHost, stream_));
  }
  MF_CUDA(cudaStreamSynchronize(stream_));
  const std::span<const float> logits(static_cast<const float*>(host_logits_.get()), count);
  for (int32_t e = 0; e < plan_.entries(); ++e) {
    sampler_.sample(plan_, e, logits.subspan(static_cast<size_t>(e) * vocab, vocab), result);
  }
}

}  // namespace manyfold::cuda
