/**
 * PEFT HRA (Yuan et al. 2024): W' = W ∏ (I - 2 u_i u_iᵀ) with unit vectors u_i. The product is I - U T Uᵀ with an upper
 * triangular T (the compact WY form, Schreiber and Van Loan 1989), so Δ = -W U T Uᵀ: one LOWRANK term with A = Uᵀ and
 * B = -(W U) T. With apply_GS the columns are made orthonormal first, and W' = W (I - 2 U Uᵀ).
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { flagField, integerField } from '../config-fields.js';
import { baseTimes, product, rounded, toDoubles, transposed } from '../fold.js';
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

/** Below this share of its length, what is left of a vector is rounding noise in PEFT's float32. */
const LEAST_REST = 1e-4;

export const hraImporter: AdapterImporter = {
  method: 'HRA',
  matches: (config) => isPeftType(config, 'HRA'),
  compile: compileHra,
};

async function compileHra(folder: AdapterFolder, { model, limits, base }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['hra_u'] });
  const notes = checkPeftConfig(folder.config, ['apply_GS', 'r'], modules);
  const rank = integerField(folder.config, 'r', 1);
  const orthogonal = flagField(folder.config, 'apply_GS', false);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    const found = expectTensor(module, 'hra_u', [module.in, -1]).shape[1] ?? 0;
    if (found !== rank) throw disagreement('r', rank, module.path, `rank ${found}`);
    checkRankLimit(rank, module.path, limits);
    budget.take(rank * (module.in + module.out), module.path);
  }
  const terms: Term[] = [];
  for (const module of modules) {
    const stored = toDoubles(await readParameter(folder, module, 'hra_u'));
    const { units, t } = reflectionFactors(stored, rank, module, orthogonal);
    const projected = await baseTimes(base, module, units, rank);
    const b = product(projected, t, module.out, rank, rank).map((value) => -value);
    const what = `the reflections of ${module.path}`;
    const [first, second] = [rounded(what, [rank, module.in], units), rounded(what, [module.out, rank], b)];
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a: first, b: rowsOf(second, firstRow, rows), scale: 1 });
    }
  }
  return { terms: { terms }, notes };
}

/** Uᵀ `[r, in]` and T `[r, r]` with I - U T Uᵀ the product of the reflections of hra_u `[in, r]`. */
export function reflectionFactors(
  stored: Float64Array,
  rank: number,
  { in: width, path }: Pick<LinearTensors, 'in' | 'path'>,
  orthogonal: boolean,
): { units: Float64Array; t: Float64Array } {
  // Row i is u_i.
  const units = transposed(stored, width, rank);
  for (let i = 0; i < rank; i += 1) normalise(units, i, width, orthogonal ? i : 0, path);
  return { units, t: orthogonal ? doubledIdentity(rank) : reflections(units, rank, width) };
}

/** Makes row i a unit vector, orthogonal to the first `before` rows (Gram and Schmidt, one after the other). */
function normalise(units: Float64Array, i: number, width: number, before: number, path: string): void {
  const row = units.subarray(i * width, (i + 1) * width);
  const length = Math.sqrt(dot(row, row));
  for (let j = 0; j < before; j += 1) {
    const other = units.subarray(j * width, (j + 1) * width);
    const along = dot(other, row);
    for (let c = 0; c < width; c += 1) row[c] = (row[c] as number) - along * (other[c] as number);
  }
  const rest = Math.sqrt(dot(row, row));
  if (!(rest > LEAST_REST * length)) {
    throw wrongTensor(
      `column ${i} of hra_u of ${JSON.stringify(path)} is zero${before > 0 ? ' or depends on those before it' : ''}, and ` +
        'a direction cannot be made of it',
      'The adapter was not trained, or the file is damaged; use a later checkpoint.',
    );
  }
  for (let c = 0; c < width; c += 1) row[c] = (row[c] as number) / rest;
}

function dot(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) sum += (a[i] as number) * (b[i] as number);
  return sum;
}

/** T `[r, r]`, upper triangular: its diagonal is 2, column i above it -2 T Uᵀ u_i of the columns before. */
function reflections(units: Float64Array, rank: number, width: number): Float64Array {
  const t = new Float64Array(rank * rank);
  for (let i = 0; i < rank; i += 1) {
    const own = units.subarray(i * width, (i + 1) * width);
    for (let k = 0; k < i; k += 1) {
      const along = dot(units.subarray(k * width, (k + 1) * width), own);
      for (let j = 0; j <= k; j += 1)
        t[j * rank + i] = (t[j * rank + i] as number) - 2 * (t[j * rank + k] as number) * along;
    }
    t[i * rank + i] = 2;
  }
  return t;
}

function doubledIdentity(rank: number): Float64Array {
  return Float64Array.from({ length: rank * rank }, (_, i) => (i % (rank + 1) === 0 ? 2 : 0));
}
