/** Watches the load generator itself: event-loop lag, CPU, memory. What it sees decides whether the client was the limit. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { IntervalHistogram } from 'node:perf_hooks';
import type { Clock } from '../../src/core/clock.js';
import type { ClientReport, ClientSample } from '../report/run-report.js';

/** Node's histogram holds the time between two ticks of a timer of this period; what is above the period is lag. */
const RESOLUTION_MS = 10;
const SAMPLE_MS = 1000;

export interface Watched {
  inFlight(): number;
  /** CPU time that was spent on nothing but waiting for the next send. */
  idleMs(): number;
}

/** All that stands in the report, but for the judgement. */
export type ClientFigures = Omit<ClientReport, 'wasLimit'>;

export class ClientMonitor {
  readonly #clock: Clock;
  readonly #watched: Watched;
  readonly #slice = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #measured = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #samples: (ClientSample & { readonly at: number; readonly isMeasured: boolean })[] = [];
  #timer: NodeJS.Timeout | undefined;
  #last = { at: 0, cpuMs: 0 };
  #measuredFrom = { at: 0, cpuMs: 0 };
  #isMeasured = false;

  constructor(clock: Clock, watched: Watched) {
    this.#clock = clock;
    this.#watched = watched;
  }

  start(): void {
    this.#slice.enable();
    this.#last = this.#cpu();
    this.#measuredFrom = this.#last;
    this.#timer = setInterval(() => this.#sample(), SAMPLE_MS);
  }

  /** The measured window begins: warm-up has compiled the code and must not count. */
  beginMeasured(): void {
    this.#measured.enable();
    this.#measuredFrom = this.#cpu();
    this.#isMeasured = true;
  }

  /** `startedAt`: the clock's value at time 0 of the report. */
  stop(startedAt: number): ClientFigures {
    this.#sample();
    this.close();
    const end = this.#cpu();
    const wallMs = end.at - this.#measuredFrom.at;
    const measured = this.#samples.filter(({ isMeasured }) => isMeasured);
    return {
      samples: this.#samples.map(({ at, isMeasured: _, ...sample }) => ({ ...sample, atMs: round(at - startedAt) })),
      eventLoopLagMs: {
        mean: lag(this.#measured.mean),
        p50: lagAt(this.#measured, 50),
        p99: lagAt(this.#measured, 99),
        p999: lagAt(this.#measured, 99.9),
        max: lag(this.#measured.max),
      },
      cpuShareMean: wallMs > 0 ? round(Math.max(0, end.cpuMs - this.#measuredFrom.cpuMs) / wallMs) : 0,
      cpuShareMax: Math.max(0, ...measured.map(({ cpuShare }) => cpuShare)),
      memoryMaxBytes: Math.max(...this.#samples.map(({ memoryBytes }) => memoryBytes)),
    };
  }

  /** Ends the watching; a second call does nothing. */
  close(): void {
    clearInterval(this.#timer);
    this.#slice.disable();
    this.#measured.disable();
  }

  /** User and system time of all threads of the process, without the waiting. */
  #cpu(): { at: number; cpuMs: number } {
    const { user, system } = process.cpuUsage();
    return { at: this.#clock.nowMs(), cpuMs: (user + system) / 1000 - this.#watched.idleMs() };
  }

  #sample(): void {
    const now = this.#cpu();
    const wallMs = now.at - this.#last.at;
    this.#samples.push({
      at: now.at,
      atMs: 0,
      isMeasured: this.#isMeasured,
      cpuShare: wallMs > 0 ? round(Math.max(0, now.cpuMs - this.#last.cpuMs) / wallMs) : 0,
      eventLoopLagP99Ms: lagAt(this.#slice, 99),
      eventLoopLagMaxMs: lag(this.#slice.max),
      memoryBytes: process.memoryUsage.rss(),
      inFlight: this.#watched.inFlight(),
    });
    this.#slice.reset();
    this.#last = now;
  }
}

function lagAt(histogram: IntervalHistogram, percentile: number): number {
  return histogram.count === 0 ? 0 : lag(histogram.percentile(percentile));
}

/** Nanoseconds between two ticks → milliseconds too late. An empty histogram has NaN or its largest value. */
function lag(nanoseconds: number): number {
  const ms = nanoseconds / 1e6 - RESOLUTION_MS;
  return Number.isFinite(ms) && ms < 1e9 ? round(Math.max(0, ms)) : 0;
}

function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}
