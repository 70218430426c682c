/**
 * Takes each request as it ends and keeps what the report needs: one record a request, and histograms of the gaps between
 * pieces, whose number is too large to be kept. Called by the runner; aggregate.ts and timeline.ts make figures of it.
 */
import type { ExchangeResult } from '../client/exchange.js';
import { gapBinsOf } from '../report/gap-bins.js';
import type { ItlSummary, RequestRecord, Slo } from '../report/run-report.js';
import type { TracedRequest } from '../report/report-trace.js';
import { LatencyHistogram } from './histogram.js';

export interface RecorderOptions {
  /** The clock's value at time 0 of the report. */
  readonly startedAt: number;
  readonly slo: Slo;
  readonly bucketMs: number;
  readonly recordPieces: boolean;
}

/** A request of the schedule. */
export interface ScheduledRequest {
  readonly index: number;
  readonly phase: 'warmup' | 'measured';
  readonly planned: TracedRequest;
  readonly user: number | null;
  /** The clock's time, not the report's. */
  readonly scheduledAt: number;
}

/** Pieces that arrived in one slice of the time line. */
export interface PieceBucket {
  pieces: number;
  readonly itl: LatencyHistogram;
}

/** Further slices would only make the page slow; what comes later is counted in the last one. */
export const MAX_BUCKETS = 20_000;

export class Recorder {
  readonly #options: RecorderOptions;
  readonly #records: RequestRecord[] = [];
  readonly #itl = new LatencyHistogram();
  readonly #itlByAdapter = new Map<string | null, LatencyHistogram>();
  readonly #buckets: PieceBucket[] = [];

  constructor(options: RecorderOptions) {
    this.#options = options;
  }

  get startedAt(): number {
    return this.#options.startedAt;
  }

  get slo(): Slo {
    return this.#options.slo;
  }

  /** In the order of the schedule. */
  get records(): readonly RequestRecord[] {
    return this.#records;
  }

  /** Gaps of measured requests that ended well; `adapter` left out: of all of them. */
  itlOf(adapter?: string | null): LatencyHistogram {
    if (adapter === undefined) return this.#itl;
    return this.#itlByAdapter.get(adapter) ?? new LatencyHistogram();
  }

  get pieceBuckets(): readonly PieceBucket[] {
    return this.#buckets;
  }

  /** A scheduled request that the run's end overtook. */
  notSent(request: ScheduledRequest): void {
    this.#records[request.index] = this.#toRecord(request, undefined, null);
  }

  ended(request: ScheduledRequest, result: ExchangeResult): RequestRecord {
    const gaps = gapsOf(result.pieceAt);
    this.#countPieces(result.pieceAt, gaps);
    const record = this.#toRecord(request, result, summarise(gaps));
    this.#records[request.index] = record;
    if (record.phase === 'measured' && record.outcome === 'ok') {
      const ofAdapter = this.itlOf(record.adapter);
      this.#itlByAdapter.set(record.adapter, ofAdapter);
      for (const gap of gaps) {
        this.#itl.add(gap);
        ofAdapter.add(gap);
      }
    }
    return record;
  }

