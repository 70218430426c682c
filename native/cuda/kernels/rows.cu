// The small operations between products, one block a row: embedding, norms, rotation and the append
// to the KV pool, activation, sums. All are bound by memory. Not measured on a GPU yet.
#include "../../core/step.h"
#include "../device/number.cuh"
#include "../handles.h"
#include "../kernels.h"
#include "sites.cuh"

namespace manyfold::cuda {

namespace {

constexpr int kThreads = 256;

// y += what the set's lowrank terms of the embedding give for one token: column `token` of A, which
// is one value of each rank.
MF_DEVICE void add_embedding_terms(const StepTables& tables, const DeviceSite& site, int32_t token,
                                   int32_t gate, int32_t hidden, float* y) {
  for (int32_t t = 0; t < site.lowranks; ++t) {
    const DeviceLowRank& term = site.lowrank[t];
    for (int32_t o = static_cast<int32_t>(threadIdx.x); o < hidden;
         o += static_cast<int32_t>(blockDim.x)) {
      float sum = 0.0f;
      for (int32_t r = 0; r < term.rank; ++r) {
        float middle = 0.0f;
        if (term.mid_matrix == nullptr) {
          middle = value_at(term.a, r, token);
        } else {
          for (int32_t s = 0; s < term.rank; ++s) {
            middle += term.mid_matrix[int64_t{r} * term.rank + s] * value_at(term.a, s, token);
          }
        }
        if (term.mid != nullptr) middle *= term.mid[r];
        if (gate >= 0 && r < tables.counts->gate_width) {
          middle *= tables.gates[int64_t{gate} * tables.counts->gate_width + r];
        }
        sum += value_at(term.b, o, r) * middle;
      }
      const float delta = term.scale * sum;
      y[o] += term.out_diag == nullptr ? delta : delta * term.out_diag[o];
    }
  }
}

template <class T>
MF_KERNEL void embed_kernel(EmbedArgs args) {
  const StepTables& tables = args.tables;
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  if (r >= tables.counts->rows) return;
  float* out = args.residual + int64_t{r} * args.hidden;
  const int32_t token = tables.row_token[r];
  const int32_t first = static_cast<int32_t>(threadIdx.x);
  const int32_t step = static_cast<int32_t>(blockDim.x);
  if (token < 0) {
    const float* from = tables.embeddings + int64_t{-1 - token} * args.hidden;
    for (int32_t i = first; i < args.hidden; i += step) out[i] = from[i];
    return;
  }
  const DeviceSite* site = site_of(tables, tables.row_set[r], {-1, Site::kEmbedding});
  const int32_t place =
      site == nullptr ? -1
                      : find_id(site->override_ids, site->overrides, static_cast<uint32_t>(token));
  const T* table = static_cast<const T*>(args.table) + int64_t{token} * args.table_stride;
  // Each thread keeps to its own columns, so no barrier is wanted.
  for (int32_t i = first; i < args.hidden; i += step) {
    out[i] = place < 0 ? load(table[i]) : site->override_values[int64_t{place} * args.hidden + i];
  }
  if (site != nullptr) {
    add_embedding_terms(tables, *site, token, tables.row_gate[r], args.hidden, out);
  }
  for (int32_t i = first; i < args.hidden; i += step) out[i] *= args.scale;
}

// 1 / sqrt(mean(x²) + eps) of one row, by the whole block.
MF_DEVICE float rms_factor(const float* x, int32_t width, float eps, float* partial) {
  float squares = 0.0f;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < width;
       i += static_cast<int32_t>(blockDim.x)) {
    squares += x[i] * x[i];
  }
  return 1.0f / sqrtf(block_sum(squares, partial) / static_cast<float>(width) + eps);
}

template <class T>
MF_KERNEL void norm_kernel(NormArgs args) {
  MF_SHARED(float, partial, kThreads / kWarpSize);
  const StepTables& tables = args.tables;
  const int32_t i = static_cast<int32_t>(blockIdx.x);
  if (i >= (args.by_entry ? tables.counts->entries : tables.counts->rows)) return;
  const int32_t r = args.by_entry ? tables.entry_row[i] : i;
  const DeviceSite* site = site_of(tables, tables.row_set[r], args.site);
  const bool replaced = site != nullptr && site->override_values != nullptr;
  const float* weight = replaced ? site->override_values : args.weight;
  const float* x = args.in + int64_t{r} * args.in_stride;
  T* out = static_cast<T*>(args.out) + int64_t{i} * args.out_stride;
  const float factor = rms_factor(x, args.width, args.eps, partial);
  for (int32_t c = static_cast<int32_t>(threadIdx.x); c < args.width;
       c += static_cast<int32_t>(blockDim.x)) {
    out[c] = round_to<T>(x[c] * factor * weight[c]);
  }
}

// As core/rope.h: the product of position and frequency is rounded to float32, then double.
MF_KERNEL void rope_angles_kernel(RopeAnglesArgs args) {
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  if (r >= args.tables.counts->rows) return;
  const float position = static_cast<float>(args.tables.row_position[r]);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < args.half;
       i += static_cast<int32_t>(blockDim.x)) {
    const double angle = static_cast<double>(__fmul_rn(position, args.inv_freq[i]));
    args.cos[int64_t{r} * args.half + i] = static_cast<float>(cos(angle)) * args.scale;
    args.sin[int64_t{r} * args.half + i] = static_cast<float>(sin(angle)) * args.scale;
  }
}

