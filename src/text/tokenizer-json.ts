/**
 * The shape of a tokenizer.json as far as this server looks into it, and the two things that transformers takes from
 * tokenizer_config.json when it loads one: special tokens that the file itself does not list, and add_bos_token /
 * add_eos_token, which replace the post-processor. Called by tokenizer.ts; gguf-tokenizer.ts builds the same shape.
 */
import { ManyfoldError } from '../core/errors.js';
import { isObject, type JsonObject, type JsonValue } from './json-value.js';

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly single_word: boolean;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly normalized: boolean;
  readonly special: boolean;
}

export interface TokenizerJson {
  readonly version: string;
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: JsonValue;
  readonly pre_tokenizer: JsonValue;
  readonly post_processor: JsonValue;
  readonly decoder: JsonValue;
  readonly model: TokenizerModel;
}

export type TokenizerModel = JsonObject & {
  readonly type: string;
  /** BPE: piece → id. Unigram: [piece, score] by id. */
  readonly vocab: Readonly<Record<string, number>> | readonly (readonly [string, number])[];
};

/** The text of the tokens that have a role; templates see them under these names. */
export interface SpecialTokens {
  readonly bos_token?: string;
  readonly eos_token?: string;
  readonly unk_token?: string;
  readonly pad_token?: string;
}
export const SPECIAL_TOKEN_NAMES = ['bos_token', 'eos_token', 'unk_token', 'pad_token'] as const;

/** A tokenizer before it is loaded: from a folder or from GGUF metadata. */
export interface TokenizerParts {
  readonly json: TokenizerJson;
  readonly special: SpecialTokens;
}

/** A token of the model that text is matched against before anything else, as it stands. */
export function addedToken(id: number, content: string, special: boolean): AddedToken {
  return { id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special };
}

/** The post-processor that puts BOS before and EOS after a text; null when it would do nothing. */
export function templateProcessing(
  bos: readonly [string, number] | undefined,
  eos: readonly [string, number] | undefined,
): JsonValue {
  if (bos === undefined && eos === undefined) return null;
  const token = (entry: readonly [string, number], type_id: number): JsonValue => ({
    SpecialToken: { id: entry[0], type_id },
  });
  const around = (name: string, type_id: number): JsonValue[] => [
    ...(bos === undefined ? [] : [token(bos, type_id)]),
    { Sequence: { id: name, type_id } },
    ...(eos === undefined ? [] : [token(eos, type_id)]),
  ];
  const used = [bos, eos].filter((entry) => entry !== undefined);
  return {
    type: 'TemplateProcessing',
    single: around('A', 0),
    pair: [...around('A', 0), ...around('B', 1)],
    special_tokens: Object.fromEntries(used.map(([text, id]) => [text, { id: text, ids: [id], tokens: [text] }])),
  };
}

/** tokenizer.json as text and tokenizer_config.json → parts, amended as transformers does it. */
export function readTokenizerFiles(tokenizerJson: string, config: Readonly<Record<string, unknown>>): TokenizerParts {
  const json = parseTokenizerJson(tokenizerJson);
  const ids = vocabularyIds(json);
  const special = specialTokens(config);
  const added = [...json.added_tokens, ...tokensOfConfig(config, special, json.added_tokens, ids)];
  return {
    json: { ...json, added_tokens: added, post_processor: postProcessor(json, config, special, added, ids) },
    special,
  };
}

/** Piece → id of the model and the added tokens together. */
export function vocabularyIds(json: TokenizerJson): Map<string, number> {
  const { vocab } = json.model;
  const ids = new Map<string, number>(
    Array.isArray(vocab) ? vocab.map((entry: readonly [string, number], id) => [entry[0], id]) : Object.entries(vocab),
  );
  for (const token of json.added_tokens) ids.set(token.content, token.id);
  return ids;
}

