/**
 * Token ids to text while they come: what `push` gives never ends inside a character, and all deltas together are what
 * `decode` gives for all ids. Each token is looked at once. Called once per sequence by the service, and by
 * tokenizer.ts for whole texts.
 *
 * Where bytes form no character, each maximal broken piece becomes U+FFFD, as `tokenizers` has it for byte-level BPE.
 * (For SentencePiece's byte tokens `tokenizers` gives up every byte of a run that has one broken byte; a stream cannot
 * take back what it has sent, so here good characters of such a run stay.)
 */
import type { TokenTable } from './token-table.js';

export interface DetokenizeOptions {
  readonly skipSpecialTokens: boolean;
  /**
   * The ids continue a text that was already begun (a prompt), so a leading space belongs to the text. False: they are
   * a text of their own, and the space that the tokenizer put before it is dropped.
   */
  readonly continues?: boolean;
}

export class StreamDetokenizer {
  readonly #table: TokenTable;
  readonly #skip: boolean;
  // A byte order mark is text here, not a mark.
  readonly #utf8 = new TextDecoder('utf-8', { ignoreBOM: true });
  #atStart: boolean;

  constructor(table: TokenTable, options: DetokenizeOptions) {
    this.#table = table;
    this.#skip = options.skipSpecialTokens;
    this.#atStart = options.continues !== true && table.start !== 'keep';
  }

  /** The text that is complete with this token; '' while a character is still open. */
  push(id: number): string {
    if (this.#skip && this.#table.isSpecial(id)) return '';
    if (!this.#atStart) return this.#utf8.decode(this.#table.bytes(id), { stream: true });
    if (this.#table.piece(id) === undefined) return '';
    const text = this.#utf8.decode(this.#table.firstBytes(id), { stream: true });
    if (this.#table.start === 'first') this.#atStart = false;
    return this.#withoutFirstSpace(text);
  }

  /** What is left when no token follows: U+FFFD for a character that was never completed. */
  flush(): string {
    return this.#withoutFirstSpace(this.#utf8.decode());
  }

  #withoutFirstSpace(text: string): string {
    if (!this.#atStart || text === '') return text;
    this.#atStart = false;
    return text.startsWith(' ') ? text.slice(1) : text;
  }
}
