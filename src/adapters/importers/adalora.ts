/**
 * AdaLoRA (Zhang et al. 2023): Δ = s · B (E ⊙ (A x)), one LOWRANK term with E as its diagonal. PEFT's scale is
 * lora_alpha / (init_r + 1e-5), init_r being the rank before pruning, whatever is left of it. rank_pattern has a mask of init_r
 * entries for each module; the file has the ranks that the mask keeps. Keys: `lora_A [r, in]`, `lora_B [out, r]`,
 * `lora_E [r, 1]`, without `.weight`.
 */
import { isJsonObject, quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import type { AdapterFolder } from '../adapter-folder.js';
import {
  flagField,
  integerField,
  numberField,
  refused,
  refuseField,
  refuseUnknownFields,
  show,
} from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { wrongTensor } from '../tensor-values.js';
import { checkNamed, checkRank, emptyFile, mergeDiagonals, termsOfModules } from './lora.js';
import { commonLoraFields } from './lora-config.js';
import { groupModules } from './lora-modules.js';
import type { LoraModule } from './lora-modules.js';
import { savedTerms, sortSaved } from './lora-saved.js';
import { peftKeys, sortTensors } from './lora-tensors.js';
import type { LoraKeys, LoraRole } from './lora-tensors.js';

export const adaloraImporter: AdapterImporter = {
  method: 'ADALORA',
  matches: (config) => config['peft_type'] === 'ADALORA',
  compile: compileAdalora,
};

/** How the ranks were given away during training, and fields of LoRA that AdaLoRA does not read. */
const WITHOUT_EFFECT: readonly string[] = [
  'alpha_pattern',
  'beta1',
  'beta2',
  'corda_config',
  'deltaT',
  'eva_config',
  'fan_in_fan_out',
  'init_lora_weights',
  'loftq_config',
  'lora_dropout',
  'lora_ga_config',
  'megatron_core',
  'orth_reg_weight',
  'qalora_group_size',
  'r',
  'target_r',
  'tfinal',
  'tinit',
  'total_step',
];

const READ: readonly string[] = [
  'bias',
  'ensure_weight_tying',
  'init_r',
  'lora_alpha',
  'modules_to_save',
  'rank_pattern',
  'trainable_token_indices',
];

/** Variants of LoRA that AdaLoRA has not. */
const VARIANTS: readonly string[] = [
  'alora_invocation_tokens',
  'arrow_config',
  'kasa_config',
  'layer_replication',
  'lora_bias',
  'megatron_config',
  'monteclora_config',
  'target_parameters',
  'use_bdlora',
  'use_dora',
  'use_qalora',
  'use_rslora',
  'velora_config',
];

const ROLES: ReadonlyMap<string, LoraRole> = new Map<string, LoraRole>([
  ['A', 'a'],
  ['B', 'b'],
  ['E', 'diagonal'],
]);

const adaloraKeys: LoraKeys = (name) => {
  const match = /^(?:base_model\.model\.)?(.+)\.lora_([ABE])(?:\.default)?$/.exec(name);
  const role = ROLES.get(match?.[2] ?? '');
  if (match?.[1] !== undefined && role !== undefined) return { path: match[1], role };
  return name.includes('.lora_') ? undefined : peftKeys(name);
};

async function compileAdalora(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { config } = folder;
  const { model, limits } = context;
  for (const field of VARIANTS) {
    refuseField(config, field, 'AdaLoRA has no such variant', 'Remove the field, or train the adapter as a LoRA.');
  }
  refuseUnknownFields(config, [...WITHOUT_EFFECT, ...READ, ...VARIANTS]);
  const common = commonLoraFields(config, model.vocabSize);
  const rank = integerField(config, 'init_r', 1);
  const alpha = numberField(config, 'lora_alpha');
  const scale = (alpha > 0 ? alpha : rank) / (rank + 1e-5);
  const ranks = keptRanks(config, rank);
  const tensors = sortTensors(folder.tensors.values(), adaloraKeys);
  if (tensors.length === 0) throw emptyFile();
  const modules = groupModules(tensors, model);
  const saved = sortSaved(
    tensors,
    { ...common, tiesEmbeddings: flagField(config, 'ensure_weight_tying', false), trainingState: false },
    context,
  );
  for (const module of modules) checkModule(module, ranks.get(module.path) ?? rank);
  for (const module of modules) {
    checkRank(module, limits);
    checkNamed(module, common);
  }
  const jobs = modules.map((module) => ({ module, scale, layout: {}, change: undefined }));
  const { terms } = await termsOfModules(folder, jobs, context);
  const beside = await savedTerms(folder, saved, context);
  return { terms: { terms: mergeDiagonals([...terms, ...beside.terms]) }, notes: beside.notes };
}

function checkModule({ path, rank, diagonal, a }: LoraModule, expected: number): void {
  if (diagonal === undefined) {
    throw wrongTensor(
      `${quoteName(a.name)} has no lora_E beside it`,
      'The file is incomplete; download or save it again.',
    );
  }
  if (rank === expected) return;
  throw refused(
    'rank_pattern',
    `one that keeps ${expected} ranks of ${quoteName(path)}, its tensors have rank ${rank}`,
    'Config and tensors do not belong together; save them again together.',
  );
}

/** By module path: how many ranks the masks keep. */
function keptRanks(config: JsonObject, rank: number): ReadonlyMap<string, number> {
  const value = config['rank_pattern'] ?? {};
  if (!isJsonObject(value)) {
    throw refused('rank_pattern', `${show(value)}, expected an object of masks`, 'Correct adapter_config.json.');
  }
  return new Map(
    Object.entries(value).map(([name, mask]) => {
      const flat = flattened(mask);
      if (flat?.length !== rank) {
        throw refused(
          `rank_pattern ${show(name)}`,
          `${show(mask)}, expected ${rank} times true or false, one for each of the init_r ranks`,
          'Correct adapter_config.json.',
        );
      }
      return [name.replace(/\.lora_E(?:\.default)?$/, ''), flat.filter(Boolean).length];
    }),
  );
}

/** Masks may be lists of lists of one. */
function flattened(mask: JsonValue): boolean[] | undefined {
  if (!Array.isArray(mask)) return undefined;
  const items: readonly JsonValue[] = mask;
  const flat = items.map((item) =>
    Array.isArray(item) && item.length === 1 ? (item as readonly JsonValue[])[0] : item,
  );
  return flat.every((item) => typeof item === 'boolean') ? flat : undefined;
}
