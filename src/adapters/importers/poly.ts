/**
 * Skill inventories that a router mixes for each task: Poly (Ponti et al. 2023) and multi-head routing (Caccia et al. 2023).
 * A served adapter is one task (field task_id), for which router and inventory collapse to one LOWRANK term a linear:
 *
 *     Z[k, s] = σ(z[k, s]) / (Σ_s σ(z[k, s]) + 1e-12)         for the heads k of h
 *     A[i] = Σ_s Z[k, s] A_s[i] for the inputs i of head k;   B likewise for the outputs;   Δ = scale · B A x
 *
 * peft's POLY (tuners/poly): `poly_lora_A [h, S, in/h, r]`, `poly_lora_B [h, S, r, out/h]`, `poly_router.module_logits
 * [tasks, h · S]`, scale 1 / r. mttl's skilled LoRA, as safetensors with peft_type "MHR": `lora_a [S, h, in/h, r]`,
 * `lora_b [S, r, h, out/h]`, `selector.module_logits [tasks, h · S]` (on the linear, or once for all), scale lora_alpha /
 * lora_rank; with lora_merge_after (h = 1) it mixes what the skills give: one term of rank S · r.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bug } from '../../core/errors.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { choiceField, flagField, integerField, numberField, refused, show } from '../config-fields.js';
import { rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readTensor, rowsOf, wrongTensor } from '../tensor-values.js';
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
import { takeModelTensors } from './module-tensors.js';

/** How one of the two formats is laid out. */
interface Layout {
  readonly a: string;
  readonly b: string;
  readonly logits: string;
  readonly fields: readonly string[];
  shapeOfA(skills: Skills, width: number): number[];
  shapeOfB(skills: Skills, out: number): number[];
  /** Places of A_s[j, t] and B_s[t, j] of head k, with n channels a head. */
  indexOfA(skills: Skills, n: number, k: number, s: number, j: number, t: number): number;
  indexOfB(skills: Skills, n: number, k: number, s: number, j: number, t: number): number;
}

interface Skills {
  readonly rank: number;
  readonly skills: number;
  readonly heads: number;
  readonly scale: number;
  /** Mixes outputs instead of factors. */
  readonly after: boolean;
}

const COUNTS = ['n_skills', 'n_splits', 'n_tasks', 'task_id'];
const PEFT: Layout = {
  a: 'poly_lora_A',
  b: 'poly_lora_B',
  logits: 'poly_router.module_logits',
  fields: [...COUNTS, 'poly_type', 'r'],
  shapeOfA: ({ heads, skills, rank }, width) => [heads, skills, width / heads, rank],
  shapeOfB: ({ heads, skills, rank }, out) => [heads, skills, rank, out / heads],
  indexOfA: ({ skills, rank }, n, k, s, j, t) => ((k * skills + s) * n + j) * rank + t,
  indexOfB: ({ skills, rank }, n, k, s, j, t) => ((k * skills + s) * rank + t) * n + j,
};
const MTTL: Layout = {
  a: 'lora_a',
  b: 'lora_b',
  logits: 'selector.module_logits',
  fields: [...COUNTS, 'lora_alpha', 'lora_dropout', 'lora_init_b_random', 'lora_merge_after', 'lora_rank'],
  shapeOfA: ({ heads, skills, rank }, width) => [skills, heads, width / heads, rank],
  shapeOfB: ({ heads, skills, rank }, out) => [skills, rank, heads, out / heads],
  indexOfA: ({ heads, rank }, n, k, s, j, t) => ((s * heads + k) * n + j) * rank + t,
  indexOfB: ({ heads, rank }, n, k, s, j, t) => ((s * rank + t) * heads + k) * n + j,
};

export const polyImporter: AdapterImporter = {
  method: 'POLY',
  matches: (config) => isPeftType(config, 'POLY'),
  compile: (folder, context) => compileSkills(PEFT, peftSkills(folder.config), folder, context),
};

export const mhrImporter: AdapterImporter = {
  method: 'MHR',
  matches: (config) => isPeftType(config, 'MHR'),
  compile: (folder, context) => compileSkills(MTTL, mttlSkills(folder.config), folder, context),
};

