/**
 * PEFT LoRA: one LOWRANK term for each adapted module, Δ = scale · B A x. The factors stay in the file's type.
 *
 * On the embedding, A is [r, vocab] and its input is the token's one-hot, so the kernel gathers a column of A; Gemma's
 * embedding scale applies to both, as in PEFT. On the head, base and head may be tied: only the head is adapted.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import { bug } from '../../core/errors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { DenseTensor, LowRankTerm } from '../../core/terms.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { refused } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { readTensor, rowsOf } from '../tensor-values.js';
import { parseLoraConfig } from './lora-config.js';
import type { LoraConfig } from './lora-config.js';
import { groupModules } from './lora-modules.js';
import type { LoraModule } from './lora-modules.js';

export const loraImporter: AdapterImporter = {
  method: 'LORA',
  matches: (config) => config['peft_type'] === 'LORA',
  compile: compileLora,
};

async function compileLora(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const config = parseLoraConfig(folder.config);
  const modules = groupModules(folder.tensors, model);
  const scales = modules.map((module) => checkedScale(module, config, limits));
  refuseTiedFactors(modules, config, model);
  const terms: LowRankTerm[] = [];
  const inert: string[] = [];
  for (const [i, module] of modules.entries()) {
    const a = await readTensor(folder, module.a);
    const b = await readTensor(folder, module.b);
    if (b.data.every((value) => value === 0)) inert.push(module.path);
    terms.push(...termsOf(module, a, b, scales[i] ?? bug('a module lost its scale')));
  }
  return { terms: { terms }, notes: [...config.notes, ...notesOf(modules, config, inert)] };
}

function termsOf(module: LoraModule, a: DenseTensor, b: DenseTensor, scale: number): LowRankTerm[] {
  return module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a,
    b: rowsOf(b, firstRow, rows),
    scale,
  }));
}

/** Checks the module against the config, and gives its scale. */
function checkedScale(module: LoraModule, config: LoraConfig, limits: AdapterLimits): number {
  const { path, rank, layer } = module;
  if (rank > limits.maxRank) {
    throw refused(
      'r',
      `${rank} for ${quoteName(path)}, at most ${limits.maxRank} is allowed`,
      'Raise --max-lora-rank.',
    );
  }
  const expected = config.rankPattern.valueFor(path) ?? config.rank;
  if (expected !== rank) {
    throw refused(
      'r',
      `${expected} for ${quoteName(path)} (rank_pattern counted), its tensors have rank ${rank}`,
      'Config and tensors do not belong together, and the scale depends on both; save them again together.',
    );
  }
  if (config.targets.names(path) === false) {
    throw refused('target_modules', `without ${quoteName(path)}, which has tensors`, 'Save both again together.');
  }
  if (config.excluded.names(path) === true) {
    throw refused('exclude_modules', `with ${quoteName(path)}, which has tensors`, 'Save both again together.');
  }
  if (layer >= 0 && config.layers?.has(layer) === false) {
    throw refused('layers_to_transform', `without ${layer}, which has tensors`, 'Save both again together.');
  }
  const alpha = config.alphaPattern.valueFor(path) ?? config.alpha;
  return alpha / (config.rankStabilized ? Math.sqrt(rank) : rank);
}

/** With tied embeddings that PEFT keeps tied, one pair of factors serves two modules and only one is in the file. */
function refuseTiedFactors(modules: readonly LoraModule[], config: LoraConfig, model: ModelConfig): void {
  if (!config.tiesEmbeddings || !model.tiedHead) return;
  const touched = modules.find(({ layer }) => layer === -1);
  if (touched === undefined) return;
  throw refused(
    'ensure_weight_tying',
    `true with factors for ${quoteName(touched.path)}: they also belong to the module that shares its weight`,
    'Train it with ensure_weight_tying=False, or merge it into its base and serve the result with --model.',
  );
}

function notesOf(modules: readonly LoraModule[], config: LoraConfig, inert: readonly string[]): string[] {
  const notes: string[] = [];
  const unused = config.targets.unusedNames(modules.map(({ path }) => path));
  if (unused.length > 0)
    notes.push(`target_modules names ${unused.join(', ')}, which have no tensors and stay as the base.`);
  if (inert.length > 0)
    notes.push(`B is all zero in ${inert.length} of ${modules.length} modules, which stay as the base.`);
  return notes;
}
