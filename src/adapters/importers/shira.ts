/**
 * SHiRA (peft tuners/shira): W[i, j] + v at chosen entries, one SPARSE term a linear. `shira_weight [nnz]`,
 * `shira_indices [2, nnz]` (rows, then columns; int32, or float32 as peft writes it on Windows).
 *
 * The scale of peft is 1 and is never saved.
 */
import type { SparseTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { readIntegers } from '../tensor-values.js';
import { checkPeftConfig, expectTensor, groupLinears, isPeftType, readParameter } from './linear-tensors.js';
import { entriesOfPairs, sparseTerms } from './sparse-entries.js';

export const shiraImporter: AdapterImporter = {
  method: 'SHIRA',
  matches: (config) => isPeftType(config, 'SHIRA'),
  compile: compileShira,
};

async function compileShira(folder: AdapterFolder, { model }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['shira_weight', 'shira_indices'] });
  // The tensors hold what r, mask_type and random_seed chose.
  const notes = checkPeftConfig(folder.config, ['mask_type', 'r', 'random_seed'], modules);
  const checked = modules.map((module) => {
    const values = expectTensor(module, 'shira_weight', [-1]);
    return { module, indices: expectTensor(module, 'shira_indices', [2, values.shape[0] ?? 0]) };
  });
  const terms: SparseTerm[] = [];
  for (const { module, indices } of checked) {
    const entries = entriesOfPairs(indices.name, await readIntegers(folder, indices), module.out, module.in);
    terms.push(...sparseTerms(module, entries, await readParameter(folder, module, 'shira_weight'), 1));
  }
  return { terms: { terms }, notes };
}
