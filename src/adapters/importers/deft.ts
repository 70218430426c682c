/**
 * PEFT DEFT: W' = W - Q (rightᵀ W) + Q (s R), with P `[out, r]` trained; relu: Q = P, right = max(P, 0); qr: Q = right = the
 * Q of P's QR decomposition. One LOWRANK term with B = Q and A = s R - rightᵀ W; with `para` A = -rightᵀ W. s = alpha / r, or
 * 1 where alpha is not set.
 *
 * Q's signs count, because R is not turned with them: they are those of Householder's reflections as LAPACK has them, by
 * which R's diagonal has the sign opposite to the entry that is reflected.
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { choiceField, flagField, integerField, numberField } from '../config-fields.js';
import { rounded, timesBase, toDoubles, transposed } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { rowsOf, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const KNOWN = ['alpha', 'decomposition_method', 'deft_dropout', 'init_scale', 'para', 'r'];
/** Below this share of the column's length, float32 cannot tell the sign of a pivot, nor whether a column is new. */
const LEAST_PIVOT = 1e-5;

export const deftImporter: AdapterImporter = {
  method: 'DEFT',
  matches: (config) => isPeftType(config, 'DEFT'),
  compile: compileDeft,
};

async function compileDeft(folder: AdapterFolder, { model, limits, base }: ImportContext): Promise<CompiledAdapter> {
  const { config } = folder;
  const modules = groupLinears(folder, model, { parameters: ['deft_P', 'deft_R'] });
  const notes = checkPeftConfig(config, KNOWN, modules);
  const method = choiceField(config, 'decomposition_method', ['relu', 'qr'] as const, 'relu');
  const removesOnly = flagField(config, 'para', false);
  const wanted = integerField(config, 'r', 1);
  const alpha = numberField(config, 'alpha', 0);
  const budget = new FoldBudget(limits);
  const ranks = modules.map((module) => {
    const rank = expectTensor(module, 'deft_P', [module.out, -1]).shape[1] ?? 0;
    if (rank !== Math.min(wanted, module.out)) throw disagreement('r', wanted, module.path, `rank ${rank}`);
    if (removesOnly && module.tensors.has('deft_R')) throw disagreement('para', 'true', module.path, 'deft_R');
    if (!removesOnly) expectTensor(module, 'deft_R', [rank, module.in]);
    checkRankLimit(rank, module.path, limits);
    budget.take(rank * (module.in + module.out), module.path);
    return rank;
  });
  const terms: Term[] = [];
  for (const [i, module] of modules.entries()) {
    const rank = ranks[i] as number;
    const p = toDoubles(await readParameter(folder, module, 'deft_P'));
    const q = method === 'qr' ? householderQ(p, module, rank) : p;
    const right = method === 'qr' ? q : p.map((value) => Math.max(value, 0));
    const removed = await timesBase(base, module, transposed(right, module.out, rank), rank);
    const scale = alpha === 0 ? 1 : alpha / rank;
    const injected = removesOnly ? undefined : toDoubles(await readParameter(folder, module, 'deft_R'));
    const a = removed.map((value, at) => (injected === undefined ? 0 : scale * (injected[at] as number)) - value);
    const what = `DEFT's fold for ${module.path}`;
    const [first, second] = [rounded(what, [rank, module.in], a), rounded(what, [module.out, rank], q)];
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a: first, b: rowsOf(second, firstRow, rows), scale: 1 });
    }
  }
  return { terms: { terms }, notes };
}

/** Q `[n, r]` of a matrix `[n, r]`, r ≤ n, with the signs of Householder's reflections. */
export function householderQ(
  matrix: Float64Array,
  { out: n, path }: Pick<LinearTensors, 'out' | 'path'>,
  r: number,
): Float64Array {
  const a = transposed(matrix, n, r);
  const reflectors: { readonly v: Float64Array; readonly tau: number }[] = [];
  for (let k = 0; k < r; k += 1) {
    const column = a.subarray(k * n, (k + 1) * n);
    const whole = Math.sqrt(column.reduce((sum, value) => sum + value * value, 0));
    const alpha = column[k] as number;
    const norm = Math.sqrt(column.subarray(k).reduce((sum, value) => sum + value * value, 0));
    // In the last row nothing is left to reflect, and LAPACK keeps the entry as it is.
    if (k === n - 1) break;
    if (!(norm > LEAST_PIVOT * whole) || Math.abs(alpha) < LEAST_PIVOT * norm) throw illPosed(path, k);
    const beta = alpha > 0 ? -norm : norm;
    const v = new Float64Array(n);
    for (let i = k; i < n; i += 1) v[i] = i === k ? 1 : (column[i] as number) / (alpha - beta);
    const tau = (beta - alpha) / beta;
    reflectors.push({ v, tau });
    for (let j = k; j < r; j += 1) reflect(a.subarray(j * n, (j + 1) * n), v, tau, k);
  }
  const q = new Float64Array(n * r);
  for (let k = 0; k < r; k += 1) {
    const column = new Float64Array(n);
    column[k] = 1;
    for (let i = reflectors.length - 1; i >= 0; i -= 1) {
      const { v, tau } = reflectors[i] as (typeof reflectors)[number];
      reflect(column, v, tau, i);
    }
    for (let i = 0; i < n; i += 1) q[i * r + k] = column[i] as number;
  }
  return q;
}

/** column - tau v (vᵀ column); v is zero before `from`. */
function reflect(column: Float64Array, v: Float64Array, tau: number, from: number): void {
  let along = 0;
  for (let i = from; i < v.length; i += 1) along += (v[i] as number) * (column[i] as number);
  for (let i = from; i < v.length; i += 1) column[i] = (column[i] as number) - tau * along * (v[i] as number);
}

function illPosed(path: string, column: number): Error {
  return wrongTensor(
    `column ${column} of deft_P of ${JSON.stringify(path)} has no QR decomposition whose sign float32 can tell, and ` +
      'the result depends on it',
    "Merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model.",
  );
}
