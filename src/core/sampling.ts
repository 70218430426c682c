/**
 * Sampling parameters of one sequence, with every default filled in. The names and meanings are vLLM's.
 * Made by the front (service) from a request and the model's generation_config.json; executed in native code.
 */
export interface SamplingParams {
  /** 0 means greedy: the highest logit, lowest id on a tie. */
  readonly temperature: number;
  /** Keep the k most probable tokens; 0 keeps all. */
  readonly topK: number;
  /** Nucleus mass in (0, 1]; 1 keeps all. */
  readonly topP: number;
  /** Drop tokens below minP times the highest probability; 0 keeps all. */
  readonly minP: number;
  /** > 1 discourages tokens that stand in the prompt or the output (logit divided or multiplied). */
  readonly repetitionPenalty: number;
  /** Subtracted once per earlier occurrence in the output. */
  readonly frequencyPenalty: number;
  /** Subtracted once when the token stands in the output. */
  readonly presencePenalty: number;
  /** [token id, added logit], at most 1024 entries; -100 and below bans, as OpenAI's API has it. */
  readonly logitBias: readonly (readonly [number, number])[];
  /** Counter-based: draw i of choice c uses only (seed, c, i). An integer of 0 .. 2^53 - 1. */
  readonly seed: number;
  /** Which of a request's n choices this sequence is, from 0. */
  readonly choice: number;
  readonly maxTokens: number;
  /** Stop ids are masked out until so many tokens have been generated. */
  readonly minTokens: number;
  /** Generate past end-of-sequence ids; `stopTokenIds` still end the sequence. */
  readonly ignoreEos: boolean;
  /** Ids that end the sequence beside the model's own; the id itself is not part of the text. */
  readonly stopTokenIds: readonly number[];
  /** Log-probabilities of the chosen token and of this many of the best; undefined: none at all. */
  readonly logprobs?: number;
  /** The same for every prompt position from 1 on (`echo` with `logprobs`). */
  readonly promptLogprobs?: number;
}

export type FinishReason = 'stop' | 'length';

/** Log-probabilities at one position, taken from the raw logits (before penalties and temperature). */
export interface TokenLogprobs {
  /** Of the token at this position. */
  readonly logprob: number;
  /** 1 for the most probable token of the vocabulary. */
  readonly rank: number;
  /** The best ids, most probable first, and their log-probabilities. */
  readonly topIds: readonly number[];
  readonly topLogprobs: readonly number[];
}
