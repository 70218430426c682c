/** What peft's prompt-learning methods share: config fields and a file of few, known tensors. Called by their importers. */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refused, show } from '../config-fields.js';
import { wrongTensor } from '../tensor-values.js';

/** token_dim and the like describe the base; they are checked through the shapes that they give. */
export const PROMPT_FIELDS: readonly string[] = [
  'modules_to_save',
  'num_attention_heads',
  'num_layers',
  'num_transformer_submodules',
  'num_virtual_tokens',
  'token_dim',
];

/** Two submodules are an encoder and a decoder, which no base here has. */
export function submodulesOf(config: JsonObject): void {
  const value = config['num_transformer_submodules'] ?? 1;
  if (value === 1) return;
  throw refused(
    'num_transformer_submodules',
    `${show(value)}, expected 1: the base is a decoder alone`,
    'Serve an adapter that was trained on a causal language model.',
  );
}

/** The tensors of these names, in this order; any other tensor and any that is missing is refused. */
export function onlyTensors(
  folder: AdapterFolder,
  names: readonly string[],
): readonly [SafetensorsTensor, ...SafetensorsTensor[]] {
  const foreign = [...folder.tensors.keys()].find((name) => !names.includes(name));
  if (foreign !== undefined) {
    throw wrongTensor(
      `${quoteName(foreign)} is none of this method's tensors (${names.join(', ')})`,
      "Save the adapter again with PEFT's save_pretrained(), without other trained modules.",
    );
  }
  const tensors = names.map((name) => {
    const tensor = folder.tensors.get(name);
    if (tensor !== undefined) return tensor;
    throw wrongTensor(`it holds no ${quoteName(name)}`, 'The file is incomplete; download or save it again.');
  });
  return tensors as [SafetensorsTensor, ...SafetensorsTensor[]];
}

/** Rows before the prompt take positions; at least one must be left for a token. */
export function checkContext(count: number, model: ModelConfig): void {
  if (count < model.maxPositions) return;
  throw refused(
    'num_virtual_tokens',
    `${count}, the base has ${model.maxPositions} positions in all`,
    'Serve it on the base that it was trained for.',
  );
}
