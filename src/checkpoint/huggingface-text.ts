/** Tokenizer and chat template of a Hugging Face folder, as text; the text module makes sense of them. */
import { access } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import type { TextSource } from './checkpoint.js';
import { readSmallFile } from './regular-file.js';
import { decodeUtf8, isJsonObject, parseJsonStrict } from './strict-json.js';
import type { JsonObject, JsonValue } from './strict-json.js';

const MAX_TOKENIZER_BYTES = 200_000_000;
const MAX_JSON_BYTES = 32_000_000;
const MAX_TEMPLATE_BYTES = 1_000_000;
const MAX_DEPTH = 32;

export async function exists(filePath: string): Promise<boolean> {
  return access(filePath).then(
    () => true,
    () => false,
  );
}

/** The object of a JSON file of the folder; undefined when there is no such file. */
export async function readJsonObject(folder: string, name: string): Promise<JsonObject | undefined> {
  const filePath = path.join(folder, name);
  if (!(await exists(filePath))) return undefined;
  const text = decodeUtf8(await readSmallFile(filePath, MAX_JSON_BYTES), name);
  const value = parseJsonStrict(text, { maxDepth: MAX_DEPTH, what: name });
  if (isJsonObject(value)) return value;
  throw new ManyfoldError('invalid_model', `${name}: expected a JSON object. Download the file again.`);
}

export async function readHuggingFaceText(folder: string): Promise<TextSource> {
  const tokenizer = path.join(folder, 'tokenizer.json');
  if (!(await exists(tokenizer))) {
    throw new ManyfoldError(
      'invalid_model',
      `${folder} has no tokenizer.json. Make one with transformers: ` +
        'AutoTokenizer.from_pretrained(folder).save_pretrained(folder).',
    );
  }
  const tokenizerJson = decodeUtf8(await readSmallFile(tokenizer, MAX_TOKENIZER_BYTES), 'tokenizer.json');
  const tokenizerConfig = (await readJsonObject(folder, 'tokenizer_config.json')) ?? {};
  const chatTemplate = await readChatTemplate(folder, tokenizerConfig);
  return { kind: 'huggingface', tokenizerJson, tokenizerConfig, chatTemplate };
}

/** In transformers' order: a file of its own, the older JSON file, tokenizer_config.json. */
async function readChatTemplate(folder: string, tokenizerConfig: JsonObject): Promise<string | undefined> {
  const file = path.join(folder, 'chat_template.jinja');
  if (await exists(file)) return decodeUtf8(await readSmallFile(file, MAX_TEMPLATE_BYTES), 'chat_template.jinja');
  const json = await readJsonObject(folder, 'chat_template.json');
  const value = json?.['chat_template'] ?? tokenizerConfig['chat_template'] ?? undefined;
  return value === undefined ? undefined : pickTemplate(value);
}

/** One template, or the one named default of a list of named ones. */
function pickTemplate(value: JsonValue): string | undefined {
  if (typeof value === 'string') return value;
  const named = Array.isArray(value) ? value : [];
  const entry = named.find((item: JsonValue): item is JsonObject => isJsonObject(item) && item['name'] === 'default');
  const template = entry?.['template'];
  if (typeof template === 'string') return template;
  if (named.length > 0 && entry === undefined) return undefined;
  throw new ManyfoldError(
    'invalid_model',
    'chat_template is neither a string nor a list of objects with name and template. Download the file again.',
    { param: 'chat_template' },
  );
}
