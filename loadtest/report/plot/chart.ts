/**
 * One chart as SVG: axes, grid, bands and series of points. Colours come from classes of the page's style sheet, so that
 * one drawing serves light and dark. Called by figure.ts, once for wide and once for narrow screens.
 */
import type { Markup } from '../markup.js';
import { element, fragment } from '../markup.js';
import type { Scale, Tick } from './scale.js';
import { linearScale, logScale, timeScale } from './scale.js';

/** Colours of the style sheet: `tone-1` … */
export type Tone = 1 | 2 | 3 | 4 | 5 | 6 | 'bad' | 'muted';
/** y `null` is a gap. */
export type Point = readonly [x: number, y: number | null];

export interface Series {
  readonly name: string;
  readonly tone: Tone;
  /** `step` holds a point's value until the next; `bars` go from a point's x to the next one's. */
  readonly mark: 'line' | 'dashes' | 'step' | 'dashed-step' | 'bars' | 'dots' | 'rings';
  readonly points: readonly Point[];
}

export interface Axis {
  readonly kind: 'linear' | 'log' | 'time';
  readonly label: string;
  readonly text: (value: number) => string;
  /** Values that the axis must show beside the data's. */
  readonly include?: readonly number[];
}

export interface Chart {
  readonly x: Axis;
  readonly y: Axis;
  readonly series: readonly Series[];
  /** Shaded stretches of the x axis, such as the warm-up. */
  readonly bands?: readonly { readonly from: number; readonly to: number; readonly label: string }[];
  /** What a pointer over a stretch of the x axis shows; wide drawings only. */
  readonly hints?: readonly { readonly from: number; readonly to: number; readonly text: string }[];
  /** Least room for the labels of the y axis, so that charts under each other line up. */
  readonly room?: number;
  /** Height over that of other charts; 1 when absent. */
  readonly tall?: number;
}

/** In units of the drawing's own view box. */
export interface ChartSize {
  readonly width: number;
  readonly height: number;
}

function hasValues({ series }: Chart): boolean {
  return series.some(({ points }) => points.some(([, y]) => y !== null));
}

interface Frame {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
  readonly x: Scale;
  readonly y: Scale;
}

/** Width of a character of the tick labels, a little more than it is in common fonts. */
const CHARACTER = 6.6;

/** The contents of an `<svg>` of the given size. */
export function drawChart(chart: Chart, size: ChartSize): Markup {
  const frame = makeFrame(chart, size);
  return fragment(
    (chart.bands ?? []).map((band) => drawBand(band, frame)),
    drawAxisY(frame),
    drawAxisX(chart.x.label, frame, size),
    chart.series.map((series) => drawSeries(series, frame)),
    hasValues(chart) ? undefined : drawNothing(frame),
    size.width < 500 ? undefined : (chart.hints ?? []).map((hint) => drawHint(hint, frame)),
  );
}

function makeFrame(chart: Chart, { width, height }: ChartSize): Frame {
  const top = 10;
  const bottom = height - 38;
  const right = width - 14;
  const points = chart.series.flatMap((series) => series.points.filter(([, y]) => y !== null));
  const y = makeScale(
    chart.y,
    points.map(([, value]) => value ?? 0),
    [bottom, top],
    Math.max(2, (bottom - top) / 42),
  );
  const left = 10 + Math.max(chart.room ?? 28, ...y.ticks.map(({ label }) => label.length * CHARACTER));
  const bands = (chart.bands ?? []).flatMap(({ from, to }) => [from, to]);
  const xs = [...points.map(([value]) => value), ...bands];
  return { left, right, top, bottom, y, x: makeScale(chart.x, xs, [left, right], Math.max(3, (right - left) / 90)) };
}

function makeScale(axis: Axis, values: readonly number[], range: readonly [number, number], count: number): Scale {
  const all = [...values, ...(axis.include ?? [])].filter((value) => axis.kind !== 'log' || value > 0);
  // Spread arguments are limited in number; points may be many.
  const low = all.reduce((least, value) => Math.min(least, value), Infinity);
  const high = all.reduce((most, value) => Math.max(most, value), -Infinity);
  const options = { domain: [low, high] as const, range, label: axis.text, count };
  if (axis.kind === 'log') return logScale(all.length === 0 ? { ...options, domain: [1, 1000] } : options);
  return axis.kind === 'time' ? timeScale(options) : linearScale(options);
}

function drawAxisY({ left, right, y }: Frame): Markup {
  const labels = fitting(
    y.ticks,
    (tick) => -y.at(tick.value),
    () => 13,
  );
  return element(
    'g',
    { class: 'axis' },
    y.ticks.map((tick) => {
      const at = round(y.at(tick.value));
      return element('path', { class: tick.minor ? 'grid minor' : 'grid', d: `M${round(left)} ${at}H${round(right)}` });
    }),
    labels.map((tick) =>
      element('text', { x: round(left - 6), y: round(y.at(tick.value) + 4), 'text-anchor': 'end' }, tick.label),
    ),
  );
}