function peftSkills(config: JsonObject): Skills {
  choiceField(config, 'poly_type', ['poly'], 'poly');
  const rank = integerField(config, 'r', 1);
  const [skills, heads] = [integerField(config, 'n_skills', 1), integerField(config, 'n_splits', 1, 1)];
  return { rank, skills, heads, scale: 1 / rank, after: false };
}

function mttlSkills(config: JsonObject): Skills {
  const rank = integerField(config, 'lora_rank', 1);
  const [skills, heads] = [integerField(config, 'n_skills', 1), integerField(config, 'n_splits', 1, 1)];
  const after = flagField(config, 'lora_merge_after', false);
  if (after && heads > 1) {
    throw refused(
      'lora_merge_after',
      `true with n_splits ${heads}: what heads of different skills give cannot be mixed after the product`,
      'Write the flags that the adapter was trained with.',
    );
  }
  return { rank, skills, heads, scale: numberField(config, 'lora_alpha') / rank, after };
}

async function compileSkills(
  layout: Layout,
  skills: Skills,
  whole: AdapterFolder,
  { model, limits }: ImportContext,
): Promise<CompiledAdapter> {
  const common = layout === MTTL ? takeModelTensors(whole, /^selector\.module_logits$/) : undefined;
  const router = common?.taken.get('selector.module_logits');
  const folder = common?.rest ?? whole;
  const modules = groupLinears(folder, model, { parameters: [layout.a, layout.b, layout.logits] });
  const notes = checkPeftConfig(folder.config, layout.fields, modules);
  const rank = skills.after ? skills.skills * skills.rank : skills.rank;
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    checkHeads(module, skills.heads);
    checkRankLimit(rank, module.path, limits);
    expectTensor(module, layout.a, layout.shapeOfA(skills, module.in));
    expectTensor(module, layout.b, layout.shapeOfB(skills, module.out));
    checkLogits(logitsOf(module, layout, router), skills);
    budget.take(rank * (module.in + module.out), module.path);
  }
  const task = taskOf(
    folder.config,
    modules.map((module) => logitsOf(module, layout, router)),
  );
  const terms: Term[] = [];
  const turns = new Turns();
  for (const module of modules) {
    const logits = toDoubles(await readTensor(whole, logitsOf(module, layout, router)));
    const weights = routing(logits, task, skills);
    const stored = {
      a: toDoubles(await readParameter(folder, module, layout.a)),
      b: toDoubles(await readParameter(folder, module, layout.b)),
    };
    const { a, b } = skills.after
      ? stacked(layout, skills, module, stored, weights)
      : mixed(layout, skills, module, stored, weights);
    const what = `the mix of skills for ${module.path}`;
    const [left, right] = [rounded(what, [rank, module.in], a), rounded(what, [module.out, rank], b)];
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a: left, b: rowsOf(right, firstRow, rows), scale: skills.scale });
    }
    await turns.after(8 * skills.skills * skills.rank * (module.in + module.out));
  }
  return { terms: { terms }, notes };
}

function logitsOf(module: LinearTensors, { logits }: Layout, router: SafetensorsTensor | undefined): SafetensorsTensor {
  const own = module.tensors.get(logits);
  if (own === undefined || router === undefined) return router ?? expectTensor(module, logits, [-1, -1]);
  throw wrongTensor(
    `${quoteName(own.name)} stands beside ${quoteName(router.name)}, which is for all modules`,
    'Which of them counts cannot be known; keep the one that the adapter was trained with.',
  );
}

function checkLogits(tensor: SafetensorsTensor, { heads, skills }: Skills): void {
  const [tasks = 0] = tensor.shape;
  checkShape(tensor, [tasks, heads * skills], `[tasks, ${heads} · ${skills}]`);
}

function checkHeads({ in: width, out, path }: LinearTensors, heads: number): void {
  if (width % heads === 0 && out % heads === 0) return;
  throw refused(
    'n_splits',
    `${heads}, which does not divide ${quoteName(path)} [${out}, ${width}]`,
    'Write the value that the adapter was trained with.',
  );
}

