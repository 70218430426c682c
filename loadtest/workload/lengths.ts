/** Lengths of prompts and answers in tokens, and think times: one number from a distribution. Pure given its random numbers. */
import { normal, pick } from './random.js';
import type { Random } from './random.js';

export type Distribution =
  | { readonly kind: 'fixed'; readonly value: number }
  | { readonly kind: 'uniform'; readonly min: number; readonly max: number }
  | {
      readonly kind: 'normal';
      readonly mean: number;
      readonly deviation: number;
      readonly min: number;
      readonly max: number;
    }
  /** `median` = exp(μ), `sigma` = σ of the logarithm. */
  | {
      readonly kind: 'lognormal';
      readonly median: number;
      readonly sigma: number;
      readonly min: number;
      readonly max: number;
    }
  /** Values as they were seen somewhere, each as likely as the others. */
  | { readonly kind: 'samples'; readonly values: readonly number[] };

/** One value, not rounded. Normal and log-normal values outside of min..max are drawn again, then clamped. */
export function draw(distribution: Distribution, random: Random): number {
  switch (distribution.kind) {
    case 'fixed':
      return distribution.value;
    case 'uniform':
      return distribution.min + (distribution.max - distribution.min) * random();
    case 'normal':
      return within(distribution, () => distribution.mean + distribution.deviation * normal(random));
    case 'lognormal':
      return within(distribution, () => distribution.median * Math.exp(distribution.sigma * normal(random)));
    case 'samples':
      return distribution.values[pick(distribution.values.length, random)] ?? 0;
  }
}

/** As {@link draw}, in whole tokens; every whole number of a uniform range is equally likely. At least 1. */
export function drawTokens(distribution: Distribution, random: Random): number {
  if (distribution.kind === 'uniform') {
    return Math.max(1, distribution.min + pick(distribution.max - distribution.min + 1, random));
  }
  return Math.max(1, Math.round(draw(distribution, random)));
}

/** More tries would only be spent on limits that leave next to nothing of the distribution. */
const MAX_DRAWS = 64;

function within({ min, max }: { min: number; max: number }, next: () => number): number {
  let value = next();
  for (let tries = 1; tries < MAX_DRAWS && (value < min || value > max); tries++) value = next();
  return Math.min(max, Math.max(min, value));
}

/** For descriptions: `lognormal(median 200, σ 0.8)`. */
export function describeDistribution(distribution: Distribution): string {
  switch (distribution.kind) {
    case 'fixed':
      return String(distribution.value);
    case 'uniform':
      return `${distribution.min} to ${distribution.max}`;
    case 'normal':
      return `normal(${distribution.mean} ± ${distribution.deviation})`;
    case 'lognormal':
      return `lognormal(median ${distribution.median}, σ ${distribution.sigma})`;
    case 'samples':
      return `${distribution.values.length} samples from a file`;
  }
}
