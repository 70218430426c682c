/**
 * GGUF metadata → tokenizer.json. A GGUF file holds pieces, their types, scores or merges and a few flags; how text is
 * cut and normalised it only names. The result gives the ids of the model's own tokenizer.json, which are also those
 * of transformers for the same file but where transformers leaves out what a name stands for (NFC for `qwen2`, whole
 * words for `llama-bpe` and `tekken`, special tokens spelled with bytes above ASCII). Called by tokenizer.ts.
 */
import type { GgufValue } from '../checkpoint/checkpoint.js';
import { ManyfoldError } from '../core/errors.js';
import { GGUF_PRE_TOKENIZERS, type PreTokenizer } from './gguf-pre-tokenizers.js';
import type { JsonValue } from './json-value.js';
import { mergesFromRanks } from './sentencepiece-merges.js';
import { BYTE_TO_LETTER, LETTER_TO_BYTE } from './token-bytes.js';
import {
  addedToken,
  templateProcessing,
  type AddedToken,
  type SpecialTokens,
  type TokenizerModel,
  type TokenizerParts,
} from './tokenizer-json.js';

/** Values of `tokenizer.ggml.token_type`. */
const TYPE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

const SPACE = '\u2581';
/** Real tokens have a few hundred at most; work on merges grows with the square of it. */
const TOKEN_CHARS_MAX = 4096;
const GEMMA = new Set(['gemma', 'gemma2', 'gemma3']);

type Metadata = ReadonlyMap<string, GgufValue>;

/** What the builders below share. */
interface Vocabulary {
  /** As the file spells them, by id. */
  readonly tokens: readonly string[];
  readonly types: readonly number[];
  readonly bos: readonly [string, number] | undefined;
  readonly eos: readonly [string, number] | undefined;
  readonly special: SpecialTokens;
  /** Ids with a role (bos, eos, eot, …): special whatever their type says. */
  readonly roles: ReadonlySet<number>;
}

/** The tokenizer that the metadata describes; refuses models and pre-tokenizers that it does not know. */
export function readGgufTokenizer(metadata: Metadata): TokenizerParts {
  const vocabulary = readVocabulary(metadata);
  const model = text(metadata, 'tokenizer.ggml.model');
  switch (model) {
    case 'gpt2':
      return byteLevelParts(metadata, vocabulary);
    case 'llama':
      return GEMMA.has(text(metadata, 'general.architecture') ?? '')
        ? gemmaParts(metadata, vocabulary)
        : sentencePieceParts(metadata, vocabulary);
    case 't5':
      return unigramParts(metadata, vocabulary);
    default:
      throw refuse('tokenizer.ggml.model', `is ${JSON.stringify(model)}; gpt2, llama and t5 are served`);
  }
}

function byteLevelParts(metadata: Metadata, vocabulary: Vocabulary): TokenizerParts {
  const pre = preTokenizer(metadata);
  const added = addedTokens(vocabulary, () => true);
  const raw = new Set(added.map((token) => token.id));
  const vocab = vocabOf(vocabulary.tokens.map((token, id) => (raw.has(id) ? token : spellInLetters(token))));
  const merges = listedMerges(metadata);
  if (merges === undefined) throw refuse('tokenizer.ggml.merges', 'is missing; a gpt2 tokenizer needs its merges');
  return assemble(metadata, vocabulary, pre.addsBos, {
    added,
    normalizer: pre.nfc ? { type: 'NFC' } : null,
    preTokenizer: pre.steps,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: bpe(vocab, merges, { ignore_merges: pre.ignoreMerges }),
  });
}

function preTokenizer(metadata: Metadata): PreTokenizer {
  const name = text(metadata, 'tokenizer.ggml.pre') ?? 'default';
  const pre = GGUF_PRE_TOKENIZERS.get(name);
  if (pre === undefined) {
    const known = [...GGUF_PRE_TOKENIZERS.keys()].sort().join(', ');
    throw refuse('tokenizer.ggml.pre', `is ${JSON.stringify(name)}; known are ${known}`);
  }
  return pre;
}

