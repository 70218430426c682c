/**
 * SORSA (Cao 2024): y = W_r x + s (B ⊙ S) A x + b, W_r = W less its r first singular parts. Its repository saves whole models:
 * `weight` (W_r), `sorsa_A [r, in]`, `sorsa_S [r]`, `sorsa_B [out, r]`, and `bias`. We take the same keys of the adapted
 * linears in an adapter folder with peft_type "SORSA". Fields: `rank` or `r`, `alpha` (s = alpha / r; 1 where it is null).
 *
 * CorDA (Yang et al. 2024), as its own repository saves it: y = W_r x + A (B x), with the names that way round: `weight_residual`,
 * `BLinear.weight [r, in]`, `ALinear.weight [out, r]`; peft_type "CORDA", no scale.
 */
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { DenseTensor, Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField, numberField } from '../config-fields.js';
import { baseBias, rounded, toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, rowsOf, toFloats } from '../tensor-values.js';
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
import { residualTerms } from './residual.js';

interface Layout {
  readonly method: string;
  readonly residual: string;
  readonly down: string;
  readonly up: string;
  /** Diagonal between the two. */
  readonly middle: string | undefined;
  readonly bias: string | undefined;
  readonly known: readonly string[];
  readonly scale: (config: JsonObject, rank: number) => number;
}

export const sorsaImporter = importerOf({
  method: 'SORSA',
  residual: 'weight',
  down: 'sorsa_A',
  up: 'sorsa_B',
  middle: 'sorsa_S',
  bias: 'bias',
  known: ['alpha', 'dropout', 'merge_weights', 'r', 'rank'],
  scale: (config, rank) => (config['alpha'] == null ? 1 : numberField(config, 'alpha') / rank),
});

export const cordaImporter = importerOf({
  method: 'CORDA',
  residual: 'weight_residual',
  down: 'BLinear.weight',
  up: 'ALinear.weight',
  middle: undefined,
  bias: undefined,
  known: ['r', 'rank'],
  scale: () => 1,
});

function importerOf(layout: Layout): AdapterImporter {
  return {
    method: layout.method,
    matches: (config) => isPeftType(config, layout.method),
    compile: (folder, context) => compileResidual(folder, context, layout),
  };
}

async function compileResidual(
  folder: AdapterFolder,
  context: ImportContext,
  layout: Layout,
): Promise<CompiledAdapter> {
  const { residual, down, up, middle, bias } = layout;
  const optional = [middle, bias].filter((name) => name !== undefined);
  const modules = groupLinears(folder, context.model, { parameters: [residual, down, up, ...optional] });
  const notes = checkPeftConfig(folder.config, layout.known, modules);
  const wanted = integerField(folder.config, folder.config['rank'] === undefined ? 'r' : 'rank', 1);
  const budget = new FoldBudget(context.limits);
  for (const module of modules) {
    const rank = expectTensor(module, down, [-1, module.in]).shape[0] ?? 0;
    if (rank !== wanted) throw disagreement('rank', wanted, module.path, `rank ${rank}`);
    expectTensor(module, up, [module.out, rank]);
    expectTensor(module, residual, [module.out, module.in]);
    if (middle !== undefined) expectTensor(module, middle, [rank]);
    if (bias !== undefined && module.tensors.has(bias)) expectTensor(module, bias, [module.out]);
    checkRankLimit(2 * rank, module.path, context.limits);
    budget.take(2 * rank * (module.in + module.out), module.path);
  }
  const terms: Term[] = [];
  for (const module of modules) {
    const a = await readParameter(folder, module, down);
    const b = await readParameter(folder, module, up);
    const scaled =
      middle === undefined ? b : scaledColumns(module.path, b, await readParameter(folder, module, middle));
    const scale = layout.scale(folder.config, wanted);
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(scaled, firstRow, rows), scale });
    }
    const weight = toFloats(await readParameter(folder, module, residual)).slice();
    terms.push(...(await residualTerms(context, module, weight, wanted, budget)));
    if (bias !== undefined && module.tensors.has(bias)) terms.push(...(await biasTerms(folder, context, module, bias)));
  }
  return { terms: { terms }, notes };
}

/** B ⊙ S: column k times S_k. */
function scaledColumns(path: string, b: DenseTensor, diagonal: DenseTensor): DenseTensor {
  const s = toDoubles(diagonal);
  const values = toDoubles(b).map((value, i) => value * (s[i % s.length] as number));
  return rounded(`sorsa_B sorsa_S of ${path}`, b.shape, values);
}

/** c = the file's bias less the base's. */
async function biasTerms(
  folder: AdapterFolder,
  { base }: ImportContext,
  module: LinearTensors,
  name: string,
): Promise<Term[]> {
  const own = toDoubles(await readParameter(folder, module, name));
  const before = baseBias(base, module) ?? new Float64Array(module.out);
  const shift = Float32Array.from(own, (value, i) => value - (before[i] as number));
  checkFolded(`the bias of ${module.path}`, shift);
  if (shift.every((value) => value === 0)) return [];
  return module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'diag',
    site,
    c: shift.slice(firstRow, firstRow + rows),
  }));
}