/** The libraries take the task with each call; a served adapter is one task. */
function taskOf(config: JsonObject, logits: readonly SafetensorsTensor[]): number {
  const tasks = logits[0]?.shape[0] ?? 0;
  const odd = logits.find(({ shape }) => shape[0] !== tasks);
  if (odd !== undefined) checkShape(odd, [tasks, odd.shape[1] ?? 0], `${tasks} tasks as the other modules have`);
  const count = config['n_tasks'] ?? tasks;
  if (count !== tasks) {
    throw refused('n_tasks', `${show(count)}, the routers have ${tasks}`, 'Save config and tensors again together.');
  }
  const task = config['task_id'];
  if (tasks === 1 && task === undefined) return 0;
  if (typeof task === 'number' && Number.isSafeInteger(task) && task >= 0 && task < tasks) return task;
  throw refused(
    'task_id',
    `${show(task)}, expected 0 to ${tasks - 1}: the router knows ${tasks} tasks, and an adapter is served for one`,
    'Add "task_id" to adapter_config.json; for several tasks, make a folder of each.',
  );
}

/** Z `[heads, skills]` of one task. */
function routing(logits: Float64Array, task: number, { heads, skills }: Skills): Float64Array {
  const z = new Float64Array(heads * skills);
  for (let k = 0; k < heads; k += 1) {
    const at = task * heads * skills + k * skills;
    const open = Array.from(
      { length: skills },
      (_, s) => 1 / (1 + Math.exp(-(logits[at + s] ?? bug('a logit is missing')))),
    );
    const sum = open.reduce((total, value) => total + value, 1e-12);
    open.forEach((value, s) => (z[k * skills + s] = value / sum));
  }
  return z;
}

interface Factors {
  readonly a: Float64Array;
  readonly b: Float64Array;
}

/** A `[r, in]` and B `[out, r]`: the factors of all skills mixed, head by head. */
function mixed(
  layout: Layout,
  skills: Skills,
  { in: width, out }: LinearTensors,
  stored: Factors,
  z: Float64Array,
): Factors {
  const { rank, heads } = skills;
  const a = new Float64Array(rank * width);
  const b = new Float64Array(out * rank);
  const [inputs, outputs] = [width / heads, out / heads];
  for (let k = 0; k < heads; k += 1) {
    for (let s = 0; s < skills.skills; s += 1) {
      const weight = z[k * skills.skills + s] as number;
      for (let t = 0; t < rank; t += 1) {
        for (let j = 0; j < inputs; j += 1) {
          const at = t * width + k * inputs + j;
          a[at] = (a[at] as number) + weight * (stored.a[layout.indexOfA(skills, inputs, k, s, j, t)] as number);
        }
        for (let j = 0; j < outputs; j += 1) {
          const at = (k * outputs + j) * rank + t;
          b[at] = (b[at] as number) + weight * (stored.b[layout.indexOfB(skills, outputs, k, s, j, t)] as number);
        }
      }
    }
  }
  return { a, b };
}

/** A `[S · r, in]` and B `[out, S · r]`: all skills side by side, each weighed once. */
function stacked(
  layout: Layout,
  skills: Skills,
  { in: width, out }: LinearTensors,
  stored: Factors,
  z: Float64Array,
): Factors {
  const { rank } = skills;
  const all = skills.skills * rank;
  const a = new Float64Array(all * width);
  const b = new Float64Array(out * all);
  for (let s = 0; s < skills.skills; s += 1) {
    for (let t = 0; t < rank; t += 1) {
      const at = s * rank + t;
      for (let j = 0; j < width; j += 1)
        a[at * width + j] = stored.a[layout.indexOfA(skills, width, 0, s, j, t)] as number;
      for (let j = 0; j < out; j += 1) {
        b[j * all + at] = (z[s] as number) * (stored.b[layout.indexOfB(skills, out, 0, s, j, t)] as number);
      }
    }
  }
  return { a, b };
}
