/** Folds a stream of events into the final state of its choices: what a unary answer is made of. */
import { fromPlainError } from '../core/errors.js';
import type { Generation, GenerationEvent, TokenView, Usage } from '../service/events.js';

export interface FoldedChoice {
  text: string;
  readonly tokens: TokenView[];
  readonly ids: number[];
  promptLogprobs: readonly TokenView[] | undefined;
  reason: string | null;
  stopReason: string | number | null;
}

export interface Folded {
  readonly choices: readonly FoldedChoice[];
  readonly usage: Usage;
}

/** Undefined when the client went away. Throws what ended the generation otherwise. */
export async function fold(generation: Generation): Promise<Folded | undefined> {
  const choices = Array.from({ length: generation.choices }, emptyChoice);
  for await (const event of generation.events) {
    switch (event.type) {
      case 'failed':
        throw fromPlainError(event.error);
      case 'cancelled':
        return undefined;
      case 'done':
        return { choices, usage: event.usage };
      default: {
        const choice = choices[event.choice];
        if (choice !== undefined) add(choice, event);
      }
    }
  }
  return undefined;
}

type ChoiceEvent = Extract<GenerationEvent, { choice: number }>;

function add(choice: FoldedChoice, event: ChoiceEvent): void {
  switch (event.type) {
    case 'delta':
      choice.text += event.text;
      choice.tokens.push(...event.tokens);
      choice.ids.push(...event.ids);
      break;
    case 'prompt_logprobs':
      choice.promptLogprobs = event.positions;
      break;
    case 'choice_done':
      choice.reason = event.reason;
      choice.stopReason = event.stopReason;
  }
}

function emptyChoice(): FoldedChoice {
  return { text: '', tokens: [], ids: [], promptLogprobs: undefined, reason: null, stopReason: null };
}
