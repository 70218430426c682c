/**
 * The tensors of a PEFT LoRA, grouped by the module that they adapt, and where each module stands in the model. Tensor
 * keys are `base_model.model.` + module path + `.lora_A.weight` and the like; old files have `.default` before `.weight`.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ManyfoldError } from '../../core/errors.js';
import type { ModelConfig } from '../../core/model-config.js';
import { isLinear, partsOf, placeOfModule, siteShape } from '../module-place.js';
import type { ModulePart } from '../module-place.js';
import { checkShape, wrongTensor } from '../tensor-values.js';

export interface LoraModule {
  /** As in the file, without `base_model.model.`; config patterns are matched against it. */
  readonly path: string;
  /** -1 for embedding and head. */
  readonly layer: number;
  readonly a: SafetensorsTensor;
  readonly b: SafetensorsTensor;
  readonly rank: number;
  readonly parts: readonly ModulePart[];
}

/** Throws 'invalid_adapter' for the first key, shape or pair that is wrong. */
export function groupModules(tensors: ReadonlyMap<string, SafetensorsTensor>, model: ModelConfig): LoraModule[] {
  const pairs = new Map<string, ModulePair>();
  for (const tensor of tensors.values()) addToPair(pairs, tensor);
  if (pairs.size === 0) {
    throw wrongTensor(
      'it holds no tensors, so it would be the base under another name',
      'Save the adapter again with PEFT.',
    );
  }
  const modules = [...pairs.values()].map((pair) => moduleOf(pair, model));
  refuseAliases(modules);
  return modules;
}

interface ModulePair {
  readonly path: string;
  readonly embedding: boolean;
  a: SafetensorsTensor | undefined;
  b: SafetensorsTensor | undefined;
}

const LINEAR_KEY = /^(.+)\.lora_([AB])(?:\.default)?\.weight$/;
const EMBEDDING_KEY = /^(.+)\.lora_embedding_([AB])(?:\.default)?$/;
const PEFT_PREFIX = 'base_model.model.';

function addToPair(pairs: Map<string, ModulePair>, tensor: SafetensorsTensor): void {
  const key = tensor.name.startsWith(PEFT_PREFIX) ? tensor.name.slice(PEFT_PREFIX.length) : tensor.name;
  const linear = LINEAR_KEY.exec(key);
  const match = linear ?? EMBEDDING_KEY.exec(key);
  if (match === null) throw foreignTensor(tensor.name);
  const [, path = '', factor] = match;
  const pair = pairs.get(path) ?? { path, embedding: linear === null, a: undefined, b: undefined };
  pairs.set(path, pair);
  const slot = factor === 'A' ? 'a' : 'b';
  if (pair[slot] !== undefined) throw twice(pair[slot].name, tensor.name);
  if (pair.embedding !== (linear === null)) {
    throw wrongTensor(
      `${quoteName(path)} has factors of a linear and of an embedding`,
      'Save the adapter again with PEFT.',
    );
  }
  pair[slot] = tensor;
}

function moduleOf(pair: ModulePair, model: ModelConfig): LoraModule {
  const { path, a, b } = pair;
  const place = placeOfModule(path, model);
  const site = place?.sites[0];
  if (place === undefined || site === undefined || !(isLinear(site) || site === 'embedding')) {
    throw wrongTensor(
      `it adapts ${quoteName(path)}, which the base (${model.family}, ${model.layers.length} layers) does not have`,
      'Serve it on the base that it was trained for.',
    );
  }
  if (a === undefined || b === undefined) {
    const [present, missing] = a === undefined ? [b, 'A'] : [a, 'B'];
    const name = quoteName(present?.name ?? path);
    throw wrongTensor(`${name} has no ${missing} beside it`, 'The file is incomplete; download or save it again.');
  }
  if (pair.embedding !== (site === 'embedding')) {
    throw wrongTensor(
      `${quoteName(a.name)} is ${pair.embedding ? 'a factor of an embedding' : 'a factor of a linear'}, the module is not`,
      'Save the adapter again with PEFT.',
    );
  }
  const parts = pair.embedding ? embeddingParts(model) : partsOf(place, model);
  const width = pair.embedding ? model.vocabSize : siteShape(model, site).in;
  const height = parts.reduce((sum, { rows }) => sum + rows, 0);
  const rank = a.shape[0] ?? 0;
  checkShape(a, [rank, width], `[r, ${width}]`);
  checkShape(b, [height, rank], `[${height}, ${rank}], with the rank of ${quoteName(a.name)} [${a.shape.join(', ')}]`);
  return { path, layer: place.layer, a, b, rank, parts };
}

/** The embedding's input is a one-hot of the vocabulary, its output the hidden vector. */
function embeddingParts(model: ModelConfig): ModulePart[] {
  return [{ site: { layer: -1, site: 'embedding' }, firstRow: 0, rows: model.hiddenSize }];
}

/** Two paths may mean one site (`model.layers.0` and `layers.0`, q_proj and qkv_proj). */
function refuseAliases(modules: readonly LoraModule[]): void {
  const seen = new Map<string, LoraModule>();
  for (const module of modules) {
    for (const { site } of module.parts) {
      const place = `${site.layer} ${site.site}`;
      const other = seen.get(place);
      if (other !== undefined) throw twice(other.a.name, module.a.name);
      seen.set(place, module);
    }
  }
}

function foreignTensor(name: string): ManyfoldError {
  const merge = "merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model";
  if (name.endsWith('.base_layer.weight')) {
    return wrongTensor(
      `${quoteName(name)} is a whole weight of the base, saved beside the adapter, which would replace the one served`,
      `Save it again with save_pretrained(path, save_embedding_layers=False), or ${merge}.`,
    );
  }
  if (name.includes('lora_magnitude_vector')) {
    return wrongTensor(`${quoteName(name)} belongs to DoRA`, `Train it with use_dora=False, or ${merge}.`);
  }
  if (/\.lora_(?:embedding_)?[AB]\./.test(name)) {
    return wrongTensor(
      `${quoteName(name)} is not named as PEFT names plain LoRA factors ("….lora_A.weight")`,
      `Save it with PEFT's save_pretrained(), which leaves the adapter's name out, or ${merge}.`,
    );
  }
  const capital = merge.charAt(0).toUpperCase() + merge.slice(1);
  return wrongTensor(`${quoteName(name)} is no LoRA factor but a trained tensor of another kind`, `${capital}.`);
}

function twice(first: string, second: string): ManyfoldError {
  return wrongTensor(
    `${quoteName(first)} and ${quoteName(second)} adapt the same place`,
    'Which of them counts cannot be known; save the adapter again with PEFT.',
  );
}
