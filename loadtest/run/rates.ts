/** What was achieved of what was asked, from the records of an open loop. Pure. */
import type { RequestRecord } from '../report/run-report.js';

export interface Achieved {
  /** Of the scheduled requests, those that left while their schedule ran. */
  readonly sentShare: number;
  /** Of the asked rate, what the server kept up with, failures left out. */
  readonly completedShare: number;
}

/** Lateness that any timer has. */
const GRACE_MS = 50;

/** `windowEndMs`: end of the schedule on the time axis. */
export function achievedOf(records: readonly RequestRecord[], windowEndMs: number): Achieved {
  if (records.length === 0) return { sentShare: 0, completedShare: 0 };
  const onTime = records.filter(
    ({ sentAtMs, scheduledAtMs }) =>
      sentAtMs !== null && (sentAtMs <= windowEndMs || sentAtMs - scheduledAtMs <= GRACE_MS),
  );
  const ok = records.filter(({ outcome }) => outcome === 'ok');
  const steady = Math.min(shareByLatency(ok), shareByBacklog(records, windowEndMs));
  return { sentShare: onTime.length / records.length, completedShare: (ok.length / records.length) * steady };
}

/**
 * A server that takes requests in turn and keeps up with share ρ of its load answers a request of time t at t / ρ, so
 * latency grows by 1/ρ − 1 per second of schedule. The growth is taken between the medians of the second and the last
 * quarter, less two standard errors, so that neither the drain of a short run nor the spread of long answers counts.
 */
export function shareByLatency(ok: readonly RequestRecord[]): number {
  const [firstAt, lastAt] = [ok[0]?.scheduledAtMs ?? 0, ok.at(-1)?.scheduledAtMs ?? 0];
  const span = lastAt - firstAt;
  const quarter = (from: number): number[] =>
    ok
      .filter(({ scheduledAtMs: at }) => at >= firstAt + from * span && at <= firstAt + (from + 0.25) * span)
      .map(({ endAtMs, scheduledAtMs }) => (endAtMs ?? scheduledAtMs) - scheduledAtMs)
      .sort((left, right) => left - right);
  const [middle, end] = [quarter(0.25), quarter(0.75)];
  // With fewer than ten in a quarter its median says nothing.
  if (span <= 0 || middle.length < 10 || end.length < 10) return 1;
  const error = Math.hypot(medianError(middle), medianError(end));
  const growth = quantile(end, 0.5) - quantile(middle, 0.5) - 2 * error;
  return 1 / (1 + Math.max(0, growth) / (span / 2));
}

/**
 * A server that works on all requests at once slows all of them down, the early ones too; there what is unanswered
 * grows. Its mean over the last quarter is compared with that over the second, less twice the noise of two counts.
 */
export function shareByBacklog(records: readonly RequestRecord[], windowEndMs: number): number {
  const from = records[0]?.scheduledAtMs ?? 0;
  const span = windowEndMs - from;
  if (span <= 0) return 1;
  const at = (share: number): number => from + share * span;
  const [middle, end] = [meanUnanswered(records, at(0.25), at(0.5)), meanUnanswered(records, at(0.75), at(1))];
  // Between the centres of the two quarters.
  const arrived = records.filter(({ scheduledAtMs: due }) => due >= at(0.375) && due < at(0.875)).length;
  const growth = end - middle - 2 * Math.sqrt(middle + end);
  return arrived === 0 ? 1 : 1 - Math.min(1, Math.max(0, growth) / arrived);
}

function meanUnanswered(records: readonly RequestRecord[], fromMs: number, toMs: number): number {
  const overlap = records.reduce((sum, { scheduledAtMs, endAtMs }) => {
    return sum + Math.max(0, Math.min(endAtMs ?? Infinity, toMs) - Math.max(scheduledAtMs, fromMs));
  }, 0);
  return overlap / (toMs - fromMs);
}

function quantile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 0;
}

/** Standard error of a median: 1.253 σ / √n, with σ from the quartiles, which outliers do not move. */
function medianError(sorted: readonly number[]): number {
  const deviation = (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / 1.349;
  return (1.253 * deviation) / Math.sqrt(sorted.length);
}
