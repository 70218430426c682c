/**
 * Super-Tuning and Supra (peft tuners/supertuning, arXiv 2607.09287): W.flat[index] + v, one SPARSE term a linear, and for
 * Supra (r set) a LoRA beside it. `supertuning_values [k]`, `supertuning_indices [k]` int32, row-major;
 * `supertuning_lora_A.weight [r, in]`, `supertuning_lora_B.weight [out, r]`, scale lora_alpha / r.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { integerField, numberField } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { readIntegers, rowsOf, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  expectTensor,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { entriesOfFlat, sparseTerms } from './sparse-entries.js';

const VALUES = 'supertuning_values';
const INDICES = 'supertuning_indices';
const [A, B] = ['supertuning_lora_A.weight', 'supertuning_lora_B.weight'];

export const supertuningImporter: AdapterImporter = {
  method: 'SUPERTUNING',
  matches: (config) => isPeftType(config, 'SUPERTUNING'),
  compile: compileSupertuning,
};

const KNOWN = ['lora_alpha', 'lora_dropout', 'r', 'save_precomputed_indices', 'select_top', 'sparsity'];

async function compileSupertuning(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: [VALUES, INDICES, A, B] });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const lowRank = parseLowRank(folder.config);
  for (const module of modules) checkModule(module, lowRank, limits);
  const terms: Term[] = [];
  for (const module of modules) terms.push(...(await termsOf(folder, module, lowRank)));
  return { terms: { terms }, notes };
}

interface LowRank {
  readonly rank: number;
  readonly scale: number;
}

function parseLowRank(config: JsonObject): LowRank | undefined {
  if ((config['r'] ?? null) === null) return undefined;
  const rank = integerField(config, 'r', 1);
  return { rank, scale: numberField(config, 'lora_alpha', 2 * rank) / rank };
}

function checkModule(module: LinearTensors, lowRank: LowRank | undefined, limits: AdapterLimits): void {
  const { path, tensors } = module;
  if (!tensors.has(INDICES)) {
    throw wrongTensor(
      `${quoteName(path)} has no ${INDICES}: which entries the values belong to would have to be guessed from the base`,
      'Save the adapter with save_precomputed_indices=True.',
    );
  }
  const count = expectTensor(module, VALUES, [-1]).shape[0] ?? 0;
  expectTensor(module, INDICES, [count]);
  if (lowRank !== undefined) {
    checkRankLimit(lowRank.rank, path, limits);
    expectTensor(module, A, [lowRank.rank, module.in]);
    expectTensor(module, B, [module.out, lowRank.rank]);
    return;
  }
  if (!tensors.has(A) && !tensors.has(B)) return;
  throw wrongTensor(
    `${quoteName(path)} has LoRA factors, and r is null in adapter_config.json`,
    'Config and tensors do not belong together; save them again together.',
  );
}

async function termsOf(folder: AdapterFolder, module: LinearTensors, lowRank: LowRank | undefined): Promise<Term[]> {
  const indices = expectTensor(module, INDICES, [-1]);
  const entries = entriesOfFlat(indices.name, await readIntegers(folder, indices), module.out, module.in);
  const sparse = sparseTerms(module, entries, await readParameter(folder, module, VALUES), 1);
  if (lowRank === undefined) return sparse;
  const a = await readParameter(folder, module, A);
  const b = await readParameter(folder, module, B);
  const factors: Term[] = module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a,
    b: rowsOf(b, firstRow, rows),
    scale: lowRank.scale,
  }));
  return [...factors, ...sparse];
}
