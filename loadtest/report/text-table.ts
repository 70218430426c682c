/**
 * Tables for a terminal. Text from outside is made harmless first: a control character in an adapter's name would be run by
 * the terminal as an escape sequence, a bidirectional override would turn the line around.
 */

export interface TextColumn {
  readonly title: string;
  readonly align: 'left' | 'right';
  /** Longer cells end in `…`. Unlimited when absent. */
  readonly maxWidth?: number;
  /** Left out when the table is too wide; the lowest first. Columns without it always stay. */
  readonly dispensable?: number;
}

const GAP = '  ';
/** Controls, line and paragraph separators, bidirectional marks, zero-width characters, lone surrogates. */
const HARMFUL = /[\p{Cc}\p{Cs}\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u;

/** One line of text that a terminal shows as it is: harmful characters become U+FFFD. */
export function plainText(text: string): string {
  return text.replace(HARMFUL, '\ufffd');
}

/** Columns that the text takes in a terminal: 0 for combining marks, 2 for wide characters. */
export function displayWidth(text: string): number {
  let width = 0;
  for (const character of text) width += /\p{M}/u.test(character) ? 0 : WIDE.test(character) ? 2 : 1;
  return width;
}

/** The text, ended by `…` when it takes more columns than allowed. */
export function clip(text: string, maxWidth: number): string {
  if (displayWidth(text) <= maxWidth) return text;
  let kept = '';
  let width = 0;
  for (const character of text) {
    width += displayWidth(character);
    if (width > maxWidth - 1) break;
    kept += character;
  }
  return `${kept}…`;
}

/**
 * Lines of a table: the titles, then the rows. Cells are cleaned and cut; columns that can be spared go while the table is
 * wider than `width`.
 */
export function textTable(
  columns: readonly TextColumn[],
  rows: readonly (readonly string[])[],
  width = Infinity,
): string[] {
  const cells = [columns.map(({ title }) => title), ...rows].map((row) =>
    columns.map(({ maxWidth }, index) => clip(plainText(row[index] ?? ''), maxWidth ?? Infinity)),
  );
  const widths = columns.map((_, index) => Math.max(...cells.map((row) => displayWidth(row[index] ?? ''))));
  const kept = keptColumns(columns, widths, width);
  return cells.map((row) =>
    kept
      .map((index) => {
        const cell = row[index] ?? '';
        const padding = ' '.repeat((widths[index] ?? 0) - displayWidth(cell));
        return columns[index]?.align === 'right' ? padding + cell : cell + padding;
      })
      .join(GAP)
      .trimEnd(),
  );
}

function keptColumns(columns: readonly TextColumn[], widths: readonly number[], width: number): readonly number[] {
  let kept = columns.map((_, index) => index);
  const rank = (index: number): number => columns[index]?.dispensable ?? Infinity;
  const total = (): number => kept.reduce((sum, index) => sum + (widths[index] ?? 0) + GAP.length, -GAP.length);
  while (total() > width) {
    const lowest = Math.min(...kept.map(rank));
    if (lowest === Infinity) break;
    kept = kept.filter((index) => rank(index) !== lowest);
  }
  return kept;
}

/** Words wrapped at `width` columns; lines after the first begin with `indent`. Words longer than a line are cut up. */
export function wrap(text: string, width: number, indent = ''): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of plainText(text).split(/ +/)) {
    const joined = line === '' ? word : `${line} ${word}`;
    if (displayWidth(joined) <= width) {
      line = joined;
      continue;
    }
    if (line.trim() !== '') lines.push(line);
    line = indent + word;
    while (displayWidth(line) > width) {
      const head = clip(line, width + 1).slice(0, -1);
      if (head === '' || head === indent) break;
      lines.push(head);
      line = indent + line.slice(head.length);
    }
  }
  return [...lines, line];
}
