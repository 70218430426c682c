/**
 * adapter_config.json of a PEFT LoRA. The tensors say which modules are adapted and with which rank; from here come
 * scale and variant flags. A flag that cannot be honoured is refused by name, and so is a field that nobody knows, unless
 * its value is one that switches things off.
 */
import { isJsonObject } from '../../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import type { ManyfoldError } from '../../core/errors.js';
import {
  choiceField,
  flagField,
  integerField,
  isOff,
  refused,
  refuseField,
  refuseUnknownFields,
  show,
} from '../config-fields.js';
import type { BasePart } from './base-part.js';
import { ModulePatterns, TargetModules } from './lora-patterns.js';

export interface LoraConfig {
  readonly rank: number;
  readonly alpha: number;
  /** scale = alpha / √rank instead of alpha / rank. */
  readonly rankStabilized: boolean;
  readonly rankPattern: ModulePatterns;
  readonly alphaPattern: ModulePatterns;
  readonly targets: TargetModules;
  /** Modules that must not be adapted. */
  readonly excluded: TargetModules;
  /** Layers that may be adapted; undefined: all. */
  readonly layers: ReadonlySet<number> | undefined;
  readonly tiesEmbeddings: boolean;
  readonly useDora: boolean;
  readonly hasBBias: boolean;
  /** Whether biases of the base were trained. */
  readonly trainsBias: boolean;
  /** Inputs that one value of A stands for (QA-LoRA); 1 for plain LoRA. */
  readonly group: number;
  readonly blocks: BlockConfig | undefined;
  /** What the training took out of the base weights before it began, and the field that says so. */
  readonly baseChange: BaseChange | undefined;
  readonly hasDiagonal: boolean;
  readonly savedModules: TargetModules;
  readonly savesModules: boolean;
  /** Token ids of the trained rows, for the module whose path ends with the name. */
  readonly tokens: readonly { readonly name: string; readonly ids: readonly number[] }[];
  /** aLoRA. */
  readonly invocation: readonly number[] | undefined;
  /** State of training is in the file. */
  readonly trainingState: boolean;
  readonly notes: readonly string[];
}

/** BD-LoRA: which factors are stored as blocks along their diagonal. */
export interface BlockConfig {
  readonly count: number;
  /** Parts of module names. */
  readonly a: readonly string[];
  readonly b: readonly string[];
}

export interface BaseChange {
  readonly field: string;
  /** Undefined: only an initial adapter beside this one says it. */
  readonly part: BasePart | undefined;
}

const MERGE =
  "Merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model, or train it";

/** Fields of what cannot be served; each must have a value that switches it off. */
const VARIANTS: readonly { readonly field: string; readonly reason: string; readonly mend: string }[] = [
  {
    field: 'target_parameters',
    reason: 'it adapts raw parameters, which are those of expert layers that the base lacks',
    mend: 'Serve it on the base that it was trained for, or train it with target_modules.',
  },
  {
    field: 'layer_replication',
    reason: 'it changes the number of layers of the base',
    mend: 'Build the deeper model, merge the adapter into it and serve that with --model.',
  },
  {
    field: 'arrow_config',
    reason: 'Arrow blends several adapters token by token, and they are not in this folder',
    mend: 'Serve the adapters that it blends one by one, each under its own name.',
  },
  {
    field: 'megatron_config',
    reason: 'the modules are those of Megatron',
    mend: "Convert the checkpoint to Hugging Face's module names and save it without megatron_config.",
  },
];

/** Fields that say where an adapter comes from or how it was trained; they do not change what it computes. */
const WITHOUT_EFFECT: readonly string[] = [
  'corda_config',
  'eva_config',
  'fan_in_fan_out',
  'loftq_config',
  'lora_dropout',
  'lora_ga_config',
  'megatron_core',
  'merge_weights',
];

/** Fields that {@link parseLoraConfig} reads. */
const READ: readonly string[] = [
  'alora_invocation_tokens',
  'alpha_pattern',
  'bias',
  'ensure_weight_tying',
  'init_lora_weights',
  'kasa_config',
  'lora_alpha',
  'lora_bias',
  'modules_to_save',
  'monteclora_config',
  'qalora_group_size',
  'r',
  'rank_pattern',
  'trainable_token_indices',
  'use_bdlora',
  'use_dora',
  'use_qalora',
  'use_rslora',
  'velora_config',
];

