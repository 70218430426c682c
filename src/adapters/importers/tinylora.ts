/**
 * TinyLoRA (peft tuners/tinylora): ΔW = B (Σ_i v_i P_i) A with frozen factors of the base weight and a short trained vector v.
 * One LOWRANK term with a middle matrix; A and B, which all adapters of a base share, are named by content. Keys:
 * `tinylora_A [r, in]`, `tinylora_B [out, r]`, `tinylora_P [u, r, r]` on linears, and `base_model.tinylora_v.<group> [u]`. By
 * weight_tying, neighbouring linears share a group, counted in the order of the model.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { SITES } from '../../core/model-config.js';
import { bug } from '../../core/errors.js';
import type { LowRankTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { flagField, integerField, numberField, refused } from '../config-fields.js';
import { product, rounded, toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readTensor, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  disagreement,
  expectTensor,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { neededTensor, sharedCorner, sharedRows, sharedTensor, takeModelTensors } from './module-tensors.js';
import type { ModelTensors } from './module-tensors.js';

const [A, B, P] = ['tinylora_A', 'tinylora_B', 'tinylora_P'] as const;
const KNOWN = ['init_v_bound', 'projection_seed', 'r', 'save_projection', 'tinylora_dropout', 'u', 'weight_tying'];

export const tinyLoraImporter: AdapterImporter = {
  method: 'TINYLORA',
  matches: (config) => isPeftType(config, 'TINYLORA'),
  compile: compileTinyLora,
};

async function compileTinyLora(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const { config } = folder;
  if (!flagField(config, 'save_projection', true)) {
    throw refused(
      'save_projection',
      'false: the projections are to be drawn again by torch',
      'The numbers of a random generator are not the same on every machine; save the adapter again with ' +
        'save_projection=True where it was trained.',
    );
  }
  const vectors = takeModelTensors(folder, /^tinylora_v\.[0-9]+$/);
  const modules = inModelOrder(groupLinears(vectors.rest, model, { parameters: [A, B, P] }));
  const notes = checkPeftConfig(config, KNOWN, modules);
  const [rank, length] = [integerField(config, 'r', 1), integerField(config, 'u', 1)];
  for (const module of modules) {
    // The library takes no more singular vectors than the weight has.
    const expected = Math.min(rank, module.in, module.out);
    const [found = 0] = expectTensor(module, A, [-1, module.in]).shape;
    if (found !== expected) throw disagreement('r', expected, module.path, `rank ${found}`);
    checkRankLimit(found, module.path, limits);
    expectTensor(module, B, [module.out, found]);
    expectTensor(module, P, [length, found, found]);
  }
  const groups = groupsOf(vectors, modules.length, numberField(config, 'weight_tying', 0), length);
  const terms: LowRankTerm[] = [];
  for (const [i, module] of modules.entries()) {
    terms.push(...(await termsOf(folder, module, groups[i] ?? bug('a linear without a group'))));
  }
  return { terms: { terms }, notes };
}

async function termsOf(folder: AdapterFolder, module: LinearTensors, group: SafetensorsTensor): Promise<LowRankTerm[]> {
  const a = await sharedTensor(await readParameter(folder, module, A));
  const b = await sharedTensor(await readParameter(folder, module, B));
  const projections = await readParameter(folder, module, P);
  const v = toDoubles(await readTensor(folder, group));
  const [length = 0, rank = 0] = projections.shape;
  const sum = product(v, toDoubles(projections), 1, length, rank * rank);
  const midMatrix = rounded(`TinyLoRA's middle matrix of ${module.path}`, [rank, rank], sum);
  return module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a: sharedCorner(a, rank, module.in),
    b: sharedRows(b, firstRow, rows),
    scale: 1,
    midMatrix,
  }));
}

/** Layer by layer, and within a layer as the checkpoint's classes declare them; the head comes last. */
function inModelOrder(modules: readonly LinearTensors[]): LinearTensors[] {
  const place = ({ layer, parts }: LinearTensors): number =>
    (layer === -1 ? Number.MAX_SAFE_INTEGER / 64 : layer) * 32 +
    SITES[parts[0]?.site.site ?? bug('a linear has a site')];
  return [...modules].sort((a, b) => place(a) - place(b));
}

/** The vector of each linear. */
function groupsOf(vectors: ModelTensors, linears: number, tying: number, length: number): SafetensorsTensor[] {
  if (tying < 0 || tying > 1) {
    throw refused('weight_tying', `${tying}, expected a number from 0 to 1`, 'Write the value of the training.');
  }
  const groups = Math.max(1, roundHalfEven(linears * (1 - tying)));
  const size = Math.max(1, Math.floor(linears / groups));
  const chosen = Array.from({ length: linears }, (_, i) => {
    const name = `tinylora_v.${Math.min(Math.floor(i / size), groups - 1)}`;
    const tensor = neededTensor(vectors, name, 'The file is incomplete; download or save it again.');
    checkShape(tensor, [length]);
    return tensor;
  });
  const unused = [...vectors.taken.values()].find((tensor) => !chosen.includes(tensor));
  if (unused === undefined) return chosen;
  throw wrongTensor(
    `${quoteName(unused.name)} belongs to none of its ${linears} linears with weight_tying ${tying}`,
    'Config and tensors do not belong together; save them again together.',
  );
}

/** As Python rounds. */
function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
