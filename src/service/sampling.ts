/**
 * From what was asked to {@link SamplingParams}: range checks, then generation_config.json's defaults, then the
 * server's. Pure.
 */
import type { GenerationDefaults } from '../checkpoint/checkpoint.js';
import { ManyfoldError } from '../core/errors.js';
import type { SamplingParams } from '../core/sampling.js';
import type { SamplingRequest } from './commands.js';
import { LIMIT_FLAGS } from './limits.js';
import type { RequestLimits } from './limits.js';

export interface SamplingContext {
  readonly defaults: GenerationDefaults;
  readonly limits: RequestLimits;
  readonly vocabSize: number;
  readonly maxModelLen: number;
  readonly promptTokens: number;
  /** Used when neither request nor generation_config.json says how many tokens. */
  readonly defaultMaxTokens: number;
  /** Ids that end a turn by the template; they count as end of sequence. */
  readonly endOfTurnIds: readonly number[];
  readonly randomSeed: () => number;
  /** 0 is allowed where only the prompt is wanted (`echo`). */
  readonly minMaxTokens: 0 | 1;
}

export type ResolvedSampling = Omit<SamplingParams, 'choice' | 'logprobs' | 'promptLogprobs'>;

/** The kernels have these parameters in float32: its largest number, and its smallest above 0 of full precision. */
const MAX_FLOAT32 = (2 - 2 ** -23) * 2 ** 127;
const MIN_FLOAT32 = 2 ** -126;

/** Throws 'invalid_request' that names the first parameter out of range, 'context_length_exceeded' for max_tokens. */
export function resolveSampling(asked: SamplingRequest, context: SamplingContext): ResolvedSampling {
  const { defaults, limits } = context;
  const maxTokens = resolveMaxTokens(asked, context);
  const minTokens = whole('min_tokens', asked.minTokens, 0, maxTokens, 'max_tokens') ?? 0;
  const ignoreEos = asked.ignoreEos ?? false;
  const stopTokenIds = asked.stopTokenIds ?? [];
  atMost('stop_token_ids', stopTokenIds.length, { limits, limit: 'stopTokenIds', unit: 'ids' });
  checkIds('stop_token_ids', stopTokenIds, context.vocabSize);
  return {
    temperature: within('temperature', asked.temperature, 0, MAX_FLOAT32) ?? defaults.temperature ?? 1,
    topK: resolveTopK(asked.topK, context.vocabSize) ?? defaults.topK ?? 0,
    topP: positive('top_p', asked.topP, 1) ?? defaults.topP ?? 1,
    minP: within('min_p', asked.minP, 0, 1) ?? defaults.minP ?? 0,
    repetitionPenalty:
      positive('repetition_penalty', asked.repetitionPenalty, MAX_FLOAT32) ?? defaults.repetitionPenalty ?? 1,
    frequencyPenalty: within('frequency_penalty', asked.frequencyPenalty, -2, 2) ?? 0,
    presencePenalty: within('presence_penalty', asked.presencePenalty, -2, 2) ?? 0,
    logitBias: resolveLogitBias(asked.logitBias ?? [], context),
    seed: resolveSeed(asked.seed) ?? context.randomSeed(),
    maxTokens,
    minTokens,
    ignoreEos,
    stopTokenIds: ignoreEos ? [...stopTokenIds] : [...new Set([...stopTokenIds, ...context.endOfTurnIds])],
  };
}

function resolveMaxTokens(asked: SamplingRequest, context: SamplingContext): number {
  const room = context.maxModelLen - context.promptTokens;
  const param = asked.maxTokensParam ?? 'max_tokens';
  const wanted = whole(param, asked.maxTokens, context.minMaxTokens, Number.MAX_SAFE_INTEGER);
  if (wanted === undefined) return Math.max(1, Math.min(room, context.defaultMaxTokens));
  if (wanted > room) {
    throw new ManyfoldError(
      'context_length_exceeded',
      `This model's context is ${context.maxModelLen} tokens; the prompt has ${context.promptTokens} and '${param}' asks ` +
        `for ${wanted} more. Ask for ${room} or fewer, or shorten the prompt.`,
      { param },
    );
  }
  return wanted;
}

