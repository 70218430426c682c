/** Rounding to the float types of checkpoints, to nearest, ties to even. Used by the tools that compare checkpoints. */
import { bf16ToF32, f32ToBf16 } from '../../core/half.js';

export type FloatType = 'f32' | 'f16' | 'bf16';

/** Explicit bits of the significand, for "is narrower than". */
export const SIGNIFICAND_BITS: Readonly<Record<FloatType, number>> = { f32: 23, f16: 10, bf16: 7 };

export function roundTo(type: FloatType, value: number): number {
  if (type === 'f32') return Math.fround(value);
  if (type === 'bf16') return bf16ToF32(f32ToBf16(value));
  return roundToHalf(value);
}

/** Half the distance between the largest f16 and 2^16: from here on it is infinity. */
const HALF_LIMIT = 65_520;
/** Adding and subtracting it rounds a value below 2^51 to an integer, ties to even. */
const TO_INTEGER = 2 ** 52;

function roundToHalf(value: number): number {
  const size = Math.abs(value);
  if (!(size < HALF_LIMIT)) return Number.isNaN(value) ? NaN : Math.sign(value) * Infinity;
  let exponent = -14;
  while (size >= 2 ** (exponent + 1)) exponent += 1;
  const step = 2 ** (exponent - 10);
  return Math.sign(value) * (size / step + TO_INTEGER - TO_INTEGER) * step;
}
