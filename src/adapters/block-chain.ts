/** Stages of BLOCKDIAG terms: copies and transposes of blocks without arithmetic, and terms of fused linears. */
import { bug } from '../core/errors.js';
import type { BlockDiagTerm, BlockStage, DenseTensor } from '../core/terms.js';
import { rounded } from './fold.js';
import type { ModulePart } from './module-place.js';

/** The same values in another arrangement: value i of the result is value `from(i)`. Keeps the type, so E0. */
export function rearranged(tensor: DenseTensor, shape: readonly number[], from: (i: number) => number): DenseTensor {
  const count = shape.reduce((size, dim) => size * dim, 1);
  const pick = (_: unknown, i: number): number => tensor.data[from(i)] ?? bug('an index past the tensor');
  if (tensor.dtype === 'f32') return { dtype: 'f32', shape, data: Float32Array.from({ length: count }, pick) };
  return { dtype: tensor.dtype, shape, data: Uint16Array.from({ length: count }, pick) };
}

/** The transposes `[nb, q, p]` of blocks `[nb, p, q]`. */
export function transposedBlocks(tensor: DenseTensor, nb: number, p: number, q: number): DenseTensor {
  const size = p * q;
  return rearranged(tensor, [nb, q, p], (i) => {
    const at = i % size;
    return i - at + (at % p) * q + Math.floor(at / p);
  });
}

/** `nb` copies of one block `[p, q]`. */
export function copies(tensor: DenseTensor, nb: number, p: number, q: number): DenseTensor {
  return rearranged(tensor, [nb, p, q], (i) => i % (p * q));
}

/** A stage as folded, before it is rounded. */
export interface FoldedStage {
  readonly gather?: Uint32Array;
  /** `[nb, p, q]`. */
  readonly shape: readonly [number, number, number];
  readonly values: Float64Array;
}

/** Rounds once; `what` names the fold. */
export function roundedStages(what: string, stages: readonly FoldedStage[]): BlockStage[] {
  return stages.map(({ gather, shape, values }) => ({
    blocks: rounded(what, shape, values),
    ...(gather === undefined ? {} : { gather }),
  }));
}

/** `nb` copies of the values. */
export function repeated(values: Float64Array, nb: number): Float64Array {
  const result = new Float64Array(nb * values.length);
  for (let i = 0; i < nb; i += 1) result.set(values, i * values.length);
  return result;
}

/** Index i of the result is `at(i)`. */
export function indices(length: number, at: (i: number) => number): Uint32Array {
  return Uint32Array.from({ length }, (_, i) => at(i));
}

export function inverse(permutation: Uint32Array): Uint32Array {
  const result = new Uint32Array(permutation.length);
  permutation.forEach((to, from) => (result[to] = from));
  return result;
}

/** The additive terms of a linear, one for each of its sites: all share the stages, each takes its own rows of the result. */
export function additiveTerms(
  { parts, out }: { readonly parts: readonly ModulePart[]; readonly out: number },
  stages: readonly BlockStage[],
  output: Uint32Array | undefined,
  scale: number,
): BlockDiagTerm[] {
  return parts.map(({ site, firstRow, rows }) => {
    const whole = rows === out;
    const own = output ?? indices(out, (i) => i);
    const result = whole ? output : own.slice(firstRow, firstRow + rows);
    return {
      kind: 'blockdiag',
      site,
      placement: 'additive',
      stages,
      scale,
      ...(result === undefined ? {} : { output: result }),
    };
  });
}

/** The terms of a map of the linear's input, the same before each of its sites. */
export function preTerms(
  { parts }: { readonly parts: readonly ModulePart[] },
  stages: readonly BlockStage[],
  output?: Uint32Array,
): BlockDiagTerm[] {
  return parts.map(({ site }) => ({
    kind: 'blockdiag',
    site,
    placement: 'pre',
    stages,
    scale: 1,
    ...(output === undefined ? {} : { output }),
  }));
}
