/** A figure of a report: caption, one or more charts in a wide and a narrow drawing, and the same figures as a table. */
import type { Child, Markup } from '../markup.js';
import { element } from '../markup.js';
import type { Chart, Series, Tone } from './chart.js';
import { drawChart } from './chart.js';

/** A chart or any other drawing that can be made for a width. */
export interface Panel {
  /** What the y axis is; stands above the drawing. Empty when the caption says it. */
  readonly heading: string;
  /** For those who do not see the drawing: its gist in a sentence or two. */
  readonly description: string;
  readonly keys: readonly { readonly name: string; readonly tone: Tone; readonly mark: Series['mark'] | 'range' }[];
  readonly draw: (width: number) => { readonly height: number; readonly contents: Markup };
}

export interface FigureOptions {
  /** Unique in its page. */
  readonly id: string;
  readonly title: string;
  readonly caption: Child;
  readonly panels: readonly Panel[];
  readonly table?: Markup;
  /** Takes the whole width of the page. */
  readonly full?: boolean;
}

/** Units of the view boxes; the page scales them to the screen. Narrow ones are for phones. */
export const WIDTHS = { full: 960, half: 520, narrow: 350 } as const;

export function chartPanel(chart: Chart, description: string): Panel {
  return {
    heading: chart.y.label,
    description,
    // A series without a name is a second drawing of one that has it.
    keys: chart.series.filter(({ name }) => name !== '').map(({ name, tone, mark }) => ({ name, tone, mark })),
    draw: (width) => {
      const height = Math.round((width < 500 ? 215 : width < 700 ? 290 : 200) * (chart.tall ?? 1));
      return { height, contents: drawChart(chart, { width, height }) };
    },
  };
}

export function figure({ id, title, caption, panels, table, full = false }: FigureOptions): Markup {
  return element(
    'figure',
    { id, class: full ? 'full' : 'half' },
    element('figcaption', {}, element('h3', {}, title), element('p', {}, caption)),
    panels.map((panel, index) => drawPanel(panel, { id: `${id}-${index}`, title, full })),
    table === undefined
      ? undefined
      : element(
          'details',
          {},
          element('summary', {}, 'The same as a table'),
          element('div', { class: 'scroll' }, table),
        ),
  );
}

function drawPanel(panel: Panel, { id, title, full }: { id: string; title: string; full: boolean }): Markup {
  return element(
    'div',
    { class: 'panel' },
    element(
      'p',
      { class: 'keys' },
      panel.heading === '' ? undefined : element('b', {}, panel.heading),
      panel.keys.map(({ name, tone, mark }) =>
        element('span', {}, element('i', { class: `key key-${mark} tone-${tone}`, 'aria-hidden': 'true' }), name),
      ),
    ),
    drawSvg(panel, { id: `${id}-w`, title, width: full ? WIDTHS.full : WIDTHS.half, kind: 'wide' }),
    drawSvg(panel, { id: `${id}-n`, title, width: WIDTHS.narrow, kind: 'narrow' }),
  );
}

interface Drawing {
  readonly id: string;
  readonly title: string;
  readonly width: number;
  readonly kind: 'wide' | 'narrow';
}

function drawSvg(panel: Panel, { id, title, width, kind }: Drawing): Markup {
  const { height, contents } = panel.draw(width);
  return element(
    'svg',
    { class: kind, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-labelledby': `${id}-t ${id}-d` },
    element('title', { id: `${id}-t` }, panel.heading === '' ? title : `${title}: ${panel.heading}`),
    element('desc', { id: `${id}-d` }, panel.description),
    contents,
  );
}
