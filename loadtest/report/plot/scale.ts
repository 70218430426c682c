/** Maps from values to places on an axis, with the ticks that people expect. Pure; used by every plot. */

export interface Tick {
  readonly value: number;
  readonly label: string;
  /** Has a grid line but, where space is short, no label. */
  readonly minor: boolean;
}

export interface Scale {
  /** Place of the value; values beyond the domain are held at its ends. */
  readonly at: (value: number) => number;
  readonly ticks: readonly Tick[];
  readonly domain: readonly [number, number];
}

export interface ScaleOptions {
  readonly domain: readonly [number, number];
  /** Places of the domain's ends; the first may be the larger, as for an upward axis in SVG. */
  readonly range: readonly [number, number];
  readonly label: (value: number) => string;
  /** About how many ticks to have. */
  readonly count?: number;
}

/** Steps of 1, 2 or 5 times a power of ten; the domain is widened to whole steps. */
export function linearScale({ domain, range, label, count = 5 }: ScaleOptions): Scale {
  const [low, high] = widened(domain);
  const step = niceStep((high - low) / count);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => {
    // Products such as 3 · 0.1 carry an error that a label would show.
    const value = Number(((first + index) * step).toPrecision(12));
    return { value, label: label(value), minor: false };
  });
  return { at: placer([first * step, last * step], range), ticks, domain: [first * step, last * step] };
}

/** Milliseconds, linear without widening and with ticks inside only: an axis of time ends when the run ends. */
export function timeScale(options: ScaleOptions): Scale {
  const [low, high] = widened(options.domain);
  const size = (high - low) / (options.count ?? 5);
  const step = TIME_STEPS_MS.find((candidate) => candidate >= size * 0.75) ?? niceStep(size);
  const first = Math.ceil(low / step - 1e-9);
  const ticks = Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => {
    const value = Number(((first + index) * step).toPrecision(12));
    return { value, label: options.label(value), minor: false };
  });
  return { at: placer([low, high], options.range), ticks, domain: [low, high] };
}

/** From a second on, time has steps of its own; below, any 1, 2 or 5 will do. */
const TIME_STEPS_MS: readonly number[] = [
  ...[1, 2, 5].flatMap((factor) => [factor, factor * 10, factor * 100]),
  ...[1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400].map((s) => s * 1000),
].sort((one, other) => one - other);

/** Decades, with 2 and 5 as minor ticks; the domain is widened to such a tick. Values of 0 and below are held at the low end. */
export function logScale({ domain, range, label }: ScaleOptions): Scale {
  const high = Math.max(domain[1], Number.MIN_VALUE * 1e20);
  const low = domain[0] > 0 ? Math.min(domain[0], high) : high / 1000;
  const values: number[] = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.ceil(Math.log10(high)) + 1; power += 1) {
    for (const factor of [1, 2, 5]) values.push(Number((factor * 10 ** power).toPrecision(12)));
  }
  const start = Math.max(
    0,
    values.findLastIndex((value) => value <= low * (1 + 1e-9)),
  );
  let end = values.findIndex((value) => value >= high * (1 - 1e-9));
  if (end <= start) end = start + 1;
  const kept = values.slice(start, end + 1);
  const wholeDecades = kept.filter(isDecade).length;
  const ticks = kept.map((value) => ({ value, label: label(value), minor: wholeDecades >= 3 && !isDecade(value) }));
  const ends: [number, number] = [kept[0] ?? low, kept.at(-1) ?? high];
  const place = placer([Math.log10(ends[0]), Math.log10(ends[1])], range);
  return { at: (value) => place(value > 0 ? Math.log10(value) : -Infinity), ticks, domain: ends };
}

function isDecade(value: number): boolean {
  return Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-9;
}

/** 1, 2 or 5 times a power of ten, at least `size`. */
export function niceStep(size: number): number {
  const power = 10 ** Math.floor(Math.log10(size));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= size * (1 - 1e-9)) ?? 10;
  return factor * power;
}

/** A domain of one point, or that is no domain, still needs an axis. */
function widened([low, high]: readonly [number, number]): readonly [number, number] {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  // Ends that differ by rounding only have no steps between them.
  const size = Math.max(Math.abs(low), Math.abs(high));
  if (high - low > size * 1e-9 && high - low > 1e-200) return [low, high];
  return size > 1e-200 ? [Math.min(0, low, high), Math.max(0, low, high)] : [0, 1];
}

function placer(
  [low, high]: readonly [number, number],
  [from, to]: readonly [number, number],
): (value: number) => number {
  return (value) => {
    const share = Math.min(1, Math.max(0, (value - low) / (high - low)));
    return from + (Number.isNaN(share) ? 0 : share) * (to - from);
  };
}
