/**
 * A low-rank and a sparse part on the same linear. DSEE (Chen et al. 2021) adds both: ΔW = s (B A + S). SLTrain (Han et al.
 * 2024) trains them in the place of the weight: W' = s B A + S, so the base product is switched off with DIAG g = 0.
 *
 * Keys `<linear>.lora_A [r, in]`, `.lora_B [out, r]`, `.sparse_index [nnz]` (flat, row-major), `.sparse_value [nnz]`, for SLTrain
 * also `.scaling [1]`, whose tanh is s where it was trained. peft_type "DSEE" or "SLTRAIN"; fields: `r`, `lora_alpha` (s = lora_alpha / r).
 */
import { bug } from '../../core/errors.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField, numberField } from '../config-fields.js';
import { toDoubles } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { readIntegers, rowsOf } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  disagreement,
  expectTensor,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import { entriesOfFlat, sparseTerms } from './sparse-entries.js';

const PARAMETERS = ['lora_A', 'lora_B', 'sparse_index', 'sparse_value'];

export const dseeImporter = importerOf('DSEE', false);
export const sltrainImporter = importerOf('SLTRAIN', true);

function importerOf(method: string, replaces: boolean): AdapterImporter {
  return {
    method,
    matches: (config) => isPeftType(config, method),
    compile: (folder, context) => compileBoth(folder, context, replaces),
  };
}

async function compileBoth(
  folder: AdapterFolder,
  { model, limits }: ImportContext,
  replaces: boolean,
): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: replaces ? [...PARAMETERS, 'scaling'] : PARAMETERS });
  const notes = checkPeftConfig(folder.config, ['lora_alpha', 'lora_dropout', 'r', 'sp_ratio'], modules);
  const rank = integerField(folder.config, 'r', 1);
  const fixed = numberField(folder.config, 'lora_alpha') / rank;
  for (const module of modules) {
    const found = expectTensor(module, 'lora_A', [-1, module.in]).shape[0] ?? 0;
    if (found !== rank) throw disagreement('r', rank, module.path, `rank ${found}`);
    expectTensor(module, 'lora_B', [module.out, rank]);
    const [count = 0] = expectTensor(module, 'sparse_index', [-1]).shape;
    expectTensor(module, 'sparse_value', [count]);
    if (module.tensors.has('scaling')) expectTensor(module, 'scaling', [1]);
    checkRankLimit(rank, module.path, limits);
  }
  const terms: Term[] = [];
  for (const module of modules) {
    const a = await readParameter(folder, module, 'lora_A');
    const b = await readParameter(folder, module, 'lora_B');
    const trained = module.tensors.has('scaling')
      ? toDoubles(await readParameter(folder, module, 'scaling'))
      : undefined;
    const scale = trained === undefined ? fixed : Math.tanh(trained[0] as number);
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(b, firstRow, rows), scale });
      if (replaces) terms.push({ kind: 'diag', site, g: new Float32Array(rows) });
    }
    const index = module.tensors.get('sparse_index') ?? bug('sparse_index was checked');
    const entries = entriesOfFlat(index.name, await readIntegers(folder, index), module.out, module.in);
    const values = await readParameter(folder, module, 'sparse_value');
    terms.push(...sparseTerms(module, entries, values, replaces ? 1 : scale));
  }
  return { terms: { terms }, notes };
}