/** SentencePiece BPE as transformers' LlamaTokenizer has it. */
function sentencePieceParts(metadata: Metadata, vocabulary: Vocabulary): TokenizerParts {
  const scores = numbers(metadata, 'tokenizer.ggml.scores', vocabulary.tokens.length);
  const vocab = vocabOf(vocabulary.tokens);
  const merges = listedMerges(metadata) ?? mergesFromRanks(vocab, (piece) => scores[vocab.get(piece) ?? 0] ?? 0);
  const prefix = flag(metadata, 'tokenizer.ggml.add_space_prefix') ?? true;
  return assemble(metadata, vocabulary, true, {
    added: addedTokens(vocabulary, () => true),
    normalizer: null,
    preTokenizer: { type: 'Metaspace', replacement: SPACE, prepend_scheme: prefix ? 'first' : 'never', split: false },
    decoder: spaceDecoder(prefix),
    model: bpe(vocab, merges, { unk_token: unknownToken(vocabulary), fuse_unk: true, byte_fallback: true }),
  });
}

/** Gemma: no space before the text, runs of spaces spelled as spaces in the file, pieces ranked by their place in it. */
function gemmaParts(metadata: Metadata, vocabulary: Vocabulary): TokenizerParts {
  const spelled = vocabulary.tokens.map((token) =>
    token.includes(' ') && token.trim() === '' ? SPACE.repeat([...token].length) : token,
  );
  const vocab = vocabOf(spelled);
  const merges = listedMerges(metadata) ?? mergesFromRanks(vocab, (piece) => -(vocab.get(piece) ?? 0));
  return assemble(metadata, vocabulary, true, {
    added: addedTokens(vocabulary, (token, id) => spelled[id] === token),
    normalizer: { type: 'Replace', pattern: { String: ' ' }, content: SPACE },
    preTokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 'MergedWithPrevious', invert: false },
    decoder: spaceDecoder(false),
    model: bpe(vocab, merges, { unk_token: unknownToken(vocabulary), fuse_unk: true, byte_fallback: true }),
  });
}

/** SentencePiece Unigram as transformers' T5Tokenizer has it. */
function unigramParts(metadata: Metadata, vocabulary: Vocabulary): TokenizerParts {
  const scores = numbers(metadata, 'tokenizer.ggml.scores', vocabulary.tokens.length);
  const unk = vocabulary.special.unk_token;
  const metaspace = { type: 'Metaspace', replacement: SPACE, prepend_scheme: 'always', split: true };
  return assemble(metadata, vocabulary, false, {
    added: addedTokens(vocabulary, () => true),
    normalizer: null,
    preTokenizer: { type: 'Sequence', pretokenizers: [{ type: 'WhitespaceSplit' }, metaspace] },
    decoder: metaspace,
    model: {
      type: 'Unigram',
      unk_id: unk === undefined ? null : vocabulary.tokens.indexOf(unk),
      vocab: vocabulary.tokens.map((token, id) => [token, scores[id] ?? 0] as const),
      byte_fallback: false,
    },
  });
}

interface Pieces {
  readonly added: readonly AddedToken[];
  readonly normalizer: JsonValue;
  readonly preTokenizer: JsonValue;
  readonly decoder: JsonValue;
  readonly model: TokenizerModel;
}

function assemble(metadata: Metadata, vocabulary: Vocabulary, addsBos: boolean, pieces: Pieces): TokenizerParts {
  const bos = (flag(metadata, 'tokenizer.ggml.add_bos_token') ?? addsBos) ? vocabulary.bos : undefined;
  const eos = (flag(metadata, 'tokenizer.ggml.add_eos_token') ?? false) ? vocabulary.eos : undefined;
  return {
    special: vocabulary.special,
    json: {
      version: '1.0',
      added_tokens: pieces.added,
      normalizer: pieces.normalizer,
      pre_tokenizer: pieces.preTokenizer,
      post_processor: templateProcessing(bos, eos),
      decoder: pieces.decoder,
      model: pieces.model,
    },
  };
}

function bpe(
  vocab: ReadonlyMap<string, number>,
  merges: readonly (readonly [string, string])[],
  options: Readonly<Record<string, JsonValue>>,
): TokenizerModel {
  return {
    type: 'BPE',
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: false,
    ...options,
    vocab: Object.fromEntries(vocab),
    merges,
  };
}

/** '▁' back to a space, <0xNN> back to bytes; one leading space is the tokenizer's own and is taken off again. */
function spaceDecoder(prefix: boolean): JsonValue {
  return {
    type: 'Sequence',
    decoders: [
      { type: 'Replace', pattern: { String: SPACE }, content: ' ' },
      { type: 'ByteFallback' },
      { type: 'Fuse' },
      ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
    ],
  };
}

