/**
 * GGUF metadata → {@link ModelDescription}, with llama.cpp's meaning of each key. Keys of the architecture's own
 * prefix that are not read here are refused by name; those of other prefixes (general, tokenizer, quantize) never
 * change the maths. Called by open-checkpoint.
 */
import { ManyfoldError } from '../core/errors.js';
import type { LayerConfig, ModelFamily, RopeTable, SiteName } from '../core/model-config.js';
import type { GgufValue } from './checkpoint.js';
import { buildDescription, MAX_COUNT, MAX_HEAD_DIM, MAX_LAYERS } from './model-description.js';
import type { ModelDescription } from './model-description.js';
import { ropeTable, yarnAttentionFactor } from './rope.js';
import type { RopeSpec } from './rope.js';
import { quoteName } from './strict-json.js';

/** What of the tensors bears on the config. */
export interface GgufTensorFacts {
  /** Rows of the embedding matrix. */
  readonly vocabSize: number;
  readonly hasHead: boolean;
  readonly biases: ReadonlySet<SiteName>;
  /** Values of `rope_freqs.weight`, by which llama3 scaling divides each frequency. */
  readonly ropeFactors: Float32Array | undefined;
}

const FAMILIES: ReadonlyMap<string, ModelFamily> = new Map([
  ['llama', 'llama'],
  ['qwen2', 'qwen2'],
  ['qwen3', 'qwen3'],
  ['gemma3', 'gemma3'],
]);

/** Layers of the one Gemma 3 (27B) whose attention scale is hidden size / heads, not head_dim. */
const GEMMA_27B_LAYERS = 62;
const GEMMA_LOCAL_THETA = 10_000;
const GEMMA_PATTERN = 6;

export function ggufFamily(metadata: ReadonlyMap<string, GgufValue>): ModelFamily {
  const architecture = metadata.get('general.architecture');
  const family = typeof architecture === 'string' ? FAMILIES.get(architecture) : undefined;
  if (family !== undefined) return family;
  const known = [...FAMILIES.keys()].join(', ');
  return refuse('general.architecture', architecture, `one of ${known}`);
}

export function readGgufConfig(metadata: ReadonlyMap<string, GgufValue>, tensors: GgufTensorFacts): ModelDescription {
  const family = ggufFamily(metadata);
  checkGeneral(metadata);
  const keys = new GgufKeys(metadata, family);
  const numLayers = keys.need('block_count', MAX_LAYERS);
  const hiddenSize = keys.need('embedding_length');
  const numHeads = keys.need('attention.head_count');
  const numKvHeads = keys.count('attention.head_count_kv') ?? numHeads;
  if (numHeads % numKvHeads !== 0) keys.wrong('attention.head_count_kv', numKvHeads, `a divisor of ${numHeads}`);
  const headDim = readHeadDim(keys, hiddenSize, numHeads);
  const maxPositions = keys.need('context_length');
  const vocabSize = keys.count('vocab_size') ?? tensors.vocabSize;
  if (vocabSize !== tensors.vocabSize)
    keys.wrong('vocab_size', vocabSize, `${tensors.vocabSize}, the embedding's rows`);
  const layout = readLayout(keys, family, { numLayers, headDim, maxPositions, factors: tensors.ropeFactors });
  const gemma27b = family === 'gemma3' && numLayers === GEMMA_27B_LAYERS;
  const description = buildDescription({
    family,
    vocabSize,
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim,
    ffnSize: keys.need('feed_forward_length'),
    normEps:
      keys.number('attention.layer_norm_rms_epsilon') ?? keys.wrong('attention.layer_norm_rms_epsilon', undefined),
    activation: family === 'gemma3' ? 'gelu_tanh' : 'silu',
    tiedHead: !tensors.hasHead,
    attnScalar: gemma27b ? hiddenSize / numHeads : headDim,
    layers: layout.layers,
    ropes: layout.ropes,
    maxPositions,
    biases: tensors.biases,
  });
  checkSwitches(keys);
  keys.refuseOthers();
  return description;
}

