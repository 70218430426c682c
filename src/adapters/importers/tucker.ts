/**
 * FLoRA (Si et al. 2024), a Tucker form of a linear's change: ΔW = s P_1 Gᵀ P_0ᵀ with the core G `[r0, r1]`, `param_0 [in, r0]`,
 * `param_1 [out, r1]`, as its repository names them after `<linear>.flora_layer`. The core is folded into the side that keeps
 * the smaller rank: one LOWRANK term of rank min(r0, r1). peft_type "FLORA"; field: `scale`.
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { numberField } from '../config-fields.js';
import { product, rounded, toDoubles, transposed } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { rowsOf } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';

const [CORE, INNER, OUTER] = ['flora_layer.param_G', 'flora_layer.param_0', 'flora_layer.param_1'] as const;

export const floraImporter: AdapterImporter = {
  method: 'FLORA',
  matches: (config) => isPeftType(config, 'FLORA'),
  compile: compileFlora,
};

async function compileFlora(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: [CORE, INNER, OUTER] });
  const notes = checkPeftConfig(folder.config, ['scale'], modules);
  const scale = numberField(folder.config, 'scale');
  const budget = new FoldBudget(limits);
  const ranks = modules.map((module) => {
    const [r0 = 0, r1 = 0] = expectTensor(module, CORE, [-1, -1]).shape;
    expectTensor(module, INNER, [module.in, r0]);
    expectTensor(module, OUTER, [module.out, r1]);
    const rank = Math.min(r0, r1);
    checkRankLimit(rank, module.path, limits);
    budget.take(rank * (module.in + module.out), module.path);
    return [r0, r1] as const;
  });
  const terms: Term[] = [];
  for (const [i, module] of modules.entries()) {
    const [r0, r1] = ranks[i] as readonly [number, number];
    const core = transposed(toDoubles(await readParameter(folder, module, CORE)), r0, r1);
    const inner = transposed(toDoubles(await readParameter(folder, module, INNER)), module.in, r0);
    const outer = toDoubles(await readParameter(folder, module, OUTER));
    const what = `the Tucker core of ${module.path}`;
    const toInner = r1 < r0;
    const rank = Math.min(r0, r1);
    const a = rounded(what, [rank, module.in], toInner ? product(core, inner, r1, r0, module.in) : inner);
    const b = rounded(what, [module.out, rank], toInner ? outer : product(outer, core, module.out, r1, r0));
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(b, firstRow, rows), scale });
    }
  }
  return { terms: { terms }, notes };
}
