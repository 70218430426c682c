/**
 * The merges that a SentencePiece vocabulary implies. SentencePiece joins, again and again, the neighbours whose
 * joint piece ranks best; as byte-pair merges that is every way to cut every piece in two, best piece first.
 * Called by gguf-tokenizer.ts for files that list no merges.
 */

/** Number of code points; merges are ordered by it. */
function codePoints(text: string): number {
  let count = 0;
  for (let i = 0; i < text.length; i += 1) if ((text.charCodeAt(i) & 0xfc00) !== 0xdc00) count += 1;
  return count;
}

interface Cut {
  readonly left: string;
  readonly right: string;
  readonly leftId: number;
  readonly rightId: number;
  readonly leftLength: number;
  readonly rightLength: number;
}

/** Every cut of the piece into two pieces of the vocabulary, in transformers' order for equal lengths. */
function cutsOf(piece: string, ids: ReadonlyMap<string, number>): Cut[] {
  const cuts: Cut[] = [];
  for (let at = 1; at < piece.length; at += 1) {
    if ((piece.charCodeAt(at) & 0xfc00) === 0xdc00) continue; // inside a surrogate pair
    const left = piece.slice(0, at);
    const leftId = ids.get(left);
    if (leftId === undefined) continue;
    const right = piece.slice(at);
    const rightId = ids.get(right);
    if (rightId === undefined) continue;
    cuts.push({ left, right, leftId, rightId, leftLength: codePoints(left), rightLength: codePoints(right) });
  }
  return cuts.sort((a, b) => a.leftId - b.leftId || a.rightId - b.rightId);
}

/**
 * Merges, first to apply first. `rank` of a piece: higher is better. Pieces of one rank share their place; within
 * it longer left halves come first, then longer right halves, as `generate_merges` of transformers orders them.
 */
export function mergesFromRanks(ids: ReadonlyMap<string, number>, rank: (piece: string) => number): [string, string][] {
  const pieces = [...ids.keys()].map((piece) => ({ piece, rank: rank(piece) })).sort((a, b) => b.rank - a.rank);
  const merges: [string, string][] = [];
  let from = 0;
  while (from < pieces.length) {
    let to = from;
    const cuts: Cut[] = [];
    for (; to < pieces.length && pieces[to]?.rank === pieces[from]?.rank; to += 1) {
      cuts.push(...cutsOf(pieces[to]?.piece ?? '', ids));
    }
    cuts.sort((a, b) => b.leftLength - a.leftLength || b.rightLength - a.rightLength);
    for (const cut of cuts) merges.push([cut.left, cut.right]);
    from = to;
  }
  return merges;
}
