/**
 * An engine of a script: answers each request with given ids, one a step. Steps happen by themselves or when the test
 * says so. Every message passes through structuredClone, as it would on its way to another process.
 */
import { ManyfoldError } from '../../core/errors.js';
import type { AdapterVersion, SequenceId } from '../../core/ids.js';
import type { TokenLogprobs } from '../../core/sampling.js';
import type {
  AdapterSource,
  EngineEvent,
  EngineInfo,
  EnginePort,
  EngineRequest,
  EngineStats,
  EngineUsage,
  LoadedAdapter,
} from '../../engine/port.js';
import { TOY } from './toy-text.js';

export interface FakeEngineOptions {
  /** The ids that answer a request; a stop id ends it. */
  readonly answer: (request: EngineRequest) => readonly number[];
  /** Tests call step() when false. */
  readonly automatic?: boolean;
  readonly info?: Partial<EngineInfo>;
  /** Makes the sequence fail after so many tokens. */
  readonly failAfter?: number;
  /** 'stream': refusals come from the first next(), as an async generator's do. */
  readonly refuse?: 'submit' | 'stream';
}

interface Running {
  readonly request: EngineRequest;
  readonly answer: readonly number[];
  readonly queue: EngineEvent[];
  /** Events of the queue that were taken. */
  taken: number;
  at: number;
  cancelled: boolean;
  ended: boolean;
  wake: (() => void) | undefined;
}

const STOP_IDS: ReadonlySet<number> = new Set([TOY.eos, TOY.eot]);

export class FakeEngine implements EnginePort {
  readonly info: EngineInfo;
  readonly requests: EngineRequest[] = [];
  readonly cancelled: SequenceId[] = [];
  readonly loaded = new Map<AdapterVersion, string>();
  readonly released: AdapterVersion[] = [];
  readonly #options: FakeEngineOptions;
  readonly #running = new Map<SequenceId, Running>();
  stalledMs = 0;
  steps = 0;
  generated = 0;
  prompted = 0;
  /** Sequences beyond it are refused. */
  capacity: number;
  /** What load() tells of an adapter. */
  notes: readonly string[] = [];
  /** What load() does beside noting the version. */
  onLoad: (source: AdapterSource) => Promise<void> = () => Promise.resolve();

  constructor(options: FakeEngineOptions) {
    this.#options = options;
    this.info = {
      ...{ vocabSize: TOY.vocabSize, maxModelLen: 512, maxNumSeqs: 8, maxQueue: 32, pageTokens: 16, kvPages: 100 },
      ...{ weightBytes: 1000, kvBytes: 1000, dtype: 'f32', isa: 'reference', threads: 1 },
      baseFingerprint: 'ba5e'.repeat(16),
      ...options.info,
    };
    this.capacity = this.info.maxNumSeqs + this.info.maxQueue;
  }

  get running(): number {
    return this.#running.size;
  }

