/**
 * Hydra (Kim et al. 2023): a pair parallel to a linear and a pair after it, both of its output's width:
 * y = z + s (U_p (D_p x + d_p) + u_p) + s (U_s (D_s z + d_s) + u_s), z = W x + b. One LOWRANK term with A = [D_p; D_s W] and
 * B = [U_p, U_s], and DIAG c = s (U_p d_p + u_p + U_s (D_s b + d_s) + u_s).
 *
 * No library saves it for language models. We take peft_type "HYDRA", keys `<linear>.hydra_par` and `<linear>.hydra_seq`, each
 * `.down_proj.{weight,bias}` and `.up_proj.{weight,bias}` as its repository names them, or the repository's own places
 * `mlp.hydra_mlp_*` (down_proj) and `self_attn.hydra_proj_*` (o_proj). Fields: `r`, `scale` (1 where it is absent).
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField, numberField } from '../config-fields.js';
import { baseBias, product, rounded, timesBase, toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, rowsOf, wrongTensor } from '../tensor-values.js';
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

const BRANCHES = ['par', 'seq'] as const;
type Branch = (typeof BRANCHES)[number];
const WEIGHTS = ['down_proj.weight', 'up_proj.weight'] as const;
const BIASES = ['down_proj.bias', 'up_proj.bias'] as const;

const PARAMETERS = BRANCHES.flatMap((branch) => [...WEIGHTS, ...BIASES].map((name) => `hydra_${branch}.${name}`));
const PLACES: ReadonlyMap<string, string> = new Map([
  ['mlp.hydra_mlp', 'mlp.down_proj.hydra'],
  ['self_attn.hydra_proj', 'self_attn.o_proj.hydra'],
]);

export const hydraImporter: AdapterImporter = {
  method: 'HYDRA',
  matches: (config) => isPeftType(config, 'HYDRA'),
  compile: compileHydra,
};

async function compileHydra(folder: AdapterFolder, { model, limits, base }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(renamed(folder), model, { parameters: PARAMETERS });
  const notes = checkPeftConfig(folder.config, ['dropout', 'r', 'scale'], modules);
  const rank = integerField(folder.config, 'r', 1);
  const scale = numberField(folder.config, 'scale', 1);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    for (const branch of branchesOf(module)) checkBranch(module, branch, rank);
    checkRankLimit(2 * rank, module.path, limits);
    budget.take(2 * rank * (module.in + module.out), module.path);
  }
  const terms: Term[] = [];
  for (const module of modules) {
    const shift = new Float64Array(module.out);
    for (const branch of branchesOf(module)) {
      const down = toDoubles(await readParameter(folder, module, `hydra_${branch}.down_proj.weight`));
      const up = await readParameter(folder, module, `hydra_${branch}.up_proj.weight`);
      const a = branch === 'seq' ? await timesBase(base, module, down, rank) : down;
      const first = rounded(`D W of ${module.path}`, [rank, module.in], a);
      for (const { site, firstRow, rows } of module.parts) {
        terms.push({ kind: 'lowrank', site, a: first, b: rowsOf(up, firstRow, rows), scale });
      }
      const through = branch === 'seq' ? baseBias(base, module) : undefined;
      const inner = through === undefined ? new Float64Array(rank) : product(down, through, rank, module.out, 1);
      add(shift, await offsetOf(folder, module, branch, toDoubles(up), inner), scale);
    }
    const c = checkFolded(`the shift of ${module.path}`, Float32Array.from(shift));
    if (c.every((value) => value === 0)) continue;
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'diag', site, c: c.slice(firstRow, firstRow + rows) });
    }
  }
  return { terms: { terms }, notes };
}

/** U (inner + d) + u, the biases where the file has them. */
async function offsetOf(
  folder: AdapterFolder,
  module: LinearTensors,
  branch: Branch,
  up: Float64Array,
  inner: Float64Array,
): Promise<Float64Array> {
  const [downBias, upBias] = BIASES.map((name) => `hydra_${branch}.${name}`) as [string, string];
  if (module.tensors.has(downBias)) add(inner, toDoubles(await readParameter(folder, module, downBias)), 1);
  const result = product(up, inner, module.out, inner.length, 1);
  if (module.tensors.has(upBias)) add(result, toDoubles(await readParameter(folder, module, upBias)), 1);
  return result;
}

function add(target: Float64Array, values: Float64Array, factor: number): void {
  for (let i = 0; i < target.length; i += 1) target[i] = (target[i] as number) + factor * (values[i] as number);
}

function branchesOf(module: LinearTensors): Branch[] {
  return BRANCHES.filter((branch) => [...module.tensors.keys()].some((name) => name.startsWith(`hydra_${branch}.`)));
}

function checkBranch(module: LinearTensors, branch: Branch, rank: number): void {
  const [down, up] = WEIGHTS.map((name) => `hydra_${branch}.${name}`) as [string, string];
  const found = expectTensor(module, down, [-1, branch === 'seq' ? module.out : module.in]).shape[0] ?? 0;
  if (found !== rank) throw disagreement('r', rank, module.path, `rank ${found}`);
  expectTensor(module, up, [module.out, rank]);
  const [downBias, upBias] = BIASES.map((name) => `hydra_${branch}.${name}`) as [string, string];
  if (module.tensors.has(downBias)) expectTensor(module, downBias, [rank]);
  if (module.tensors.has(upBias)) expectTensor(module, upBias, [module.out]);
}

/** The tensors under our names, where they have the repository's. */
function renamed(folder: AdapterFolder): Pick<AdapterFolder, 'tensors'> {
  const tensors = new Map<string, SafetensorsTensor>();
  for (const [name, tensor] of folder.tensors) {
    const place = [...PLACES].find(([theirs]) => name.includes(`.${theirs}_`));
    const own = place === undefined ? name : name.replace(`.${place[0]}_`, `.${place[1]}_`);
    const other = tensors.get(own);
    if (other !== undefined) {
      throw wrongTensor(
        `${quoteName(other.name)} and ${quoteName(name)} adapt the same place`,
        'Which of them counts cannot be known; save the adapter again.',
      );
    }
    tensors.set(own, tensor);
  }
  return { tensors };
}
