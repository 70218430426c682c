/**
 * Seeded random numbers: equal seeds give equal numbers on every machine, so that a run can be repeated. The generator
 * is xoshiro128** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021), its state filled by
 * the finaliser of MurmurHash3.
 */

/** Uniform in [0, 1), 32 bits of it random. */
export type Random = () => number;

function mix(value: number): number {
  let hash = value >>> 0;
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

/** What a seed is used for; equal seeds for different uses must not give equal numbers. */
export type SeedUse = 'arrivals' | 'adapters' | 'lengths' | 'prompt' | 'prefix' | 'think' | 'run';
const USES: readonly SeedUse[] = ['arrivals', 'adapters', 'lengths', 'prompt', 'prefix', 'think', 'run'];

/** A seed (32 bits) of its own for one use and one index, so that request 7 is the same however many come before it. */
export function derivedSeed(seed: number, use: SeedUse, index = 0): number {
  const high = Math.floor(seed / 2 ** 32);
  return mix(mix(mix(mix(seed) ^ high) + USES.indexOf(use) * 0x9e3779b9) + index);
}

/** `seed` is any whole number of 0 to 2^53 − 1. */
export function seededRandom(seed: number): Random {
  const start = mix(seed) ^ Math.floor(seed / 2 ** 32);
  let [s0, s1, s2, s3] = [1, 2, 3, 4].map((lane) => mix(start + Math.imul(lane, 0x9e3779b9))) as [
    number,
    number,
    number,
    number,
  ];
  if ((s0 | s1 | s2 | s3) === 0) s0 = 1; // All zeros is the one state that the generator never leaves.
  const rotate = (value: number, by: number): number => (value << by) | (value >>> (32 - by));
  return () => {
    const result = Math.imul(rotate(Math.imul(s1, 5), 7), 9) >>> 0;
    const shifted = s1 << 9;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= shifted;
    s3 = rotate(s3, 11);
    return result / 2 ** 32;
  };
}

/** Mean 1. */
export function exponential(random: Random): number {
  return -Math.log(1 - random());
}

/** Mean 0, standard deviation 1 (Box and Muller, 1958). */
export function normal(random: Random): number {
  return Math.sqrt(2 * exponential(random)) * Math.cos(2 * Math.PI * random());
}

/** A whole number of 0 to `count` − 1. */
export function pick(count: number, random: Random): number {
  return Math.min(count - 1, Math.floor(random() * count));
}