function checkGeneral(metadata: ReadonlyMap<string, GgufValue>): void {
  const type = metadata.get('general.type');
  if (type !== undefined && type !== 'model') refuse('general.type', type, 'model');
  const splits = metadata.get('split.count');
  if (splits !== undefined && splits !== 0 && splits !== 1) {
    refuse('split.count', splits, '1', 'Join the parts with llama-gguf-split --merge.');
  }
}

function readHeadDim(keys: GgufKeys, hiddenSize: number, numHeads: number): number {
  const headDim = keys.count('attention.key_length') ?? Math.floor(hiddenSize / numHeads);
  if (headDim < 2 || headDim > MAX_HEAD_DIM || headDim % 2 !== 0) {
    keys.wrong('attention.key_length', headDim, `an even number up to ${MAX_HEAD_DIM}`);
  }
  for (const key of ['attention.value_length', 'rope.dimension_count']) {
    const length = keys.count(key);
    if (length !== undefined && length !== headDim)
      keys.wrong(key, length, `${headDim}, as many as attention.key_length`);
  }
  return headDim;
}

interface Shape {
  readonly numLayers: number;
  readonly headDim: number;
  readonly maxPositions: number;
  readonly factors: Float32Array | undefined;
}

interface Layout {
  readonly layers: readonly LayerConfig[];
  readonly ropes: readonly RopeTable[];
}

function readLayout(keys: GgufKeys, family: ModelFamily, shape: Shape): Layout {
  const layers = (layer: (index: number) => LayerConfig): LayerConfig[] =>
    Array.from({ length: shape.numLayers }, (_, index) => layer(index));
  const theta = keys.positive('rope.freq_base') ?? 10_000;
  const window = keys.count('attention.sliding_window');
  const main = mainRope(keys, theta, shape);
  if (family !== 'gemma3') {
    // Which layers of a Qwen the window is for, GGUF does not say.
    if (window !== undefined && family !== 'llama') keys.wrong('attention.sliding_window', window, 'no window');
    return { layers: layers(() => ({ window: window ?? 0, rope: 0 })), ropes: [main] };
  }
  if (window === undefined) keys.wrong('attention.sliding_window', undefined, 'the window of local layers');
  if (keys.text('rope.scaling.type') === 'yarn') keys.wrong('rope.scaling.type', 'yarn', 'none or linear');
  const localTheta = keys.positive('rope.freq_base_swa') ?? GEMMA_LOCAL_THETA;
  const local = { ...ropeTable({ type: 'default', theta: localTheta }, shape.headDim), scale: main.scale };
  const isLocal = gemmaPattern(keys, shape.numLayers);
  return {
    layers: layers((index) => (isLocal(index) ? { window, rope: 1 } : { window: 0, rope: 0 })),
    ropes: [main, local],
  };
}

/** A period (every n-th layer is global), or one flag for each layer. */
function gemmaPattern(keys: GgufKeys, numLayers: number): (layer: number) => boolean {
  const flags = keys.get('attention.sliding_window_pattern');
  if (Array.isArray(flags) && flags.length === numLayers && flags.every((flag) => typeof flag === 'boolean')) {
    return (layer) => flags[layer] === true;
  }
  const period = keys.count('attention.sliding_window_pattern') ?? GEMMA_PATTERN;
  return (layer) => (layer + 1) % period !== 0;
}

/** The RoPE of all layers, or of Gemma's global ones. */
function mainRope(keys: GgufKeys, theta: number, shape: Shape): RopeTable {
  const table = ropeTable(readRope(keys, theta, shape.maxPositions), shape.headDim);
  const scale = Math.fround(table.scale * (keys.positive('rope.scaling.attn_factor') ?? 1));
  const { factors } = shape;
  if (factors === undefined) return { ...table, scale };
  if (factors.length !== table.invFreq.length || factors.some((factor) => !(factor > 0) || !Number.isFinite(factor))) {
    refuse('tensor rope_freqs.weight', `${factors.length} values`, `${table.invFreq.length} finite values above 0`);
  }
  return { invFreq: table.invFreq.map((freq, i) => freq / (factors[i] ?? 1)), scale };
}

