/** A generation as an answer of /v1/chat/completions: SSE frames, or one object folded from the same events. */
import type { Generation } from '../service/events.js';
import { chatLogprobs, chunkUsage, DONE_FRAME, frame, promptLogprobs, usageBody } from './encode-common.js';
import { errorFrame } from './errors.js';
import { fold } from './fold.js';
import type { AnswerOptions } from './schemas/sampling.js';

export async function* chatFrames(generation: Generation, options: AnswerOptions): AsyncGenerator<string> {
  const begun = new Set<number>();
  const chunk = (choices: readonly object[], more: object): string => frame(chunkBody(generation, choices, more));
  const one = (index: number, delta: object, rest: object = {}, more: object = {}): string => {
    const choice = { index, delta, logprobs: null, finish_reason: null, ...rest };
    return chunk([choice], { ...chunkUsage(generation, options), ...more });
  };
  const role = (index: number): string => {
    begun.add(index);
    const ids = options.tokenIds ? { prompt_token_ids: generation.promptIds(index) } : {};
    return one(index, { role: 'assistant', content: '' }, {}, ids);
  };
  for await (const event of generation.events) {
    if ('choice' in event && !begun.has(event.choice)) yield role(event.choice);
    switch (event.type) {
      case 'delta': {
        const rest = { logprobs: chatLogprobs(event.tokens, options), finish_reason: null };
        const ids = options.tokenIds ? { token_ids: event.ids } : {};
        yield one(event.choice, { content: event.text }, { ...rest, ...ids });
        break;
      }
      case 'choice_done':
        yield one(event.choice, {}, { finish_reason: event.reason, stop_reason: event.stopReason });
        break;
      case 'done':
        if (options.includeUsage) yield chunk([], { usage: usageBody(event.usage) });
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

function chunkBody(generation: Generation, choices: readonly object[], more: object): object {
  return { ...head(generation, 'chat.completion.chunk'), choices, ...more };
}

function head(generation: Generation, object: string): object {
  const { id, createdSeconds, model, fingerprint } = generation;
  return { id, object, created: createdSeconds, model, system_fingerprint: fingerprint };
}

/** One object for the whole answer; undefined when the client went away. Throws what ended the generation otherwise. */
export async function chatBody(generation: Generation, options: AnswerOptions): Promise<object | undefined> {
  const folded = await fold(generation);
  if (folded === undefined) return undefined;
  const choices = folded.choices.map((choice, index) => ({
    index,
    message: { role: 'assistant', content: choice.text, refusal: null },
    logprobs: chatLogprobs(choice.tokens, options),
    finish_reason: choice.reason,
    stop_reason: choice.stopReason,
    ...(options.tokenIds ? { token_ids: choice.ids } : {}),
  }));
  return {
    ...head(generation, 'chat.completion'),
    choices,
    usage: usageBody(folded.usage),
    ...(options.promptLogprobs ? { prompt_logprobs: promptLogprobs(folded.choices[0]?.promptLogprobs ?? []) } : {}),
    ...(options.tokenIds ? { prompt_token_ids: generation.promptIds(0) } : {}),
  };
}
