/**
 * The variables of a rendering, as transformers gives them, and the check of a request's `chat_template_kwargs`: plain
 * JSON, bounded, and never a name that the server or the language itself provides. Called by text-model.ts.
 */
import { ManyfoldError } from '../core/errors.js';
import { isObject, toPlainJson, type JsonObject, type JsonValue } from './json-value.js';
import { TEXT_LIMITS } from './limits.js';
import type { SpecialTokens } from './tokenizer-json.js';

/** Names that a request may not set: they are the conversation, the model's tokens, or part of the language. */
const RESERVED = new Set([
  'messages',
  'tools',
  'documents',
  'add_generation_prompt',
  'continue_final_message',
  'chat_template',
  'tokenize',
  'return_dict',
  'conversation',
  'bos_token',
  'eos_token',
  'unk_token',
  'pad_token',
  'sep_token',
  'cls_token',
  'mask_token',
  'additional_special_tokens',
  'raise_exception',
  'strftime_now',
  'range',
  'namespace',
  'dict',
  'lipsum',
  'cycler',
  'joiner',
  'tojson',
  'loop',
  'self',
  'super',
  'caller',
  'varargs',
  'kwargs',
  'true',
  'false',
  'none',
  'True',
  'False',
  'None',
]);

const NAME = /^[A-Za-z][A-Za-z0-9_]{0,63}$/;

export interface ConversationVariables {
  readonly messages: readonly JsonObject[];
  readonly tools: readonly JsonValue[] | null;
  readonly documents: readonly JsonValue[] | null;
  readonly addGenerationPrompt: boolean;
  readonly special: SpecialTokens;
  readonly kwargs: Readonly<Record<string, JsonValue>>;
}

/** Absent tools and documents are none, not undefined, as in transformers. */
export function templateVariables(conversation: ConversationVariables): Record<string, JsonValue> {
  return {
    ...conversation.special,
    ...conversation.kwargs,
    messages: conversation.messages,
    tools: conversation.tools,
    documents: conversation.documents,
    add_generation_prompt: conversation.addGenerationPrompt,
  };
}

/** The kwargs as plain JSON, or a refusal that names the key. */
export function checkTemplateKwargs(kwargs: unknown): Record<string, JsonValue> {
  if (kwargs === undefined || kwargs === null) return {};
  if (!isObject(kwargs)) throw refuse('chat_template_kwargs', 'is not an object');
  const entries = Object.entries(kwargs).filter(([, value]) => value !== undefined);
  if (entries.length > TEXT_LIMITS.kwargsKeys) {
    throw refuse('chat_template_kwargs', `has ${entries.length} keys; at most ${TEXT_LIMITS.kwargsKeys} are allowed`);
  }
  const checked = Object.fromEntries(entries.map(([name, value]) => [name, checkEntry(name, value)]));
  const bytes = Buffer.byteLength(JSON.stringify(checked), 'utf8');
  if (bytes > TEXT_LIMITS.kwargsBytes) {
    throw refuse('chat_template_kwargs', `has ${bytes} bytes as JSON; at most ${TEXT_LIMITS.kwargsBytes} are allowed`);
  }
  return checked;
}

function checkEntry(name: string, value: unknown): JsonValue {
  const where = `chat_template_kwargs.${name.slice(0, 64)}`;
  if (RESERVED.has(name)) throw refuse(where, 'is a name that the server sets itself');
  if (!NAME.test(name)) throw refuse(where, 'is no name for a variable: a letter, then up to 63 letters, digits and _');
  const plain = toPlainJson(value, TEXT_LIMITS.kwargsDepth);
  if (plain === undefined) throw refuse(where, `is not plain JSON of at most ${TEXT_LIMITS.kwargsDepth} levels`);
  return plain;
}

function refuse(param: string, what: string): ManyfoldError {
  return new ManyfoldError(
    'invalid_request',
    `${param} ${what}. Leave it out, or send what the model's template reads.`,
    { param },
  );
}