/** -1 and 0 both mean all tokens, as in vLLM; so does more than there are. */
function resolveTopK(asked: number | undefined, vocabSize: number): number | undefined {
  const topK = whole('top_k', asked, -1, Number.MAX_SAFE_INTEGER);
  return topK === -1 || (topK ?? 0) >= vocabSize ? 0 : topK;
}

/** -1 means a random seed, as in vLLM; other negative seeds are mapped to a fixed one of their own. */
function resolveSeed(asked: number | undefined): number | undefined {
  const seed = whole('seed', asked, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
  if (seed === undefined || seed >= 0) return seed;
  return seed === -1 ? undefined : Number.MAX_SAFE_INTEGER + seed + 1;
}

function resolveLogitBias(
  asked: readonly (readonly [number, number])[],
  context: SamplingContext,
): readonly (readonly [number, number])[] {
  atMost('logit_bias', asked.length, { limits: context.limits, limit: 'logitBias', unit: 'entries' });
  const ids = asked.map(([id]) => id);
  checkIds('logit_bias', ids, context.vocabSize);
  for (const [id, bias] of asked) {
    if (bias >= -100 && bias <= 100) continue;
    throw new ManyfoldError(
      'invalid_request',
      `'logit_bias' of id ${id} must be -100 to 100; ${bias} came. Use -100 to ban a token.`,
      { param: 'logit_bias' },
    );
  }
  return asked;
}

/** A number of [low, high]; undefined passes. */
export function within(param: string, value: number | undefined, low: number, high: number): number | undefined {
  if (value === undefined || (value >= low && value <= high)) return value;
  if (high < MAX_FLOAT32) throw outOfRange(param, value, `${low} to ${high}`);
  throw outOfRange(param, value, value > high ? `at most ${high}` : `${low} or more`);
}

/** A whole number of [low, high]; undefined passes. `highName` names the field or flag that sets the upper bound. */
export function whole(
  param: string,
  value: number | undefined,
  low: number,
  high: number,
  highName?: string,
): number | undefined {
  if (value === undefined || (Number.isSafeInteger(value) && value >= low && value <= high)) return value;
  const bound = highName === undefined ? `${high}` : `${highName} (${high})`;
  const unbounded = high === Number.MAX_SAFE_INTEGER && low > Number.MIN_SAFE_INTEGER;
  throw outOfRange(param, value, unbounded ? `a whole number, ${low} or more` : `a whole number of ${low} to ${bound}`);
}

/** A number of (0, high]; undefined passes. What float32 would round to 0 becomes the least that it does not. */
function positive(param: string, value: number | undefined, high: number): number | undefined {
  if (value === undefined) return undefined;
  if (value > 0 && value <= high) return Math.max(value, MIN_FLOAT32);
  const bounded = high < MAX_FLOAT32 || value > high;
  throw outOfRange(param, value, bounded ? `more than 0 and at most ${high}` : 'more than 0');
}

export interface CountLimit {
  readonly limits: RequestLimits;
  readonly limit: keyof RequestLimits;
  /** What is counted, in the plural. */
  readonly unit: string;
}

/** Throws when there are more of something than the limit says. */
export function atMost(param: string, count: number, { limits, limit, unit }: CountLimit): void {
  if (count <= limits[limit]) return;
  throw new ManyfoldError(
    'invalid_request',
    `'${param}' may have ${limits[limit]} ${unit} at most; ${count} came. Send fewer, or start the server with a larger ` +
      `${LIMIT_FLAGS[limit]}.`,
    { param },
  );
}

/** Throws for the first id that the vocabulary does not have. */
export function checkIds(param: string, ids: readonly number[], vocabSize: number): void {
  const wrong = ids.find((id) => !Number.isSafeInteger(id) || id < 0 || id >= vocabSize);
  if (wrong === undefined) return;
  throw new ManyfoldError(
    'invalid_request',
    `'${param}' holds ${wrong}, which is no token id: expected whole numbers of 0 to ${vocabSize - 1}. ` +
      'POST /tokenize gives the ids of a text.',
    { param },
  );
}

function outOfRange(param: string, value: number, expected: string): ManyfoldError {
  return new ManyfoldError(
    'invalid_request',
    `'${param}' must be ${expected}; ${value} came. Correct it or leave it out.`,
    {
      param,
    },
  );
}
