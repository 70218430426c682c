/** The time line at the resolution that a screen can show: neighbouring slices and scrapes are merged, spikes are kept. */
import type { RunReport, ServerSample, TimelineBucket } from '../run-report.js';

/** More than this many steps on a line cannot be told apart. */
export const MAX_SLICES = 240;

/**
 * At most `limit` slices. Counts are added; of levels and p99s the highest is kept; of p50s the middle one, for the median
 * of several slices together cannot be known from theirs.
 */
export function mergeSlices(timeline: readonly TimelineBucket[], limit = MAX_SLICES): readonly TimelineBucket[] {
  return groups(timeline, limit).map((group) => mergeGroup(group));
}

function mergeGroup(group: readonly TimelineBucket[]): TimelineBucket {
  const [first] = group;
  const last = group.at(-1);
  if (first === undefined || last === undefined || group.length === 1) return first as TimelineBucket;
  const sum = (pick: (slice: TimelineBucket) => number): number =>
    group.reduce((total, slice) => total + pick(slice), 0);
  return {
    fromMs: first.fromMs,
    toMs: last.toMs,
    scheduled: sum(({ scheduled }) => scheduled),
    sent: sum(({ sent }) => sent),
    ok: sum(({ ok }) => ok),
    errors: sum(({ errors }) => errors),
    pieces: sum(({ pieces }) => pieces),
    inFlightMax: highest(group.map(({ inFlightMax }) => inFlightMax)) ?? 0,
    ttftP50Ms: middle(group.map(({ ttftP50Ms }) => ttftP50Ms)),
    ttftP99Ms: highest(group.map(({ ttftP99Ms }) => ttftP99Ms)),
    e2eP50Ms: middle(group.map(({ e2eP50Ms }) => e2eP50Ms)),
    e2eP99Ms: highest(group.map(({ e2eP99Ms }) => e2eP99Ms)),
    itlP99Ms: highest(group.map(({ itlP99Ms }) => itlP99Ms)),
  };
}

/** At most `limit` points of one figure of the server, the highest of each group of scrapes. */
export function serverLine(
  samples: readonly ServerSample[],
  pick: (sample: ServerSample) => number | null,
  limit = MAX_SLICES,
): readonly (readonly [number, number | null])[] {
  return groups(samples, limit).map((group) => [group[0]?.atMs ?? 0, highest(group.map(pick))] as const);
}

/** What a total grows by in a second, between groups of scrapes. A total that falls was counted anew: a gap. */
export function serverRate(
  samples: readonly ServerSample[],
  pick: (sample: ServerSample) => number | null,
  limit = MAX_SLICES,
): readonly (readonly [number, number | null])[] {
  const known = samples.filter((sample) => pick(sample) !== null);
  const ends = groups(known, limit).flatMap((group) => group.at(-1) ?? []);
  const [first] = known;
  if (first === undefined) return [];
  return ends.map((sample, index) => {
    const before = index === 0 ? first : (ends[index - 1] ?? first);
    const grown = (pick(sample) ?? 0) - (pick(before) ?? 0);
    const seconds = (sample.atMs - before.atMs) / 1000;
    return [sample.atMs, seconds > 0 && grown >= 0 ? grown / seconds : null] as const;
  });
}

/** Warm-up and drain, for shading. */
export function phaseBands({ workload, run }: RunReport): readonly { from: number; to: number; label: string }[] {
  const { measuredFromMs, measuredToMs } = workload;
  return [
    ...(measuredFromMs > 0 ? [{ from: 0, to: measuredFromMs, label: 'warm-up' }] : []),
    ...(run.durationMs > measuredToMs ? [{ from: measuredToMs, to: run.durationMs, label: 'drain' }] : []),
  ];
}

/** Runs of neighbours of equal length (the last may be shorter), at most `limit` of them. */
export function groups<Item>(items: readonly Item[], limit: number): readonly (readonly Item[])[] {
  const size = Math.max(1, Math.ceil(items.length / limit));
  return Array.from({ length: Math.ceil(items.length / size) }, (_, index) =>
    items.slice(index * size, (index + 1) * size),
  );
}

export function highest(values: readonly (number | null)[]): number | null {
  return values.reduce((most, value) => (value === null ? most : Math.max(most ?? -Infinity, value)), null);
}

export function middle(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null).sort((one, other) => one - other);
  return known[Math.floor((known.length - 1) / 2)] ?? null;
}
