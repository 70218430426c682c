/**
 * DeLoRA (Bini et al. 2025, peft tuners/delora): Δ = B diag(λ / (r ‖A_i‖ ‖B^i‖)) A (w ⊙ x), with the norms of A's rows and B's
 * columns not below 1e-4. One LOWRANK term: w joins A, the diagonal is the middle one. Keys: `delora_A [r, in]`, `delora_B
 * [out, r]`, `delora_lambda [1]`, `delora_w_norm [in]`, the norms of the base weight's columns when training began; files
 * without it get those of the base.
 */
import type { LowRankTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField } from '../config-fields.js';
import { eachBaseBlock, rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, rowsOf } from '../tensor-values.js';
import {
  checkedSize,
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
import { ModulePatterns } from './lora-patterns.js';

const [A, B, LAMBDA, NORMS] = ['delora_A', 'delora_B', 'delora_lambda', 'delora_w_norm'] as const;
/** delora_lambda and its patterns are where training began; the tensors hold where it came to. */
const KNOWN = ['delora_lambda', 'lambda_pattern', 'module_dropout', 'r', 'rank_pattern'];
const LEAST_NORM = 1e-4;

export const deloraImporter: AdapterImporter = {
  method: 'DELORA',
  matches: (config) => isPeftType(config, 'DELORA'),
  compile: compileDelora,
};

async function compileDelora(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { limits } = context;
  const modules = groupLinears(folder, context.model, { parameters: [A, B, LAMBDA, NORMS] });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const rank = integerField(folder.config, 'r', 1);
  const ranks = ModulePatterns.parse('rank_pattern', folder.config['rank_pattern'], checkedSize);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    const expected = ranks.valueFor(module.path) ?? rank;
    const [found = 0] = expectTensor(module, A, [-1, module.in]).shape;
    if (found !== expected) throw disagreement('r', expected, module.path, `rank ${found}`);
    checkRankLimit(found, module.path, limits);
    expectTensor(module, B, [module.out, found]);
    expectTensor(module, LAMBDA, [1]);
    if (module.tensors.has(NORMS)) expectTensor(module, NORMS, [module.in]);
    budget.take(found * (module.in + module.out), module.path);
  }
  const terms: LowRankTerm[] = [];
  const turns = new Turns();
  for (const module of modules) {
    terms.push(...(await termsOf(folder, context, module)));
    await turns.after(8 * (terms.at(-1)?.a.shape[0] ?? 1) * (module.in + module.out));
  }
  return { terms: { terms }, notes };
}

async function termsOf(folder: AdapterFolder, context: ImportContext, module: LinearTensors): Promise<LowRankTerm[]> {
  const a = toDoubles(await readParameter(folder, module, A));
  const b = await readParameter(folder, module, B);
  const [lambda = 0] = toDoubles(await readParameter(folder, module, LAMBDA));
  const norms = module.tensors.has(NORMS)
    ? toDoubles(await readParameter(folder, module, NORMS))
    : await columnNorms(context, module);
  const rank = b.shape[1] ?? 0;
  const [rows, columns] = [squares(a, rank, 'rows'), squares(toDoubles(b), rank, 'columns')];
  const mid = Float32Array.from(rows, (row, i) => {
    const size = Math.max(Math.sqrt(row), LEAST_NORM) * Math.max(Math.sqrt(columns[i] as number), LEAST_NORM);
    return lambda / (rank * size);
  });
  const what = `DeLoRA's scaling of ${module.path}`;
  checkFolded(what, mid);
  const scaled = rounded(
    what,
    [rank, module.in],
    a.map((value, i) => value * (norms[i % module.in] as number)),
  );
  return module.parts.map(({ site, firstRow, rows: count }) => ({
    kind: 'lowrank',
    site,
    a: scaled,
    b: rowsOf(b, firstRow, count),
    scale: 1,
    mid,
  }));
}

/** Sums of squares of the `rank` rows or columns of a row-major matrix. */
function squares(values: Float64Array, rank: number, of: 'rows' | 'columns'): Float64Array {
  const sums = new Float64Array(rank);
  const width = values.length / rank;
  values.forEach((value, i) => {
    const at = of === 'rows' ? Math.floor(i / width) : i % rank;
    sums[at] = (sums[at] as number) + value * value;
  });
  return sums;
}

async function columnNorms({ base }: ImportContext, module: LinearTensors): Promise<Float64Array> {
  const sums = new Float64Array(module.in);
  await eachBaseBlock(base, module, 1, (block) => {
    block.forEach((value, i) => {
      const column = i % module.in;
      sums[column] = (sums[column] as number) + value * value;
    });
  });
  return sums.map(Math.sqrt);
}
