/**
 * What an adapter folder says about text: a chat template of its own, and added tokens. Until embedding rows of
 * adapters are served, an adapter whose tokens the base lacks is refused. Called by text-registry.ts.
 */
import { ManyfoldError } from '../core/errors.js';
import { isObject } from './json-value.js';
import { SPECIAL_TOKEN_NAMES } from './tokenizer-json.js';
import type { Tokenizer } from './tokenizer.js';

/** Files of an adapter folder as text; absent ones are left out. */
export interface AdapterTextFiles {
  /** chat_template.jinja */
  readonly chatTemplate?: string;
  /** tokenizer_config.json */
  readonly tokenizerConfig?: string;
  /** tokenizer.json */
  readonly tokenizerJson?: string;
  /** added_tokens.json */
  readonly addedTokens?: string;
}

/** The adapter's own chat template: its file first, then tokenizer_config.json's, of several the one named 'default'. */
export function adapterChatTemplate(files: AdapterTextFiles): string | undefined {
  if (files.chatTemplate !== undefined) return files.chatTemplate;
  const template = readJson(files.tokenizerConfig, 'tokenizer_config.json')['chat_template'];
  if (typeof template === 'string') return template;
  if (!Array.isArray(template)) return undefined;
  const chosen: unknown = template.find((entry: unknown) => isObject(entry) && entry['name'] === 'default');
  return isObject(chosen) && typeof chosen['template'] === 'string' ? chosen['template'] : undefined;
}

/** Refuses an adapter with tokens that the base lacks or numbers otherwise, naming them. */
export function checkAdapterTokenizer(base: Tokenizer, files: AdapterTextFiles): void {
  const wrong: string[] = [];
  for (const [content, id] of adapterTokens(files)) {
    const baseId = base.idOf(content);
    if (baseId !== undefined && (id === undefined || id === baseId)) continue;
    const expected = baseId === undefined ? 'the base has none' : `the base has it as ${baseId}`;
    wrong.push(`${JSON.stringify(content)}${id === undefined ? '' : ` (id ${id})`}: ${expected}`);
  }
  if (wrong.length === 0) return;
  const shown = wrong.slice(0, 5).join('; ') + (wrong.length > 5 ? `; and ${wrong.length - 5} more` : '');
  throw new ManyfoldError(
    'invalid_adapter',
    `The adapter's tokenizer has tokens that do not fit the base: ${shown}. Adapters that add tokens are not served yet: ` +
      "train with the base's own tokenizer, or remove the tokenizer files from the folder if the adapter does not use them.",
    { param: 'tokenizer.json' },
  );
}

/** Every added or named token of the files, with its id where the file tells one. */
function adapterTokens(files: AdapterTextFiles): Map<string, number | undefined> {
  const tokens = new Map<string, number | undefined>();
  const config = readJson(files.tokenizerConfig, 'tokenizer_config.json');
  for (const name of SPECIAL_TOKEN_NAMES) {
    const value = config[name];
    const content = isObject(value) ? value['content'] : value;
    if (typeof content === 'string' && content !== '') tokens.set(content, undefined);
  }
  const decoder = config['added_tokens_decoder'];
  for (const [id, token] of Object.entries(isObject(decoder) ? decoder : {})) {
    if (isObject(token) && typeof token['content'] === 'string') tokens.set(token['content'], Number(id));
  }
  for (const [content, id] of Object.entries(readJson(files.addedTokens, 'added_tokens.json'))) {
    if (typeof id === 'number') tokens.set(content, id);
  }
  for (const token of listedTokens(files.tokenizerJson)) {
    if (isObject(token) && typeof token['content'] === 'string') tokens.set(token['content'], Number(token['id']));
  }
  return tokens;
}

function readJson(text: string | undefined, file: string): Readonly<Record<string, unknown>> {
  if (text === undefined) return {};
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return value;
  } catch (cause) {
    throw unreadable(file, cause);
  }
  throw unreadable(file, undefined);
}

/** `added_tokens` of a tokenizer.json. The list alone is parsed: the rest is megabytes of vocabulary. */
function listedTokens(tokenizerJson: string | undefined): readonly unknown[] {
  if (tokenizerJson === undefined) return [];
  const start = /"added_tokens"\s*:\s*\[/.exec(tokenizerJson);
  if (start === null) return [];
  const from = start.index + start[0].length - 1;
  try {
    const list: unknown = JSON.parse(tokenizerJson.slice(from, endOfList(tokenizerJson, from)));
    return Array.isArray(list) ? list : [];
  } catch (cause) {
    throw unreadable('tokenizer.json', cause);
  }
}

/** Index after the bracket that closes the list opened at `from`. */
function endOfList(json: string, from: number): number {
  let depth = 0;
  for (let i = from; i < json.length; i += 1) {
    const character = json[i];
    if (character === '"') {
      for (i += 1; i < json.length && json[i] !== '"'; i += 1) if (json[i] === '\\') i += 1;
    } else if (character === '[' || character === '{') {
      depth += 1;
    } else if (character === ']' || character === '}') {
      depth -= 1;
      if (depth === 0) return i + 1;
    }
  }
  return json.length;
}

function unreadable(file: string, cause: unknown): ManyfoldError {
  return new ManyfoldError(
    'invalid_adapter',
    `The adapter's ${file} is not a JSON object. Save the adapter again, or remove the file.`,
    {
      param: file,
      cause,
    },
  );
}
