/**
 * (IA)³ (Liu et al. 2022, peft tuners/ia3): a learned vector scales what a linear gives, bias included, y = l ⊙ (W x + b):
 * DIAG g = l, c = (l − 1) ⊙ b; or, on a feed-forward module, what it reads, y = W (l ⊙ x) + b: DIAG h = l. `ia3_l` is
 * `[out, 1]` for the first and `[1, in]` for the second, and feedforward_modules says which.
 */
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { DiagTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import type { AdapterImporter, BaseWeights, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, checkShape, readFloats } from '../tensor-values.js';
import { checkPeftConfig, expectTensor, groupLinears, isPeftType } from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { TargetModules } from './lora-patterns.js';

export const ia3Importer: AdapterImporter = {
  method: 'IA3',
  matches: (config) => isPeftType(config, 'IA3'),
  compile: compileIa3,
};

async function compileIa3(folder: AdapterFolder, { model, base }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['ia3_l'] });
  const notes = checkPeftConfig(folder.config, ['feedforward_modules', 'init_ia3_weights'], modules);
  const checked = checkedModules(folder.config, modules);
  const terms: DiagTerm[] = [];
  for (const { module, reads, tensor } of checked) {
    const scale = await readFloats(folder, tensor);
    for (const { site, firstRow, rows } of module.parts) {
      if (reads) terms.push({ kind: 'diag', site, h: scale });
      else terms.push(scaledOutput(base, site, scale.slice(firstRow, firstRow + rows)));
    }
  }
  return { terms: { terms }, notes };
}

/** DIAG of y = g ⊙ (W x + b) + shift: c = (g − 1) ⊙ b + shift. */
export function scaledOutput(
  base: BaseWeights,
  site: DiagTerm['site'],
  g: Float32Array,
  shift?: ArrayLike<number>,
): DiagTerm {
  const bias = base.bias(site);
  if (bias === undefined && shift === undefined) return { kind: 'diag', site, g };
  const c = Float32Array.from(g, (scale, i) => {
    const own = bias === undefined ? 0 : (scale - 1) * (bias[i] as number);
    return shift === undefined ? own : own + (shift[i] as number);
  });
  return { kind: 'diag', site, g, c: checkFolded(`the bias at ${site.site} of layer ${site.layer}`, c) };
}

interface CheckedModule {
  readonly module: LinearTensors;
  /** Scales what the module reads. */
  readonly reads: boolean;
  readonly tensor: ReturnType<typeof expectTensor>;
}

function checkedModules(config: JsonObject, modules: readonly LinearTensors[]): CheckedModule[] {
  const feedForward = TargetModules.parse('feedforward_modules', config['feedforward_modules']);
  return modules.map((module) => {
    const tensor = expectTensor(module, 'ia3_l', [-1, -1]);
    const { out, in: width, path } = module;
    const reads = feedForward.names(path) ?? (tensor.shape[0] === 1 && out !== 1);
    checkShape(tensor, reads ? [1, width] : [out, 1]);
    return { module, reads, tensor };
  });
}
