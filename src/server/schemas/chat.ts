/** POST /v1/chat/completions: JSON → ChatCommand and how to write the answer. */
import { z } from 'zod';
import { ManyfoldError } from '../../core/errors.js';
import type { ChatCommand } from '../../service/commands.js';
import { CHAT_SHAPE, TEMPLATE_REFUSAL, toChatPrompt } from './messages.js';
import { SAMPLING_SHAPE, SHARED_REFUSALS, toAnswerOptions, toOutput, toSampling } from './sampling.js';
import type { AnswerOptions } from './sampling.js';
import { optional, wireSchema } from './wire.js';

const TOOLS = 'Send the functions as tools, and leave it out.';

export const CHAT_SCHEMA = wireSchema(
  {
    ...SAMPLING_SHAPE,
    ...CHAT_SHAPE,
    max_completion_tokens: optional(z.int()),
    logprobs: optional(z.boolean()),
    top_logprobs: optional(z.int()),
  },
  {
    ...SHARED_REFUSALS,
    chat_template: TEMPLATE_REFUSAL,
    functions: TOOLS,
    function_call: TOOLS,
    echo: 'Use continue_final_message to go on from a message, and leave it out.',
    audio: 'This model gives text only. Leave it out.',
    documents: 'Put their text into a message, and leave it out.',
  },
);

export function toChatCommand(fields: z.output<typeof CHAT_SCHEMA.schema>): {
  command: ChatCommand;
  answer: AnswerOptions;
} {
  const wanted = fields.logprobs ?? false;
  if (!wanted && (fields.top_logprobs ?? 0) > 0) {
    throw new ManyfoldError('invalid_request', "'top_logprobs' needs logprobs: true. Send both, or leave it out.", {
      param: 'top_logprobs',
    });
  }
  const logprobs = wanted ? (fields.top_logprobs ?? 0) : undefined;
  const answer = toAnswerOptions(fields, wanted);
  const command: ChatCommand = {
    kind: 'chat',
    model: fields.model,
    sampling: toSampling(fields, fields.max_completion_tokens),
    output: toOutput(fields, logprobs, 'top_logprobs'),
    cacheSalt: fields.cache_salt,
    stream: answer.stream,
    chat: toChatPrompt(fields),
  };
  return { command, answer };
}
