/**
 * Adapters of MLX-LM (mlx_lm.lora): adapters.safetensors with `lora_a [in, r]`, `lora_b [r, out]`, for DoRA `m [out]`, and an
 * adapter_config.json of the training's arguments, where the scale stands as it multiplies. An embedding has `lora_a [vocab, r]`
 * and adapts a tied head with it, since MLX uses one module for both; its DoRA norms are those of the tokens' rows.
 */
import { isJsonObject, quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import { MLX_TENSORS_FILE } from '../adapter-container.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { choiceField, integerField, numberField, refused, refuseUnknownFields, show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { inFile, wrongTensor } from '../tensor-values.js';
import { checkDoraTable } from './dora.js';
import { checkRank, emptyFile, termsOfModules } from './lora.js';
import { groupModules } from './lora-modules.js';
import type { FactorLayout, LoraModule } from './lora-modules.js';
import { sortTensors } from './lora-tensors.js';
import type { LoraKeys } from './lora-tensors.js';

export const mlxLoraImporter: AdapterImporter = {
  method: 'MLX-LM LoRA',
  matches: (config) => config['peft_type'] === undefined && isJsonObject(config['lora_parameters']),
  compile: (folder, context) => inFile(MLX_TENSORS_FILE, () => compileMlx(folder, context)),
};

/** Arguments of mlx_lm.lora that say how it was trained. */
const TRAINING_FIELDS: readonly string[] = [
  'adapter_path',
  'batch_size',
  'clear_cache_threshold',
  'config',
  'data',
  'grad_accumulation_steps',
  'grad_checkpoint',
  'hf_dataset',
  'iters',
  'learning_rate',
  'lora_layers',
  'lr_schedule',
  'mask_prompt',
  'max_seq_length',
  'model',
  'num_layers',
  'optimizer',
  'optimizer_config',
  'project_name',
  'report_to',
  'resume_adapter_file',
  'save_every',
  'seed',
  'steps_per_eval',
  'steps_per_report',
  'test',
  'test_batches',
  'train',
  'trust_remote_code',
  'val_batches',
  'wandb',
];

const LAYOUT: FactorLayout = { transposed: true, magnitudePerToken: true, tiedHead: true };

const mlxKeys: LoraKeys = (name) => {
  const match = /^(.+)\.(?:lora_([ab])|(m))$/.exec(name);
  const path = match?.[1];
  if (path === undefined) return undefined;
  if (match?.[3] !== undefined) return { path, role: 'magnitude' };
  const embedding = /(?:^|\.)embed_tokens$/.test(path);
  if (match?.[2] === 'a') return { path, role: embedding ? 'embeddingA' : 'a' };
  return { path, role: embedding ? 'embeddingB' : 'b' };
};

async function compileMlx(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { model, limits } = context;
  const { rank, scale, dora } = parseConfig(folder.config);
  const tensors = sortTensors(folder.tensors.values(), mlxKeys);
  if (tensors.length === 0) throw emptyFile();
  const modules = groupModules(tensors, model, LAYOUT);
  for (const module of modules) {
    checkModule(module, rank, dora);
    checkRank(module, limits);
    if (module.magnitude !== undefined && module.embedding) checkDoraTable(module, limits);
  }
  const both = modules.find(({ path }) => model.tiedHead && path.endsWith('lm_head'));
  if (both !== undefined && modules.some(({ embedding }) => embedding)) {
    throw wrongTensor(
      `it adapts ${quoteName(both.path)} and the embedding, which are one module in this base`,
      'Serve it on the base that it was trained for.',
    );
  }
  const jobs = modules.map((module) => ({ module, scale, layout: LAYOUT, change: undefined }));
  const { terms, inert } = await termsOfModules(folder, jobs, context);
  const notes = inert.length === 0 ? [] : [`B is all zero in ${inert.length} of ${modules.length} modules.`];
  return { terms: { terms }, notes };
}

function parseConfig(config: JsonObject): { rank: number; scale: number; dora: boolean } {
  refuseUnknownFields(config, [...TRAINING_FIELDS, 'fine_tune_type', 'lora_parameters', 'use_dora']);
  if (config['fine_tune_type'] === 'full') {
    throw refused(
      'fine_tune_type',
      '"full": its file holds whole weights of the base',
      'Fuse it with mlx_lm.fuse and serve the result with --model.',
    );
  }
  const type = choiceField(config, 'fine_tune_type', ['lora', 'dora'], config['use_dora'] === true ? 'dora' : 'lora');
  const parameters = config['lora_parameters'] ?? {};
  if (!isJsonObject(parameters)) {
    throw refused('lora_parameters', `${show(parameters)}, expected an object`, 'Correct adapter_config.json.');
  }
  refuseUnknownFields(parameters, ['alpha', 'dropout', 'keys', 'rank', 'scale']);
  const scale = numberField(parameters, 'scale');
  if (scale === 0) throw refused('scale', '0, with which the adapter is the base', 'Write the scale of the training.');
  return { rank: integerField(parameters, 'rank', 1), scale, dora: type === 'dora' };
}

function checkModule({ path, rank, magnitude, a }: LoraModule, expected: number, dora: boolean): void {
  if (rank !== expected) {
    throw refused(
      'rank',
      `${expected}, the tensors of ${quoteName(path)} have rank ${rank}`,
      'Config and tensors do not belong together; save them again together.',
    );
  }
  if (dora === (magnitude !== undefined)) return;
  throw wrongTensor(
    dora
      ? `${quoteName(a.name)} has no m beside it, which DoRA needs`
      : `${quoteName(path)} has DoRA's m, while fine_tune_type is "lora"`,
    'Config and tensors do not belong together; save them again together.',
  );
}
