// Marks the small functions of SIMD policies and kernels that must become part of their caller.
#pragma once

#define MF_INLINE [[gnu::always_inline]] static inline
#define MF_FLATTEN [[gnu::always_inline]] inline
