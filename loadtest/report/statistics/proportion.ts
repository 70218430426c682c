/**
 * Shares (of failed requests) and the difference of two. The bootstrap says nothing where a run had no failure at all;
 * score intervals do: Wilson (1927) for one share, Newcombe's hybrid of two ("Interval estimation for the difference between
 * independent proportions", Statistics in Medicine 17, 1998, method 10) for the difference.
 */
import type { Interval } from './bootstrap.js';

export interface Proportion {
  readonly share: number;
  /** Independent requests that tell as much as the dependent ones do: n over the design effect. */
  readonly effectiveCount: number;
}

/** Of the true share, with the normal quantile z. */
export function wilsonInterval({ share, effectiveCount: n }: Proportion, z: number): { low: number; high: number } {
  const centre = (share + z ** 2 / (2 * n)) / (1 + z ** 2 / n);
  const half = (z / (1 + z ** 2 / n)) * Math.sqrt((share * (1 - share)) / n + z ** 2 / (4 * n ** 2));
  return { low: Math.max(0, centre - half), high: Math.min(1, centre + half) };
}

/** Of after − before. */
export function newcombeInterval(before: Proportion, after: Proportion, confidence: number): Interval {
  const z = normalQuantile(1 - (1 - confidence) / 2);
  const one = wilsonInterval(before, z);
  const other = wilsonInterval(after, z);
  const difference = after.share - before.share;
  return {
    low: difference - Math.hypot(after.share - other.low, one.high - before.share),
    high: difference + Math.hypot(other.high - after.share, before.share - one.low),
    confidence,
  };
}

/** Inverse of the standard normal distribution for 0 < p < 1, by bisection of its cumulative function. */
export function normalQuantile(p: number): number {
  let [low, high] = [-10, 10];
  for (let step = 0; step < 80; step += 1) {
    const middle = (low + high) / 2;
    if (normalCumulative(middle) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** Abramowitz and Stegun 26.2.11: a series of terms of one sign, so nothing cancels; they are added until they no longer count. */
function normalCumulative(x: number): number {
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n += 1) {
    term *= x ** 2 / (2 * n + 1);
    sum += term;
  }
  return 0.5 + (Math.exp(-(x ** 2) / 2) / Math.sqrt(2 * Math.PI)) * sum;
}
