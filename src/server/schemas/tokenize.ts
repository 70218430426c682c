/** POST /tokenize (text or conversation) and /detokenize, as vLLM has them. */
import { z } from 'zod';
import { ManyfoldError } from '../../core/errors.js';
import type { DetokenizeCommand, TokenizeCommand } from '../../service/commands.js';
import { CHAT_SHAPE, TEMPLATE_REFUSAL, toChatPrompt } from './messages.js';
import { optional, wireSchema } from './wire.js';

export const TOKENIZE_SCHEMA = wireSchema(
  {
    ...CHAT_SHAPE,
    model: optional(z.string()),
    prompt: optional(z.string()),
    messages: optional(CHAT_SHAPE.messages),
    return_token_strs: optional(z.boolean()),
  },
  { chat_template: TEMPLATE_REFUSAL },
);

export function toTokenizeCommand(fields: z.output<typeof TOKENIZE_SCHEMA.schema>): TokenizeCommand {
  const { model, prompt, messages } = fields;
  const returnTokenStrings = fields.return_token_strs ?? false;
  if (prompt !== undefined && messages === undefined) {
    const input = { kind: 'text', text: prompt, addSpecialTokens: fields.add_special_tokens ?? true } as const;
    return { model, input, returnTokenStrings };
  }
  if (messages === undefined || prompt !== undefined) {
    const came = prompt === undefined ? 'neither' : 'both';
    throw new ManyfoldError('invalid_request', `Either 'prompt' or 'messages' is expected; ${came} came. Send one.`, {
      param: 'prompt',
    });
  }
  return { model, input: { kind: 'chat', chat: toChatPrompt({ ...fields, messages }) }, returnTokenStrings };
}

export const DETOKENIZE_SCHEMA = wireSchema({ model: optional(z.string()), tokens: z.array(z.int()) });

export function toDetokenizeCommand(fields: z.output<typeof DETOKENIZE_SCHEMA.schema>): DetokenizeCommand {
  return { model: fields.model, tokens: fields.tokens };
}
