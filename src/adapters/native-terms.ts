/** Terms in the flat form that the addon takes, and what the engine must know of a set. Called by residency. */
import { SITES } from '../core/model-config.js';
import type { Term, TermSet } from '../core/terms.js';
import type { NativeTerm } from '../native/binding-types.js';

export function toNativeTerms(set: TermSet): NativeTerm[] {
  return set.terms.map(toNativeTerm);
}

function toNativeTerm(term: Term): NativeTerm {
  const place = { layer: term.site.layer, site: SITES[term.site.site] };
  switch (term.kind) {
    case 'lowrank':
      return {
        kind: 'lowrank',
        ...place,
        scale: term.scale,
        first: term.a,
        second: term.b,
        vectorA: term.mid,
        vectorB: term.outDiag,
      };
    case 'diag':
      return { kind: 'diag', ...place, scale: 1, vectorA: term.h, vectorB: term.g, vectorC: term.c };
    case 'override':
      return { kind: 'override', ...place, scale: 1, first: term.values, rows: term.rows };
    case 'prefix':
      return { kind: 'prefix', ...place, scale: 1, first: term.k, second: term.v, gate: term.gate };
    case 'bottleneck':
      return {
        kind: 'bottleneck',
        ...place,
        scale: term.scale,
        first: term.down,
        second: term.up,
        vectorA: term.downBias,
        vectorB: term.upBias,
        activation: term.activation,
        placement: term.placement,
      };
  }
}

export interface TermSetFacts {
  /** Positions that the set's shared-softmax prefix takes before the first token. */
  readonly prefixTokens: number;
  /** Whether some layer has a prefix with its own softmax. */
  readonly gatedPrefix: boolean;
  /** Largest lowrank R; 0 when there is none. */
  readonly maxRank: number;
  /** Of all values, as they came. */
  readonly bytes: number;
  /** Terms by kind. */
  readonly kinds: Readonly<Record<string, number>>;
}

export function termSetFacts(set: TermSet): TermSetFacts {
  const kinds: Record<string, number> = {};
  let prefixTokens = 0;
  let gatedPrefix = false;
  let maxRank = 0;
  let bytes = 0;
  for (const term of set.terms) {
    kinds[term.kind] = (kinds[term.kind] ?? 0) + 1;
    if (term.kind === 'lowrank') maxRank = Math.max(maxRank, term.a.shape[0] ?? 0);
    if (term.kind === 'prefix' && term.gate === undefined) prefixTokens = term.k.shape[0] ?? 0;
    if (term.kind === 'prefix' && term.gate !== undefined) gatedPrefix = true;
    bytes += termBytes(toNativeTerm(term));
  }
  return { prefixTokens, gatedPrefix, maxRank, bytes, kinds };
}

function termBytes(term: NativeTerm): number {
  const arrays = [term.first?.data, term.second?.data, term.vectorA, term.vectorB, term.vectorC, term.rows];
  return arrays.reduce((sum, array) => sum + (array?.byteLength ?? 0), 0);
}
