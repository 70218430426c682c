/** Bases and tensors for tests of importers. */
import assert from 'node:assert/strict';

import type { SiteRef } from '../../core/model-config.js';
import type { DenseTensor, TermTensor } from '../../core/terms.js';
import type { BaseWeights } from '../importer.js';

/** For methods that never look at the base: a look is a mistake. */
export const UNREAD_BASE: BaseWeights = {
  weight: ({ layer, site }) => assert.fail(`the weight of ${site} in layer ${layer} was read`),
  bias: ({ layer, site }) => assert.fail(`the bias of ${site} in layer ${layer} was read`),
};

/** A base of given matrices, keyed by `layer site`; `bias` likewise. */
export function baseOf(
  weights: ReadonlyMap<string, { readonly cols: number; readonly data: Float32Array }>,
  biases: ReadonlyMap<string, Float32Array> = new Map(),
): BaseWeights {
  const key = ({ layer, site }: SiteRef): string => `${layer} ${site}`;
  return {
    weight: (site, row0, rows) => {
      const matrix = weights.get(key(site)) ?? assert.fail(`no weight at ${key(site)}`);
      return matrix.data.slice(row0 * matrix.cols, (row0 + rows) * matrix.cols);
    },
    bias: (site) => biases.get(key(site)),
  };
}

export function dense(tensor: TermTensor | undefined): DenseTensor {
  assert.ok(tensor !== undefined && tensor.dtype !== 'ternary' && tensor.dtype !== 'int8', 'a dense tensor');
  return tensor;
}
