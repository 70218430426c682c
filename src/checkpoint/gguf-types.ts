/** Names, sizes and numbers of GGUF's value and tensor types, from ggml's `ggml_type` and `gguf_type`. */
import type { WeightDtype } from '../native/binding-types.js';

/** Values in a block and bytes of a block; native/core/dtype.h has the same table. */
export const BLOCK_SHAPES: Readonly<Record<WeightDtype, { readonly values: number; readonly bytes: number }>> = {
  f32: { values: 1, bytes: 4 },
  f16: { values: 1, bytes: 2 },
  bf16: { values: 1, bytes: 2 },
  q8_0: { values: 32, bytes: 34 },
  q4_0: { values: 32, bytes: 18 },
  q4_1: { values: 32, bytes: 20 },
  q5_0: { values: 32, bytes: 22 },
  q5_1: { values: 32, bytes: 24 },
  q4_k: { values: 256, bytes: 144 },
  q5_k: { values: 256, bytes: 176 },
  q6_k: { values: 256, bytes: 210 },
};

/** Tensor types that are served, by ggml's number. */
export const GGML_DTYPES: ReadonlyMap<number, WeightDtype> = new Map([
  [0, 'f32'],
  [1, 'f16'],
  [2, 'q4_0'],
  [3, 'q4_1'],
  [6, 'q5_0'],
  [7, 'q5_1'],
  [8, 'q8_0'],
  [12, 'q4_k'],
  [13, 'q5_k'],
  [14, 'q6_k'],
  [30, 'bf16'],
]);

/** Names of the types that are not served, so that a refusal can say what it met. */
export const OTHER_GGML_TYPES: ReadonlyMap<number, string> = new Map([
  [9, 'Q8_1'],
  [10, 'Q2_K'],
  [11, 'Q3_K'],
  [15, 'Q8_K'],
  [16, 'IQ2_XXS'],
  [17, 'IQ2_XS'],
  [18, 'IQ3_XXS'],
  [19, 'IQ1_S'],
  [20, 'IQ4_NL'],
  [21, 'IQ3_S'],
  [22, 'IQ2_S'],
  [23, 'IQ4_XS'],
  [24, 'I8'],
  [25, 'I16'],
  [26, 'I32'],
  [27, 'I64'],
  [28, 'F64'],
  [29, 'IQ1_M'],
  [34, 'TQ1_0'],
  [35, 'TQ2_0'],
  [39, 'MXFP4'],
]);

/** Metadata value types, by GGUF's number. */
export const GGUF_UINT8 = 0;
export const GGUF_INT8 = 1;
export const GGUF_UINT16 = 2;
export const GGUF_INT16 = 3;
export const GGUF_UINT32 = 4;
export const GGUF_INT32 = 5;
export const GGUF_FLOAT32 = 6;
export const GGUF_BOOL = 7;
export const GGUF_STRING = 8;
export const GGUF_ARRAY = 9;
export const GGUF_UINT64 = 10;
export const GGUF_INT64 = 11;
export const GGUF_FLOAT64 = 12;

/** Bytes of a value; for a string or an array the fewest that it can have. */
export const GGUF_VALUE_BYTES: Readonly<Record<number, number>> = {
  [GGUF_UINT8]: 1,
  [GGUF_INT8]: 1,
  [GGUF_UINT16]: 2,
  [GGUF_INT16]: 2,
  [GGUF_UINT32]: 4,
  [GGUF_INT32]: 4,
  [GGUF_FLOAT32]: 4,
  [GGUF_BOOL]: 1,
  [GGUF_STRING]: 8,
  [GGUF_ARRAY]: 12,
  [GGUF_UINT64]: 8,
  [GGUF_INT64]: 8,
  [GGUF_FLOAT64]: 8,
};