/** Ways to start a training that leave the base as it is. */
const PLAIN_INITS: ReadonlySet<string> = new Set(['eva', 'gaussian', 'loftq', 'mica', 'orthogonal']);
/** Ways that take a part out of it. */
const PART_INITS: ReadonlyMap<string, BasePart> = new Map<string, BasePart>([
  ['pissa', 'largest'],
  ['olora', 'columns'],
]);
/** Ways that take something out which depends on random numbers or on data, so that only the initial adapter tells it. */
const UNKNOWN_INITS = /^(?:pissa_niter_[0-9]{1,3}|corda|lora_ga)$/;

/** Throws 'invalid_adapter' with the field's name. `vocabSize` bounds token ids. */
export function parseLoraConfig(config: JsonObject, vocabSize: number): LoraConfig {
  for (const { field, reason, mend } of VARIANTS) refuseField(config, field, reason, mend);
  refuseUnknownFields(config, [...WITHOUT_EFFECT, ...READ, ...VARIANTS.map(({ field }) => field)]);
  const parsed = {
    rank: rankOf(config['r']),
    alpha: alphaOf('lora_alpha', config['lora_alpha']),
    rankStabilized: flagField(config, 'use_rslora', false),
    rankPattern: ModulePatterns.parse('rank_pattern', config['rank_pattern'], checkedRank),
    alphaPattern: ModulePatterns.parse('alpha_pattern', config['alpha_pattern'], checkedAlpha),
    ...commonLoraFields(config, vocabSize),
    tiesEmbeddings: flagField(config, 'ensure_weight_tying', false),
    useDora: flagField(config, 'use_dora', false),
    hasBBias: flagField(config, 'lora_bias', false),
    group: flagField(config, 'use_qalora', false) ? integerField(config, 'qalora_group_size', 1) : 1,
    blocks: blocksOf(config['use_bdlora']),
    baseChange: baseChangeOf(config),
    hasDiagonal: !isOff(config['kasa_config']),
    invocation: invocationOf(config['alora_invocation_tokens'], vocabSize),
    trainingState: !isOff(config['velora_config']) || !isOff(config['monteclora_config']),
    notes: initNotes(config['init_lora_weights']),
  };
  refuseCombinations(parsed);
  return parsed;
}

/** Fields that LORA shares with ADALORA. */
export function commonLoraFields(
  config: JsonObject,
  vocabSize: number,
): Pick<LoraConfig, 'targets' | 'excluded' | 'layers' | 'trainsBias' | 'savedModules' | 'savesModules' | 'tokens'> {
  return {
    targets: TargetModules.parse('target_modules', config['target_modules']),
    excluded: TargetModules.parse('exclude_modules', config['exclude_modules']),
    layers: layersOf(config['layers_to_transform']),
    trainsBias: choiceField(config, 'bias', ['none', 'all', 'lora_only'], 'none') !== 'none',
    savedModules: TargetModules.parse('modules_to_save', config['modules_to_save'] ?? []),
    savesModules: !isOff(config['modules_to_save']),
    tokens: tokensOf(config['trainable_token_indices'], vocabSize),
  };
}

/** Pairs whose meaning PEFT does not define, or that would make a norm of what is no matrix. */
function refuseCombinations(config: LoraConfig): void {
  const pairs: readonly (readonly [string, string, boolean])[] = [
    ['lora_bias', 'use_dora', config.hasBBias && config.useDora],
    ['use_qalora', 'use_dora', config.group > 1 && config.useDora],
    ['use_bdlora', 'use_qalora', config.blocks !== undefined && config.group > 1],
    ['kasa_config', 'init_lora_weights', config.hasDiagonal && config.baseChange?.field === 'init_lora_weights'],
    ['kasa_config', 'use_dora', config.hasDiagonal && config.useDora],
  ];
  const found = pairs.find(([, , both]) => both);
  if (found === undefined) return;
  throw refused(found[0], `on together with ${found[1]}, which PEFT does not define`, `${MERGE} with one of the two.`);
}

function blocksOf(value: JsonValue | undefined): BlockConfig | undefined {
  if (isOff(value)) return undefined;
  const wrong = (): ManyfoldError =>
    refused(
      'use_bdlora',
      `${show(value)}, expected an object with nblocks, target_modules_bd_a and target_modules_bd_b`,
      'Save the adapter again with PEFT.',
    );
  if (value === undefined || !isJsonObject(value)) throw wrong();
  const names = (field: string): string[] => {
    const list = value[field] ?? [];
    if (!Array.isArray(list) || !list.every((item) => typeof item === 'string' && item !== '')) throw wrong();
    return list as string[];
  };
  const unknown = Object.keys(value).find((key) => !BLOCK_FIELDS.has(key));
  if (unknown !== undefined) throw wrong();
  const count = integerField(value, 'nblocks', 1, 1);
  return { count, a: names('target_modules_bd_a'), b: names('target_modules_bd_b') };
}

