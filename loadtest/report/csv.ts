/**
 * CSV as RFC 4180 has it: CRLF at the end of each record, quotes around fields that need them. Spreadsheets run cells that
 * begin like a formula (OWASP, "CSV Injection"), so such text gets an apostrophe in front; numbers stay numbers.
 */

export type Cell = string | number | boolean | null | undefined;

/** Beginnings that a spreadsheet may take for a formula; tab and CR are skipped by some before they look. */
const FORMULA = /^[\s\p{Cc}]*[=+\-@\uff1d\uff0b\uff0d\uff20|]|^[\t\r\n]/u;

/** One field. Numbers that are not finite, null and undefined are empty. */
export function csvField(cell: Cell): string {
  if (cell === null || cell === undefined) return '';
  if (typeof cell === 'number') return Number.isFinite(cell) ? String(cell) : '';
  if (typeof cell === 'boolean') return String(cell);
  const text = FORMULA.test(cell) ? `'${cell}` : cell;
  return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csvRecord(cells: readonly Cell[]): string {
  return `${cells.map(csvField).join(',')}\r\n`;
}
