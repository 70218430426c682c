/**
 * The engine's own check of a request: whatever passes cannot make native code refuse a step, so one bad request never
 * fails the others in its batch. The front checks earlier and knows the client's field names better.
 */
import { ManyfoldError } from '../core/errors.js';
import type { SamplingParams } from '../core/sampling.js';
import type { EngineRequest } from './port.js';

export interface RequestBounds {
  readonly vocabSize: number;
  readonly maxModelLen: number;
  /** Positions that the adapter's prefix and soft prompt take. */
  readonly prefixTokens: number;
}

const MAX_BIASES = 1024;
const MAX_UINT32 = 2 ** 32 - 1;
/** Above this, float32 cannot hold every whole number. */
const MAX_TOP_K = 2 ** 24;

/** The first thing that is wrong; undefined when the request can run. */
export function findProblem(request: EngineRequest, bounds: RequestBounds): ManyfoldError | undefined {
  return (
    idsProblem(request, bounds) ?? samplingProblem(request.sampling, bounds.vocabSize) ?? lengthProblem(request, bounds)
  );
}

function idsProblem(
  { promptIds, emittedIds, sampling }: EngineRequest,
  { vocabSize }: RequestBounds,
): ManyfoldError | undefined {
  if (promptIds.length === 0) return invalid('prompt', 'at least one token', 'none');
  for (const [field, ids] of [
    ['prompt', promptIds],
    ['emitted tokens', emittedIds],
    ['stop_token_ids', sampling.stopTokenIds],
  ] as const) {
    const wrong = ids.find((id) => !isWithin(id, 0, vocabSize - 1));
    if (wrong !== undefined) return invalid(field, `token ids of 0 to ${vocabSize - 1}`, wrong);
  }
  return undefined;
}

function samplingProblem(sampling: SamplingParams, vocabSize: number): ManyfoldError | undefined {
  const floats: [string, number, boolean, string][] = [
    ['temperature', sampling.temperature, sampling.temperature >= 0, 'a number of at least 0'],
    ['top_p', sampling.topP, Math.fround(sampling.topP) > 0 && sampling.topP <= 1, 'a number above 0, at most 1'],
    ['min_p', sampling.minP, sampling.minP >= 0 && sampling.minP <= 1, 'a number of 0 to 1'],
    ['repetition_penalty', sampling.repetitionPenalty, Math.fround(sampling.repetitionPenalty) > 0, 'a number above 0'],
    ['frequency_penalty', sampling.frequencyPenalty, true, 'a finite number'],
    ['presence_penalty', sampling.presencePenalty, true, 'a finite number'],
  ];
  for (const [field, value, fits, expected] of floats) {
    if (!fits || !Number.isFinite(Math.fround(value))) return invalid(field, expected, value);
  }
  const wholes: [string, number | undefined, number][] = [
    ['top_k', sampling.topK, MAX_TOP_K],
    ['seed', sampling.seed, Number.MAX_SAFE_INTEGER],
    ['choice', sampling.choice, MAX_UINT32],
    ['max_tokens', sampling.maxTokens, Number.MAX_SAFE_INTEGER],
    ['min_tokens', sampling.minTokens, Number.MAX_SAFE_INTEGER],
    ['logprobs', sampling.logprobs, MAX_UINT32],
    ['prompt_logprobs', sampling.promptLogprobs, MAX_UINT32],
  ];
  for (const [field, value, max] of wholes) {
    if (value !== undefined && !isWithin(value, 0, max)) return invalid(field, `a whole number of 0 to ${max}`, value);
  }
  return biasProblem(sampling, vocabSize);
}

function biasProblem({ logitBias }: SamplingParams, vocabSize: number): ManyfoldError | undefined {
  if (logitBias.length > MAX_BIASES) return invalid('logit_bias', `at most ${MAX_BIASES} entries`, logitBias.length);
  for (const [id, value] of logitBias) {
    if (!isWithin(id, 0, vocabSize - 1)) return invalid('logit_bias', `token ids of 0 to ${vocabSize - 1}`, id);
    // -Infinity is fine: it bans.
    if (!(Math.fround(value) < Infinity)) return invalid('logit_bias', 'finite values', value);
  }
  return undefined;
}

function lengthProblem(
  { promptIds, sampling }: EngineRequest,
  { maxModelLen, prefixTokens }: RequestBounds,
): ManyfoldError | undefined {
  // Generating needs room for one token; scoring alone does not.
  const room = maxModelLen - prefixTokens - (sampling.maxTokens > 0 ? 1 : 0);
  if (promptIds.length <= room) return undefined;
  const prefix = prefixTokens > 0 ? `, of which the adapter's prefix takes ${prefixTokens}` : '';
  return new ManyfoldError(
    'context_length_exceeded',
    `The longest context is ${maxModelLen} tokens${prefix}; the prompt has ${promptIds.length} and leaves no room to ` +
      'generate. Shorten the prompt, or raise --max-model-len if the model allows it.',
    { param: 'prompt' },
  );
}

function isWithin(value: number, min: number, max: number): boolean {
  return Number.isInteger(value) && value >= min && value <= max;
}

function invalid(field: string, expected: string, found: number | string): ManyfoldError {
  const message = `${field}: expected ${expected}, found ${found}. Correct the value and send the request again.`;
  return new ManyfoldError('invalid_request', message, { param: field });
}
