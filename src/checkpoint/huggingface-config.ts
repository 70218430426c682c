/**
 * config.json of a Hugging Face folder → {@link ModelDescription}. Defaults of absent keys are those of transformers 5.
 * A value that would change the maths and is not supported is refused by name, and so is a key that is not known.
 * Called by open-checkpoint.
 */
import type { Activation, LayerConfig, ModelFamily, SiteName } from '../core/model-config.js';
import { ConfigKeys } from './config-keys.js';
import { HARMLESS_KEYS, MULTIMODAL_KEYS } from './huggingface-keys.js';
import { readLayerRopes, readRope } from './huggingface-rope.js';
import { buildDescription, MAX_HEAD_DIM, MAX_LAYERS } from './model-description.js';
import type { ModelDescription } from './model-description.js';
import { ropeTable } from './rope.js';
import type { RopeSpec } from './rope.js';
import type { JsonObject } from './strict-json.js';

export interface HuggingFaceModel extends ModelDescription {
  /** Ids of config.json that end a generation. */
  readonly eosTokenIds: readonly number[];
}

interface Family {
  readonly family: ModelFamily;
  readonly architectures: readonly string[];
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly ffnSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** 0: as many as heads. */
  readonly numKvHeads: number;
  /** 0: hidden size / heads. */
  readonly headDim: number;
  readonly maxPositions: number;
  readonly activationKey: 'hidden_act' | 'hidden_activation';
  readonly activation: string;
}

const LLAMA: Family = {
  family: 'llama',
  architectures: ['LlamaForCausalLM', 'LLaMAForCausalLM'],
  vocabSize: 32_000,
  hiddenSize: 4096,
  ffnSize: 11_008,
  numLayers: 32,
  numHeads: 32,
  numKvHeads: 0,
  headDim: 0,
  maxPositions: 2048,
  activationKey: 'hidden_act',
  activation: 'silu',
};
const QWEN2: Family = {
  ...LLAMA,
  family: 'qwen2',
  architectures: ['Qwen2ForCausalLM'],
  vocabSize: 151_936,
  ffnSize: 22_016,
  numKvHeads: 32,
  maxPositions: 32_768,
};
const FAMILIES: Readonly<Record<string, Family>> = {
  llama: LLAMA,
  mistral: {
    ...LLAMA,
    family: 'mistral',
    architectures: ['MistralForCausalLM'],
    ffnSize: 14_336,
    numKvHeads: 8,
    maxPositions: 131_072,
  },
  qwen2: QWEN2,
  qwen3: { ...QWEN2, family: 'qwen3', architectures: ['Qwen3ForCausalLM'], headDim: 128 },
  gemma3_text: {
    family: 'gemma3',
    architectures: ['Gemma3ForCausalLM', 'Gemma3ForConditionalGeneration'],
    vocabSize: 262_208,
    hiddenSize: 2304,
    ffnSize: 9216,
    numLayers: 26,
    numHeads: 8,
    numKvHeads: 4,
    headDim: 256,
    maxPositions: 131_072,
    activationKey: 'hidden_activation',
    activation: 'gelu_pytorch_tanh',
  },
};

const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  silu: 'silu',
  swish: 'silu',
  gelu_pytorch_tanh: 'gelu_tanh',
  gelu_new: 'gelu_tanh',
};

/** `hasHead`: the weights hold a head of their own (`lm_head.weight`). */
export function readHuggingFaceConfig(config: JsonObject, hasHead: boolean): HuggingFaceModel {
  const outer = new ConfigKeys(config, 'config.json');
  refuseForeignCode(outer);
  const modelType = outer.string('model_type');
  if (modelType !== 'gemma3') return readTextConfig(outer, modelType, hasHead, outer.boolean('tie_word_embeddings'));
  const text = outer.section('text_config') ?? outer.wrong('text_config', null, 'an object');
  checkArchitectures(outer, FAMILIES['gemma3_text'] as Family);
  const outerTied = outer.boolean('tie_word_embeddings');
  outer.refuseOthers(MULTIMODAL_KEYS);
  const inner = new ConfigKeys(text, 'config.json text_config');
  refuseForeignCode(inner);
  const model = readTextConfig(inner, 'gemma3_text', hasHead, outerTied ?? inner.boolean('tie_word_embeddings'));
  return { ...model, eosTokenIds: [...outer.ids('eos_token_id'), ...model.eosTokenIds] };
}

