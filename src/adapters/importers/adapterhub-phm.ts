/**
 * PHM layers of AdapterHub (Compacter, arXiv 2106.04647): H = Σ_i rule_i ⊗ W_i `[in, out]`, y = x H + b, materialised as the
 * matrix Hᵀ. rule `[p, p, p]` or left `[p, p, 1]` times right `[p, 1, p]`; W `[p, in/p, out/p]` or left `[p, in/p, rank]` times
 * right `[p, rank, out/p]`. Either may be shared by all bottlenecks. Called by adapterhub.ts.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bug } from '../../core/errors.js';
import type { DenseTensor } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { product, rounded, toDoubles, Turns } from '../fold.js';
import { readTensor } from '../tensor-values.js';
import type { PhmConfig } from './adapterhub-config.js';
import type { Bottleneck } from './adapterhub-tensors.js';

export interface PhmLayer {
  readonly side: 'down' | 'up';
  /** Its name within the bottleneck. */
  readonly module: string;
  readonly from: number;
  readonly to: number;
}

/** Hᵀ `[to, from]`. */
export async function readPhmWeight(
  folder: AdapterFolder,
  bottleneck: Bottleneck,
  { side, module, from, to }: PhmLayer,
  phm: PhmConfig,
): Promise<DenseTensor> {
  const { dim } = phm;
  const [rows, cols] = [from / dim, to / dim];
  const find = (name: string, shared: boolean): SafetensorsTensor =>
    shared ? bottleneck.shared(name.replace('W', `W_${side}`)) : bottleneck.tensor(`${module}.${name}`);
  const values = async (name: string, shared: boolean): Promise<Float64Array> =>
    toDoubles(await readTensor(folder, find(name, shared)));
  const rule = phm.factorizedRule
    ? batched(await values('phm_rule_left', phm.sharedRule), await values('phm_rule_right', phm.sharedRule), dim, [
        dim,
        1,
        dim,
      ])
    : await values('phm_rule', phm.sharedRule);
  const weight = phm.factorizedWeight
    ? batched(await values('W_left', phm.sharedWeight), await values('W_right', phm.sharedWeight), dim, [
        rows,
        phm.rank,
        cols,
      ])
    : await values('W', phm.sharedWeight);
  const turns = new Turns();
  const result = new Float64Array(to * from);
  for (let i = 0; i < dim; i += 1) {
    for (let block = 0; block < dim * dim; block += 1) {
      const factor = rule[i * dim * dim + block] ?? bug('a rule lost a value');
      const [top, left] = [Math.floor(block / dim) * rows, (block % dim) * cols];
      for (let row = 0; row < rows; row += 1) {
        for (let col = 0; col < cols; col += 1) {
          const at = (left + col) * from + top + row;
          result[at] = (result[at] as number) + factor * (weight[(i * rows + row) * cols + col] as number);
        }
      }
      await turns.after(rows * cols);
    }
  }
  return rounded(`the PHM weight of ${quoteName(bottleneck.path)}`, [to, from], result);
}

/** left[i] right[i] for `count` pairs of `[n, k]` and `[k, m]`. */
function batched(
  left: Float64Array,
  right: Float64Array,
  count: number,
  [n, k, m]: readonly [number, number, number],
): Float64Array {
  const result = new Float64Array(count * n * m);
  for (let i = 0; i < count; i += 1) {
    const one = product(left.subarray(i * n * k, (i + 1) * n * k), right.subarray(i * k * m, (i + 1) * k * m), n, k, m);
    result.set(one, i * n * m);
  }
  return result;
}
