/**
 * PREFIX_TUNING and CARTRIDGE of peft → one PREFIX term a layer. Key `prompt_embeddings [n, layers · 2 · token_dim]`, seen as
 * [n, 2 · layers, kv heads, head_dim]: block 2l holds the keys of layer l, block 2l + 1 its values. peft hands them to the
 * model as a filled KV cache: keys as they are (no RoPE, no norm of keys), tokens at positions n, n + 1, …
 *
 * Both save what the model sees: prefix_projection's MLP is applied at saving, a cartridge's frozen tokens stand first.
 */
import type { PrefixTerm } from '../../core/terms.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { DenseTensor } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { integerField, refused, refuseField, refuseUnknownFields } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readTensor } from '../tensor-values.js';
import { isPeftType } from './linear-tensors.js';
import { checkContext, onlyTensors, PROMPT_FIELDS, submodulesOf } from './prompt-config.js';

export const prefixTuningImporter: AdapterImporter = {
  method: 'PREFIX_TUNING',
  matches: (config) => isPeftType(config, 'PREFIX_TUNING'),
  compile: (folder, context) =>
    compilePrefix(folder, context, ['encoder_hidden_size', 'init_weights', 'prefix_projection']),
};

export const cartridgeImporter: AdapterImporter = {
  method: 'CARTRIDGE',
  matches: (config) => isPeftType(config, 'CARTRIDGE'),
  compile: (folder, context) => compilePrefix(folder, context, ['num_frozen_tokens']),
};

async function compilePrefix(
  folder: AdapterFolder,
  { model }: ImportContext,
  known: readonly string[],
): Promise<CompiledAdapter> {
  const { config } = folder;
  refuseField(config, 'modules_to_save', 'whole trained modules replace those of the base', 'Train it without them.');
  refuseUnknownFields(config, [...PROMPT_FIELDS, ...known]);
  submodulesOf(config);
  const [tensor] = onlyTensors(folder, ['prompt_embeddings']);
  const count = integerField(config, 'num_virtual_tokens', 1);
  checkContext(count, model);
  checkHeads(model, integerField(config, 'num_attention_heads', 1), integerField(config, 'token_dim', 1));
  const layers = integerField(config, 'num_layers', 1);
  if (layers !== model.layers.length) {
    throw refused(
      'num_layers',
      `${layers}, the base has ${model.layers.length}`,
      'Serve it on the base of its training.',
    );
  }
  const width = model.numKvHeads * model.headDim;
  checkShape(tensor, [count, layers * 2 * width], `[${count}, ${layers} layers · 2 · ${width}]`);
  const values = await readTensor(folder, tensor);
  const terms: PrefixTerm[] = model.layers.map((_, layer) => ({
    kind: 'prefix',
    site: { layer, site: 'attention' },
    k: block(values, 2 * layer, model),
    v: block(values, 2 * layer + 1, model),
  }));
  return { terms: { terms }, notes: [] };
}

/** peft writes the heads of keys and values here, and their width together. */
function checkHeads(model: ModelConfig, heads: number, tokenDim: number): void {
  if (heads === model.numKvHeads && tokenDim === model.numKvHeads * model.headDim) return;
  throw refused(
    'num_attention_heads',
    `${heads} with token_dim ${tokenDim}, the base has ${model.numKvHeads} heads of ${model.headDim} for keys and values`,
    `Train it with num_attention_heads=${model.numKvHeads} and token_dim=${model.numKvHeads * model.headDim}.`,
  );
}

/** Columns index · width .. of every row, `[n, kv heads, head_dim]`. */
function block(values: DenseTensor, index: number, model: ModelConfig): DenseTensor {
  const [count, total] = values.shape as [number, number];
  const width = model.numKvHeads * model.headDim;
  const shape = [count, model.numKvHeads, model.headDim];
  const copy = <T extends Float32Array | Uint16Array>(from: T, to: T): T => {
    for (let row = 0; row < count; row += 1) {
      const start = row * total + index * width;
      to.set(from.subarray(start, start + width), row * width);
    }
    return to;
  };
  if (values.dtype === 'f32') return { dtype: 'f32', shape, data: copy(values.data, new Float32Array(count * width)) };
  return { dtype: values.dtype, shape, data: copy(values.data, new Uint16Array(count * width)) };
}
