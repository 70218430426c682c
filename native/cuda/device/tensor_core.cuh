// Products of small tiles on tensor cores (PTX ISA, mma.m16n8k16 and ldmatrix; sm_80 and later),
// and copies from global to shared memory that run beside arithmetic (cp.async).
#pragma once

#include "number.cuh"

namespace manyfold::cuda {

// d [16, 8] += a [16, 16] b [16, 8], of one warp. Lane L with g = L / 4 and t = L % 4 holds
// a: words (row g, k 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), each two neighbours along k;
// b: words (k 2t, column g), (2t + 8, g), each two neighbours along k;
// d: (row g, column 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
template <class T>
MF_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#if defined(__CUDACC__)

template <>
MF_DEVICE void mma_16x8x16<Bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
MF_DEVICE void mma_16x8x16<F16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

MF_DEVICE uint32_t shared_address(const void* place) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
}

// Four 8 × 8 matrices of 16-bit values. Lane 8i + j names row j of matrix i (16 bytes in shared
// memory); word i of lane L is row L / 4, columns 2(L % 4) and + 1 of matrix i.
MF_DEVICE void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row)));
}
// The same, each matrix transposed: word i of lane L is rows 2(L % 4) and + 1, column L / 4.
MF_DEVICE void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row)));
}

// 16 bytes, both addresses multiples of 16; zeros when not valid (`from` is then not read).
MF_DEVICE void copy_async_16(void* to_shared, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
MF_DEVICE void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `kGroupsLeft` of this thread's groups are under way. Other threads' copies
// are seen after a barrier.
template <int kGroupsLeft>
MF_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
}

#else

template <class T>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char* slots = simt::meet_warp(mine, sizeof(mine));
  const auto half = [&](unsigned lane, unsigned word, unsigned part) {
    T value;
    std::memcpy(&value.bits, slots + 64 * lane + 4 * word + 2 * part, 2);
    return load(value);
  };
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
    float sum = 0.0f;
    for (unsigned k = 0; k < 16; ++k) {
      sum += half(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2) *
             half(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
    }
    d[i] += sum;
  }
  simt::leave_warp();
}

inline void exchange_matrices(uint32_t (&words)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) simt::broken("ldmatrix needs rows of 16 bytes");
  const unsigned char* slots = simt::meet_warp(row, 16);
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    uint16_t part[2];
    for (unsigned j = 0; j < 2; ++j) {
      const unsigned at_row = transposed ? 2 * t + j : g, at_column = transposed ? g : 2 * t + j;
      std::memcpy(&part[j], slots + 64 * (8 * i + at_row) + 2 * at_column, 2);
    }
    std::memcpy(&words[i], part, 4);
  }
  simt::leave_warp();
}
inline void load_matrices(uint32_t (&words)[4], const void* row) {
  exchange_matrices(words, row, false);
}
inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  exchange_matrices(words, row, true);
}
inline void copy_async_16(void* to_shared, const void* from, bool valid) {
  simt::copy_async(to_shared, from, 16, valid);
}
inline void copy_commit() {
  simt::copy_commit();
}
template <int kGroupsLeft>
void copy_wait() {
  simt::copy_wait(kGroupsLeft);
}

#endif

}  // namespace manyfold::cuda
