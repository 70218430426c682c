/**
 * Sampling defaults and end-of-sequence ids that a checkpoint brings. As in vLLM, the keys count as they stand:
 * `do_sample` is not looked at. Called by open-checkpoint.
 */
import { ManyfoldError } from '../core/errors.js';
import type { GenerationDefaults, GgufValue } from './checkpoint.js';
import { ConfigKeys } from './config-keys.js';
import type { JsonObject } from './strict-json.js';

export interface Generation {
  readonly defaults: GenerationDefaults;
  readonly eosTokenIds: readonly number[];
}

/** generation_config.json; keys that are not sampling parameters of ours are left to their readers. */
export function readGenerationConfig(config: JsonObject): Generation {
  const keys = new ConfigKeys(config, 'generation_config.json');
  const defaults = checkDefaults(
    {
      temperature: keys.number('temperature', 0),
      topK: keys.number('top_k', -1),
      topP: keys.number('top_p', 0, true),
      minP: keys.number('min_p', 0),
      repetitionPenalty: keys.number('repetition_penalty', 0, true),
      maxNewTokens: keys.count('max_new_tokens'),
    },
    'generation_config.json',
  );
  return { defaults, eosTokenIds: keys.ids('eos_token_id') };
}

/** GGUF's recommended sampling parameters, and its ids of end of sequence, turn and message. */
export function readGgufGeneration(metadata: ReadonlyMap<string, GgufValue>): Generation {
  const number = (key: string): number | undefined => {
    const value = metadata.get(key);
    if (value === undefined || typeof value === 'number') return value;
    return refuse('GGUF metadata', key, String(value), 'a number');
  };
  const sampling = (key: string): number | undefined => number(`general.sampling.${key}`);
  const defaults = checkDefaults(
    {
      temperature: sampling('temp'),
      topK: sampling('top_k'),
      topP: sampling('top_p'),
      minP: sampling('min_p'),
      repetitionPenalty: sampling('penalty_repeat'),
    },
    'GGUF general.sampling',
  );
  const ids = ['eos', 'eot', 'eom'].map((kind) => number(`tokenizer.ggml.${kind}_token_id`));
  return { defaults, eosTokenIds: ids.filter((id) => id !== undefined) };
}

type Candidates = { readonly [K in keyof GenerationDefaults]: number | undefined };

/** Ranges of core/sampling; absent keys stay absent. */
function checkDefaults(values: Candidates, what: string): GenerationDefaults {
  const within = (key: keyof GenerationDefaults, low: number, high: number): number | undefined => {
    const value = values[key];
    if (value === undefined || (value >= low && value <= high)) return value;
    return refuse(what, key, String(value), `${low} to ${high}`);
  };
  const topK = within('topK', -1, 2 ** 31 - 1);
  if (topK !== undefined && !Number.isInteger(topK)) refuse(what, 'topK', String(topK), 'a whole number');
  const checked = {
    temperature: within('temperature', 0, 100),
    // Both -1 and 0 keep all tokens.
    topK: topK === undefined ? undefined : Math.max(topK, 0),
    topP: within('topP', Number.MIN_VALUE, 1),
    minP: within('minP', 0, 1),
    repetitionPenalty: within('repetitionPenalty', Number.MIN_VALUE, 100),
    maxNewTokens: values.maxNewTokens,
  };
  const present = Object.entries(checked).filter(([, value]) => value !== undefined);
  return Object.fromEntries(present);
}

/** The ids once each, ascending; an id outside the vocabulary is refused. */
export function unionEosIds(lists: readonly (readonly number[])[], vocabSize: number): readonly number[] {
  const ids = [...new Set(lists.flat())].sort((a, b) => a - b);
  const outside = ids.find((id) => !Number.isInteger(id) || id < 0 || id >= vocabSize);
  if (outside !== undefined) refuse('the checkpoint', 'eos_token_id', String(outside), `0 to ${vocabSize - 1}`);
  return ids;
}

function refuse(what: string, key: string, value: string, expected: string): never {
  const message = `${what}: ${key} is ${value}, expected ${expected}. Correct the file or download it again.`;
  throw new ManyfoldError('invalid_model', message, { param: key });
}
