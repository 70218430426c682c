/**
 * Sends a workload. Open loop: every request leaves at its time whatever the server does; one that is late is sent late,
 * never dropped, and its lateness counts as latency. Closed loop: users who wait for their answer and think.
 */
import type { Clock } from '../../src/core/clock.js';
import type { Dialect } from '../client/dialect.js';
import type { ExchangeResult } from '../client/exchange.js';
import type { HttpClient } from '../client/http-client.js';
import type { Recorder, ScheduledRequest } from '../record/recorder.js';
import type { TracedRequest } from '../report/report-trace.js';
import type { Limits } from '../scenario/scenario.js';
import type { ClosedWorkload, OpenWorkload, Workload } from '../workload/plan.js';
import { nextTurn } from './timer.js';
import type { PreciseTimer } from './timer.js';

export interface RunnerParts {
  readonly client: HttpClient;
  readonly dialect: Dialect;
  readonly recorder: Recorder;
  readonly timer: PreciseTimer;
  readonly clock: Clock;
  readonly limits: Limits;
  readonly signal: AbortSignal;
  readonly onEnd: (result: ExchangeResult) => void;
  readonly onSent: () => void;
}

/** Above this rate something is due at nearly every tick of a timer, and exact waiting would only burn CPU. */
const EXACT_WAIT_PER_SECOND = 200;
/** Sends in a row may hold the event loop so long; then answers are read. */
const MAX_TURN_MS = 1;
/** The first measured request is due this long after the warm-up. */
const LEAD_IN_MS = 50;

/** A user whose request failed at once comes back after this; without it a dead server would be hit without end. */
const PAUSE_AFTER_FAILURE_MS = 100;

/** The clock's times of the measured window. */
export interface RunWindow {
  readonly from: number;
  /** End of the schedule, drain not included. */
  readonly to: number;
}

export class ScheduleRunner {
  readonly #parts: RunnerParts;
  #pending = 0;
  #onSettled: (() => void)[] = [];
  #nextIndex = 0;
  /** Requests of the measured phase in the order of their schedule. */
  readonly scheduled: TracedRequest[] = [];

  constructor(parts: RunnerParts) {
    this.#parts = parts;
    parts.signal.addEventListener('abort', () => parts.client.cancelAll(), { once: true });
  }

  /** Resolves when all have ended. */
  async warmUp({ warmup }: Workload, concurrency: number): Promise<void> {
    let next = 0;
    const user = async (): Promise<void> => {
      for (let planned = warmup[next++]; planned !== undefined; planned = warmup[next++]) {
        if (this.#parts.signal.aborted) return;
        await this.#sendNow(this.#schedule('warmup', planned, null, this.#parts.clock.nowMs()));
      }
    };
    await Promise.all(Array.from({ length: Math.min(concurrency, warmup.length) }, user));
  }

  /** Resolves when the last request has ended or the drain time is over; nothing is in flight then. */
  async measure({ measured }: Workload, onBegin: () => void): Promise<RunWindow> {
    const from = this.#parts.clock.nowMs() + LEAD_IN_MS;
    onBegin();
    const to = measured.loop === 'open' ? await this.#open(measured, from) : await this.#closed(measured, from);
    await this.#drain();
    return { from, to };
  }

  async #open({ requests, askedSpanMs, askedPerSecond }: OpenWorkload, from: number): Promise<number> {
    const { clock, dialect, timer, signal } = this.#parts;
    const isExact = askedPerSecond <= EXACT_WAIT_PER_SECOND;
    let turnBegan = clock.nowMs();
    for (const planned of requests) {
      const request = this.#schedule('measured', planned, null, from + (planned.atMs ?? 0));
      if (signal.aborted) {
        this.#parts.recorder.notSent(request);
        continue;
      }
      // Made before it is due, so that making it costs no time of the request.
      const body = dialect.body(planned);
      const now = clock.nowMs();
      if (request.scheduledAt > now) await timer.until(request.scheduledAt, isExact);
      else if (now - turnBegan > MAX_TURN_MS) await nextTurn();
      while (this.#pending >= this.#parts.limits.maxInFlight && !isStopped(signal)) await this.#settled();
      if (request.scheduledAt > now || now - turnBegan > MAX_TURN_MS) turnBegan = clock.nowMs();
      if (isStopped(signal)) this.#parts.recorder.notSent(request);
      else void this.#send(request, body);
    }
    return from + askedSpanMs;
  }

  async #closed(workload: ClosedWorkload, from: number): Promise<number> {
    const { client, clock, timer, signal, limits } = this.#parts;
    const to = from + workload.durationMs;
    let next = 0;
    const user = async (id: number): Promise<void> => {
      await timer.until(from, false);
      while (!signal.aborted && clock.nowMs() < to && next < workload.maxRequests) {
        const index = next++;
        const { outcome } = await this.#sendNow(this.#schedule('measured', workload.request(index), id, clock.nowMs()));
        const pauseMs = Math.max(workload.thinkMs(index), outcome === 'ok' ? 0 : PAUSE_AFTER_FAILURE_MS);
        if (pauseMs > 0) await timer.until(Math.min(clock.nowMs() + pauseMs, to), false);
      }
    };
    const drained = to + limits.drainMs - clock.nowMs();
    const cutoff = isFinite(drained) ? setTimeout(() => client.cancelAll(), Math.min(drained, 2 ** 31 - 1)) : undefined;
    await Promise.all(Array.from({ length: workload.concurrency }, (_, id) => user(id)));
    clearTimeout(cutoff);
    return Math.min(to, clock.nowMs());
  }

  #schedule(
    phase: ScheduledRequest['phase'],
    planned: TracedRequest,
    user: number | null,
    scheduledAt: number,
  ): ScheduledRequest {
    if (phase === 'measured') this.scheduled.push(planned);
    return { index: this.#nextIndex++, phase, planned, user, scheduledAt };
  }

  #sendNow(request: ScheduledRequest): Promise<ExchangeResult> {
    return this.#send(request, this.#parts.dialect.body(request.planned));
  }

  async #send(request: ScheduledRequest, body: string): Promise<ExchangeResult> {
    this.#pending++;
    this.#parts.onSent();
    const result = await this.#parts.client.send(body);
    this.#pending--;
    this.#parts.recorder.ended(request, result);
    this.#parts.onEnd(result);
    const waiting = this.#onSettled;
    this.#onSettled = [];
    for (const wake of waiting) wake();
    return result;
  }

  /** Resolves when the next request ends. */
  #settled(): Promise<void> {
    return new Promise((resolve) => {
      this.#onSettled.push(resolve);
    });
  }

  async #drain(): Promise<void> {
    const { client, clock, limits, signal } = this.#parts;
    if (signal.aborted) client.cancelAll();
    const timer = setTimeout(() => client.cancelAll(), Math.min(limits.drainMs, 2 ** 31 - 1));
    const until = clock.nowMs() + limits.drainMs;
    while (this.#pending > 0) {
      await this.#settled();
      if (clock.nowMs() >= until) client.cancelAll();
    }
    clearTimeout(timer);
  }
}

/** Read anew: between two looks the signal may have come, which the compiler cannot know. */
function isStopped(signal: AbortSignal): boolean {
  return signal.aborted;
}
