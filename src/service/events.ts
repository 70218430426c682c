/**
 * The result of a generation: a stream of events with exactly one end (done, cancelled or failed). The server encodes
 * it as SSE or folds it into one answer; both see the same events.
 */
import type { PlainError } from '../core/errors.js';
import type { FinishReason } from '../core/sampling.js';

export interface CandidateView {
  readonly id: number;
  readonly text: string;
  readonly bytes: Uint8Array;
  readonly logprob: number;
}

/** A token with its log-probabilities and its place in the text. */
export interface TokenView {
  readonly id: number;
  readonly text: string;
  readonly bytes: Uint8Array;
  /** Undefined for a prompt's first token, which nothing predicts. */
  readonly logprob: number | undefined;
  /** 1 for the most probable token. */
  readonly rank: number;
  /** Characters (code points) of the choice's text before this token. */
  readonly offset: number;
  /** Most probable first. */
  readonly top: readonly CandidateView[];
}

/** New text of one choice. `ids` and `tokens` are empty unless asked for. */
export interface DeltaEvent {
  readonly type: 'delta';
  readonly choice: number;
  readonly text: string;
  readonly ids: readonly number[];
  readonly tokens: readonly TokenView[];
}

export interface PromptLogprobsEvent {
  readonly type: 'prompt_logprobs';
  readonly choice: number;
  /** One entry a prompt token; the first has no log-probability. */
  readonly positions: readonly TokenView[];
}

export interface ChoiceDoneEvent {
  readonly type: 'choice_done';
  readonly choice: number;
  readonly reason: FinishReason;
  /** The stop string or the asked-for stop token id; null for the model's own end and for 'length'. */
  readonly stopReason: string | number | null;
}

export interface Usage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number;
}

export type GenerationEvent =
  | DeltaEvent
  | PromptLogprobsEvent
  | ChoiceDoneEvent
  | { readonly type: 'done'; readonly usage: Usage }
  | { readonly type: 'cancelled'; readonly usage: Usage }
  | { readonly type: 'failed'; readonly error: PlainError };

/** An accepted request. Its events must be read to their end (also after a cancellation). */
export interface Generation {
  readonly id: string;
  readonly createdSeconds: number;
  /** The name to echo. */
  readonly model: string;
  /** Changes when base or adapter version changes. */
  readonly fingerprint: string;
  readonly choices: number;
  /** Prompt tokens of all prompts, each counted once. */
  readonly promptTokens: number;
  /** Of the prompt of a choice. */
  promptIds(choice: number): readonly number[];
  /** Tokens counted so far, over all choices. */
  completionTokens(): number;
  readonly events: AsyncIterable<GenerationEvent>;
}
