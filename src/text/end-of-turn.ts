/**
 * The tokens with which a template ends an assistant's turn (<|im_end|>, <|eot_id|>, <end_of_turn> …), found by
 * rendering a finished turn and looking at what follows it. Generation ends there even where the model's files name
 * another end-of-sequence token only. Called once per template by text-model.ts.
 */
import { ManyfoldError } from '../core/errors.js';
import type { TemplateRenderer } from './chat-template.js';
import { templateVariables } from './template-variables.js';
import type { Tokenizer } from './tokenizer.js';

/** Not changed by any strip, case or whitespace handling, and in no vocabulary as one token. */
const ANSWER = 'Zq7vKx3wAnswer';
/** Found once, while loading; nobody waits for a token. */
const PROBE_DEADLINE_MS = 10_000;

/** One id or none. A template that cannot render the probe has no known end of turn. */
export async function endOfTurnIds(
  template: string,
  tokenizer: Tokenizer,
  renderer: TemplateRenderer,
): Promise<number[]> {
  const variables = templateVariables({
    messages: [
      { role: 'user', content: 'Question' },
      { role: 'assistant', content: ANSWER },
    ],
    tools: null,
    documents: null,
    addGenerationPrompt: false,
    special: tokenizer.special,
    kwargs: {},
  });
  let text: string;
  try {
    text = await renderer.render(template, variables, { deadlineMs: PROBE_DEADLINE_MS });
  } catch (error) {
    if (error instanceof ManyfoldError && error.code === 'invalid_template') return [];
    throw error;
  }
  const at = text.lastIndexOf(ANSWER);
  if (at < 0) return [];
  const ids = await tokenizer.encode(text.slice(at + ANSWER.length), { addSpecialTokens: false });
  // Only white space may stand between the answer and the token that ends the turn.
  const first = ids.find((id) => tokenizer.isSpecial(id) || tokenizer.tokenText(id).trim() !== '');
  return first !== undefined && tokenizer.isSpecial(first) ? [first] : [];
}
