/** Waits for a point in time, more exactly than a timer does. */
import type { Clock } from '../../src/core/clock.js';

/** Node's timers have whole milliseconds and may come late by one or two; the rest is waited for turn by turn. */
const TIMER_SLACK_MS = 2;
/** Turns closer together than this did nothing but wait. */
const IDLE_TURN_MS = 0.2;

export class PreciseTimer {
  readonly #clock: Clock;
  readonly #signal: AbortSignal;
  /** CPU time spent on waiting, so that the report does not take it for work. */
  idleMs = 0;
  /** What is waiting on a timer; one listener of the signal wakes all of it. */
  readonly #waiting = new Set<() => void>();

  constructor(clock: Clock, signal: AbortSignal) {
    this.#clock = clock;
    this.#signal = signal;
    signal.addEventListener('abort', () => this.#wakeAll(), { once: true });
  }

  /**
   * Resolves at the clock's time `at`, or at once when that is over or the signal says stop. `isExact`: the last
   * two milliseconds are spent turning the event loop (other work is done in each turn); else a timer has to do.
   */
  async until(at: number, isExact: boolean): Promise<void> {
    const coarseAt = at - (isExact ? TIMER_SLACK_MS : 0);
    // Again, where a timer fired early: it counts from the begin of its turn of the event loop.
    for (let now = this.#clock.nowMs(); now < coarseAt && !this.#signal.aborted; now = this.#clock.nowMs()) {
      await this.#timeout(coarseAt - now);
    }
    if (isExact) await this.#turnUntil(at);
  }

  #timeout(ms: number): Promise<void> {
    return new Promise((resolve) => {
      if (this.#signal.aborted) return resolve();
      const done = (): void => {
        clearTimeout(timer);
        this.#waiting.delete(done);
        resolve();
      };
      const timer = setTimeout(done, isFinite(ms) ? Math.min(ms, 2 ** 31 - 1) : 2 ** 31 - 1);
      this.#waiting.add(done);
    });
  }

  #wakeAll(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  #turnUntil(at: number): Promise<void> {
    return new Promise((resolve) => {
      let last = this.#clock.nowMs();
      const turn = (): void => {
        const now = this.#clock.nowMs();
        if (now - last < IDLE_TURN_MS) this.idleMs += now - last;
        last = now;
        if (now >= at || this.#signal.aborted) resolve();
        else setImmediate(turn);
      };
      turn();
    });
  }
}

/** A turn of the event loop, so that answers are read between two sends. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    setImmediate(resolve);
  });
}