function readRope(keys: GgufKeys, theta: number, maxPositions: number): RopeSpec {
  const factor = keys.positive('rope.scaling.factor') ?? keys.positive('rope.scale_linear') ?? 1;
  const originalPositions = keys.count('rope.scaling.original_context_length') ?? maxPositions;
  const type = keys.text('rope.scaling.type') ?? 'linear';
  const betaFast = keys.positive('rope.scaling.yarn_beta_fast') ?? 32;
  const betaSlow = keys.positive('rope.scaling.yarn_beta_slow') ?? 1;
  switch (type) {
    case 'none':
      return { type: 'default', theta };
    case 'linear':
      return { type: 'linear', theta, factor };
    case 'yarn': {
      const attentionFactor = yarnAttentionFactor(factor);
      return { type, theta, factor, originalPositions, betaFast, betaSlow, truncate: true, attentionFactor };
    }
    default:
      return keys.wrong('rope.scaling.type', type, 'none, linear or yarn');
  }
}

/** Keys that some converters write in their off position, and keys that nothing reads. */
function checkSwitches(keys: GgufKeys): void {
  keys.only('attention.causal', [true]);
  keys.only('use_parallel_residual', [false]);
  keys.only('expert_count', [0]);
  keys.only('expert_used_count', [0]);
  keys.only('pooling_type', [0]);
  keys.only('rope.scaling.yarn_ext_factor', [1]);
  keys.only('rope.scaling.yarn_attn_factor', [1]);
  keys.only('rope.scaling.yarn_log_multiplier', [0]);
  keys.get('rope.scaling.finetuned');
  keys.get('tensor_data_layout');
}

/** Typed access to the keys of one architecture; see ConfigKeys for the idea. */
class GgufKeys {
  private readonly asked = new Set<string>();

  constructor(
    private readonly metadata: ReadonlyMap<string, GgufValue>,
    private readonly prefix: string,
  ) {}

  get(key: string): GgufValue | undefined {
    this.asked.add(`${this.prefix}.${key}`);
    return this.metadata.get(`${this.prefix}.${key}`);
  }

  number(key: string): number | undefined {
    const value = this.get(key);
    if (value === undefined || (typeof value === 'number' && value >= 0 && value < Infinity)) return value;
    return this.wrong(key, value, 'a number of at least 0');
  }

  /** A number; 0 stands for absent, as in llama.cpp. */
  positive(key: string): number | undefined {
    const value = this.number(key);
    return value === 0 ? undefined : value;
  }

  text(key: string): string | undefined {
    const value = this.get(key);
    return value === undefined || typeof value === 'string' ? value : this.wrong(key, value, 'a string');
  }

  /** A whole number of 1 to `most`, or the same one for every layer. */
  count(key: string, most = MAX_COUNT): number | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    const each = ArrayBuffer.isView(value) || Array.isArray(value) ? Array.from<unknown>(value) : [value];
    const first = each[0];
    const whole = typeof first === 'number' && Number.isInteger(first) && first >= 1 && first <= most;
    if (whole && each.every((item) => item === first)) return first;
    return this.wrong(key, value, `a whole number of 1 to ${most}, the same for all layers`);
  }

  need(key: string, most = MAX_COUNT): number {
    return this.count(key, most) ?? this.wrong(key, undefined, 'a whole number');
  }

  only(key: string, allowed: readonly GgufValue[]): void {
    const value = this.get(key);
    if (value !== undefined && !allowed.includes(value))
      this.wrong(key, value, `${allowed.map(String).join(' or ')} or nothing`);
  }

  wrong(key: string, value: GgufValue | undefined, expected = 'a value'): never {
    return refuse(`${this.prefix}.${key}`, value, expected);
  }

  refuseOthers(): void {
    for (const [key, value] of this.metadata) {
      if (key.startsWith(`${this.prefix}.`) && !this.asked.has(key)) {
        refuse(key, value, 'no such key: it is not known for this family and may change what the model computes');
      }
    }
  }
}

function refuse(
  key: string,
  value: GgufValue | undefined,
  expected: string,
  mend = 'Use a model of a supported kind.',
): never {
  const message = `GGUF metadata ${quoteName(key)} is ${show(value)}, expected ${expected}. ${mend}`;
  throw new ManyfoldError('invalid_model', message, { param: key });
}

function show(value: GgufValue | undefined): string {
  if (value === undefined) return 'missing';
  if (typeof value === 'string') return quoteName(value);
  return typeof value === 'object' ? `an array of ${value.length} values` : String(value);
}
