/** The line that tells how a run is going: rewritten in place on a terminal, a plain line now and then elsewhere. */
import type { LiveState } from './live-counts.js';

/** Where the line goes. */
export interface ProgressStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

/** Without a terminal; logs of CI stay readable. */
const PLAIN_EVERY_MS = 10_000;
const ERASE_LINE = '\r\u001b[K';

export class ProgressLine {
  readonly #stream: ProgressStream;
  #lastPlainMs = 0;
  #isOpen = false;

  constructor(stream: ProgressStream) {
    this.#stream = stream;
  }

  show(state: LiveState): void {
    const line = describeState(state);
    if (this.#stream.isTTY === true) {
      // Some terminals say that they have no columns at all.
      const columns = Math.max(40, this.#stream.columns ?? 80);
      this.#stream.write(`${ERASE_LINE}${line.slice(0, columns - 1)}`);
      this.#isOpen = true;
    } else if (state.elapsedMs - this.#lastPlainMs >= PLAIN_EVERY_MS) {
      this.#lastPlainMs = state.elapsedMs;
      this.#stream.write(`${line}\n`);
    }
  }

  /** Takes the line away, so that the report begins on a clean one. */
  end(): void {
    if (this.#isOpen) this.#stream.write(ERASE_LINE);
    this.#isOpen = false;
  }
}

export function describeState(state: LiveState): string {
  const seconds = (state.elapsedMs / 1000).toFixed(0).padStart(4);
  const sent = state.totalRequests === null ? `${state.sent}` : `${state.sent}/${state.totalRequests}`;
  const parts = [
    `${seconds} s ${state.phase}`,
    `sent ${sent}`,
    `in flight ${state.inFlight}`,
    `ok ${state.ok}`,
    ...(state.failed > 0 ? [`failed ${state.failed}`] : []),
    `${state.tokensPerSecond.toFixed(0)} tokens/s`,
    ...(state.ttftP50Ms === null || state.ttftP99Ms === null
      ? []
      : [`TTFT p50 ${state.ttftP50Ms.toFixed(0)} p99 ${state.ttftP99Ms.toFixed(0)} ms`]),
  ];
  return parts.join(', ');
}
