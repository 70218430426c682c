/** Chat messages on the wire → messages as templates see them. */
import { z } from 'zod';
import type { ChatPrompt } from '../../service/commands.js';
import type { ChatMessage } from '../../service/ports.js';
import { optional } from './wire.js';

const textPart = z.union(
  [z.string(), z.object({ type: z.literal('text'), text: z.string() })],
  'only parts of type "text" are served: this model sees no images, audio or files',
);

/** Who says nothing without a content; an assistant may have called a tool, and a template may know other roles. */
const SPEAKERS: readonly string[] = ['user', 'system', 'developer'];

const messageFields = z.object({
  role: z.string().min(1).max(64),
  content: optional(z.union([z.string(), z.array(textPart)], { error: (issue) => contentMessage(issue.input) })),
  name: optional(z.string()),
  tool_calls: optional(z.array(z.record(z.string(), z.unknown()))),
  tool_call_id: optional(z.string()),
  reasoning_content: optional(z.string()),
});

const message = messageFields.refine(({ role, content }) => content !== undefined || !SPEAKERS.includes(role), {
  path: ['content'],
  message: 'expected a string or an array of text parts; nothing came',
});

function contentMessage(input: unknown): string {
  if (!Array.isArray(input)) return 'expected a string or an array of text parts';
  return 'only parts of type "text" are served: this model sees no images, audio or files';
}

export const CHAT_SHAPE = {
  messages: z.array(message),
  tools: optional(z.array(z.record(z.string(), z.unknown()))),
  tool_choice: optional(
    z.enum(['none', 'auto'], 'tool calls are not parsed: send "auto" or "none", and read the call from the text'),
  ),
  /** Without effect, because tool calls are not parsed. */
  parallel_tool_calls: optional(z.boolean()),
  chat_template_kwargs: optional(z.record(z.string(), z.unknown())),
  add_generation_prompt: optional(z.boolean()),
  continue_final_message: optional(z.boolean()),
  add_special_tokens: optional(z.boolean()),
} satisfies z.ZodRawShape;

type ChatFields = z.output<z.ZodObject<typeof CHAT_SHAPE>>;

export const TEMPLATE_REFUSAL =
  'Templates come from the model only: send chat_template_kwargs for its options, and leave it out.';

export function toChatPrompt(fields: ChatFields): ChatPrompt {
  return {
    messages: fields.messages.map(toMessage),
    tools: fields.tool_choice === 'none' || fields.tools?.length === 0 ? undefined : fields.tools,
    addGenerationPrompt: fields.add_generation_prompt ?? fields.continue_final_message !== true,
    continueFinalMessage: fields.continue_final_message ?? false,
    addSpecialTokens: fields.add_special_tokens ?? false,
    templateArgs: fields.chat_template_kwargs ?? {},
  };
}

function toMessage(fields: z.output<typeof message>): ChatMessage {
  const { role, content, ...rest } = fields;
  const given = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
  return {
    role,
    content: content === undefined ? null : typeof content === 'string' ? content : content.map(partText).join('\n'),
    ...given,
  };
}

function partText(part: z.output<typeof textPart>): string {
  return typeof part === 'string' ? part : part.text;
}