function parseTokenizerJson(text: string): TokenizerJson {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw refuse(`is not JSON (${cause instanceof Error ? cause.message : String(cause)})`, cause);
  }
  if (!isObject(value) || !isObject(value['model'])) throw refuse("has no object 'model'");
  const model = value['model'];
  const vocab = model['vocab'];
  if (model['type'] !== undefined && model['type'] !== 'BPE' && model['type'] !== 'Unigram') {
    throw refuse(`has the model type ${JSON.stringify(model['type'])}; BPE and Unigram are served`);
  }
  if (!isObject(vocab) && !Array.isArray(vocab)) throw refuse("has no 'model.vocab'");
  const added: unknown = value['added_tokens'] ?? [];
  if (!Array.isArray(added) || !added.every(isAddedToken))
    throw refuse("has an 'added_tokens' that is not a list of tokens");
  // Whatever else stands in the file is left out: truncation and padding are never wanted here.
  return {
    version: '1.0',
    added_tokens: added,
    normalizer: (value['normalizer'] ?? null) as JsonValue,
    pre_tokenizer: (value['pre_tokenizer'] ?? null) as JsonValue,
    post_processor: (value['post_processor'] ?? null) as JsonValue,
    decoder: (value['decoder'] ?? null) as JsonValue,
    model: { ...model, type: model['type'] ?? 'BPE' } as TokenizerModel,
  };
}

function isAddedToken(value: unknown): value is AddedToken {
  return isObject(value) && Number.isSafeInteger(value['id']) && typeof value['content'] === 'string';
}

function refuse(what: string, cause?: unknown): ManyfoldError {
  return new ManyfoldError('invalid_model', `tokenizer.json ${what}. Fetch the model's tokenizer.json again.`, {
    param: 'tokenizer.json',
    cause,
  });
}

/** bos_token and its like are a string, an added token's object, or null. */
function specialTokens(config: Readonly<Record<string, unknown>>): SpecialTokens {
  const entries: [string, string][] = [];
  for (const name of SPECIAL_TOKEN_NAMES) {
    const value = config[name];
    const content = isObject(value) ? value['content'] : value;
    if (typeof content === 'string' && content !== '') entries.push([name, content]);
  }
  return Object.fromEntries(entries);
}

/** Tokens of added_tokens_decoder, and named special tokens, that tokenizer.json does not list as added. */
function tokensOfConfig(
  config: Readonly<Record<string, unknown>>,
  special: SpecialTokens,
  listed: readonly AddedToken[],
  ids: ReadonlyMap<string, number>,
): AddedToken[] {
  const known = new Set(listed.map((token) => token.content));
  const extra: AddedToken[] = [];
  const decoder = config['added_tokens_decoder'];
  for (const [key, value] of Object.entries(isObject(decoder) ? decoder : {})) {
    if (!isObject(value) || typeof value['content'] !== 'string' || known.has(value['content'])) continue;
    known.add(value['content']);
    extra.push({
      id: Number(key),
      content: value['content'],
      single_word: value['single_word'] === true,
      lstrip: value['lstrip'] === true,
      rstrip: value['rstrip'] === true,
      normalized: value['normalized'] === true,
      special: value['special'] === true,
    });
  }
  for (const content of Object.values(special) as string[]) {
    const id = ids.get(content);
    if (id === undefined || known.has(content)) continue;
    known.add(content);
    extra.push(addedToken(id, content, true));
  }
  return extra.sort((a, b) => a.id - b.id);
}

/** transformers rebuilds the post-processor when the config states either flag, or when the file has none. */
function postProcessor(
  json: TokenizerJson,
  config: Readonly<Record<string, unknown>>,
  special: SpecialTokens,
  added: readonly AddedToken[],
  ids: ReadonlyMap<string, number>,
): JsonValue {
  const explicit = config['add_bos_token'] !== undefined || config['add_eos_token'] !== undefined;
  if (!explicit) return json.post_processor;
  const entry = (flag: string, content: string | undefined): readonly [string, number] | undefined => {
    if (config[flag] !== true || content === undefined) return undefined;
    const id = added.find((token) => token.content === content)?.id ?? ids.get(content);
    return id === undefined ? undefined : [content, id];
  };
  return templateProcessing(entry('add_bos_token', special.bos_token), entry('add_eos_token', special.eos_token));
}
