/** What is shown while a run goes on. Counted beside the recorder, so that showing it costs nothing that is measured. */
import type { ExchangeResult } from '../client/exchange.js';
import { LatencyHistogram } from '../record/histogram.js';

export interface LiveState {
  readonly phase: 'warmup' | 'measured' | 'drain';
  readonly elapsedMs: number;
  /** Of the schedule; `null` when a closed loop has no fixed number. */
  readonly totalRequests: number | null;
  readonly sent: number;
  readonly inFlight: number;
  readonly ok: number;
  readonly failed: number;
  /** Pieces a second since the state before. */
  readonly tokensPerSecond: number;
  /** Since the state before; `null` when none arrived. */
  readonly ttftP50Ms: number | null;
  readonly ttftP99Ms: number | null;
}

export class LiveCounts {
  #sent = 0;
  #ok = 0;
  #failed = 0;
  #pieces = 0;
  #ttft = new LatencyHistogram();
  #lastAt: number;

  constructor(now: number) {
    this.#lastAt = now;
  }

  sent(): void {
    this.#sent++;
  }

  ended({ outcome }: ExchangeResult): void {
    if (outcome === 'ok') this.#ok++;
    else this.#failed++;
  }

  piece(count: number, sinceSentMs: number): void {
    this.#pieces++;
    if (count === 1) this.#ttft.add(sinceSentMs);
  }

  /** The counts, and a new beginning for the rates. */
  take(now: number): Pick<LiveState, 'sent' | 'ok' | 'failed' | 'tokensPerSecond' | 'ttftP50Ms' | 'ttftP99Ms'> {
    const seconds = Math.max(1e-3, (now - this.#lastAt) / 1000);
    const state = {
      sent: this.#sent,
      ok: this.#ok,
      failed: this.#failed,
      tokensPerSecond: this.#pieces / seconds,
      ttftP50Ms: this.#ttft.percentile(0.5),
      ttftP99Ms: this.#ttft.percentile(0.99),
    };
    this.#pieces = 0;
    this.#ttft = new LatencyHistogram();
    this.#lastAt = now;
    return state;
  }
}