  #countPieces(pieceAt: readonly number[], gaps: Float64Array): void {
    for (const [index, at] of pieceAt.entries()) {
      const bucket = this.#bucketOf(at - this.#options.startedAt);
      bucket.pieces++;
      if (index > 0) bucket.itl.add(gaps[index - 1] ?? 0);
    }
  }

  #bucketOf(atMs: number): PieceBucket {
    const index = Math.min(MAX_BUCKETS - 1, Math.max(0, Math.floor(atMs / this.#options.bucketMs)));
    for (let next = this.#buckets.length; next <= index; next++) {
      this.#buckets.push({ pieces: 0, itl: new LatencyHistogram() });
    }
    return this.#buckets[index] as PieceBucket;
  }

  #toRecord(
    { index, phase, planned, user, scheduledAt }: ScheduledRequest,
    result: ExchangeResult | undefined,
    itl: ItlSummary | null,
  ): RequestRecord {
    const at = (time: number | null | undefined): number | null =>
      time == null ? null : round(time - this.#options.startedAt);
    const pieceAt = result?.pieceAt ?? [];
    const pieces = pieceAt.length;
    const record = {
      index,
      phase,
      adapter: planned.adapter,
      user,
      scheduledAtMs: at(scheduledAt) ?? 0,
      sentAtMs: at(result?.sentAt),
      headersAtMs: at(result?.headersAt),
      firstTokenAtMs: at(pieceAt[0]),
      lastTokenAtMs: at(pieceAt.at(-1)),
      endAtMs: at(result?.endAt),
      promptTokensAsked: planned.promptTokens,
      outputTokensAsked: planned.outputTokens,
      promptTokens: result?.promptTokens ?? null,
      outputTokens: result?.outputTokens ?? pieces,
      pieces,
      itl,
      pieceAtMs: this.#options.recordPieces ? pieceAt.map((time) => round(time - this.#options.startedAt)) : null,
      outcome: result?.outcome ?? ('not_sent' as const),
      status: result?.status ?? null,
      finishReason: result?.finishReason ?? null,
      errorText: result?.errorText ?? null,
      retryAfterSeconds: result?.retryAfterSeconds ?? null,
    };
    return { ...record, good: keepsSlo(record, this.#options.slo) };
  }
}

/** Microseconds: finer is noise, and would make the file larger. */
function round(ms: number): number {
  return Math.round(ms * 1000) / 1000;
}

function gapsOf(pieceAt: readonly number[]): Float64Array {
  const gaps = new Float64Array(Math.max(0, pieceAt.length - 1));
  for (let index = 0; index < gaps.length; index++) gaps[index] = (pieceAt[index + 1] ?? 0) - (pieceAt[index] ?? 0);
  return gaps;
}

function summarise(gaps: Float64Array): ItlSummary | null {
  if (gaps.length === 0) return null;
  const sorted = gaps.toSorted();
  const rank = (share: number): number => round(sorted[Math.max(1, Math.ceil(share * sorted.length)) - 1] ?? 0);
  const sum = sorted.reduce((total, gap) => total + gap, 0);
  return {
    meanMs: round(sum / sorted.length),
    p50Ms: rank(0.5),
    p99Ms: rank(0.99),
    maxMs: rank(1),
    bins: gapBinsOf(sorted),
  };
}

type Timed = Pick<
  RequestRecord,
  'scheduledAtMs' | 'firstTokenAtMs' | 'lastTokenAtMs' | 'endAtMs' | 'outputTokens' | 'pieces' | 'itl' | 'outcome'
>;

/** Milliseconds a token after the first; `null` when the answer came in one piece. */
export function tpotOf({ firstTokenAtMs, lastTokenAtMs, outputTokens, pieces }: Timed): number | null {
  if (firstTokenAtMs === null || lastTokenAtMs === null || outputTokens < 2 || pieces < 2) return null;
  return (lastTokenAtMs - firstTokenAtMs) / (outputTokens - 1);
}

function keepsSlo(record: Timed, slo: Slo): boolean {
  if (record.outcome !== 'ok') return false;
  const { scheduledAtMs, firstTokenAtMs, endAtMs, itl } = record;
  const within = (value: number | null, limit: number | null): boolean =>
    limit === null || value === null || value <= limit;
  return (
    within(firstTokenAtMs === null ? null : firstTokenAtMs - scheduledAtMs, slo.ttftMs) &&
    within(tpotOf(record), slo.tpotMs) &&
    within(itl?.p99Ms ?? null, slo.itlP99Ms) &&
    within(endAtMs === null ? null : endAtMs - scheduledAtMs, slo.e2eMs)
  );
}
