/**
 * Whether the server takes work, and what work it holds. Every generation enters before it does anything and leaves
 * at its end, so that a shutdown knows when it is over.
 */
import { ManyfoldError } from '../core/errors.js';

export interface Permit {
  /** Idempotent. */
  leave(): void;
}

/** Seconds after which a client of a server that goes away may try again: another one usually takes over at once. */
const RETRY_AFTER_DRAIN_SECONDS = 2;

export class Lifecycle {
  readonly #stops = new Set<(error: ManyfoldError) => void>();
  readonly #idleWaiters: (() => void)[] = [];
  #draining = false;

  get draining(): boolean {
    return this.#draining;
  }

  /** Generations between enter and leave. */
  get active(): number {
    return this.#stops.size;
  }

  /** Throws 'shutting_down' while draining. `stop` is called when the shutdown's time is over. */
  enter(stop: (error: ManyfoldError) => void): Permit {
    if (this.#draining) throw shuttingDown();
    const entry = (error: ManyfoldError): void => stop(error);
    this.#stops.add(entry);
    return {
      leave: () => {
        this.#stops.delete(entry);
        if (this.#stops.size === 0) for (const wake of this.#idleWaiters.splice(0)) wake();
      },
    };
  }

  /** No new work from now on. Resolves when what runs has ended. */
  drain(): Promise<void> {
    this.#draining = true;
    if (this.#stops.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  /** Ends what still runs with 'shutting_down'. */
  stopAll(): void {
    for (const stop of [...this.#stops]) stop(shuttingDown());
  }
}

function shuttingDown(): ManyfoldError {
  return new ManyfoldError(
    'shutting_down',
    'The server is shutting down: send the request again, to another instance.',
    {
      retryAfterSeconds: RETRY_AFTER_DRAIN_SECONDS,
    },
  );
}
