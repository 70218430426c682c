/**
 * adapter_config.json of a PEFT LoRA. The tensors say which modules are adapted and with which rank; from here come
 * scale and variant flags. A flag that changes the maths and is not plain LoRA is refused by name, and so is a field
 * that nobody knows, unless its value is one that switches things off.
 */
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import { flagField, isOff, refused, refuseUnknownFields, show } from '../config-fields.js';
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
  readonly notes: readonly string[];
}

const MERGE =
  "Merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model, or train it";

/** Fields that change what the adapter computes; each must have a value that switches it off. */
const VARIANTS: readonly { readonly field: string; readonly reason: string; readonly mend: string }[] = [
  {
    field: 'use_dora',
    reason: 'DoRA scales whole rows of the base weight as well',
    mend: `${MERGE} with use_dora=False.`,
  },
  {
    field: 'lora_bias',
    reason: 'it adds a bias to every B',
    mend: `${MERGE} with lora_bias=False.`,
  },
  {
    field: 'modules_to_save',
    reason: 'whole trained modules replace those of the base',
    mend: `${MERGE} without modules_to_save.`,
  },
  {
    field: 'trainable_token_indices',
    reason: 'rows of the embedding are replaced',
    mend: `${MERGE} without trainable_token_indices.`,
  },
  {
    field: 'alora_invocation_tokens',
    reason: 'an activated LoRA changes only what follows its invocation tokens',
    mend: 'Train it as a plain LoRA, without alora_invocation_tokens (a merge would change the tokens before them too).',
  },
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
  { field: 'use_qalora', reason: 'A reads groups of inputs averaged', mend: `${MERGE} with use_qalora=False.` },
  { field: 'use_bdlora', reason: 'a factor is stored as diagonal blocks', mend: `${MERGE} with use_bdlora=None.` },
  {
    field: 'kasa_config',
    reason: 'KaSA truncates the base weight and adds a diagonal between A and B',
    mend: `${MERGE} without kasa_config.`,
  },
  {
    field: 'arrow_config',
    reason: 'Arrow blends several adapters token by token',
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
  'monteclora_config',
  'qalora_group_size',
  'velora_config',
];

/** Fields that {@link parseLoraConfig} reads. */
const READ: readonly string[] = [
  'alpha_pattern',
  'bias',
  'ensure_weight_tying',
  'init_lora_weights',
  'lora_alpha',
  'r',
  'rank_pattern',
  'use_rslora',
];

/** Ways to start a training that leave the base as it is. */
const PLAIN_INITS: ReadonlySet<string> = new Set(['eva', 'gaussian', 'loftq', 'mica', 'orthogonal']);

/** Throws 'invalid_adapter' with the field's name. */
export function parseLoraConfig(config: JsonObject): LoraConfig {
  refuseVariants(config);
  refuseUnknownFields(config, [...WITHOUT_EFFECT, ...READ, ...VARIANTS.map(({ field }) => field)]);
  const bias = config['bias'] ?? 'none';
  if (bias !== 'none') {
    const reason = 'trained biases replace those of the base';
    throw refused('bias', `${show(bias)}, expected "none": ${reason}`, `${MERGE} with bias="none".`);
  }
  return {
    rank: rankOf(config['r']),
    alpha: alphaOf('lora_alpha', config['lora_alpha']),
    rankStabilized: flagField(config, 'use_rslora', false),
    rankPattern: ModulePatterns.parse('rank_pattern', config['rank_pattern'], checkedRank),
    alphaPattern: ModulePatterns.parse('alpha_pattern', config['alpha_pattern'], checkedAlpha),
    targets: TargetModules.parse('target_modules', config['target_modules']),
    excluded: TargetModules.parse('exclude_modules', config['exclude_modules']),
    layers: layersOf(config['layers_to_transform']),
    tiesEmbeddings: flagField(config, 'ensure_weight_tying', false),
    notes: initNotes(config['init_lora_weights']),
  };
}

function refuseVariants(config: JsonObject): void {
  for (const { field, reason, mend } of VARIANTS) {
    const value = config[field];
    if (!isOff(value)) throw refused(field, `${show(value)}, expected false, null or absent: ${reason}`, mend);
  }
  const init = config['init_lora_weights'] ?? true;
  if (typeof init === 'boolean' || (typeof init === 'string' && PLAIN_INITS.has(init))) return;
  throw refused(
    'init_lora_weights',
    `${show(init)}: the training began by changing the base weights, and the adapter fits only the changed ones`,
    "Convert it with PEFT's save_pretrained(path, path_initial_model_for_weight_conversion=INITIAL), " +
      'which writes a plain LoRA, or train it with init_lora_weights=True.',
  );
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