  submit(request: EngineRequest): AsyncIterable<EngineEvent> {
    this.requests.push(structuredClone(request));
    if (this.#options.refuse === 'stream') return refusingStream();
    if (this.#options.refuse === 'submit' || this.#running.size >= this.capacity) throw full();
    const answer = this.#options.answer(request);
    const running: Running = {
      request,
      answer,
      queue: [],
      taken: 0,
      at: 0,
      cancelled: false,
      ended: false,
      wake: undefined,
    };
    this.#running.set(request.id, running);
    if (this.#options.automatic !== false) setImmediate(() => this.#run(running));
    return { [Symbol.asyncIterator]: () => ({ next: () => this.#next(running) }) };
  }

  cancel(id: SequenceId): void {
    this.cancelled.push(id);
    const running = this.#running.get(id);
    if (running !== undefined) running.cancelled = true;
  }

  /** One token for every sequence. */
  step(): void {
    this.steps += 1;
    for (const running of [...this.#running.values()]) this.#advance(running);
  }

  async load(source: AdapterSource): Promise<LoadedAdapter> {
    await this.onLoad(source);
    this.loaded.set(source.version, source.directory);
    return { version: source.version, terms: { lowrank: 1 }, bytes: 100, maxRank: 8, notes: this.notes };
  }

  release(version: AdapterVersion): Promise<void> {
    this.released.push(version);
    this.loaded.delete(version);
    return Promise.resolve();
  }

  stats(): EngineStats {
    const running = Math.min(this.#running.size, this.info.maxNumSeqs);
    return {
      ...{ running, waiting: this.#running.size - running, kvUsage: 0.25, freePages: 75 },
      ...{ promptTokens: this.prompted, generationTokens: this.generated, preemptions: 0, steps: this.steps },
      ...{ prefixQueries: 0, prefixHits: 0, stalledMs: this.stalledMs },
      residentAdapters: [...this.loaded.keys()].map((version) => ({ version, leases: 0, bytes: 100 })),
    };
  }

  close(): Promise<void> {
    for (const running of [...this.#running.values()]) this.#end(running, { type: 'cancelled', usage: usage(running) });
    return Promise.resolve();
  }

  #run(running: Running): void {
    if (running.ended) return;
    this.#advance(running);
    if (!running.ended) setImmediate(() => this.#run(running));
  }

  #advance(running: Running): void {
    if (running.cancelled) return this.#end(running, { type: 'cancelled', usage: usage(running) });
    const { sampling, promptIds } = running.request;
    if (running.at === 0) {
      this.prompted += promptIds.length;
      if (sampling.promptLogprobs !== undefined) {
        const best = sampling.promptLogprobs;
        this.#put(running, { type: 'prompt_logprobs', positions: promptIds.slice(1).map((id) => logprobs(id, best)) });
      }
    }
    if (running.at === this.#options.failAfter) {
      const error = { code: 'engine_failure', message: 'The fake engine broke. Send the request again.' } as const;
      return this.#end(running, { type: 'failed', error });
    }
    const tokenId = running.answer[running.at] ?? TOY.eos;
    running.at += 1;
    this.generated += 1;
    const wanted = sampling.logprobs;
    this.#put(running, {
      type: 'token',
      tokenId,
      ...(wanted === undefined ? {} : { logprobs: logprobs(tokenId, wanted) }),
    });
    const stops = (!sampling.ignoreEos && STOP_IDS.has(tokenId)) || sampling.stopTokenIds.includes(tokenId);
    if (stops) this.#end(running, { type: 'done', reason: 'stop', stopId: tokenId, usage: usage(running) });
    else if (running.at >= sampling.maxTokens)
      this.#end(running, { type: 'done', reason: 'length', usage: usage(running) });
  }

  #end(running: Running, event: EngineEvent): void {
    running.ended = true;
    this.#running.delete(running.request.id);
    this.#put(running, event);
  }

  #put(running: Running, event: EngineEvent): void {
    running.queue.push(structuredClone(event));
    running.wake?.();
  }

  async #next(running: Running): Promise<IteratorResult<EngineEvent>> {
    while (running.queue.length === running.taken && !running.ended) {
      await new Promise<void>((resolve) => (running.wake = resolve));
    }
    const value = running.queue[running.taken];
    running.taken += 1;
    return value === undefined ? { done: true, value: undefined } : { done: false, value };
  }
}

function usage(running: Running): EngineUsage {
  return { promptTokens: running.request.promptIds.length, completionTokens: running.at, cachedTokens: 3 };
}

/** Id n has log-probability -n / 1000; the candidates are the id itself, then the ids above it. */
function logprobs(id: number, best: number): TokenLogprobs {
  const topIds = Array.from({ length: best }, (_, i) => (id + i) % TOY.vocabSize);
  return { logprob: -id / 1000, rank: 1, topIds, topLogprobs: topIds.map((top, i) => -top / 1000 - i) };
}

function full(): ManyfoldError {
  return new ManyfoldError('overloaded', 'The fake queue is full. Come again.');
}

function refusingStream(): AsyncIterable<EngineEvent> {
  return { [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(full()) }) };
}
