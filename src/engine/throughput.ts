/** How fast sequences have been finishing lately, to tell a refused client honestly when to come back. */

/** Ends that the rate is taken over. */
const WINDOW = 64;
const MAX_SECONDS = 600;

export class Throughput {
  /** Milliseconds of the last ends, oldest first. */
  #ends: number[] = [];
  #busySinceMs = 0;

  /** Work came after a time without: what was measured before says nothing of the rate now. */
  begin(nowMs: number): void {
    this.#ends = [];
    this.#busySinceMs = nowMs;
  }

  recordEnd(nowMs: number): void {
    this.#ends.push(nowMs);
    if (this.#ends.length > WINDOW) this.#ends.shift();
  }

  /**
   * Whole seconds until so many sequences will have finished, at the rate of the window. Before the first end, at
   * least as long again as has passed without one.
   */
  secondsFor(sequences: number, nowMs: number): number {
    const full = this.#ends.length === WINDOW;
    const fromMs = full ? (this.#ends[0] as number) : this.#busySinceMs;
    const ended = full ? WINDOW - 1 : this.#ends.length;
    const seconds = (nowMs - fromMs) / 1000;
    const estimate = ended === 0 ? seconds : (sequences * seconds) / ended;
    return Math.min(MAX_SECONDS, Math.max(1, Math.ceil(estimate)));
  }
}
