/**
 * Masks of single weights (regularized mask tuning, arXiv 2307.15049): y = (W ⊙ M) x, which is W x minus the masked entries of
 * W, one SPARSE term with values −W[index]. The method's checkpoints are of image models; for language models this is our own
 * format: `peft_type: "SPARSE_MASK"`, `mask_indices [k]` a linear (int32 or int64, row-major): the entries that are switched off.
 */
import type { DenseTensor, SparseTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { eachBaseBlock } from '../fold.js';
import type { AdapterImporter, BaseWeights, CompiledAdapter, ImportContext } from '../importer.js';
import { floatTensor, readIntegers } from '../tensor-values.js';
import { checkPeftConfig, expectTensor, groupLinears, isPeftType } from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { entriesOfFlat, sparseTerms } from './sparse-entries.js';
import type { Entries } from './sparse-entries.js';

export const sparseMaskImporter: AdapterImporter = {
  method: 'SPARSE_MASK',
  matches: (config) => isPeftType(config, 'SPARSE_MASK'),
  compile: compileMask,
};

async function compileMask(folder: AdapterFolder, { model, base }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['mask_indices'] });
  const notes = checkPeftConfig(folder.config, [], modules);
  const checked = modules.map((module) => ({ module, indices: expectTensor(module, 'mask_indices', [-1]) }));
  const terms: SparseTerm[] = [];
  for (const { module, indices } of checked) {
    const entries = entriesOfFlat(indices.name, await readIntegers(folder, indices), module.out, module.in);
    terms.push(...sparseTerms(module, entries, await negatedWeights(base, module, entries), 1));
  }
  return { terms: { terms }, notes };
}

/** −W at the entries, in their order. */
async function negatedWeights(
  base: BaseWeights,
  module: LinearTensors,
  { rows, columns }: Entries,
): Promise<DenseTensor> {
  const byRow = Uint32Array.from({ length: rows.length }, (_, i) => i).sort(
    (a, b) => (rows[a] as number) - (rows[b] as number),
  );
  const values = new Float32Array(rows.length);
  let next = 0;
  await eachBaseBlock(base, module, 1, (block, firstRow, count) => {
    for (; next < byRow.length; next += 1) {
      const i = byRow[next] as number;
      const row = (rows[i] as number) - firstRow;
      if (row >= count) return;
      values[i] = -(block[row * module.in + (columns[i] as number)] as number);
    }
  });
  return floatTensor([values.length], values);
}
