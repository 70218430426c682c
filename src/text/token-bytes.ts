/**
 * How the pieces of a vocabulary spell bytes: byte-level BPE writes every byte as a letter (GPT-2's table),
 * SentencePiece writes a space as '▁' and a byte that no piece covers as <0xNN>. Used by token-table.ts and
 * gguf-tokenizer.ts.
 */

/** Letter of each byte, by byte: printable Latin-1 stands for itself, the other 68 follow from U+0100 on. */
export const BYTE_TO_LETTER: readonly string[] = (() => {
  const letters: string[] = [];
  let next = 0x100;
  for (let byte = 0; byte < 256; byte += 1) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    letters.push(String.fromCodePoint(printable ? byte : next++));
  }
  return letters;
})();

export const LETTER_TO_BYTE: ReadonlyMap<string, number> = new Map(
  BYTE_TO_LETTER.map((letter, byte) => [letter, byte]),
);

/** Bytes of a byte-level piece. A piece with any other character (an added token) stands for its own UTF-8. */
export function bytesOfLetters(piece: string): Uint8Array {
  const bytes = new Uint8Array(piece.length);
  let length = 0;
  for (const letter of piece) {
    const byte = LETTER_TO_BYTE.get(letter);
    if (byte === undefined) return Buffer.from(piece, 'utf8');
    bytes[length++] = byte;
  }
  return bytes.subarray(0, length);
}

const BYTE_PIECE = /^<0x([0-9A-Fa-f]{2})>$/;

/** Bytes of a SentencePiece piece; <0xNN> is one byte where the tokenizer falls back to bytes. */
export function bytesOfSentencePiece(piece: string, byteFallback: boolean): Uint8Array {
  const byte = byteFallback ? BYTE_PIECE.exec(piece)?.[1] : undefined;
  if (byte !== undefined) return Uint8Array.of(Number.parseInt(byte, 16));
  return Buffer.from(piece.replaceAll('\u2581', ' '), 'utf8');
}
