/**
 * The tokenizer of one model. Text to ids is the native library's work, off the JS thread (the same Rust code as
 * Hugging Face's own); ids to text is done here from a table. Made by `createTokenizer` for text-model.ts.
 */
import { Tokenizer as NativeTokenizer } from '@anush008/tokenizers';
import type { TextSource } from '../checkpoint/checkpoint.js';
import { ManyfoldError } from '../core/errors.js';
import { StreamDetokenizer, type DetokenizeOptions } from './detokenize.js';
import { readGgufTokenizer } from './gguf-tokenizer.js';
import { TEXT_LIMITS } from './limits.js';
import { TokenTable } from './token-table.js';
import { readTokenizerFiles, type SpecialTokens, type TokenizerParts } from './tokenizer-json.js';

export interface EncodeOptions {
  /** BOS and EOS where the model's tokenizer adds them. */
  readonly addSpecialTokens: boolean;
}

export interface Tokenizer {
  /** Highest token id + 1. A model may have more embedding rows than that. */
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId?: number;
  /** Whether `encode` with `addSpecialTokens` begins with BOS. */
  readonly addsBos: boolean;
  /** Tokens with a role, as text, under the names that chat templates use. */
  readonly special: SpecialTokens;
  encode(text: string, options: EncodeOptions): Promise<number[]>;
  /**
   * A whole prompt. 'chat': text that a template rendered, nothing is added. 'completion': with BOS and EOS where the
   * tokenizer adds them. In both, BOS written in the text and added by the tokenizer gives one BOS. Refuses prompts
   * beyond the byte limit before any work is done.
   */
  encodePrompt(text: string, kind: 'chat' | 'completion'): Promise<number[]>;
  decode(ids: readonly number[], options: DetokenizeOptions): string;
  /** Ids to text while they come. */
  newDetokenizer(options: DetokenizeOptions): StreamDetokenizer;
  /** The text of one token alone, for logprobs; bytes that are no whole character become U+FFFD. */
  tokenText(id: number): string;
  /** The token as the vocabulary spells it ('Ġhello', '▁hello'); undefined when the id has no token. */
  piece(id: number): string | undefined;
  /** UTF-8 bytes that the token stands for; empty when the id has no token. */
  tokenBytes(id: number): Uint8Array;
  isSpecial(id: number): boolean;
  idOf(token: string): number | undefined;
}

/** Loads a tokenizer from a model's files or GGUF metadata; refuses what it could not reproduce exactly. */
export async function createTokenizer(source: TextSource): Promise<Tokenizer> {
  const parts =
    source.kind === 'gguf'
      ? readGgufTokenizer(source.metadata)
      : readTokenizerFiles(source.tokenizerJson, source.tokenizerConfig);
  const table = new TokenTable(parts.json);
  const native = loadNative(parts);
  for (const token of parts.json.added_tokens) {
    if (native.tokenToId(token.content) === token.id) continue;
    throw new ManyfoldError(
      'invalid_model',
      `The tokenizer's added token ${JSON.stringify(token.content)} is listed with the id ${token.id} but would get ` +
        `${String(native.tokenToId(token.content))}. Fetch the model's tokenizer files again.`,
      { param: 'added_tokens' },
    );
  }
  const bosId = parts.special.bos_token === undefined ? undefined : table.id(parts.special.bos_token);
  const frame = await nativeEncode(native, '', true);
  return new TableTokenizer(native, table, parts.special, bosId !== undefined && frame[0] === bosId);
}

class TableTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId?: number;
  readonly eosId?: number;
  readonly #native: NativeTokenizer;
  readonly #table: TokenTable;

  constructor(
    native: NativeTokenizer,
    table: TokenTable,
    readonly special: SpecialTokens,
    readonly addsBos: boolean,
  ) {
    this.#native = native;
    this.#table = table;
    this.vocabSize = table.size;
    const idOf = (content: string | undefined): number | undefined =>
      content === undefined ? undefined : table.id(content);
    const [bos, eos] = [idOf(special.bos_token), idOf(special.eos_token)];
    if (bos !== undefined) this.bosId = bos;
    if (eos !== undefined) this.eosId = eos;
  }

  encode(text: string, options: EncodeOptions): Promise<number[]> {
    return nativeEncode(this.#native, text, options.addSpecialTokens);
  }

  async encodePrompt(text: string, kind: 'chat' | 'completion'): Promise<number[]> {
    const bytes = Buffer.byteLength(text, 'utf8');
    if (bytes > TEXT_LIMITS.promptBytes) {
      throw new ManyfoldError(
        'request_too_large',
        `The prompt has ${bytes} bytes; at most ${TEXT_LIMITS.promptBytes} are tokenized. Send a shorter prompt.`,
      );
    }
    const ids = await this.encode(text, { addSpecialTokens: kind === 'completion' });
    const doubled = this.addsBos && ids[0] === this.bosId && ids[1] === this.bosId;
    return doubled ? ids.slice(1) : ids;
  }

  decode(ids: readonly number[], options: DetokenizeOptions): string {
    const stream = this.newDetokenizer(options);
    let text = '';
    for (const id of ids) text += stream.push(id);
    return text + stream.flush();
  }

  newDetokenizer(options: DetokenizeOptions): StreamDetokenizer {
    return new StreamDetokenizer(this.#table, options);
  }

  tokenText(id: number): string {
    return LOSSY_UTF8.decode(this.#table.bytes(id));
  }

  piece(id: number): string | undefined {
    return this.#table.piece(id);
  }

  tokenBytes(id: number): Uint8Array {
    return this.#table.bytes(id);
  }

  isSpecial(id: number): boolean {
    return this.#table.isSpecial(id);
  }

  idOf(token: string): number | undefined {
    return this.#table.id(token);
  }
}

const LOSSY_UTF8 = new TextDecoder('utf-8', { ignoreBOM: true });

function loadNative(parts: TokenizerParts): NativeTokenizer {
  try {
    return NativeTokenizer.fromString(JSON.stringify(parts.json));
  } catch (cause) {
    throw new ManyfoldError(
      'invalid_model',
      `The model's tokenizer cannot be loaded: ${cause instanceof Error ? cause.message : String(cause)}. ` +
        'Fetch the model again, or serve a model of a supported family.',
      { param: 'tokenizer', cause },
    );
  }
}

async function nativeEncode(native: NativeTokenizer, text: string, addSpecialTokens: boolean): Promise<number[]> {
  const encoding = await native.encode(text, null, { addSpecialTokens });
  return encoding.getIds();
}