function drawAxisX(label: string, { left, right, top, bottom, x }: Frame, { height }: ChartSize): Markup {
  const widthOf = (tick: Tick): number => tick.label.length * CHARACTER;
  // A label at the end of the axis moves inward rather than out of the drawing.
  const middleOf = (tick: Tick): number => Math.min(x.at(tick.value), right + 12 - widthOf(tick) / 2);
  const labels = fitting(x.ticks, middleOf, (tick) => widthOf(tick) + 8);
  return element(
    'g',
    { class: 'axis' },
    x.ticks.map((tick) => {
      const at = round(x.at(tick.value));
      return element('path', { class: tick.minor ? 'grid minor' : 'grid', d: `M${at} ${round(top)}V${round(bottom)}` });
    }),
    element('path', { class: 'base', d: `M${round(left)} ${round(bottom)}H${round(right)}` }),
    labels.map((tick) =>
      element('text', { x: round(middleOf(tick)), y: round(bottom + 16), 'text-anchor': 'middle' }, tick.label),
    ),
    element('text', { class: 'name', x: round(right), y: round(height - 6), 'text-anchor': 'end' }, label),
  );
}

/** Ticks whose labels do not run into each other; whole decades go before the minor ones between them. */
function fitting(ticks: readonly Tick[], at: (tick: Tick) => number, size: (tick: Tick) => number): readonly Tick[] {
  const kept: Tick[] = [];
  for (const tick of [...ticks.filter(({ minor }) => !minor), ...ticks.filter(({ minor }) => minor)]) {
    const isFree = kept.every((other) => Math.abs(at(other) - at(tick)) >= (size(other) + size(tick)) / 2);
    if (isFree) kept.push(tick);
  }
  return kept;
}

/** Empty axes look like a fault of the page; a word says that there was nothing to draw. */
function drawNothing({ left, right, top, bottom }: Frame): Markup {
  const place = { x: round((left + right) / 2), y: round((top + bottom) / 2), 'text-anchor': 'middle' };
  return element('text', place, 'no values');
}

function drawBand({ from, to, label }: { from: number; to: number; label: string }, { x, top, bottom }: Frame): Markup {
  const left = x.at(from);
  const width = x.at(to) - left;
  const hasRoom = width > label.length * CHARACTER;
  return fragment(
    element('rect', { class: 'band', x: round(left), y: round(top), width: round(width), height: round(bottom - top) }),
    hasRoom ? element('text', { class: 'name', x: round(left + 4), y: round(top + 13) }, label) : undefined,
  );
}

function drawHint({ from, to, text }: { from: number; to: number; text: string }, { x, top, bottom }: Frame): Markup {
  const left = x.at(from);
  const box = { x: round(left), y: round(top), width: round(x.at(to) - left), height: round(bottom - top) };
  return element('rect', { class: 'hint', ...box }, element('title', {}, text));
}

function drawSeries({ mark, tone, points }: Series, { x, y, bottom }: Frame): Markup {
  const places = points.map(([px, py]) => ({ x: round(x.at(px)), y: py === null ? null : round(y.at(py)) }));
  const toned = `tone-${tone}`;
  if (mark === 'dots' || mark === 'rings') {
    const circles = places.map((place) =>
      place.y === null ? undefined : element('circle', { cx: place.x, cy: place.y, r: places.length > 100 ? 2 : 3 }),
    );
    return element('g', { class: `${mark} ${toned}` }, circles);
  }
  if (mark === 'bars') return element('path', { class: `bars ${toned}`, d: barPath(places, round(bottom)) });
  return element('path', {
    class: `${mark.startsWith('dash') ? 'line dashes' : 'line'} ${toned}`,
    d: linePath(places, mark.endsWith('step')),
  });
}

interface Place {
  readonly x: number;
  readonly y: number | null;
}

function linePath(places: readonly Place[], isStep: boolean): string {
  let path = '';
  let isDown = false;
  for (const [index, { x, y }] of places.entries()) {
    if (y === null) {
      isDown = false;
      continue;
    }
    const next = places[index + 1];
    const isLast = (next?.y ?? null) === null;
    path += !isDown ? `M${x} ${y}` : isStep ? `H${x}V${y}` : `L${x} ${y}`;
    // Before a gap a step lasts until the gap; a line of one point would have no length, so it gets that of a dot.
    if (isLast && isStep && next !== undefined) path += `H${next.x}`;
    else if (isLast && !isDown) path += 'h.1';
    isDown = true;
  }
  return path;
}

function barPath(places: readonly Place[], bottom: number): string {
  return places
    .slice(0, -1)
    .map(({ x, y }, index) => {
      const right = places[index + 1]?.x ?? x;
      return y === null || y >= bottom
        ? ''
        : `M${x} ${bottom}V${y}H${round(Math.max(x + 0.5, right - 0.5))}V${bottom}z`;
    })
    .join('');
}

/** A tenth of a unit is finer than a screen shows. */
export function round(value: number): number {
  return Math.round(value * 10) / 10;
}
