/** Which adapter a request asks for. `null` is the base model. Pure given its random numbers. */
import type { Random } from './random.js';

export type AdapterPopularity =
  | { readonly kind: 'none' }
  | { readonly kind: 'uniform' }
  /** The k-th name has a share in proportion to k^−exponent (Zipf's law), as tenants usually have. */
  | { readonly kind: 'zipf'; readonly exponent: number }
  /** One name after the other, so that as many different ones as possible are in flight. */
  | { readonly kind: 'distinct' }
  /** Always the first name. */
  | { readonly kind: 'identical' }
  /** Shares in proportion to the weights, in the order of the names. */
  | { readonly kind: 'weighted'; readonly weights: readonly number[] };

/** The adapter of request `index`; `random` is that request's own. */
export type ChooseAdapter = (index: number, random: Random) => string | null;

/** `baseShare` of the requests, 0 to 1, go to the base model whatever the popularity says. */
export function adapterChooser(
  popularity: AdapterPopularity,
  names: readonly string[],
  baseShare: number,
): ChooseAdapter {
  if (popularity.kind === 'none' || names.length === 0) return () => null;
  const choose = chooserOf(popularity, names);
  return (index, random) => (baseShare > 0 && random() < baseShare ? null : choose(index, random));
}

function chooserOf(popularity: Exclude<AdapterPopularity, { kind: 'none' }>, names: readonly string[]): ChooseAdapter {
  switch (popularity.kind) {
    case 'uniform':
      return weighted(
        names,
        names.map(() => 1),
      );
    case 'zipf':
      return weighted(
        names,
        names.map((_, rank) => (rank + 1) ** -popularity.exponent),
      );
    case 'weighted':
      return weighted(names, popularity.weights);
    case 'distinct':
      return (index) => names[((index % names.length) + names.length) % names.length] ?? null;
    case 'identical':
      return () => names[0] ?? null;
  }
}

function weighted(names: readonly string[], weights: readonly number[]): ChooseAdapter {
  let sum = 0;
  const ends = weights.map((weight) => (sum += weight));
  return (_, random) => {
    const target = random() * sum;
    let low = 0;
    let high = ends.length - 1;
    // The first name whose running sum lies above the target.
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((ends[middle] ?? 0) > target) high = middle;
      else low = middle + 1;
    }
    return names[low] ?? null;
  };
}