function readTextConfig(
  keys: ConfigKeys,
  modelType: string | undefined,
  hasHead: boolean,
  tied: boolean | undefined,
): HuggingFaceModel {
  const family = Object.hasOwn(FAMILIES, modelType ?? '') ? FAMILIES[modelType ?? ''] : undefined;
  if (family === undefined) {
    const known = [...Object.keys(FAMILIES), 'gemma3'].join(', ');
    return keys.wrong('model_type', modelType ?? null, `one of ${known}`);
  }
  checkArchitectures(keys, family);
  keys.has('tie_word_embeddings');
  if (tied === false && !hasHead) {
    keys.wrong(
      'tie_word_embeddings',
      false,
      'lm_head.weight among the tensors, which is missing',
      'Download it again.',
    );
  }
  const numHeads = keys.count('num_attention_heads') ?? family.numHeads;
  const hiddenSize = keys.count('hidden_size') ?? family.hiddenSize;
  const headDim = readHeadDim(keys, family, hiddenSize, numHeads);
  const numLayers = keys.count('num_hidden_layers', MAX_LAYERS) ?? family.numLayers;
  const maxPositions = keys.count('max_position_embeddings') ?? family.maxPositions;
  const layout = readLayers(keys, family, numLayers, maxPositions);
  const description = buildDescription({
    family: family.family,
    vocabSize: keys.count('vocab_size') ?? family.vocabSize,
    hiddenSize,
    numHeads,
    numKvHeads: readKvHeads(keys, family, numHeads),
    headDim,
    ffnSize: keys.count('intermediate_size') ?? family.ffnSize,
    normEps: keys.number('rms_norm_eps', 0) ?? 1e-6,
    activation: readActivation(keys, family),
    tiedHead: !hasHead,
    attnScalar: family.family === 'gemma3' ? (keys.number('query_pre_attn_scalar', 0, true) ?? 256) : headDim,
    layers: layout.layers,
    ropes: layout.ropes.map((spec) => ropeTable(spec, headDim)),
    maxPositions,
    biases: readBiases(keys, family.family),
  });
  checkSwitches(keys, family.family);
  const eosTokenIds = keys.ids('eos_token_id');
  keys.refuseOthers(HARMLESS_KEYS);
  return { ...description, eosTokenIds };
}

/** Code of the repository is never run, and quantized tensors would be read as something else. */
function refuseForeignCode(keys: ConfigKeys): void {
  const refuse = (key: string, mend: string): void => {
    const value = keys.get(key);
    if (value !== undefined) keys.wrong(key, value, 'no such key', mend);
  };
  refuse('auto_map', "Code from a model's repository is never run; use a model that needs none.");
  const plain = 'Use the unquantized checkpoint, or a GGUF file of the quantized one.';
  refuse('quantization_config', plain);
  refuse('compression_config', plain);
}

function checkArchitectures(keys: ConfigKeys, family: Family): void {
  const names = keys.strings('architectures') ?? [];
  if (names.length === 0 || names.some((name) => family.architectures.includes(name))) return;
  keys.wrong('architectures', names, family.architectures.join(' or '), 'Only models that generate text are served.');
}

function readHeadDim(keys: ConfigKeys, family: Family, hiddenSize: number, numHeads: number): number {
  const headDim = keys.count('head_dim') ?? (family.headDim || Math.floor(hiddenSize / numHeads));
  if (headDim >= 2 && headDim <= MAX_HEAD_DIM && headDim % 2 === 0) return headDim;
  return keys.wrong('head_dim', headDim, `an even number up to ${MAX_HEAD_DIM}`);
}

function readKvHeads(keys: ConfigKeys, family: Family, numHeads: number): number {
  const given = keys.count('num_key_value_heads');
  // Absent and null differ: null is as many as heads in every family.
  const numKvHeads = given ?? (keys.has('num_key_value_heads') ? numHeads : family.numKvHeads || numHeads);
  if (numHeads % numKvHeads === 0) return numKvHeads;
  return keys.wrong('num_key_value_heads', numKvHeads, `a divisor of num_attention_heads, ${numHeads}`);
}

function readActivation(keys: ConfigKeys, family: Family): Activation {
  const name = keys.string(family.activationKey) ?? family.activation;
  const activation = Object.hasOwn(ACTIVATIONS, name) ? ACTIVATIONS[name] : undefined;
  if (activation === undefined) {
    return keys.wrong(family.activationKey, name, `one of ${Object.keys(ACTIVATIONS).join(', ')}`);
  }
  // Gemma's second name of the key may repeat the first, not contradict it.
  if (family.activationKey === 'hidden_activation') keys.only('hidden_act', [name]);
  return activation;
}

