/**
 * What the rest of the server knows of a model's files, whatever their format: made by `openCheckpoint` from a GGUF
 * file or a Hugging Face folder. Headers are parsed here, in memory-safe code; the tensors' bytes are read by native
 * code from the checked ranges of {@link Checkpoint.weights}.
 */
import type { ModelConfig } from '../core/model-config.js';
import type { WeightEntry } from '../native/binding-types.js';

/** GGUF metadata value: numbers up to 2^53 as number, larger 64-bit as bigint, arrays as arrays. */
export type GgufValue = string | number | bigint | boolean | GgufArray;
export type GgufArray =
  | readonly string[]
  | readonly number[]
  | readonly bigint[]
  | readonly boolean[]
  | readonly GgufArray[]
  | Float32Array
  | Int32Array
  | Uint32Array
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Float64Array;

/** Where tokenizer and template come from; the text module reads it. */
export type TextSource =
  | {
      readonly kind: 'huggingface';
      /** tokenizer.json as text. */
      readonly tokenizerJson: string;
      /** tokenizer_config.json parsed, {} when absent. */
      readonly tokenizerConfig: Readonly<Record<string, unknown>>;
      /** chat_template.jinja, or the template(s) of tokenizer_config.json; undefined when there is none. */
      readonly chatTemplate: string | undefined;
    }
  | {
      readonly kind: 'gguf';
      readonly metadata: ReadonlyMap<string, GgufValue>;
      readonly chatTemplate: string | undefined;
    };

/** Defaults of generation_config.json; absent keys are undefined. */
export interface GenerationDefaults {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly maxNewTokens?: number;
}

export interface Checkpoint {
  /** The path as given, absolute. */
  readonly path: string;
  readonly format: 'gguf' | 'huggingface';
  readonly config: ModelConfig;
  readonly files: readonly string[];
  readonly weights: readonly WeightEntry[];
  /** The type of most of the layers' matrices, for `--dtype auto`; what is served of it, `ownDtype` of src/cli says. */
  readonly fileDtype: string;
  readonly text: TextSource;
  /** Every id that ends a generation: generation_config.json, config.json, GGUF's eos, eot, eom. */
  readonly eosTokenIds: readonly number[];
  readonly generation: GenerationDefaults;
  /** SHA-256 over config and sampled tensor bytes; part of every adapter version. 64 hex digits. */
  readonly fingerprint: string;
}
