/**
 * Uni-LoRA (Li et al. 2025, peft tuners/unilora): every entry of a LoRA's factors is an entry of one short vector, A = θ[i_A] ⊙
 * s_A, B = θ[i_B] ⊙ s_B. Folded at load to one LOWRANK term a linear, scale 1. Keys: `base_model.unilora_theta_d [d]`; on
 * linears `unilora_indices_A [r, in]`, `unilora_indices_B [out, r]` and `unilora_scales_A`, `_B` of the same shapes, saved with
 * save_indices. Without them they come of a random order of the library, and the adapter is refused.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { LowRankTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { flagField, integerField, refused } from '../config-fields.js';
import { rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readIntegers, readTensor, rowsOf, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { neededTensor, takeModelTensors } from './module-tensors.js';

const KNOWN = ['init_theta_d_bound', 'proj_seed', 'r', 'save_indices', 'theta_d_length', 'unilora_dropout'];
const [INDICES, SCALES] = ['unilora_indices_', 'unilora_scales_'] as const;

export const uniLoraImporter: AdapterImporter = {
  method: 'UNILORA',
  matches: (config) => isPeftType(config, 'UNILORA'),
  compile: compileUniLora,
};

async function compileUniLora(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const { config } = folder;
  if (!flagField(config, 'save_indices', false)) {
    throw refused(
      'save_indices',
      'false: which entry of the vector stands where is drawn again by a random generator',
      'Save the adapter again with save_indices=True where it was trained.',
    );
  }
  const shared = takeModelTensors(folder, /^unilora_theta_d$/);
  const vector = neededTensor(shared, 'unilora_theta_d', 'The file is incomplete; download or save it again.');
  checkShape(vector, [integerField(config, 'theta_d_length', 1)]);
  const parameters = [INDICES, SCALES].flatMap((name) => [`${name}A`, `${name}B`]);
  const modules = groupLinears(shared.rest, model, { parameters });
  const notes = checkPeftConfig(config, KNOWN, modules);
  const rank = integerField(config, 'r', 1);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    checkRankLimit(rank, module.path, limits);
    for (const name of [INDICES, SCALES]) {
      expectTensor(module, `${name}A`, [rank, module.in]);
      expectTensor(module, `${name}B`, [module.out, rank]);
    }
    budget.take(rank * (module.in + module.out), module.path);
  }
  const theta = toDoubles(await readTensor(folder, vector));
  const terms: LowRankTerm[] = [];
  const turns = new Turns();
  for (const module of modules) {
    const what = `Uni-LoRA's factors of ${module.path}`;
    const a = rounded(what, [rank, module.in], await factor(folder, module, 'A', theta));
    const b = rounded(what, [module.out, rank], await factor(folder, module, 'B', theta));
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(b, firstRow, rows), scale: 1 });
    }
    await turns.after(16 * rank * (module.in + module.out));
  }
  return { terms: { terms }, notes };
}

async function factor(
  folder: AdapterFolder,
  module: LinearTensors,
  side: 'A' | 'B',
  theta: Float64Array,
): Promise<Float64Array> {
  const tensor = expectTensor(module, `${INDICES}${side}`, [-1, -1]);
  const indices = await readIntegers(folder, tensor);
  const scales = toDoubles(await readParameter(folder, module, `${SCALES}${side}`));
  return indices.map((index, i) => {
    const value = theta[index];
    if (value !== undefined) return value * (scales[i] as number);
    throw wrongTensor(
      `${quoteName(tensor.name)} holds ${index}, expected places of a vector of ${theta.length}`,
      'The file is damaged; download or save it again.',
    );
  });
}
