/** Sends requests to one server and answers each with exactly one result. Never retries, follows no redirect. */
import { Pool } from 'undici';
import type { Clock } from '../../src/core/clock.js';
import type { Secret } from '../../src/config/secret.js';
import type { Limits } from '../scenario/scenario.js';
import type { Dialect } from './dialect.js';
import { Exchange } from './exchange.js';
import type { ExchangeResult, OnPiece } from './exchange.js';

export interface HttpClientOptions {
  readonly url: string;
  readonly dialect: Dialect;
  readonly limits: Limits;
  readonly apiKey: Secret | undefined;
  readonly clock: Clock;
  readonly onPiece?: OnPiece;
}

/** How often deadlines are looked at; a timeout comes this much late at most. */
const SWEEP_MS = 50;

export class HttpClient {
  readonly #options: HttpClientOptions;
  readonly #pool: Pool;
  readonly #path: string;
  readonly #headers: Record<string, string>;
  readonly #inFlight = new Set<Exchange>();
  readonly #sweep: NodeJS.Timeout;

  constructor(options: HttpClientOptions) {
    const url = new URL(options.url);
    this.#options = options;
    this.#path = url.pathname.replace(/\/+$/, '') + options.dialect.path;
    this.#headers = { 'content-type': 'application/json', accept: 'text/event-stream' };
    if (options.apiKey !== undefined) this.#headers['authorization'] = `Bearer ${options.apiKey.reveal()}`;
    this.#pool = new Pool(url.origin, {
      connections: null, // The runner limits what is in flight; the pool must not queue behind its back.
      pipelining: 1,
      headersTimeout: 0, // Exchanges have deadlines of their own, counted from the send.
      bodyTimeout: 0,
      connect: { timeout: options.limits.connectMs },
    });
    this.#sweep = setInterval(() => this.#checkTimes(), SWEEP_MS);
  }

  get inFlight(): number {
    return this.#inFlight.size;
  }

  /** `body` is the JSON text. Resolves always; a failure is an outcome. */
  send(body: string): Promise<ExchangeResult> {
    const { clock, dialect, limits, onPiece } = this.#options;
    return new Promise((resolve) => {
      const exchange = new Exchange({ clock, readEvent: dialect.readEvent, limits, onPiece }, (result) => {
        this.#inFlight.delete(exchange);
        resolve(result);
      });
      this.#inFlight.add(exchange);
      this.#pool.dispatch({ path: this.#path, method: 'POST', headers: this.#headers, body }, exchange);
    });
  }

  /** Ends all that is in flight with the outcome `cancelled`. */
  cancelAll(): void {
    for (const exchange of [...this.#inFlight]) exchange.cancel();
  }

  async close(): Promise<void> {
    clearInterval(this.#sweep);
    this.cancelAll();
    await this.#pool.destroy();
  }

  #checkTimes(): void {
    const now = this.#options.clock.nowMs();
    for (const exchange of this.#inFlight) exchange.checkTime(now);
  }
}