// One warp a head: q heads, then k heads, then v heads. Lanes own pairs (i, i + half), so nothing
// is exchanged but the norm's sum.
template <class T>
MF_KERNEL void rope_append_kernel(RopeAppendArgs args) {
  const StepTables& tables = args.tables;
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kWarpSize;
  const int32_t head = static_cast<int32_t>(blockIdx.y * blockDim.x + threadIdx.x) / kWarpSize;
  if (r >= tables.counts->rows || head >= args.heads + 2 * args.kv_heads) return;
  const bool is_q = head < args.heads, is_v = head >= args.heads + args.kv_heads;
  const int32_t kv_head = is_q ? 0 : (head - args.heads) % args.kv_heads;
  const int32_t half = args.head_dim / 2;
  float* x = (is_q ? args.q + int64_t{head} * args.head_dim
                   : (is_v ? args.v : args.k) + int64_t{kv_head} * args.head_dim) +
             int64_t{r} * args.stride;
  if (!is_v) {
    const Site norm_site = is_q ? Site::kQNorm : Site::kKNorm;
    const float* weight = is_q ? args.q_weight : args.k_weight;
    float factor = 1.0f;
    if (weight != nullptr) {
      const DeviceSite* site = site_of(tables, tables.row_set[r], {args.layer, norm_site});
      if (site != nullptr && site->override_values != nullptr) weight = site->override_values;
      float squares = 0.0f;
      for (int32_t i = lane; i < half; i += kWarpSize) {
        squares += x[i] * x[i] + x[i + half] * x[i + half];
      }
      factor = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(args.head_dim) + args.eps);
    }
    for (int32_t i = lane; i < half; i += kWarpSize) {
      const float c = args.cos[int64_t{r} * half + i], s = args.sin[int64_t{r} * half + i];
      float a = x[i], b = x[i + half];
      if (weight != nullptr) {
        a = a * factor * weight[i];
        b = b * factor * weight[i + half];
      }
      x[i] = a * c - b * s;
      x[i + half] = b * c + a * s;
    }
  }
  if (is_q) return;
  const int32_t slot = tables.row_slot[r];
  const int64_t head_values = int64_t{kPageTokens} * args.head_dim;
  T* page = reinterpret_cast<T*>(args.kv.pool +
                                 static_cast<size_t>(slot / kPageTokens) * args.kv.page_bytes);
  T* to = page + ((is_v ? args.kv_heads : 0) + kv_head) * head_values +
          int64_t{slot % kPageTokens} * args.head_dim;
  for (int32_t i = lane; i < half; i += kWarpSize) {
    to[i] = round_to<T>(x[i]);
    to[i + half] = round_to<T>(x[i + half]);
  }
}

