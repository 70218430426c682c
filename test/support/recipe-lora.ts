/**
 * The LoRAs of the default model's goldens, made from a seed by the recipe of tools/oracle/smollm2.py: both sides hash
 * the same counters, so nothing large is committed. Used by parity-smollm2.test.ts.
 */
import { linearShape, type ModelConfig, type SiteName } from '../../src/core/model-config.js';
import type { TermSet, TermTensor } from '../../src/core/terms.js';

const ORDER: readonly SiteName[] = ['q', 'k', 'v', 'o', 'gate', 'up', 'down'];

export interface RecipeLora {
  readonly rank: number;
  readonly alpha: number;
  readonly stdB: number;
}

/** A 32-bit hash of a counter, every bit of it mixed. */
function mix(counter: number): number {
  let h = counter >>> 0;
  h ^= h >>> 16;
  h = Math.imul(h, 0x7feb352d);
  h ^= h >>> 15;
  h = Math.imul(h, 0x846ca68b);
  return (h ^ (h >>> 16)) >>> 0;
}

const scratch = new DataView(new ArrayBuffer(4));

/** Round to nearest even, of finite values. */
function bf16Bits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function values(seed: number, first: number, shape: readonly [number, number], std: number): TermTensor {
  const start = Math.imul(seed, 0x9e3779b9) + first;
  const amplitude = Math.sqrt(3) * std;
  const data = new Uint16Array(shape[0] * shape[1]);
  for (let i = 0; i < data.length; i++) data[i] = bf16Bits(((mix(start + i) / 4294967296) * 2 - 1) * amplitude);
  return { dtype: 'bf16', shape, data };
}

/** Layer by layer, linear by linear, A then B, all from one stream of values. */
export function recipeLora(config: ModelConfig, seed: number, lora: RecipeLora): TermSet {
  const terms = [];
  let first = 0;
  for (let layer = 0; layer < config.layers.length; layer++) {
    for (const site of ORDER) {
      const shape = linearShape(config, site);
      if (shape === undefined) throw new Error(`${site} is a linear`);
      const a = values(seed, first, [lora.rank, shape.in], 1 / Math.sqrt(shape.in));
      const b = values(seed, first + lora.rank * shape.in, [shape.out, lora.rank], lora.stdB);
      first += lora.rank * (shape.in + shape.out);
      terms.push({ kind: 'lowrank' as const, site: { layer, site }, a, b, scale: lora.alpha / lora.rank });
    }
  }
  return { terms };
}
