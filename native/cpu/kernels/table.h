// Makes the table of one tier from its SIMD policy. Included by each file of isa/ after its own
// policy.
//
// Everything here and in the headers below is a template over S, so that two tiers never share a
// function that one of them has compiled for instructions the other's machine lacks.
#pragma once

#include "attention_pairs.h"
#include "blocks.h"
#include "gemm.h"
#include "int8.h"
#include "lowrank.h"
#include "q4.h"
#include "rows.h"
#include "sparse.h"

namespace manyfold::kernels {

// The functions of the table with the dtype as an argument.
template <class S>
struct Typed {
  using Base16 = typename BasePanels<S>::Bf16;
  using Base32 = F32Panel<S>;
  using Spread16 = Bf16Panel<S>;
  using Spread32 = F32Panel<S>;

  static int32_t panel_rows(Dtype dtype) {
    return dtype == Dtype::kF32 ? Base32::kRows : Base16::kRows;
  }
  static size_t panel_bytes(Dtype dtype, int32_t cols) {
    return dtype == Dtype::kF32 ? static_cast<size_t>(panel_elements<Base32>(cols)) * 4
                                : static_cast<size_t>(panel_elements<Base16>(cols)) * 2;
  }
  static void pack(Dtype dtype, const float* rows, int32_t count, int32_t cols, std::byte* panel) {
    if (dtype == Dtype::kF32) {
      pack_panel<Base32>(rows, count, cols, reinterpret_cast<float*>(panel));
    } else {
      pack_panel<Base16>(rows, count, cols, reinterpret_cast<uint16_t*>(panel));
    }
  }
  static void unpack(Dtype dtype, const std::byte* panel, int32_t row, int32_t cols, float* out) {
    if (dtype == Dtype::kF32) {
      unpack_row<Base32>(reinterpret_cast<const float*>(panel), row, cols, out);
    } else {
      unpack_row<Base16>(reinterpret_cast<const uint16_t*>(panel), row, cols, out);
    }
  }
  static void multiply(const GemmArgs& a) {
    if (a.dtype == Dtype::kF32) {
      gemm<S, Base32>(a);
    } else {
      gemm<S, Base16>(a);
    }
  }

  static int32_t spread_rows() { return Spread32::kRows; }
  // Calls use(P) with an object of the panel type.
  template <class Use>
  static auto with_spread(FactorType dtype, const Use& use) {
    switch (dtype) {
      case FactorType::kBf16:
        return use(Spread16{});
      case FactorType::kInt8:
        return use(Int8Panel<S>{});
      case FactorType::kTernary:
        return use(TernaryPanel<S>{});
      default:
        return use(Spread32{});
    }
  }
  static size_t spread_bytes(FactorType dtype, int32_t out, int32_t rank) {
    return with_spread(dtype, [&](auto panel) {
      using P = decltype(panel);
      const int64_t panels = (out + P::kRows - 1) / P::kRows;
      return static_cast<size_t>(panels * panel_elements<P>(rank)) * sizeof(typename P::Weight);
    });
  }
  static void pack_spread(FactorType dtype, const float* b, int32_t out, int32_t rank,
                          std::byte* packed) {
    with_spread(dtype, [&](auto of_type) {
      using P = decltype(of_type);
      auto* panel = reinterpret_cast<typename P::Weight*>(packed);
      for (int32_t row = 0; row < out; row += P::kRows, panel += panel_elements<P>(rank)) {
        const int32_t count = out - row < P::kRows ? out - row : P::kRows;
        if constexpr (P::kDepth == kWordValues) {
          pack_ternary_panel<S>(b + int64_t{row} * rank, count, rank, panel);
        } else {
          pack_panel<P>(b + int64_t{row} * rank, count, rank, panel);
        }
      }
    });
  }
  static void add_spread(const SpreadArgs& a) {
    with_spread(a.dtype, [&](auto panel) { spread<S, decltype(panel)>(a); });
  }

  // Calls use(stored element).
  template <class Use>
  static auto with_factor(FactorType dtype, const Use& use) {
    switch (dtype) {
      case FactorType::kBf16:
        return use(uint16_t{});
      case FactorType::kInt8:
        return use(int8_t{});
      case FactorType::kTernary:
        return use(uint32_t{});
      default:
        return use(float{});
    }
  }
  static size_t factor_bytes(FactorType dtype, int32_t ranks, int32_t cols) {
    return with_factor(dtype,
                       [&](auto value) { return reduce_bytes<S, decltype(value)>(ranks, cols); });
  }
  static void pack_factor(FactorType dtype, const float* a, int32_t ranks, int32_t cols,
                          std::byte* packed) {
    with_factor(dtype, [&](auto value) {
      pack_reduce<S>(a, ranks, cols, reinterpret_cast<decltype(value)*>(packed));
    });
  }
  static void reduce_rows(const ReduceArgs& a) {
    with_factor(a.dtype, [&](auto value) { reduce<S, decltype(value)>(a); });
  }

  static size_t block_bytes(FactorType dtype, int32_t outputs, int32_t inputs) {
    const int64_t values = (outputs + S::kLanes - 1) / S::kLanes * S::kLanes * int64_t{inputs};
    return static_cast<size_t>(values) * (dtype == FactorType::kBf16 ? 2 : 4);
  }
  static void pack_block(FactorType dtype, const float* values, int32_t outputs, int32_t inputs,
                         std::byte* packed) {
    if (dtype == FactorType::kBf16) {
      pack_blocks<S>(values, outputs, inputs, reinterpret_cast<uint16_t*>(packed));
    } else {
      pack_blocks<S>(values, outputs, inputs, reinterpret_cast<float*>(packed));
    }
  }
};

template <class S>
constexpr Kernels make_kernels() {
  using T = Typed<S>;
  return Kernels{
      .isa = S::kName,
      .lanes = S::kLanes,
      .rounds_inputs = S::kDotBf16,
      .panel_rows = T::panel_rows,
      .panel_bytes = T::panel_bytes,
      .pack_panel = T::pack,
      .unpack_row = T::unpack,
      .round_inputs = round_inputs<S>,
      .gemm = T::multiply,
      .int8 = make_int8_kernels<S>(),
      .q4 = make_q4_kernels<S>(),
      .spread_rows = T::spread_rows,
      .spread_bytes = T::spread_bytes,
      .pack_spread = T::pack_spread,
      .reduce_bytes = T::factor_bytes,
      .pack_reduce = T::pack_factor,
      .reduce = T::reduce_rows,
      .spread = T::add_spread,
      .sliced = sliced<S>,
      .block_bytes = T::block_bytes,
      .pack_blocks = T::pack_block,
      .blocks = blocks<S>,
      .append_key = KvTypes<S>::Types::append_key,
      .append_value = KvTypes<S>::Types::append_value,
      .attention_scratch = attention_scratch<S>,
      .attention = attention<S, typename KvTypes<S>::Types>,
      .rms_norm = rms_norm<S>,
      .rotate = rotate<S>,
      .add = add<S>,
      .multiply = multiply<S>,
      .add_scaled = add_scaled<S>,
      .activate = activate<S>,
      .gather = gather_row<S>,
      .activate_bottleneck = activate_bottleneck<S>,
      .layer_norm = layer_norm<S>,
  };
}

}  // namespace manyfold::kernels
