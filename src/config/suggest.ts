/**
 * "Did you mean": the closest known word to a misspelt one. Called by the readers of flags, environment variables and
 * YAML keys, and by the terminal chat for its commands.
 */

/** Edits (insert, delete, replace, swap of neighbours) that turn one word into the other; small words only. */
export function editDistance(from: string, to: string): number {
  const width = to.length + 1;
  let beforeLast: number[] = [];
  let last = Array.from({ length: width }, (_, column) => column);
  for (let row = 1; row <= from.length; row++) {
    const current = [row];
    for (let column = 1; column < width; column++) {
      const replace = (last[column - 1] ?? 0) + (from[row - 1] === to[column - 1] ? 0 : 1);
      let best = Math.min((last[column] ?? 0) + 1, (current[column - 1] ?? 0) + 1, replace);
      const swapped = row > 1 && column > 1 && from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1];
      if (swapped) best = Math.min(best, (beforeLast[column - 2] ?? 0) + 1);
      current.push(best);
    }
    beforeLast = last;
    last = current;
  }
  return last[to.length] ?? 0;
}

/** Words are compared in lower case and without separators, so MAX_NUM_SEQ is near max-num-seqs. */
function normalise(word: string): string {
  return word.toLowerCase().replace(/[-_.\s]/g, '');
}

/**
 * The known word that the given one most likely stands for: within a third of its length in edits, or one that
 * begins with it. Undefined when nothing is near.
 */
export function closest(word: string, known: readonly string[]): string | undefined {
  const wanted = normalise(word);
  if (wanted === '') return undefined;
  const scored = known.map((candidate) => ({ candidate, distance: editDistance(wanted, normalise(candidate)) }));
  scored.sort((left, right) => left.distance - right.distance);
  const [best] = scored;
  if (best !== undefined && best.distance <= Math.max(1, Math.floor(wanted.length / 3))) return best.candidate;
  if (wanted.length < 4) return undefined;
  return known.find((candidate) => normalise(candidate).startsWith(wanted));
}

/** ` Did you mean --port?` for the end of a message, or an empty string. */
export function didYouMean(word: string, known: readonly string[]): string {
  const suggestion = closest(word, known);
  return suggestion === undefined ? '' : ` Did you mean ${suggestion}?`;
}
