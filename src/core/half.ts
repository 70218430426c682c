/** The 16-bit float formats, one value at a time, exact. IEEE 754 binary16 and bfloat16. */

const BITS = new Uint32Array(1);
const FLOAT = new Float32Array(BITS.buffer);

export function bf16ToF32(bits: number): number {
  BITS[0] = bits << 16;
  return FLOAT[0] as number;
}

/** Round to nearest even; NaN stays NaN. */
export function f32ToBf16(value: number): number {
  FLOAT[0] = value;
  const bits = BITS[0] as number;
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

export function f16ToF32(bits: number): number {
  const sign = (bits & 0x8000) !== 0 ? -1 : 1;
  const exponent = (bits >>> 10) & 31;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Infinity : NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
