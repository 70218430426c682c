/** The base's weights as importers see them, read back from the native engine. Called by the engine. */
import { SITES } from '../core/model-config.js';
import type { NativeEngine } from '../native/binding-types.js';
import type { BaseWeights } from './importer.js';

export function nativeBaseWeights(native: Pick<NativeEngine, 'readWeight'>): BaseWeights {
  return {
    weight: ({ layer, site }, row0, rows) => native.readWeight(layer, SITES[site], 'weight', row0, rows),
    bias: ({ layer, site }) => {
      const values = native.readWeight(layer, SITES[site], 'bias', 0, 1);
      return values.length === 0 ? undefined : values;
    },
  };
}
