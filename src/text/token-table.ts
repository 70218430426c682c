/**
 * The vocabulary as a table by id: piece, bytes, special or not, and how pieces join to text. Built once a model;
 * decoding needs nothing else, so it stays on this side of the native library and costs no call into it.
 * Used by tokenizer.ts and detokenize.ts.
 */
import { ManyfoldError } from '../core/errors.js';
import { isList, isObject, type JsonValue } from './json-value.js';
import { bytesOfLetters, bytesOfSentencePiece } from './token-bytes.js';
import { vocabularyIds, type TokenizerJson } from './tokenizer-json.js';

/**
 * What a decoder of tokenizer.json comes to. `start` is what happens to the space that the tokenizer itself put before
 * a text: 'keep', 'one' leading space is dropped, or all '▁' of the 'first' token are.
 */
interface Spelling {
  readonly bytesOf: (piece: string) => Uint8Array;
  readonly start: 'keep' | 'one' | 'first';
}

const NO_BYTES = new Uint8Array(0);

export class TokenTable {
  /** Highest id + 1; some ids below it may have no token. */
  readonly size: number;
  readonly start: Spelling['start'];
  readonly #pieces: (string | undefined)[] = [];
  readonly #bytes: (Uint8Array | undefined)[] = [];
  readonly #special = new Set<number>();
  readonly #ids: ReadonlyMap<string, number>;
  readonly #bytesOf: Spelling['bytesOf'];

  constructor(json: TokenizerJson) {
    this.#ids = vocabularyIds(json);
    for (const [piece, id] of this.#ids) this.#pieces[id] = piece;
    for (const token of json.added_tokens) if (token.special) this.#special.add(token.id);
    this.size = this.#pieces.length;
    const spelling = readDecoder(json.decoder);
    this.start = spelling.start;
    this.#bytesOf = spelling.bytesOf;
  }

  /** The token as the vocabulary spells it ('Ġhello', '▁hello'), undefined when the id has none. */
  piece(id: number): string | undefined {
    return this.#pieces[id];
  }

  id(piece: string): number | undefined {
    return this.#ids.get(piece);
  }

  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /** UTF-8 bytes that the token adds to a text; none for an id without a token. Not to be written to. */
  bytes(id: number): Uint8Array {
    const piece = this.#pieces[id];
    if (piece === undefined) return NO_BYTES;
    return (this.#bytes[id] ??= this.#bytesOf(piece));
  }

  /** The same at the start of a text, where the tokenizer's own space is taken off again ('one' is left to the caller). */
  firstBytes(id: number): Uint8Array {
    if (this.start !== 'first') return this.bytes(id);
    return this.#bytesOf((this.#pieces[id] ?? '').replaceAll('\u2581', ''));
  }
}

/** The decoders of the families served; anything else is refused, because text would come out wrong. */
function readDecoder(decoder: JsonValue): Spelling {
  const listed = isObject(decoder) ? decoder['decoders'] : undefined;
  const steps = isList(listed) ? listed : [decoder];
  const types = steps.map((step) => (isObject(step) ? step['type'] : undefined));
  const only = types.length === 1 ? types[0] : undefined;
  if (only === 'ByteLevel') return { bytesOf: bytesOfLetters, start: 'keep' };
  if (only === 'Metaspace') {
    const step = steps[0] as Readonly<Record<string, JsonValue>>;
    const keeps = step['prepend_scheme'] === 'never' || step['add_prefix_space'] === false;
    return { bytesOf: (piece) => bytesOfSentencePiece(piece, false), start: keeps ? 'keep' : 'first' };
  }
  if (steps.length > 0 && steps.every(isSentencePieceStep)) {
    const fallback = types.includes('ByteFallback');
    return {
      bytesOf: (piece) => bytesOfSentencePiece(piece, fallback),
      start: types.includes('Strip') ? 'one' : 'keep',
    };
  }
  throw new ManyfoldError(
    'invalid_model',
    `tokenizer.json has the decoder ${JSON.stringify(decoder)}; ByteLevel, Metaspace and SentencePiece's sequence ` +
      '(Replace, ByteFallback, Fuse, Strip) are served. Serve a model of a supported family.',
    { param: 'decoder' },
  );
}

function isSentencePieceStep(step: JsonValue): boolean {
  if (!isObject(step)) return false;
  switch (step['type']) {
    case 'Replace': {
      const pattern = step['pattern'];
      return isObject(pattern) && pattern['String'] === '\u2581' && step['content'] === ' ';
    }
    case 'ByteFallback':
    case 'Fuse':
      return true;
    case 'Strip':
      return step['content'] === ' ' && step['start'] === 1 && step['stop'] === 0;
    default:
      return false;
  }
}
