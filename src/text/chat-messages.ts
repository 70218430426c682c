/**
 * Chat messages as requests carry them, and as templates expect them: content is one string (vLLM's 'string' content
 * format), arguments of tool calls are objects. Called by text-model.ts.
 */
import { ManyfoldError } from '../core/errors.js';
import { isList, isObject, toPlainJson, type JsonObject, type JsonValue } from './json-value.js';
import { TEXT_LIMITS } from './limits.js';

/** A message of a request; further fields (name, tool_calls, reasoning_content …) reach the template as they are. */
export interface ChatMessage {
  readonly role: string;
  readonly content?: string | readonly ContentPart[] | null;
  readonly [field: string]: unknown;
}

export interface ContentPart {
  readonly type: string;
  readonly text?: unknown;
  readonly [field: string]: unknown;
}

/** A message as templates get it. */
export interface TemplateMessage extends JsonObject {
  readonly role: string;
  readonly content: string;
}

/** How deep tool schemas and tool arguments may nest. */
const DEPTH_MAX = 64;
const REASONING_FIELDS = ['reasoning_content', 'thinking', 'reasoning'] as const;

/** The messages as a template gets them; refuses what a text model cannot take. */
export function templateMessages(messages: readonly ChatMessage[]): TemplateMessage[] {
  if (messages.length === 0)
    throw refuse('messages', "'messages' is empty; at least one message is expected. Send one.");
  if (messages.length > TEXT_LIMITS.messages) {
    throw refuse(
      'messages',
      `'messages' has ${messages.length} entries; at most ${TEXT_LIMITS.messages} are served. Send fewer.`,
    );
  }
  return messages.map(templateMessage);
}

function templateMessage(message: ChatMessage, index: number): TemplateMessage {
  const fields = toPlainJson(message, DEPTH_MAX);
  if (!isPlainObject(fields)) {
    throw refuse(`messages[${index}]`, `messages[${index}] is not plain JSON. Send a JSON object.`);
  }
  const content = textOf(message.content, `messages[${index}].content`);
  const reasoning = REASONING_FIELDS.map((name) => fields[name]).find((value) => value !== undefined && value !== null);
  const calls = fields['tool_calls'];
  return {
    ...(reasoning === undefined ? {} : { thinking: reasoning }),
    ...fields,
    ...(reasoning === undefined ? {} : { reasoning_content: reasoning }),
    ...(isList(calls) ? { tool_calls: toolCalls(calls, index) } : {}),
    role: message.role,
    content,
  };
}

/** Text parts are joined by a line break; null (an assistant message of tool calls only) is empty. */
function textOf(content: ChatMessage['content'], where: string): string {
  if (content === undefined || content === null) return '';
  if (typeof content === 'string') return content;
  const texts = content.map((part, index) => {
    if (part.type === 'text' && typeof part.text === 'string') return part.text;
    throw refuse(
      `${where}[${index}]`,
      `${where}[${index}] has the type ${JSON.stringify(part.type)}; this model takes text only: ` +
        '{"type": "text", "text": "…"}. Leave other parts out.',
    );
  });
  return texts.join('\n');
}

/** OpenAI's API carries arguments as JSON in a string; templates want the object. */
function toolCalls(calls: readonly JsonValue[], index: number): JsonValue[] {
  return calls.map((call, at) => {
    const spec = isPlainObject(call) ? call['function'] : undefined;
    if (!isPlainObject(call) || !isPlainObject(spec) || typeof spec['arguments'] !== 'string') return call;
    const where = `messages[${index}].tool_calls[${at}].function.arguments`;
    return { ...call, function: { ...spec, arguments: parseArguments(spec['arguments'], where) } };
  });
}

function parseArguments(text: string, where: string): JsonValue {
  if (text.trim() === '') return {};
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw refuse(where, `${where} is not JSON. Send the arguments as a JSON object in a string.`);
  }
  const plain = toPlainJson(value, DEPTH_MAX);
  if (isPlainObject(plain)) return plain;
  throw refuse(where, `${where} is not a JSON object. Send the arguments as a JSON object in a string.`);
}

function isPlainObject(value: JsonValue | undefined): value is JsonObject {
  return isObject(value);
}

function refuse(param: string, message: string): ManyfoldError {
  return new ManyfoldError('invalid_request', message, { param });
}
