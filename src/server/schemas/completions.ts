/** POST /v1/completions: JSON → CompletionCommand and how to write the answer. */
import { z } from 'zod';
import type { CompletionCommand } from '../../service/commands.js';
import { SAMPLING_SHAPE, SHARED_REFUSALS, toAnswerOptions, toOutput, toSampling } from './sampling.js';
import type { AnswerOptions } from './sampling.js';
import { optional, wireSchema } from './wire.js';

const PROMPT = 'expected a string, an array of strings, an array of token ids, or an array of those arrays';

export const COMPLETION_SCHEMA = wireSchema(
  {
    ...SAMPLING_SHAPE,
    prompt: z.custom<string | string[] | number[] | number[][]>(isPrompt, PROMPT),
    echo: optional(z.boolean()),
    logprobs: optional(z.int()),
    add_special_tokens: optional(z.boolean()),
  },
  {
    ...SHARED_REFUSALS,
    suffix: 'This model completes at the end only. Leave it out.',
    prompt_embeds: 'Send the prompt as text or token ids, and leave it out.',
  },
);

function isIds(value: unknown): boolean {
  return Array.isArray(value) && value.every((id) => typeof id === 'number');
}

function isPrompt(value: unknown): boolean {
  if (typeof value === 'string') return true;
  if (!Array.isArray(value) || value.length === 0) return false;
  return value.every((item) => typeof item === 'string') || isIds(value) || value.every(isIds);
}

export function toCompletionCommand(fields: z.output<typeof COMPLETION_SCHEMA.schema>): {
  command: CompletionCommand;
  answer: AnswerOptions;
} {
  const answer = toAnswerOptions(fields, fields.logprobs !== undefined);
  const command: CompletionCommand = {
    kind: 'completion',
    model: fields.model,
    sampling: toSampling(fields, undefined),
    output: toOutput(fields, fields.logprobs, 'logprobs'),
    cacheSalt: fields.cache_salt,
    stream: answer.stream,
    prompts: toPrompts(fields.prompt),
    addSpecialTokens: fields.add_special_tokens ?? true,
    echo: fields.echo ?? false,
  };
  return { command, answer };
}

function toPrompts(prompt: string | string[] | number[] | number[][]): (string | number[])[] {
  if (typeof prompt === 'string') return [prompt];
  const ids = prompt.filter((item) => typeof item === 'number');
  return ids.length > 0 ? [ids] : prompt.filter((item) => typeof item !== 'number');
}
