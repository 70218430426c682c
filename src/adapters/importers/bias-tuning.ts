/**
 * Methods that train biases alone, DIAG c. BEFT (peft tuners/beft): `beft_bias [1, out]` is added to what a linear gives.
 * BitFit (Ben Zaken et al. 2022): peft_type "BITFIT", `<linear>.bias [out]` stands in the place of the base's bias, so that
 * c = b' − b; a linear of the base without bias gains one.
 */
import type { DiagTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, readFloats } from '../tensor-values.js';
import { checkPeftConfig, expectTensor, groupLinears, isPeftType } from './linear-tensors.js';

export const beftImporter: AdapterImporter = {
  method: 'BEFT',
  matches: (config) => isPeftType(config, 'BEFT'),
  compile: (folder, context) => compileBiases(folder, context, 'beft_bias'),
};

export const bitFitImporter: AdapterImporter = {
  method: 'BITFIT',
  matches: (config) => isPeftType(config, 'BITFIT'),
  compile: (folder, context) => compileBiases(folder, context, 'bias'),
};

async function compileBiases(
  folder: AdapterFolder,
  { model, base }: ImportContext,
  parameter: 'beft_bias' | 'bias',
): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: [parameter] });
  const notes = checkPeftConfig(folder.config, [], modules);
  const absolute = parameter === 'bias';
  const checked = modules.map((module) => ({
    module,
    tensor: expectTensor(module, parameter, absolute ? [module.out] : [1, module.out]),
  }));
  const terms: DiagTerm[] = [];
  for (const { module, tensor } of checked) {
    const values = await readFloats(folder, tensor);
    for (const { site, firstRow, rows } of module.parts) {
      const old = absolute ? base.bias(site) : undefined;
      const c = values.slice(firstRow, firstRow + rows).map((value, i) => value - (old?.[i] ?? 0));
      terms.push({ kind: 'diag', site, c: checkFolded(`the bias of ${module.path}`, c) });
    }
  }
  return { terms: { terms }, notes };
}