/** Tokens that text is matched against as a whole: control ones are special, user-defined ones are not. */
function addedTokens(vocabulary: Vocabulary, spelledAsIs: (token: string, id: number) => boolean): AddedToken[] {
  const added: AddedToken[] = [];
  vocabulary.tokens.forEach((token, id) => {
    const type = vocabulary.types[id];
    const special = type === TYPE.control || type === TYPE.unknown || vocabulary.roles.has(id);
    if (token === '' || !(special || type === TYPE.userDefined) || !spelledAsIs(token, id)) return;
    added.push(addedToken(id, token, special));
  });
  return added;
}

/** The piece in byte-level letters; pieces that are so spelled already stay, raw text is spelled by its UTF-8 bytes. */
function spellInLetters(token: string): string {
  for (const letter of token) {
    if (LETTER_TO_BYTE.has(letter)) continue;
    return [...Buffer.from(token, 'utf8')].map((byte) => BYTE_TO_LETTER[byte]).join('');
  }
  return token;
}

function vocabOf(tokens: readonly string[]): Map<string, number> {
  return new Map(tokens.map((token, id) => [token, id]));
}

function unknownToken(vocabulary: Vocabulary): string | null {
  return vocabulary.special.unk_token ?? null;
}

function readVocabulary(metadata: Metadata): Vocabulary {
  const tokens = strings(metadata, 'tokenizer.ggml.tokens');
  if (tokens === undefined || tokens.length === 0) throw refuse('tokenizer.ggml.tokens', 'is missing');
  const long = tokens.findIndex((token) => token.length > TOKEN_CHARS_MAX);
  if (long >= 0) {
    throw refuse('tokenizer.ggml.tokens', `has a token of more than ${TOKEN_CHARS_MAX} characters at ${long}`);
  }
  const types = metadata.has('tokenizer.ggml.token_type')
    ? numbers(metadata, 'tokenizer.ggml.token_type', tokens.length)
    : tokens.map(() => TYPE.normal);
  const roles = new Set<number>();
  const role = (name: string): readonly [string, number] | undefined => {
    const key = `tokenizer.ggml.${name}_token_id`;
    const value = metadata.get(key);
    if (value === undefined) return undefined;
    const id = Number(value);
    const token = tokens[id];
    if (token === undefined) throw refuse(key, `is ${String(value)}; ids are 0 to ${tokens.length - 1}`);
    roles.add(id);
    return [token, id];
  };
  const [bos, eos, unk, pad] = [role('bos'), role('eos'), role('unknown'), role('padding')];
  role('eot');
  role('eom');
  const special = Object.fromEntries(
    [
      ['bos_token', bos?.[0]],
      ['eos_token', eos?.[0]],
      ['unk_token', unk?.[0]],
      ['pad_token', pad?.[0]],
    ].filter(([, content]) => content !== undefined),
  ) as SpecialTokens;
  return { tokens, types, bos, eos, special, roles };
}

function listedMerges(metadata: Metadata): [string, string][] | undefined {
  return strings(metadata, 'tokenizer.ggml.merges')?.map((merge, index) => {
    const parts = merge.split(' ');
    const [left, right] = parts;
    if (left === undefined || right === undefined || parts.length !== 2) {
      throw refuse(
        'tokenizer.ggml.merges',
        `has at ${index} ${JSON.stringify(merge)}; two pieces and one space are expected`,
      );
    }
    return [left, right];
  });
}

function strings(metadata: Metadata, key: string): readonly string[] | undefined {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) {
    throw refuse(key, 'is not a list of strings');
  }
  return value;
}

function numbers(metadata: Metadata, key: string, length: number): number[] {
  const value = metadata.get(key);
  if (typeof value !== 'object') throw refuse(key, 'is missing or not a list of numbers');
  const list = Array.from(value as ArrayLike<number | bigint>, Number);
  if (list.length !== length) throw refuse(key, `has ${list.length} entries; there are ${length} tokens`);
  return list;
}

function text(metadata: Metadata, key: string): string | undefined {
  const value = metadata.get(key);
  if (value === undefined || typeof value === 'string') return value;
  throw refuse(key, 'is not a string');
}

function flag(metadata: Metadata, key: string): boolean | undefined {
  const value = metadata.get(key);
  if (value === undefined || typeof value === 'boolean') return value;
  throw refuse(key, 'is not a boolean');
}

function refuse(key: string, what: string): ManyfoldError {
  return new ManyfoldError(
    'invalid_model',
    `GGUF metadata ${key} ${what}. Convert the model again with a current converter, or serve its Hugging Face folder.`,
    { param: key },
  );
}
