/** Tables of pages, and names from outside in them. */
import type { Child, Markup } from './markup.js';
import { element } from './markup.js';
import { clip, plainText } from './text-table.js';

export interface HtmlColumn {
  readonly title: string;
  /** Text that may be long and is wrapped; numbers stand right. */
  readonly kind?: 'number' | 'text';
}

/** A table whose first column names the row. */
export function htmlTable(caption: Child, columns: readonly HtmlColumn[], rows: readonly (readonly Child[])[]): Markup {
  return element(
    'table',
    {},
    caption === '' ? undefined : element('caption', {}, element('span', {}, caption)),
    element(
      'thead',
      {},
      element(
        'tr',
        {},
        columns.map(({ title, kind }) => element('th', { scope: 'col', class: kind }, title)),
      ),
    ),
    element(
      'tbody',
      {},
      rows.map((row) =>
        element(
          'tr',
          {},
          row.map((cell, index) =>
            index === 0
              ? element('th', { scope: 'row' }, cell)
              : element('td', columns[index]?.kind === 'text' ? { class: 'text' } : {}, cell),
          ),
        ),
      ),
    ),
  );
}

/** A name from outside: kept apart from the text around it whatever its direction, shortened by the style sheet only. */
export function nameOf(name: string): Markup {
  const shown = clip(plainText(name), 200);
  return element('bdi', { class: 'name', title: shown.length > 24 ? shown : undefined }, shown);
}
