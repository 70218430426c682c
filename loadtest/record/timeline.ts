/** Records → slices of the run's time axis. Pure. */
import type { RequestRecord, TimelineBucket } from '../report/run-report.js';
import { LatencyHistogram } from './histogram.js';
import { MAX_BUCKETS } from './recorder.js';
import type { PieceBucket } from './recorder.js';

interface Slice {
  scheduled: number;
  sent: number;
  ok: number;
  errors: number;
  inFlightMax: number;
  readonly ttft: LatencyHistogram;
  readonly e2e: LatencyHistogram;
}

export function buildTimeline(
  records: readonly RequestRecord[],
  pieceBuckets: readonly PieceBucket[],
  bucketMs: number,
  endMs: number,
): TimelineBucket[] {
  const count = Math.min(MAX_BUCKETS, Math.max(1, Math.ceil(endMs / bucketMs), pieceBuckets.length));
  const slices = Array.from({ length: count }, newSlice);
  const sliceAt = (atMs: number): Slice => {
    return slices[Math.min(count - 1, Math.max(0, Math.floor(atMs / bucketMs)))] as Slice;
  };
  for (const record of records) addRecord(record, sliceAt);
  addInFlight(records, slices, bucketMs);
  return slices.map((slice, index) => toBucket(slice, pieceBuckets[index], index * bucketMs, (index + 1) * bucketMs));
}

function newSlice(): Slice {
  const histograms = { ttft: new LatencyHistogram(), e2e: new LatencyHistogram() };
  return { scheduled: 0, sent: 0, ok: 0, errors: 0, inFlightMax: 0, ...histograms };
}

function addRecord(record: RequestRecord, sliceAt: (atMs: number) => Slice): void {
  const { scheduledAtMs, sentAtMs, firstTokenAtMs, endAtMs, outcome } = record;
  sliceAt(scheduledAtMs).scheduled++;
  if (sentAtMs !== null) sliceAt(sentAtMs).sent++;
  if (firstTokenAtMs !== null) sliceAt(firstTokenAtMs).ttft.add(firstTokenAtMs - scheduledAtMs);
  if (endAtMs === null) return;
  const end = sliceAt(endAtMs);
  if (outcome === 'ok') {
    end.ok++;
    end.e2e.add(endAtMs - scheduledAtMs);
  } else {
    end.errors++;
  }
}

/** Walks over sends and ends in the order of time; a slice begins with what the one before it left in flight. */
function addInFlight(records: readonly RequestRecord[], slices: Slice[], bucketMs: number): void {
  const changes: { atMs: number; by: 1 | -1 }[] = [];
  for (const { sentAtMs, endAtMs } of records) {
    if (sentAtMs === null || endAtMs === null) continue;
    changes.push({ atMs: sentAtMs, by: 1 }, { atMs: endAtMs, by: -1 });
  }
  changes.sort((left, right) => left.atMs - right.atMs || left.by - right.by);
  let inFlight = 0;
  let next = 0;
  for (const [index, slice] of slices.entries()) {
    slice.inFlightMax = inFlight;
    const isLast = index === slices.length - 1;
    for (; next < changes.length; next++) {
      const change = changes[next] as { atMs: number; by: 1 | -1 };
      if (!isLast && change.atMs >= (index + 1) * bucketMs) break;
      inFlight += change.by;
      slice.inFlightMax = Math.max(slice.inFlightMax, inFlight);
    }
  }
}

function toBucket(slice: Slice, pieces: PieceBucket | undefined, fromMs: number, toMs: number): TimelineBucket {
  return {
    fromMs,
    toMs,
    scheduled: slice.scheduled,
    sent: slice.sent,
    ok: slice.ok,
    errors: slice.errors,
    pieces: pieces?.pieces ?? 0,
    inFlightMax: slice.inFlightMax,
    ttftP50Ms: slice.ttft.percentile(0.5),
    ttftP99Ms: slice.ttft.percentile(0.99),
    e2eP50Ms: slice.e2e.percentile(0.5),
    e2eP99Ms: slice.e2e.percentile(0.99),
    itlP99Ms: pieces?.itl.percentile(0.99) ?? null,
  };
}
