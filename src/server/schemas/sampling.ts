/** The wire fields that chat and completions share, and what they mean. Ranges are the service's business. */
import { z } from 'zod';
import { ManyfoldError } from '../../core/errors.js';
import type { OutputRequest, SamplingRequest } from '../../service/commands.js';
import { optional } from './wire.js';
import type { Refusals } from './wire.js';

export const SAMPLING_SHAPE = {
  model: optional(z.string()),
  temperature: optional(z.number()),
  top_p: optional(z.number()),
  top_k: optional(z.int()),
  min_p: optional(z.number()),
  n: optional(z.int()),
  best_of: optional(z.int()),
  max_tokens: optional(z.int()),
  min_tokens: optional(z.int()),
  stop: optional(z.union([z.string(), z.array(z.string())], 'expected a string or an array of strings')),
  stop_token_ids: optional(z.array(z.int())),
  ignore_eos: optional(z.boolean()),
  seed: optional(z.int()),
  presence_penalty: optional(z.number()),
  frequency_penalty: optional(z.number()),
  repetition_penalty: optional(z.number()),
  logit_bias: optional(
    z.custom<Record<string, number>>(
      isBias,
      'expected token ids with a number each, such as {"1234": -100} (POST /tokenize gives the ids of a text)',
    ),
  ),
  prompt_logprobs: optional(z.int()),
  stream: optional(z.boolean()),
  stream_options: optional(
    z.object({ include_usage: optional(z.boolean()), continuous_usage_stats: optional(z.boolean()) }),
  ),
  /** Who asks; accepted because clients send it, without effect. */
  user: optional(z.string()),
  skip_special_tokens: optional(z.boolean()),
  include_stop_str_in_output: optional(z.boolean()),
  cache_salt: optional(z.string().min(1, 'expected at least one character')),
  return_token_ids: optional(z.boolean()),
  return_tokens_as_token_ids: optional(z.boolean()),
  response_format: optional(
    z.object({ type: z.literal('text', 'only text is served: ask for JSON in the prompt and leave it out') }),
  ),
} satisfies z.ZodRawShape;

const CONSTRAINT = 'Constrained output is not served: describe the form in the prompt and leave it out.';

/** Fields of vLLM that change the answer and that this server does not have: ignoring them would be a wrong answer. */
export const SHARED_REFUSALS: Refusals = {
  guided_json: CONSTRAINT,
  guided_regex: CONSTRAINT,
  guided_choice: CONSTRAINT,
  guided_grammar: CONSTRAINT,
  structured_outputs: CONSTRAINT,
  use_beam_search: 'Use n to get several samples, and leave it out.',
  bad_words: 'Ban token ids with logit_bias: -100, and leave it out.',
  allowed_token_ids: 'Steer token ids with logit_bias, and leave it out.',
  truncate_prompt_tokens: 'Shorten the prompt before sending it, and leave it out.',
  logits_processors: 'Leave it out.',
};

function isBias(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  return Object.entries(value).every(([id, bias]) => /^\d{1,15}$/.test(id) && Number.isFinite(bias));
}

type SamplingFields = z.output<z.ZodObject<typeof SAMPLING_SHAPE>>;

export function toSampling(fields: SamplingFields, maxCompletionTokens: number | undefined): SamplingRequest {
  return {
    temperature: fields.temperature,
    topP: fields.top_p,
    topK: fields.top_k,
    minP: fields.min_p,
    repetitionPenalty: fields.repetition_penalty,
    frequencyPenalty: fields.frequency_penalty,
    presencePenalty: fields.presence_penalty,
    logitBias: Object.entries(fields.logit_bias ?? {}).map(([id, bias]) => [Number(id), bias] as const),
    seed: fields.seed,
    maxTokens: maxCompletionTokens ?? fields.max_tokens,
    maxTokensParam: maxCompletionTokens === undefined ? 'max_tokens' : 'max_completion_tokens',
    minTokens: fields.min_tokens,
    ignoreEos: fields.ignore_eos,
    stopTokenIds: fields.stop_token_ids,
  };
}

export function toOutput(fields: SamplingFields, logprobs: number | undefined, logprobsParam: string): OutputRequest {
  const { stop } = fields;
  return {
    choices: fields.n ?? 1,
    stops: stop === undefined ? [] : typeof stop === 'string' ? [stop] : stop,
    includeStop: fields.include_stop_str_in_output ?? false,
    skipSpecialTokens: fields.skip_special_tokens ?? true,
    logprobs,
    logprobsParam,
    promptLogprobs: fields.prompt_logprobs,
    returnTokenIds: fields.return_token_ids ?? false,
  };
}

/** What only the encoder of the answer needs to know. */
export interface AnswerOptions {
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
  readonly logprobs: boolean;
  readonly tokenIds: boolean;
  /** Tokens are written as `token_id:123`. */
  readonly tokensAsIds: boolean;
  readonly promptLogprobs: boolean;
}

/** Reads the streaming fields and the rules between fields. */
export function toAnswerOptions(fields: SamplingFields, logprobs: boolean): AnswerOptions {
  const stream = fields.stream ?? false;
  if (!stream && fields.stream_options !== undefined) {
    throw wrong('stream_options', "'stream_options' has a meaning only with stream: true. Leave it out, or stream.");
  }
  if (fields.best_of !== undefined && fields.best_of !== (fields.n ?? 1)) {
    throw wrong(
      'best_of',
      `'best_of' must equal n (${fields.n ?? 1}); ${fields.best_of} came. Ask for n answers and choose.`,
    );
  }
  return {
    stream,
    includeUsage: fields.stream_options?.include_usage ?? false,
    continuousUsage: fields.stream_options?.continuous_usage_stats ?? false,
    logprobs,
    tokenIds: fields.return_token_ids ?? false,
    tokensAsIds: fields.return_tokens_as_token_ids ?? false,
    promptLogprobs: fields.prompt_logprobs !== undefined,
  };
}

function wrong(param: string, message: string): ManyfoldError {
  return new ManyfoldError('invalid_request', message, { param });
}
