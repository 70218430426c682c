/** How long a refused client should wait: the queue's length over the rate at which sequences have been finishing. */
import { ManyfoldError } from '../core/errors.js';
import type { EnginePort } from '../engine/port.js';
import type { Entropy } from './ports.js';

/** Assumed before the first sequence has finished. */
const FIRST_GUESS_SECONDS = 2;
/** Weight of the newest sequence in the running mean. */
const NEWEST = 0.1;
const LONGEST_SECONDS = 120;

export class QueueEstimate {
  readonly #engine: EnginePort;
  readonly #entropy: Entropy;
  #meanSeconds = FIRST_GUESS_SECONDS;

  constructor(engine: EnginePort, entropy: Entropy) {
    this.#engine = engine;
    this.#entropy = entropy;
  }

  /** Seconds that a sequence took from submission to end. */
  record(seconds: number): void {
    this.#meanSeconds += NEWEST * (seconds - this.#meanSeconds);
  }

  /** At least one; with up to a quarter of jitter, so that refused clients do not come back all at once. */
  retryAfterSeconds(): number {
    const waiting = this.#engine.stats().waiting + 1;
    const seconds = (waiting * this.#meanSeconds) / Math.max(1, this.#engine.info.maxNumSeqs);
    return Math.min(LONGEST_SECONDS, Math.max(1, seconds * (1 + this.#entropy.jitter() / 4)));
  }

  overloaded(): ManyfoldError {
    const { maxQueue, maxNumSeqs } = this.#engine.info;
    return new ManyfoldError(
      'overloaded',
      `The queue is full: ${maxNumSeqs} sequences may run and ${maxQueue} may wait. ` +
        'Wait for the time in retry-after and send the request again.',
      { retryAfterSeconds: this.retryAfterSeconds() },
    );
  }
}
