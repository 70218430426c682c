/** Pieces of an answer that chat and completions share: usage, log-probabilities, SSE frames. Pure. */
import type { Generation, TokenView, Usage } from '../service/events.js';
import type { AnswerOptions } from './schemas/sampling.js';

export const DONE_FRAME = 'data: [DONE]\n\n';

export function frame(chunk: object): string {
  return `data: ${JSON.stringify(chunk)}\n\n`;
}

export function usageBody(usage: Usage): object {
  const { promptTokens, completionTokens, cachedTokens } = usage;
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** The usage field of a chunk: absent unless asked for, null before the end unless wanted all along. */
export function chunkUsage(generation: Generation, options: AnswerOptions): { usage?: object | null } {
  if (options.continuousUsage) {
    const { promptTokens } = generation;
    const completionTokens = generation.completionTokens();
    const total = promptTokens + completionTokens;
    return { usage: { prompt_tokens: promptTokens, completion_tokens: completionTokens, total_tokens: total } };
  }
  return options.includeUsage ? { usage: null } : {};
}

/** JSON has no infinity; vLLM writes this for a token that cannot come. */
const LOWEST_LOGPROB = -9999;

function finite(logprob: number): number {
  return Math.max(logprob, LOWEST_LOGPROB);
}

function tokenName(token: { readonly id: number; readonly text: string }, options: AnswerOptions): string {
  return options.tokensAsIds ? `token_id:${token.id}` : token.text;
}

/** OpenAI's chat format: one entry a token, with bytes and candidates. */
export function chatLogprobs(tokens: readonly TokenView[], options: AnswerOptions): object | null {
  if (!options.logprobs) return null;
  const content = tokens.map((token) => ({
    token: tokenName(token, options),
    logprob: finite(token.logprob ?? 0),
    bytes: [...token.bytes],
    top_logprobs: token.top.map((candidate) => ({
      token: tokenName(candidate, options),
      logprob: finite(candidate.logprob),
      bytes: [...candidate.bytes],
    })),
  }));
  return { content, refusal: null };
}

/** OpenAI's completions format: parallel arrays. The first token of a prompt has null. */
export function completionLogprobs(tokens: readonly TokenView[], options: AnswerOptions): object | null {
  if (!options.logprobs) return null;
  return {
    text_offset: tokens.map((token) => token.offset),
    token_logprobs: tokens.map((token) => (token.logprob === undefined ? null : finite(token.logprob))),
    tokens: tokens.map((token) => tokenName(token, options)),
    top_logprobs: tokens.map((token) => (token.logprob === undefined ? null : topByName(token, options))),
  };
}

/** The chosen token and the candidates; of two ids with the same text the more probable one counts. */
function topByName(token: TokenView, options: AnswerOptions): Record<string, number> {
  const named = new Map([[tokenName(token, options), finite(token.logprob ?? 0)]]);
  for (const candidate of token.top) {
    const name = tokenName(candidate, options);
    named.set(name, Math.max(named.get(name) ?? -Infinity, finite(candidate.logprob)));
  }
  return Object.fromEntries(named);
}

/** vLLM's prompt_logprobs: by token id, null for the first position. */
export function promptLogprobs(positions: readonly TokenView[]): (object | null)[] {
  return positions.map((position) => {
    if (position.logprob === undefined) return null;
    const entries: Record<string, object> = {};
    position.top.forEach((candidate, i) => (entries[candidate.id] = logprobEntry(candidate, i + 1)));
    entries[position.id] = logprobEntry({ text: position.text, logprob: position.logprob }, position.rank);
    return entries;
  });
}

function logprobEntry(token: { readonly text: string; readonly logprob: number }, rank: number): object {
  return { logprob: finite(token.logprob), rank, decoded_token: token.text };
}
