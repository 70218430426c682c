/** Reads the server's /metrics while the load runs, on the same time axis. A failed read is counted, never fatal. */
import { request } from 'undici';
import type { Secret } from '../../src/config/secret.js';
import type { Clock } from '../../src/core/clock.js';
import type { ServerSample } from '../report/run-report.js';
import { parsePrometheus } from './prometheus.js';
import { readServerState } from './server-metrics.js';
import type { ServerState } from './server-metrics.js';

export interface ScraperOptions {
  readonly url: string;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly apiKey: Secret | undefined;
  readonly clock: Clock;
}

/** Totals over the run and what was seen on the way. */
export interface ScrapedRun {
  readonly url: string;
  readonly flavour: string;
  readonly samples: readonly ServerSample[];
  readonly failedScrapes: number;
  readonly first: ServerState;
  readonly last: ServerState;
}

/** A page of metrics is some tens of KiB; more than this is something else. */
const MAX_BYTES = 16 * 1024 * 1024;

interface Scrape {
  readonly at: number;
  readonly state: ServerState;
}

export class Scraper {
  readonly #options: ScraperOptions;
  readonly #scrapes: Scrape[] = [];
  #flavour = 'unknown';
  #failed = 0;
  #timer: NodeJS.Timeout | undefined;
  #reading: Promise<void> | undefined;

  constructor(options: ScraperOptions) {
    this.#options = options;
  }

  /** Reads once, before the load begins; false when there is nothing to read. Then reads on in the background. */
  async start(): Promise<boolean> {
    await this.#read();
    if (this.#scrapes.length === 0) return false;
    this.#timer = setInterval(() => void this.#read(), this.#options.intervalMs);
    return true;
  }

  /** Reads a last time, so that totals hold the whole run. `startedAt`: the clock's value at time 0 of the report. */
  async stop(startedAt: number): Promise<ScrapedRun | undefined> {
    this.close();
    await this.#reading;
    await this.#read();
    const [first] = this.#scrapes;
    const last = this.#scrapes.at(-1);
    if (first === undefined || last === undefined) return undefined;
    return {
      url: this.#options.url,
      flavour: this.#flavour,
      samples: this.#scrapes.map(({ at, state }) => toSample(state, first.state, at - startedAt)),
      failedScrapes: this.#failed,
      first: first.state,
      last: last.state,
    };
  }

  /** Ends the reading in the background; a second call does nothing. */
  close(): void {
    clearInterval(this.#timer);
  }

  /** One at a time: a server that is slow to tell must not be asked by more and more requests. */
  #read(): Promise<void> {
    this.#reading ??= this.#readOnce().finally(() => {
      this.#reading = undefined;
    });
    return this.#reading;
  }

  async #readOnce(): Promise<void> {
    const { url, apiKey, clock, timeoutMs } = this.#options;
    try {
      const headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey.reveal()}` };
      const signal = AbortSignal.timeout(timeoutMs);
      const { statusCode, body } = await request(url, { headers, signal });
      const at = clock.nowMs();
      const text = await readLimited(body);
      if (statusCode !== 200) throw new Error(`status ${statusCode}`);
      const { flavour, state } = readServerState(parsePrometheus(text));
      if (flavour === 'unknown') throw new Error('no name that is known');
      this.#flavour = flavour;
      this.#scrapes.push({ at, state });
    } catch {
      this.#failed++; // Counted and shown; the load goes on without it.
    }
  }
}

async function readLimited(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > MAX_BYTES) throw new Error('too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function toSample(state: ServerState, first: ServerState, atMs: number): ServerSample {
  const since = (key: 'promptTokens' | 'outputTokens' | 'requestsDone' | 'preemptions' | 'prefixHitTokens') => {
    const [now, begin] = [state[key], first[key]];
    return now === null || begin === null ? null : now - begin;
  };
  return {
    atMs: Math.round(atMs * 1000) / 1000,
    running: state.running,
    waiting: state.waiting,
    kvUsageShare: state.kvUsageShare,
    adaptersResident: state.adaptersResident,
    adaptersWaiting: state.adaptersWaiting,
    promptTokens: since('promptTokens'),
    outputTokens: since('outputTokens'),
    requestsDone: since('requestsDone'),
    preemptions: since('preemptions'),
    prefixHitTokens: since('prefixHitTokens'),
  };
}