MF_DEVICE float activated(Activation activation, float x) {
  if (activation == Activation::kSilu) return x / (1.0f + expf(-x));
  return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

template <class T>
MF_KERNEL void activate_kernel(ActivateArgs args) {
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  const int32_t i = static_cast<int32_t>(blockIdx.y * blockDim.x + threadIdx.x);
  if (r >= args.tables.counts->rows || i >= args.width) return;
  const int64_t at = int64_t{r} * args.stride + i;
  static_cast<T*>(args.out)[int64_t{r} * args.out_stride + i] =
      round_to<T>(activated(args.activation, args.gate[at]) * args.up[at]);
}

MF_KERNEL void add_kernel(AddArgs args) {
  const int32_t r = static_cast<int32_t>(blockIdx.x);
  const int32_t i = static_cast<int32_t>(blockIdx.y * blockDim.x + threadIdx.x);
  if ((args.live != nullptr && r >= *args.live) || i >= args.width) return;
  args.y[int64_t{r} * args.y_stride + i] += args.x[int64_t{r} * args.x_stride + i];
}

unsigned blocks_for(int32_t width) {
  return static_cast<unsigned>((width + kThreads - 1) / kThreads);
}

// Calls use with a value of the type that holds `dtype`.
template <class Use>
void with_type(Dtype dtype, Use use) {
  switch (dtype) {
    case Dtype::kF32:
      return use(float{});
    case Dtype::kF16:
      return use(F16{});
    default:
      return use(Bf16{});
  }
}

}  // namespace

void launch_embed(const EmbedArgs& args, cudaStream_t stream) {
  with_type(args.dtype, [&](auto type) {
    MF_LAUNCH((embed_kernel<decltype(type)>), static_cast<unsigned>(args.rows), kThreads, 0, stream,
              args);
  });
  MF_CUDA(cudaGetLastError());
}

void launch_norm(const NormArgs& args, cudaStream_t stream) {
  with_type(args.out_dtype, [&](auto type) {
    MF_LAUNCH((norm_kernel<decltype(type)>), static_cast<unsigned>(args.rows), kThreads, 0, stream,
              args);
  });
  MF_CUDA(cudaGetLastError());
}

void launch_rope_angles(const RopeAnglesArgs& args, cudaStream_t stream) {
  MF_LAUNCH(rope_angles_kernel, static_cast<unsigned>(args.rows), 64, 0, stream, args);
  MF_CUDA(cudaGetLastError());
}

void launch_rope_append(const RopeAppendArgs& args, cudaStream_t stream) {
  constexpr int32_t kHeadsOfBlock = kThreads / kWarpSize;
  const int32_t heads = args.heads + 2 * args.kv_heads;
  const dim3 grid(static_cast<unsigned>(args.rows),
                  static_cast<unsigned>((heads + kHeadsOfBlock - 1) / kHeadsOfBlock));
  with_type(args.dtype, [&](auto type) {
    MF_LAUNCH((rope_append_kernel<decltype(type)>), grid, kThreads, 0, stream, args);
  });
  MF_CUDA(cudaGetLastError());
}

void launch_activate(const ActivateArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows), blocks_for(args.width));
  with_type(args.dtype, [&](auto type) {
    MF_LAUNCH((activate_kernel<decltype(type)>), grid, kThreads, 0, stream, args);
  });
  MF_CUDA(cudaGetLastError());
}

void launch_add(const AddArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows), blocks_for(args.width));
  MF_LAUNCH(add_kernel, grid, kThreads, 0, stream, args);
  MF_CUDA(cudaGetLastError());
}

}  // namespace manyfold::cuda
