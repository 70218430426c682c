/** The config of an AdapterHub bottleneck adapter, `{config: {…}, model_type, hidden_size, …}`. Called by adapterhub.ts. */
import { isJsonObject } from '../../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { BottleneckActivation, BottleneckTerm } from '../../core/terms.js';
import { choiceField, flagField, integerField, isOff, numberField, refused, show } from '../config-fields.js';

export interface PhmConfig {
  readonly dim: number;
  readonly rank: number;
  readonly bias: boolean;
  readonly sharedRule: boolean;
  readonly factorizedRule: boolean;
  readonly sharedWeight: boolean;
  readonly factorizedWeight: boolean;
}

export interface AdapterHubConfig {
  readonly attention: boolean;
  readonly output: boolean;
  readonly activation: BottleneckActivation;
  readonly scaling: 'number' | 'learned' | 'channel';
  readonly scale: number;
  readonly normBefore: boolean;
  readonly placement: BottleneckTerm['placement'];
  /** Module of D: behind the norm, where there is one. */
  readonly downName: string;
  readonly leaveOut: ReadonlySet<number>;
  /** Undefined where it differs from layer to layer. */
  readonly width: number | undefined;
  readonly phm: PhmConfig | undefined;
}

/** No peft_type, and the library's nested config. */
export function isAdapterHub(config: JsonObject): boolean {
  return config['peft_type'] === undefined && isJsonObject(config['config']);
}

/** Transformers' names of activations. gelu_fast is gelu_new with rounded constants. */
const ACTIVATIONS: ReadonlyMap<string, BottleneckActivation> = new Map<string, BottleneckActivation>([
  ['gelu', 'gelu'],
  ['gelu_fast', 'gelu_tanh'],
  ['gelu_new', 'gelu_tanh'],
  ['gelu_python', 'gelu'],
  ['gelu_pytorch_tanh', 'gelu_tanh'],
  ['linear', 'identity'],
  ['relu', 'relu'],
  ['silu', 'silu'],
  ['swish', 'silu'],
  ['tanh', 'tanh'],
]);

const OUTER = ['config', 'hidden_size', 'model_class', 'model_name', 'model_type', 'name', 'version'];
const INNER = [
  'adapter_residual_before_ln',
  'architecture',
  'cross_adapter',
  'dropout',
  'factorized_phm_W',
  'factorized_phm_rule',
  'hypercomplex_nonlinearity',
  'init_weights',
  'init_weights_seed',
  'inv_adapter',
  'inv_adapter_reduction_factor',
  'is_parallel',
  'learn_phm',
  'leave_out',
  'ln_after',
  'ln_before',
  'mh_adapter',
  'non_linearity',
  'original_ln_after',
  'original_ln_before',
  'output_adapter',
  'phm_bias',
  'phm_c_init',
  'phm_dim',
  'phm_init_range',
  'phm_layer',
  'phm_rank',
  'reduction_factor',
  'residual_before_ln',
  'scaling',
  'shared_W_phm',
  'shared_phm_rule',
  'stochastic_depth',
  'use_gating',
];

export function parseAdapterHubConfig(outer: JsonObject, model: ModelConfig): AdapterHubConfig {
  const config = outer['config'];
  if (!isJsonObject(config)) throw refused('config', `${show(config)}, expected an object`, 'Save the adapter again.');
  refuseUnknown(outer, OUTER);
  refuseUnknown(config, INNER);
  refuseOtherBase(outer, model);
  refuseUnservable(config);
  const [attention, output] = [flagField(config, 'mh_adapter', false), flagField(config, 'output_adapter', false)];
  if (!attention && !output) {
    throw refused('output_adapter', 'false, and mh_adapter too: nothing is adapted', 'Save the adapter again.');
  }
  const normBefore = flagField(config, 'ln_before', false);
  const scaling = config['scaling'] === 'learned' || config['scaling'] === 'channel' ? config['scaling'] : 'number';
  return {
    attention,
    output,
    activation: activationOf(config['non_linearity']),
    scaling,
    scale: scaling === 'number' ? numberField(config, 'scaling', 1) : 1,
    normBefore,
    placement: placementOf(config),
    downName: normBefore ? 'adapter_down.1' : 'adapter_down.0',
    leaveOut: leaveOutOf(config['leave_out'], model),
    width: widthOf(config['reduction_factor'], model),
    phm: flagField(config, 'phm_layer', false) ? phmOf(config) : undefined,
  };
}

function refuseUnknown(config: JsonObject, known: readonly string[]): void {
  const unknown = Object.keys(config).find((field) => !known.includes(field) && !isOff(config[field]));
  if (unknown === undefined) return;
  throw refused(
    JSON.stringify(unknown.slice(0, 80)),
    `${show(config[unknown])}, a field that this server does not know and so cannot honour`,
    'Remove the field if it does not change the maths.',
  );
}

/** The library has layers of its own for these two; on others it hooks modules, with a norm after the adapter. */
function refuseOtherBase(outer: JsonObject, model: ModelConfig): void {
  const mend = 'Serve it on the base that it was trained for; llama and mistral are known.';
  const type = outer['model_type'] ?? model.family;
  if (type !== model.family || (type !== 'llama' && type !== 'mistral')) {
    throw refused('model_type', `${show(type)}, the base is ${model.family}`, mend);
  }
  const hidden = outer['hidden_size'] ?? model.hiddenSize;
  if (hidden !== model.hiddenSize)
    throw refused('hidden_size', `${show(hidden)}, the base has ${model.hiddenSize}`, mend);
}

