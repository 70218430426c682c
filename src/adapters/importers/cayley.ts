/** Rotations of OFT and BOFT from skew-symmetric matrices, one block at a time, in float64. */
import { product, solve } from '../fold.js';

/** (I - Q)⁻¹ (I + Q), the transpose of Cayley's (I - Q) (I + Q)⁻¹, for a skew-symmetric q `[n, n]`. */
export function cayleyTransposed(q: Float64Array, n: number): Float64Array {
  const left = q.map((value, i) => (i % (n + 1) === 0 ? 1 - value : -value));
  const right = q.map((value, i) => (i % (n + 1) === 0 ? 1 + value : value));
  return solve(left, right, n, n);
}

/**
 * The transpose of Cayley's Neumann series of `terms` powers, I among them: I + 2Q + 2Q² + … + c Q^(terms - 1). PEFT adds
 * the last power once from 0.18 on (c = 1, and for 3 terms up to Q³), and twice before (c = 2).
 */
export function neumannTransposed(q: Float64Array, n: number, terms: number, lastTwice: boolean): Float64Array {
  // Qᵀ = -Q, so the transposed series is the series of -Q.
  const minus = q.map((value) => -value);
  const result = new Float64Array(n * n);
  for (let i = 0; i < n; i += 1) result[i * (n + 1)] = 1;
  if (terms <= 1) return result;
  const add = (power: Float64Array, factor: number): void => {
    for (let i = 0; i < result.length; i += 1) result[i] = (result[i] as number) + factor * (power[i] as number);
  };
  add(minus, 2);
  if (terms === 2) return result;
  let power = product(minus, minus, n, n, n);
  add(power, 2);
  const doubled = lastTwice ? terms - 3 : Math.max(0, terms - 4);
  for (let i = 0; i < doubled; i += 1) {
    power = product(power, minus, n, n, n);
    add(power, 2);
  }
  if (!lastTwice) add(product(power, minus, n, n, n), 1);
  return result;
}
