/** A generation as an answer of /v1/completions: SSE frames, or one object folded from the same events. */
import type { Generation } from '../service/events.js';
import { chunkUsage, completionLogprobs, DONE_FRAME, frame, promptLogprobs, usageBody } from './encode-common.js';
import { errorFrame } from './errors.js';
import { fold } from './fold.js';
import type { AnswerOptions } from './schemas/sampling.js';

export async function* completionFrames(generation: Generation, options: AnswerOptions): AsyncGenerator<string> {
  const begun = new Set<number>();
  const one = (index: number, rest: object): string => {
    const first = options.tokenIds && !begun.has(index) ? { prompt_token_ids: generation.promptIds(index) } : {};
    begun.add(index);
    const choice = { index, text: '', logprobs: null, finish_reason: null, ...rest, ...first };
    return frame({ ...head(generation), choices: [choice], ...chunkUsage(generation, options) });
  };
  for await (const event of generation.events) {
    switch (event.type) {
      case 'delta': {
        const ids = options.tokenIds ? { token_ids: event.ids } : {};
        yield one(event.choice, { text: event.text, logprobs: completionLogprobs(event.tokens, options), ...ids });
        break;
      }
      case 'choice_done':
        yield one(event.choice, { finish_reason: event.reason, stop_reason: event.stopReason });
        break;
      case 'done':
        if (options.includeUsage) yield frame({ ...head(generation), choices: [], usage: usageBody(event.usage) });
        yield DONE_FRAME;
        break;
      case 'failed':
        yield errorFrame(event.error);
        break;
      case 'prompt_logprobs':
      case 'cancelled':
        break;
    }
  }
}

/** One object for the whole answer; undefined when the client went away. Throws what ended the generation otherwise. */
export async function completionBody(generation: Generation, options: AnswerOptions): Promise<object | undefined> {
  const folded = await fold(generation);
  if (folded === undefined) return undefined;
  const choices = folded.choices.map((choice, index) => ({
    index,
    text: choice.text,
    logprobs: completionLogprobs(choice.tokens, options),
    finish_reason: choice.reason,
    stop_reason: choice.stopReason,
    ...(options.promptLogprobs ? { prompt_logprobs: promptLogprobs(choice.promptLogprobs ?? []) } : {}),
    ...(options.tokenIds ? { token_ids: choice.ids, prompt_token_ids: generation.promptIds(index) } : {}),
  }));
  return { ...head(generation), choices, usage: usageBody(folded.usage) };
}

function head(generation: Generation): object {
  const { id, createdSeconds, model, fingerprint } = generation;
  return { id, object: 'text_completion', created: createdSeconds, model, system_fingerprint: fingerprint };
}
