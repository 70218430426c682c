/** What a LOWRANK term adds to a weight, its parts multiplied out in float64. For tests of importers. */
import assert from 'node:assert/strict';

import type { SiteRef } from '../../core/model-config.js';
import type { DenseTensor, LowRankTerm, Term } from '../../core/terms.js';
import { toFloats } from '../tensor-values.js';
import { dense } from './base.js';
import { diagonal, identity, scaled, shaped, times } from './matrices.js';
import type { Matrix } from './matrices.js';

const rowsOf = (tensor: DenseTensor): Matrix =>
  shaped(toFloats(tensor), tensor.shape[0] as number, tensor.shape[1] as number);

/** scale · diag(e) B D A, `[out, in]`. */
export function lowRankDelta({ a, b, scale, mid, midMatrix, outDiag }: LowRankTerm): Matrix {
  assert.ok(mid === undefined || midMatrix === undefined, 'one middle');
  const middle =
    midMatrix === undefined ? diagonal([...(mid ?? identity(a.shape[0] ?? 0).map(() => 1))]) : rowsOf(midMatrix);
  const outer = diagonal([...(outDiag ?? identity(b.shape[0] ?? 0).map(() => 1))]);
  return scaled(times(outer, rowsOf(dense(b)), middle, rowsOf(dense(a))), scale);
}

/** The only term at a site, which must be LOWRANK. */
export function lowRankAt(terms: readonly Term[], { layer, site }: SiteRef): LowRankTerm {
  const own = terms.filter((term) => term.site.layer === layer && term.site.site === site);
  const [term] = own;
  return own.length === 1 && term?.kind === 'lowrank' ? term : assert.fail(`one lowrank term at ${site}`);
}