function refuseUnservable(config: JsonObject): void {
  const refuse = (field: string, reason: string, mend: string): never => {
    throw refused(field, `${show(config[field])}: ${reason}`, mend);
  };
  if (!isOff(config['architecture']))
    refuse('architecture', 'no bottleneck', 'Train a bottleneck (double_seq_bn) or use PEFT.');
  if (!flagField(config, 'original_ln_after', true)) {
    refuse('original_ln_after', 'the residual stream would be dropped', 'Train it with original_ln_after=True.');
  }
  const afterSum = flagField(config, 'original_ln_before', false) && !flagField(config, 'is_parallel', false);
  if (typeof config['residual_before_ln'] === 'string') {
    refuse(
      'residual_before_ln',
      'it belongs to bases whose norm stands behind',
      'Train it with residual_before_ln=True.',
    );
  }
  if (afterSum && !flagField(config, 'residual_before_ln', true)) {
    const reason = 'with original_ln_before the residual stream would be added twice, which no term does';
    refuse('residual_before_ln', reason, 'Train it with residual_before_ln=True (seq_bn).');
  }
  if (flagField(config, 'ln_after', false)) {
    refuse('ln_after', 'a norm behind the adapter has no term', 'Train it with ln_after=False.');
  }
  if (flagField(config, 'use_gating', false)) {
    const reason = 'the gate is the mean over all tokens of a sequence, so a token would depend on later ones';
    refuse('use_gating', reason, 'Train it with use_gating=False.');
  }
  for (const field of ['inv_adapter', 'cross_adapter']) {
    if (!isOff(config[field])) refuse(field, 'expected null or false', 'Train it without.');
  }
}

/** A parallel adapter reads the residual stream whatever the other fields say. */
function placementOf(config: JsonObject): BottleneckTerm['placement'] {
  if (flagField(config, 'is_parallel', false)) return 'residual';
  return flagField(config, 'original_ln_before', false) ? 'sum' : 'sequential';
}

function activationOf(value: JsonValue | undefined): BottleneckActivation {
  const found = typeof value === 'string' ? ACTIVATIONS.get(value.toLowerCase()) : undefined;
  if (found !== undefined) return found;
  const known = [...ACTIVATIONS.keys()].join(', ');
  throw refused('non_linearity', `${show(value)}, expected one of ${known}`, 'Train it with one of these.');
}

function leaveOutOf(value: JsonValue | undefined, { layers }: ModelConfig): ReadonlySet<number> {
  const list = value ?? [];
  const isLayer = (item: JsonValue): item is number =>
    typeof item === 'number' && Number.isSafeInteger(item) && item >= 0;
  if (Array.isArray(list) && (list as readonly JsonValue[]).every(isLayer)) {
    return new Set((list as readonly number[]).filter((layer) => layer < layers.length));
  }
  throw refused('leave_out', `${show(value)}, expected a list of layers`, 'Save the adapter again.');
}

function widthOf(value: JsonValue | undefined, { hiddenSize }: ModelConfig): number | undefined {
  if (value === undefined || value === null || isJsonObject(value)) return undefined;
  if (typeof value === 'number' && value > 0) return Math.max(1, Math.floor(hiddenSize / value));
  throw refused('reduction_factor', `${show(value)}, expected a number above 0`, 'Save the adapter again.');
}

function phmOf(config: JsonObject): PhmConfig {
  choiceField(
    config,
    'hypercomplex_nonlinearity',
    ['phm', 'glorot-normal', 'glorot-uniform', 'normal'],
    'glorot-uniform',
  );
  return {
    dim: integerField(config, 'phm_dim', 1, 4),
    rank: integerField(config, 'phm_rank', 1, 1),
    bias: flagField(config, 'phm_bias', true),
    sharedRule: flagField(config, 'shared_phm_rule', true),
    factorizedRule: flagField(config, 'factorized_phm_rule', false),
    sharedWeight: flagField(config, 'shared_W_phm', false),
    factorizedWeight: flagField(config, 'factorized_phm_W', true),
  };
}

/** Names and shapes of the tensors of one PHM layer: its own, or those that all share. */
export function phmShapes(phm: PhmConfig, from: number, to: number, shared: boolean): [string, number[]][] {
  const { dim, rank } = phm;
  const rules: [string, number[]][] = phm.factorizedRule
    ? [
        ['phm_rule_left', [dim, dim, 1]],
        ['phm_rule_right', [dim, 1, dim]],
      ]
    : [['phm_rule', [dim, dim, dim]]];
  const weights: [string, number[]][] = phm.factorizedWeight
    ? [
        ['W_left', [dim, from / dim, rank]],
        ['W_right', [dim, rank, to / dim]],
      ]
    : [['W', [dim, from / dim, to / dim]]];
  return [
    ...(phm.sharedRule === shared ? rules : []),
    ...(phm.sharedWeight === shared ? weights : []),
    ...(phm.bias && !shared ? [['b', [to]] as [string, number[]]] : []),
  ];
}
