/**
 * LoRA files of llama.cpp (convert_lora_to_gguf.py): `blk.N.attn_q.weight.lora_a [r, in]` and `.lora_b [out, r]`, scale
 * adapter.lora.alpha / r. The embedding's lora_a is `[vocab, r]`. Rows of q and k of Llama come in the order that llama.cpp's
 * RoPE pairs them, (2j, 2j + 1) for Hugging Face's (j, j + half), and are put back. Activated LoRAs carry their tokens.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import type { ModelConfig, ModelFamily } from '../../core/model-config.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { inFile, wrongTensor } from '../tensor-values.js';
import { checkRank, emptyFile, termsOfModules } from './lora.js';
import { groupModules } from './lora-modules.js';
import type { FactorLayout } from './lora-modules.js';
import { sortTensors } from './lora-tensors.js';
import type { LoraKeys } from './lora-tensors.js';

const FILE = 'the GGUF file';

export const ggufLoraImporter: AdapterImporter = {
  method: 'GGUF LoRA',
  matches: (config) => config['general.architecture'] !== undefined,
  compile: (folder, context) => inFile(FILE, () => compileGguf(folder, context)),
};

/** Families whose weights llama.cpp names so. */
const ARCHITECTURES: ReadonlyMap<string, readonly ModelFamily[]> = new Map<string, readonly ModelFamily[]>([
  ['llama', ['llama', 'mistral']],
  ['qwen2', ['qwen2']],
  ['qwen3', ['qwen3']],
  ['gemma3', ['gemma3']],
]);

const MODULES: ReadonlyMap<string, string> = new Map([
  ['attn_q', 'self_attn.q_proj'],
  ['attn_k', 'self_attn.k_proj'],
  ['attn_v', 'self_attn.v_proj'],
  ['attn_output', 'self_attn.o_proj'],
  ['ffn_gate', 'mlp.gate_proj'],
  ['ffn_up', 'mlp.up_proj'],
  ['ffn_down', 'mlp.down_proj'],
]);

const ggufKeys: LoraKeys = (name) => {
  const match = /^(?:blk\.(0|[1-9][0-9]{0,5})\.([a-z_]+)|(token_embd|output))\.weight\.lora_([ab])$/.exec(name);
  if (match === null) return undefined;
  const [, layer, linear = '', single, factor] = match;
  if (single === 'token_embd')
    return { path: 'model.embed_tokens', role: factor === 'a' ? 'embeddingA' : 'embeddingB' };
  const role = factor === 'a' ? 'a' : 'b';
  if (single === 'output') return { path: 'lm_head', role };
  const module = MODULES.get(linear);
  return module === undefined ? undefined : { path: `model.layers.${layer}.${module}`, role };
};

async function compileGguf(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { config } = folder;
  const { model, limits } = context;
  const architecture = checkHeader(config, model);
  const alpha = config['adapter.lora.alpha'];
  if (typeof alpha !== 'number' || !Number.isFinite(Math.fround(alpha))) {
    throw wrongTensor(`adapter.lora.alpha is ${show(alpha)}, expected a number`, 'Convert the adapter again.');
  }
  const invocation = invocationOf(config['adapter.alora.invocation_tokens'], model.vocabSize);
  const layout: FactorLayout = {
    embeddingRows: true,
    ...(architecture === 'llama' ? { pairedHeads: (path) => headsOf(path, model) } : {}),
  };
  const tensors = sortTensors(folder.tensors.values(), ggufKeys);
  if (tensors.length === 0) throw emptyFile();
  const modules = groupModules(tensors, model, layout);
  for (const module of modules) checkRank(module, limits);
  // llama.cpp takes alpha 0 for a scale of 1.
  const jobs = modules.map((module) => ({
    module,
    scale: alpha === 0 ? 1 : alpha / module.rank,
    layout,
    change: undefined,
  }));
  const { terms, inert } = await termsOfModules(folder, jobs, context);
  const notes = inert.length === 0 ? [] : [`B is all zero in ${inert.length} of ${modules.length} modules.`];
  return { terms: invocation === undefined ? { terms } : { terms, invocation }, notes };
}

function checkHeader(config: JsonObject, model: ModelConfig): string {
  const [type, kind] = [config['general.type'], config['adapter.type']];
  if (type !== 'adapter' || kind !== 'lora') {
    throw wrongTensor(
      `general.type is ${show(type)} and adapter.type ${show(kind)}, expected "adapter" and "lora"`,
      'A whole model is served with --model; other adapters of llama.cpp are not LoRAs.',
    );
  }
  const unknown = Object.keys(config).find(
    (key) => !/^(?:general\.|adapter\.type$|adapter\.lora\.alpha$|adapter\.alora\.invocation_tokens$)/.test(key),
  );
  if (unknown !== undefined) {
    throw wrongTensor(
      `${quoteName(unknown)} is ${show(config[unknown])}, a field that this server does not know and so cannot honour`,
      'Convert the adapter again with convert_lora_to_gguf.py.',
    );
  }
  const architecture = config['general.architecture'];
  const families = typeof architecture === 'string' ? ARCHITECTURES.get(architecture) : undefined;
  if (typeof architecture === 'string' && families?.includes(model.family) === true) return architecture;
  throw wrongTensor(
    `general.architecture is ${show(architecture)}, the base is ${model.family}`,
    'Serve it on the base that it was trained for.',
  );
}

function headsOf(path: string, model: ModelConfig): number {
  if (path.endsWith('.q_proj')) return model.numHeads;
  return path.endsWith('.k_proj') ? model.numKvHeads : 0;
}

function invocationOf(value: JsonValue | undefined, vocabSize: number): number[] | undefined {
  if (value === undefined) return undefined;
  const items: readonly JsonValue[] = Array.isArray(value) ? (value as readonly JsonValue[]) : [value];
  const ids = items.filter(
    (id): id is number => Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize,
  );
  if (ids.length > 0 && ids.length === items.length) return ids;
  throw wrongTensor(
    `adapter.alora.invocation_tokens is ${show(value)}, expected token ids below ${vocabSize}`,
    'Serve the adapter on the base that it was trained for.',
  );
}
