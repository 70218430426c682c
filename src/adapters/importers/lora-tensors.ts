/**
 * The keys of a PEFT LoRA file, sorted by what they are. `base_model.model.` + module path + `.lora_A.weight` and the like
 * are factors; whole weights, biases and token rows that were trained beside them have keys of their own; old files
 * have the adapter's name `default` inside. A key of any other kind is refused, so that nothing is left out.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ManyfoldError } from '../../core/errors.js';
import { wrongTensor } from '../tensor-values.js';

/** What a tensor is to the module of `path`. */
export type LoraRole =
  | 'a'
  | 'b'
  | 'embeddingA'
  | 'embeddingB'
  /** Added to what B gives, `[out]` (lora_bias). */
  | 'bBias'
  /** DoRA's m. */
  | 'magnitude'
  /** Diagonal between A and B (KaSA). */
  | 'diagonal'
  /** State of a training method that inference does not read. */
  | 'training'
  /** A whole weight or bias that stands in the place of the base's. */
  | 'weight'
  | 'bias'
  /** The base's own weight, saved beside the factors. */
  | 'baseWeight'
  /** Rows of the embedding, absolute in spite of their name. */
  | 'tokens';

export interface LoraTensor {
  /** As in the file, without `base_model.model.`; config patterns are matched against it. */
  readonly path: string;
  readonly role: LoraRole;
  readonly tensor: SafetensorsTensor;
}

/** Names the tensors of one file format. */
export type LoraKeys = (name: string) => { readonly path: string; readonly role: LoraRole } | undefined;

const PEFT_PREFIX = 'base_model.model.';
const PEFT_KEYS: readonly { readonly pattern: RegExp; readonly role: LoraRole }[] = [
  { pattern: /^(.+)\.lora_A(?:\.default)?\.weight$/, role: 'a' },
  { pattern: /^(.+)\.lora_B(?:\.default)?\.weight$/, role: 'b' },
  { pattern: /^(.+)\.lora_embedding_A(?:\.default)?$/, role: 'embeddingA' },
  { pattern: /^(.+)\.lora_embedding_B(?:\.default)?$/, role: 'embeddingB' },
  { pattern: /^(.+)\.lora_B(?:\.default)?\.bias$/, role: 'bBias' },
  { pattern: /^(.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$/, role: 'magnitude' },
  { pattern: /^(.+)\.lora_diag(?:\.default)?$/, role: 'diagonal' },
  { pattern: /^(.+)\.lora_(?:monteclora_sampler|velora_[a-z]+)(?:\.[A-Za-z0-9_]+)*$/, role: 'training' },
  {
    pattern: /^(.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.default)?$/,
    role: 'tokens',
  },
  { pattern: /^(.+)\.(?:base_layer|original_module)\.weight$/, role: 'baseWeight' },
  { pattern: /^(.+?)(?:\.base_layer|\.modules_to_save(?:\.default)?)?\.bias$/, role: 'bias' },
  { pattern: /^(.+?)(?:\.modules_to_save(?:\.default)?)?\.weight$/, role: 'weight' },
];

export const peftKeys: LoraKeys = (name) => {
  const key = name.startsWith(PEFT_PREFIX) ? name.slice(PEFT_PREFIX.length) : name;
  for (const { pattern, role } of PEFT_KEYS) {
    const match = pattern.exec(key);
    const path = match?.[1];
    // A factor under another adapter's name would else pass as a whole weight.
    if (path === undefined) continue;
    return path.includes('.lora_') ? undefined : { path, role };
  }
  return undefined;
};

/** Throws 'invalid_adapter' for the first key that is of no kind, and for two that say the same. */
export function sortTensors(tensors: Iterable<SafetensorsTensor>, keys: LoraKeys): LoraTensor[] {
  const sorted: LoraTensor[] = [];
  const seen = new Map<string, SafetensorsTensor>();
  for (const tensor of tensors) {
    const key = keys(tensor.name);
    if (key === undefined) throw foreignTensor(tensor.name);
    const place = `${key.role} ${key.path}`;
    const other = seen.get(place);
    if (other !== undefined && key.role !== 'training') throw twice(other.name, tensor.name);
    seen.set(place, tensor);
    sorted.push({ ...key, tensor });
  }
  return sorted;
}

function foreignTensor(name: string): ManyfoldError {
  const merge = "merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model";
  if (/\.lora_(?:embedding_)?[AB]\./.test(name)) {
    return wrongTensor(
      `${quoteName(name)} is not named as PEFT names LoRA factors ("….lora_A.weight")`,
      `Save it with PEFT's save_pretrained(), which leaves the adapter's name out, or ${merge}.`,
    );
  }
  const capital = merge.charAt(0).toUpperCase() + merge.slice(1);
  return wrongTensor(`${quoteName(name)} is no tensor of a LoRA that this server knows`, `${capital}.`);
}

export function twice(first: string, second: string): ManyfoldError {
  return wrongTensor(
    `${quoteName(first)} and ${quoteName(second)} adapt the same place`,
    'Which of them counts cannot be known; save the adapter again with PEFT.',
  );
}
