/**
 * When requests are due in an open loop: times are fixed before the run begins and no answer moves them. Pure.
 * Times are milliseconds from the begin of the measured window, ascending.
 */
import { exponential } from './random.js';
import type { Random } from './random.js';

export type OpenArrivals =
  /** Independent users: exponential gaps. */
  | { readonly kind: 'poisson'; readonly ratePerSecond: number; readonly end: End }
  | { readonly kind: 'constant'; readonly ratePerSecond: number; readonly end: End }
  /** `size` requests at once, every `everySeconds`; `spreadSeconds` > 0 scatters them evenly at random over that time. */
  | {
      readonly kind: 'bursts';
      readonly size: number;
      readonly everySeconds: number;
      readonly spreadSeconds: number;
      readonly end: End;
    }
  /** Poisson whose rate goes from one value to the other in a straight line. */
  | {
      readonly kind: 'ramp';
      readonly fromPerSecond: number;
      readonly toPerSecond: number;
      readonly durationSeconds: number;
    };

/** Whichever comes first; at least one is there. */
export interface End {
  readonly durationSeconds: number | undefined;
  readonly requests: number | undefined;
}

/** More requests than this would not fit into one report; longer runs are better cut in several. */
export const MAX_REQUESTS = 2_000_000;

export function arrivalTimes(arrivals: OpenArrivals, random: Random): Float64Array {
  switch (arrivals.kind) {
    case 'poisson': {
      const gap = 1000 / arrivals.ratePerSecond;
      return collect(arrivals.end, (_, last) => last + gap * exponential(random));
    }
    case 'constant':
      return collect(arrivals.end, (index) => (index * 1000) / arrivals.ratePerSecond);
    case 'bursts':
      return burstTimes(arrivals, random);
    case 'ramp':
      return rampTimes(arrivals, random);
  }
}

function collect(end: End, next: (index: number, last: number) => number): Float64Array {
  const limitMs = (end.durationSeconds ?? Infinity) * 1000;
  const count = Math.min(end.requests ?? Infinity, MAX_REQUESTS);
  const times: number[] = [];
  for (let last = 0; times.length < count;) {
    last = next(times.length, last);
    if (last >= limitMs) break;
    times.push(last);
  }
  return Float64Array.from(times);
}

function burstTimes({ size, everySeconds, spreadSeconds, end }: OpenArrivals & { kind: 'bursts' }, random: Random) {
  const times = collect(end, (index) => Math.floor(index / size) * everySeconds * 1000);
  return times.map((time) => time + spreadSeconds * 1000 * random()).sort();
}

/**
 * Inhomogeneous Poisson by inversion: unit-rate exponentials are added up and mapped back through the integral of the
 * rate, Λ(t) = a t + (b − a) t² / (2 T).
 */
function rampTimes({ fromPerSecond, toPerSecond, durationSeconds }: OpenArrivals & { kind: 'ramp' }, random: Random) {
  const slope = (toPerSecond - fromPerSecond) / durationSeconds;
  const total = fromPerSecond * durationSeconds + (slope * durationSeconds ** 2) / 2;
  const times: number[] = [];
  for (let area = exponential(random); area < total && times.length < MAX_REQUESTS; area += exponential(random)) {
    // The root of slope/2 t² + from t − area = 0 in the form that stays exact for slope near 0.
    times.push((2000 * area) / (fromPerSecond + Math.sqrt(Math.max(0, fromPerSecond ** 2 + 2 * slope * area))));
  }
  return Float64Array.from(times);
}

/** Requests and seconds that were asked for; the rate is requests / seconds. */
export function askedSpanSeconds(arrivals: OpenArrivals, times: Float64Array): number {
  if (arrivals.kind === 'ramp') return arrivals.durationSeconds;
  const { durationSeconds, requests } = arrivals.end;
  const countSpan = requests === undefined ? Infinity : spanOfCount(arrivals, times.length);
  return Math.min(durationSeconds ?? Infinity, countSpan);
}

/** A run that ends after a count has no end of its own: the time that so many requests take at the asked rate. */
function spanOfCount(arrivals: Exclude<OpenArrivals, { kind: 'ramp' }>, count: number): number {
  if (arrivals.kind === 'bursts') return Math.ceil(count / arrivals.size) * arrivals.everySeconds;
  return count / arrivals.ratePerSecond;
}
