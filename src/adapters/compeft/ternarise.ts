/**
 * Algorithm 1 of ComPEFT (Yadav, Choshen, Raffel, Bansal: arXiv 2311.13171), as its code has it: of a vector τ of d values
 *
 *     keep = |τ| ≥ the (d - int(d·k))-th smallest |τ|      int(d·k) + 1 values, and more where some are equal
 *     c    = α · σ(τ)                                       σ unbiased, over all of τ
 *     τ̃    = c · sign(τ) ⊙ keep
 *
 * over the whole adapter (the paper's one scalar) or over each tensor. Called by compress.ts.
 */
import type { SignedPositions } from './rice.js';

/**
 * α of the paper, or 'auto': c = mean |τ| over the kept values, which is nearest to τ in least squares. (The code's "STC"
 * takes the mean of the signed values, which is about 0; the method that it names, arXiv 1903.02891, takes this one.)
 */
export type Alpha = number | 'auto';

export interface TernariseOptions {
  /** k: the part of the values that is kept, above 0 and at most 1. */
  readonly density: number;
  readonly alpha: Alpha;
}

export interface TernaryVector extends SignedPositions {
  readonly negative: Uint8Array;
  /** c, rounded to float32; 0 for a vector without entries. */
  readonly scale: number;
}

export type Scope = 'tensor' | 'global';

/** One ternary vector for each of `vectors`; with scope 'global' they share threshold and scale. */
export function ternarise(
  vectors: readonly Float32Array[],
  scope: Scope,
  { density, alpha }: TernariseOptions,
): TernaryVector[] {
  const groups = scope === 'global' ? [vectors] : vectors.map((vector) => [vector]);
  return groups.flatMap((group) => {
    const threshold = thresholdOf(group, density);
    const scale = Math.fround(alpha === 'auto' ? meanKept(group, threshold) : alpha * standardDeviation(group));
    return group.map((vector) => ternaryOf(vector, threshold, scale));
  });
}

/** The smallest magnitude that is kept. */
function thresholdOf(group: readonly Float32Array[], density: number): number {
  const magnitudes = new Float32Array(group.reduce((sum, vector) => sum + vector.length, 0));
  let at = 0;
  for (const vector of group) for (const value of vector) magnitudes[at++] = Math.abs(value);
  magnitudes.sort();
  // torch.kthvalue counts from 1; with density 1 it has no such value and everything is kept.
  const rank = magnitudes.length - Math.trunc(magnitudes.length * density);
  return magnitudes[Math.max(rank - 1, 0)] ?? 0;
}

/** Unbiased, in float64. */
function standardDeviation(group: readonly Float32Array[]): number {
  let [count, sum] = [0, 0];
  for (const vector of group) {
    count += vector.length;
    for (const value of vector) sum += value;
  }
  const mean = sum / count;
  let squares = 0;
  for (const vector of group) for (const value of vector) squares += (value - mean) ** 2;
  return count < 2 ? 0 : Math.sqrt(squares / (count - 1));
}

function meanKept(group: readonly Float32Array[], threshold: number): number {
  let [count, sum] = [0, 0];
  for (const vector of group) {
    for (const value of vector) {
      const magnitude = Math.abs(value);
      if (magnitude < threshold || magnitude === 0) continue;
      count += 1;
      sum += magnitude;
    }
  }
  return count === 0 ? 0 : sum / count;
}

function ternaryOf(vector: Float32Array, threshold: number, scale: number): TernaryVector {
  // A zero has no sign; where the deviation is zero (equal values) there is nothing to scale the signs by.
  const keeps = (value: number): boolean => scale > 0 && value !== 0 && Math.abs(value) >= threshold;
  let count = 0;
  for (const value of vector) if (keeps(value)) count += 1;
  const positions = new Uint32Array(count);
  const negative = new Uint8Array(count);
  let at = 0;
  for (let i = 0; i < vector.length; i += 1) {
    const value = vector[i] as number;
    if (!keeps(value)) continue;
    positions[at] = i;
    negative[at] = value < 0 ? 1 : 0;
    at += 1;
  }
  return { positions, negative, scale: count === 0 ? 0 : scale };
}
