/** Terms in the flat form that the addon takes, and what the engine must know of a set. Called by residency. */
import { SITES } from '../core/model-config.js';
import type { Term, TermSet, TermTensor } from '../core/terms.js';
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
        third: term.midMatrix,
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
        norm: term.norm,
      };
    case 'rowcol':
      return {
        kind: 'rowcol',
        ...place,
        scale: term.scale,
        placement: term.side,
        rows: term.index,
        first: term.values,
      };
    case 'sparse':
      return {
        kind: 'sparse',
        ...place,
        scale: term.scale,
        rowStart: term.rowStart,
        rows: term.columns,
        first: term.values,
      };
    case 'blockdiag':
      return {
        kind: 'blockdiag',
        ...place,
        scale: term.scale,
        placement: term.placement,
        stages: term.stages,
        rows: term.output,
      };
  }
}

export interface TermSetFacts {
  /** Positions that the set's shared-softmax prefix takes before the first token. */
  readonly prefixTokens: number;
  /** Rows of the soft prompt, which take positions after the prefix and before the first token. */
  readonly softPromptTokens: number;
  /** Token ids whose last occurrence in the prompt switches the terms on; undefined: they always act. */
  readonly invocation: readonly number[] | undefined;
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
  bytes += set.softPrompt?.data.byteLength ?? 0;
  const { softPrompt, invocation } = set;
  return { prefixTokens, softPromptTokens: softPrompt?.shape[0] ?? 0, invocation, gatedPrefix, maxRank, bytes, kinds };
}

function termBytes(term: NativeTerm): number {
  const vectors = [
    term.vectorA,
    term.vectorB,
    term.vectorC,
    term.rows,
    term.rowStart,
    term.norm?.weight,
    term.norm?.bias,
  ];
  const stages = term.stages ?? [];
  const tensors = [term.first, term.second, term.third, ...stages.map(({ blocks }) => blocks)];
  const arrays = [...vectors, ...stages.map(({ gather }) => gather)];
  return (
    arrays.reduce((sum, array) => sum + (array?.byteLength ?? 0), 0) +
    tensors.reduce((sum, tensor) => sum + (tensor === undefined ? 0 : tensorBytes(tensor)), 0)
  );
}

function tensorBytes(tensor: TermTensor): number {
  if (tensor.dtype === 'ternary') return tensor.positive.byteLength + tensor.negative.byteLength;
  return tensor.data.byteLength + (tensor.dtype === 'int8' ? tensor.scales.byteLength : 0);
}