function readBiases(keys: ConfigKeys, family: ModelFamily): ReadonlySet<SiteName> {
  const biases: SiteName[] = [];
  if (family === 'qwen2') biases.push('q', 'k', 'v');
  const configurable = family === 'llama' || family === 'qwen3' || family === 'gemma3';
  if (!configurable) keys.only('attention_bias', [family === 'qwen2']);
  else if (keys.boolean('attention_bias') === true) biases.push('q', 'k', 'v', 'o');
  if (family !== 'llama') keys.only('mlp_bias', [false]);
  else if (keys.boolean('mlp_bias') === true) biases.push('gate', 'up', 'down');
  return new Set(biases);
}

/** Switches that some configs carry in their off position. */
function checkSwitches(keys: ConfigKeys, family: ModelFamily): void {
  keys.only('is_encoder_decoder', [false]);
  keys.only('is_decoder', [false, true]);
  keys.only('add_cross_attention', [false]);
  keys.only('tie_encoder_decoder', [false]);
  keys.only('pruned_heads', [{}]);
  keys.only('use_mrope', [false]);
  keys.only('rope_interleaved', [false]);
  if (family !== 'gemma3') return;
  keys.only('final_logit_softcapping', []);
  keys.only('attn_logit_softcapping', []);
  keys.only('use_bidirectional_attention', [false]);
}

interface Layout {
  readonly layers: readonly LayerConfig[];
  readonly ropes: readonly RopeSpec[];
}

/** Which layers have a window, and which RoPE. */
function readLayers(keys: ConfigKeys, family: Family, numLayers: number, maxPositions: number): Layout {
  const layers = (window: (layer: number) => number): LayerConfig[] =>
    Array.from({ length: numLayers }, (_, layer) => ({ window: window(layer), rope: 0 }));
  if (family.family === 'gemma3') return readGemmaLayers(keys, numLayers, maxPositions);
  const ropes = [readRope(keys, { theta: 10_000, maxPositions })];
  if (family.family === 'qwen2' || family.family === 'qwen3') {
    return { layers: layers(qwenWindow(keys, numLayers)), ropes };
  }
  if (family.family === 'llama') keys.only('sliding_window', []);
  const absent = family.family === 'llama' || keys.has('sliding_window') ? 0 : 4096;
  const window = keys.count('sliding_window') ?? absent;
  const type = window === 0 ? 'full_attention' : 'sliding_attention';
  keys.only('layer_types', [Array.from({ length: numLayers }, () => type)]);
  return { layers: layers(() => window), ropes };
}

function qwenWindow(keys: ConfigKeys, numLayers: number): (layer: number) => number {
  const use = keys.boolean('use_sliding_window') ?? false;
  const given = keys.get('sliding_window');
  const window = use ? (keys.count('sliding_window') ?? (keys.has('sliding_window') ? 0 : 4096)) : 0;
  const firstSliding = keys.number('max_window_layers', 0) ?? 28;
  const types = readLayerTypes(keys, numLayers);
  if (types === undefined) return (layer) => (layer >= firstSliding ? window : 0);
  if (types.includes('sliding_attention') && window === 0) {
    keys.wrong(
      'sliding_window',
      given ?? null,
      'a window that use_sliding_window switches on, for sliding layer_types',
    );
  }
  return (layer) => (types[layer] === 'sliding_attention' ? window : 0);
}

function readGemmaLayers(keys: ConfigKeys, numLayers: number, maxPositions: number): Layout {
  const given = keys.count('sliding_window');
  if (given === undefined && keys.has('sliding_window')) keys.wrong('sliding_window', null, 'a window');
  const window = given ?? 4096;
  const pattern = keys.count('sliding_window_pattern') ?? 6;
  const types = readLayerTypes(keys, numLayers);
  // transformers writes it beside layer_types, which say the same; alone it would not be read.
  if (types === undefined) keys.only('_sliding_window_pattern', [pattern]);
  else keys.has('_sliding_window_pattern');
  const isFull = (layer: number): boolean =>
    types === undefined ? (layer + 1) % pattern === 0 : types[layer] === 'full_attention';
  const { full, sliding } = readLayerRopes(keys, maxPositions);
  return {
    layers: Array.from({ length: numLayers }, (_, layer) =>
      isFull(layer) ? { window: 0, rope: 0 } : { window, rope: 1 },
    ),
    ropes: [full, sliding],
  };
}

function readLayerTypes(keys: ConfigKeys, numLayers: number): readonly string[] | undefined {
  const types = keys.strings('layer_types')?.map((type) => (type === 'attention' ? 'full_attention' : type));
  if (types === undefined) return undefined;
  if (types.length !== numLayers) keys.wrong('layer_types', types, `one entry for each of ${numLayers} layers`);
  const other = types.find((type) => type !== 'full_attention' && type !== 'sliding_attention');
  if (other !== undefined) keys.wrong('layer_types', other, 'full_attention or sliding_attention');
  return types;
}