const BLOCK_FIELDS: ReadonlySet<string> = new Set([
  'match_strict',
  'nblocks',
  'target_modules_bd_a',
  'target_modules_bd_b',
]);

function baseChangeOf(config: JsonObject): BaseChange | undefined {
  if (!isOff(config['kasa_config'])) {
    refuseStrangeInit(config['init_lora_weights']);
    const init = baseChangeOf({ init_lora_weights: config['init_lora_weights'] ?? true });
    return init ?? { field: 'kasa_config', part: 'smallest' };
  }
  const init = config['init_lora_weights'] ?? true;
  refuseStrangeInit(init);
  if (typeof init !== 'string' || PLAIN_INITS.has(init)) return undefined;
  return { field: 'init_lora_weights', part: PART_INITS.get(init) };
}

function refuseStrangeInit(init: JsonValue | undefined): void {
  if (init === undefined || init === null || typeof init === 'boolean') return;
  const known = typeof init === 'string' && (PLAIN_INITS.has(init) || PART_INITS.has(init) || UNKNOWN_INITS.test(init));
  if (known) return;
  throw refused(
    'init_lora_weights',
    `${show(init)}, a way to begin that this server does not know; it may have changed the base weights`,
    `${CONVERT_INITIAL}, or train it with init_lora_weights=True.`,
  );
}

/** What mends an adapter that fits a changed base only. */
export const CONVERT_INITIAL =
  "Convert it with PEFT's save_pretrained(path, path_initial_model_for_weight_conversion=INITIAL), " +
  'which writes a plain LoRA';

function tokensOf(value: JsonValue | undefined, vocabSize: number): { name: string; ids: number[] }[] {
  if (isOff(value)) return [];
  // A list belongs to the input embedding.
  const entries: [string, JsonValue | undefined][] =
    value !== undefined && isJsonObject(value) ? Object.entries(value) : [['embed_tokens', value]];
  return entries.map(([name, ids]) => ({ name, ids: tokenIds('trainable_token_indices', ids, vocabSize) }));
}

function tokenIds(field: string, value: JsonValue | undefined, vocabSize: number): number[] {
  const list: readonly JsonValue[] = Array.isArray(value) ? (value as readonly JsonValue[]) : [value ?? null];
  const ids = list.filter((id): id is number => typeof id === 'number' && Number.isInteger(id));
  if (ids.length === list.length && ids.every((id) => id >= 0 && id < vocabSize)) return ids;
  throw refused(
    field,
    `${show(value)}, expected token ids below ${vocabSize}`,
    'Serve the adapter on the base that it was trained for.',
  );
}

function invocationOf(value: JsonValue | undefined, vocabSize: number): readonly number[] | undefined {
  return isOff(value) ? undefined : tokenIds('alora_invocation_tokens', value, vocabSize);
}

function rankOf(value: JsonValue | undefined): number {
  const rank = checkedRank(value);
  if (rank !== undefined) return rank;
  throw refused('r', `${show(value)}, expected an integer of at least 1`, 'Write the rank that the tensors have.');
}

function checkedRank(value: JsonValue | undefined): number | undefined {
  return typeof value === 'number' && Number.isInteger(value) && value >= 1 ? value : undefined;
}

function alphaOf(field: string, value: JsonValue | undefined): number {
  const alpha = checkedAlpha(value);
  if (alpha !== undefined) return alpha;
  throw refused(
    field,
    `${show(value)}, expected a number that is not 0 (with 0 the adapter would be the base under another name)`,
    'Write the alpha that the adapter was trained with.',
  );
}

/** A magnitude beyond float32's range would be infinite in the kernels. */
function checkedAlpha(value: JsonValue | undefined): number | undefined {
  if (typeof value !== 'number' || value === 0 || !Number.isFinite(Math.fround(value))) return undefined;
  return value;
}

function layersOf(value: JsonValue | undefined): ReadonlySet<number> | undefined {
  if (value === undefined || value === null) return undefined;
  const items: readonly JsonValue[] = Array.isArray(value) ? (value as readonly JsonValue[]) : [value];
  if (items.length === 0) return undefined;
  const layers = new Set<number>();
  for (const item of items) {
    if (typeof item !== 'number' || !Number.isInteger(item) || item < 0) {
      throw refused('layers_to_transform', `${show(value)}, expected layer numbers`, 'Correct adapter_config.json.');
    }
    layers.add(item);
  }
  return layers;
}

function initNotes(init: JsonValue | undefined): string[] {
  if (init !== 'loftq') return [];
  return [
    'It was trained with LoftQ on a quantised base; on an unquantised base its answers may differ from training.',
  ];
}
