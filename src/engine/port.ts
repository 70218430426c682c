/**
 * The seam between front and engine. Only plain messages cross it (each survives `structuredClone`), so the engine
 * may live in this process (tests, library use) or in a child process (server).
 *
 * The front owns names, templates, text and stop strings. The engine owns weights, term compilation, leases, pages.
 */
import type { AdapterVersion, SequenceId } from '../core/ids.js';
import type { PlainError } from '../core/errors.js';
import type { FinishReason, SamplingParams, TokenLogprobs } from '../core/sampling.js';

/** One sequence. A submission with emitted tokens continues as if it had never been interrupted. */
export interface EngineRequest {
  readonly id: SequenceId;
  /** At least one id, each below the vocabulary's size. */
  readonly promptIds: readonly number[];
  /** Tokens that an earlier submission already gave out; they count as output, are not emitted again. */
  readonly emittedIds: readonly number[];
  readonly sampling: SamplingParams;
  /** Content hash of a loaded adapter; undefined for the base. */
  readonly adapter?: AdapterVersion;
  /** Part of every KV identity: rows of different salts never share a page. */
  readonly cacheSalt?: string;
}

export interface TokenEvent {
  readonly type: 'token';
  readonly tokenId: number;
  readonly logprobs?: TokenLogprobs;
}

/** Log-probabilities of promptIds[1..], in order; comes once, before the first token. */
export interface PromptLogprobsEvent {
  readonly type: 'prompt_logprobs';
  readonly positions: readonly TokenLogprobs[];
}

export interface EngineUsage {
  readonly promptTokens: number;
  /** Emitted tokens of this and earlier submissions. */
  readonly completionTokens: number;
  /** Prompt tokens whose KV was reused. */
  readonly cachedTokens: number;
}

/**
 * Exactly one of done, cancelled and failed ends a stream. A stop id is emitted as a token before `done` with
 * reason 'stop' and `stopId` set: whether its text is shown is the front's choice.
 */
export type EngineEvent =
  | TokenEvent
  | PromptLogprobsEvent
  | { readonly type: 'done'; readonly reason: FinishReason; readonly stopId?: number; readonly usage: EngineUsage }
  | { readonly type: 'cancelled'; readonly usage: EngineUsage }
  | { readonly type: 'failed'; readonly error: PlainError };

/** Where an adapter's files lie. The engine reads them again and refuses if their hash is not `version`. */
export interface AdapterSource {
  readonly version: AdapterVersion;
  readonly directory: string;
}

export interface LoadedAdapter {
  readonly version: AdapterVersion;
  /** Terms by kind, e.g. { lowrank: 210 }. */
  readonly terms: Readonly<Record<string, number>>;
  readonly bytes: number;
  /** Largest lowrank R; 0 when there is none. */
  readonly maxRank: number;
  /** What an operator should know of an adapter that is served all the same; sentences for the log. */
  readonly notes?: readonly string[];
}

/** What the front must know of the engine; fixed after start. */
export interface EngineInfo {
  readonly vocabSize: number;
  /** Tokens of prompt and output together that one sequence may have. */
  readonly maxModelLen: number;
  readonly maxNumSeqs: number;
  /** Sequences that may wait; one more is refused with 'overloaded'. */
  readonly maxQueue: number;
  readonly pageTokens: number;
  readonly kvPages: number;
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly dtype: string;
  readonly isa: string;
  readonly threads: number;
  /** Hash of the base's config and weights; part of every adapter version. */
  readonly baseFingerprint: string;
}

export interface EngineStats {
  readonly running: number;
  readonly waiting: number;
  /** 0..1 of the pool's pages that are held. */
  readonly kvUsage: number;
  readonly freePages: number;
  readonly promptTokens: number;
  readonly generationTokens: number;
  readonly preemptions: number;
  readonly steps: number;
  readonly prefixQueries: number;
  readonly prefixHits: number;
  /** Milliseconds since a step last ended while work waited or ran; 0 when idle. */
  readonly stalledMs: number;
  readonly residentAdapters: readonly {
    readonly version: AdapterVersion;
    readonly leases: number;
    readonly bytes: number;
  }[];
}

export interface EnginePort {
  readonly info: EngineInfo;
  /** Throws 'overloaded' or 'shutting_down' before the first event; any later trouble is a `failed` event. */
  submit(request: EngineRequest): AsyncIterable<EngineEvent>;
  /** Ends the sequence within one step with `cancelled`; unknown ids are ignored (it may just have ended). */
  cancel(id: SequenceId): void;
  /** Single-flight for a version; resolves when it can be named by a request. Throws 'invalid_adapter'. */
  load(source: AdapterSource): Promise<LoadedAdapter>;
  /** The version may not be named any more; its memory goes when the last sequence that holds it ends. */
  release(version: AdapterVersion): Promise<void>;
  stats(): EngineStats;
  /** Cancels what runs, frees everything. Idempotent. */
  close(): Promise<void>;
}
