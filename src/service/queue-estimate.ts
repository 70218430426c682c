/** How long a refused client should wait: the queue's length over the rate at which sequences have been finishing. */
import { ManyfoldError } from '../core/errors.js';
import type { EngineInfo, EngineStats } from '../engine/port.js';
import type { Entropy } from './ports.js';

/** Assumed before the first sequence has finished. */
const FIRST_GUESS_SECONDS = 2;
/** Weight of the newest sequence in the running means. */
const NEWEST = 0.1;
const LONGEST_SECONDS = 120;

/** What the estimate asks of the engine. */
export interface QueueSource {
  readonly info: Pick<EngineInfo, 'maxNumSeqs' | 'maxQueue'>;
  stats(): Pick<EngineStats, 'waiting'>;
}

export class QueueEstimate {
  readonly #engine: QueueSource;
  readonly #entropy: Entropy;
  #meanSeconds = FIRST_GUESS_SECONDS;
  #meanSquare = FIRST_GUESS_SECONDS ** 2;

  constructor(engine: QueueSource, entropy: Entropy) {
    this.#engine = engine;
    this.#entropy = entropy;
  }

  /** Seconds that a sequence took from submission to end. */
  record(seconds: number): void {
    this.#meanSeconds += NEWEST * (seconds - this.#meanSeconds);
    this.#meanSquare += NEWEST * (seconds ** 2 - this.#meanSquare);
  }

  /**
   * What the sequences that hold the places now take: each weighs as much as the time it holds one (E[t²] / E[t]), so that
   * many tiny requests do not hide the long ones that keep the queue standing.
   */
  get #heldSeconds(): number {
    return this.#meanSeconds > 0 ? this.#meanSquare / this.#meanSeconds : 0;
  }

  /** At least one; with up to a quarter of jitter, so that refused clients do not come back all at once. */
  retryAfterSeconds(): number {
    const waiting = this.#engine.stats().waiting + 1;
    const seconds = (waiting * this.#heldSeconds) / Math.max(1, this.#engine.info.maxNumSeqs);
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
