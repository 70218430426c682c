/**
 * The engine behind its port, in this process: checks requests, takes leases, hands sequences to the loop. Made by the
 * composition root around a native engine, which it owns from then on.
 */
import type { AdapterLimits } from '../adapters/adapter-folder.js';
import { nativeBaseWeights } from '../adapters/base-weights.js';
import { compileAdapter } from '../adapters/compile-adapter.js';
import type { AdapterLocation } from '../adapters/compile-adapter.js';
import type { CompiledAdapter } from '../adapters/importer.js';
import { termSetFacts } from '../adapters/native-terms.js';
import type { TermSetFacts } from '../adapters/native-terms.js';
import { Residency } from '../adapters/residency.js';
import type { AdapterLease, ResidentAdapter } from '../adapters/residency.js';
import type { Clock } from '../core/clock.js';
import { bug, ManyfoldError, toPlainError } from '../core/errors.js';
import type { AdapterVersion, SequenceId } from '../core/ids.js';
import type { ModelConfig } from '../core/model-config.js';
import type { NativeEngine } from '../native/binding-types.js';
import { EventStream } from './event-stream.js';
import { KvLedger } from './kv-ledger.js';
import { StepLoop } from './loop.js';
import type {
  AdapterSource,
  EngineEvent,
  EngineInfo,
  EnginePort,
  EngineRequest,
  EngineStats,
  LoadedAdapter,
} from './port.js';
import type { ScheduleBudget } from './schedule.js';
import { Sequence } from './sequence.js';
import { findProblem } from './validate-request.js';

/** Sizes of the engine. Those of the pool and of steps are what the native engine was made with. */
export interface EngineLimits {
  /** Tokens of prompt and output together; at most what the pool holds. */
  readonly maxModelLen: number;
  readonly maxNumSeqs: number;
  readonly maxQueue: number;
  /** Rows of a step: LoadOptions.maxRows. */
  readonly maxRows: number;
  /** Logits entries of a step: LoadOptions.maxEntries. */
  readonly maxEntries: number;
  /** Rows of one sequence in a step. */
  readonly maxChunk: number;
  /** LoadOptions.kvPages. */
  readonly kvPages: number;
  /** NativeInfo.pageTokens. */
  readonly pageTokens: number;
  /** Prompts reuse KV pages of earlier ones with the same adapter version, salt and tokens. */
  readonly prefixCache: boolean;
}

export interface InProcessEngineOptions {
  readonly native: NativeEngine;
  readonly model: ModelConfig;
  readonly baseFingerprint: string;
  readonly eosTokenIds: readonly number[];
  /** How weights are held, for EngineInfo. */
  readonly dtype: string;
  readonly limits: EngineLimits;
  readonly adapterLimits: AdapterLimits;
  readonly clock: Clock;
  /** From a version's folder to its terms; absent: the importers of src/adapters. */
  readonly compile?: (location: AdapterLocation) => Promise<CompiledAdapter>;
}

/** How long a failed load is remembered, so that a broken adapter is not read again for each who asks. */
const FAILED_LOAD_MS = 2000;

/** Throws 'invalid_config' when the limits cannot hold one sequence. */
export function createInProcessEngine(options: InProcessEngineOptions): EnginePort {
  return new InProcessEngine(options);
}

class InProcessEngine implements EnginePort {
  readonly info: EngineInfo;
  readonly #options: InProcessEngineOptions;
  readonly #ledger: KvLedger;
  readonly #residency: Residency;
  readonly #loop: StepLoop;
  readonly #eosTokenIds: readonly number[];
  #arrivals = 0;
  #closing: Promise<void> | undefined;

  constructor(options: InProcessEngineOptions) {
    const { native, model, limits, clock } = options;
    checkLimits(limits);
    this.#options = options;
    this.info = infoOf(options);
    this.#ledger = new KvLedger(limits.kvPages, limits.pageTokens, limits.prefixCache);
    this.#residency = new Residency({
      compile: (location) => this.#compile(location),
      native,
      clock,
      failureMs: FAILED_LOAD_MS,
    });
    const budget = budgetOf(limits);
    const { vocabSize, hiddenSize } = model;
    const { prefixCache } = limits;
    this.#loop = new StepLoop({ native, ledger: this.#ledger, budget, vocabSize, hiddenSize, prefixCache, clock });
    // Some configs list ids that the vocabulary does not have; no logits exist for them.
    this.#eosTokenIds = options.eosTokenIds.filter((id) => id < model.vocabSize);
  }

  submit(request: EngineRequest): AsyncIterable<EngineEvent> {
    this.#admit();
    const events = new EventStream(() => this.cancel(request.id));
    const { lease, problem } = this.#prepare(request);
    if (problem !== undefined) {
      lease?.release();
      events.push({ type: 'failed', error: toPlainError(problem) });
      return events;
    }
    this.#start(this.#sequenceOf(request, lease, events));
    return events;
  }

  cancel(id: SequenceId): void {
    this.#loop.cancel(id);
  }

  async load({ version, directory }: AdapterSource): Promise<LoadedAdapter> {
    if (this.#closing !== undefined) throw shuttingDown();
    return describe(await this.#residency.load({ version, directory }));
  }

  async release(version: AdapterVersion): Promise<void> {
    this.#residency.release(version);
  }

  stats(): EngineStats {
    const { counters } = this.#loop;
    const { kvPages } = this.#options.limits;
    return {
      running: this.#loop.running,
      waiting: this.#loop.waiting,
      kvUsage: (kvPages - this.#ledger.freePages) / kvPages,
      freePages: this.#ledger.freePages,
      ...counters,
      stalledMs: this.#loop.stalledMs,
      residentAdapters: this.#residency.list(),
    };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    try {
      await this.#loop.stop();
      await this.#residency.close();
      this.#ledger.assertConsistent();
      if (this.#ledger.openTables > 0) bug(`${this.#ledger.openTables} page tables were left after the last sequence`);
    } finally {
      this.#options.native.dispose();
    }
  }

  /** Throws when no more work is taken. */
  #admit(): void {
    if (this.#closing !== undefined) throw shuttingDown();
    const { maxNumSeqs, maxQueue } = this.info;
    const { running, waiting, throughput } = this.#loop;
    if (running + waiting < maxNumSeqs + maxQueue) return;
    throw new ManyfoldError(
      'overloaded',
      `${running} sequences run and ${waiting} wait; at most ${maxNumSeqs} may run and ${maxQueue} wait. ` +
        'Send the request again after the time that retry-after says.',
      { retryAfterSeconds: throughput.secondsFor(waiting + 1, this.#options.clock.nowMs()) },
    );
  }

  /** The lease that the request needs, and what is wrong with it. */
  #prepare(request: EngineRequest): { lease?: AdapterLease | undefined; problem?: unknown } {
    if (this.#loop.has(request.id)) {
      const message = `The sequence id ${request.id} is already in use. Submit each sequence under an id of its own.`;
      return { problem: new ManyfoldError('bug', message) };
    }
    const lease = request.adapter === undefined ? undefined : this.#residency.lease(request.adapter);
    if (request.adapter !== undefined && lease === undefined) {
      const message = `The adapter ${request.adapter} is not loaded. Load it, or name one that GET /v1/models lists.`;
      return { problem: new ManyfoldError('model_not_found', message, { param: 'model' }) };
    }
    const { vocabSize, maxModelLen } = this.info;
    const prefixTokens = positionsBefore(lease?.adapter.facts);
    return { lease, problem: findProblem(request, { vocabSize, maxModelLen, prefixTokens }) };
  }

  #sequenceOf(request: EngineRequest, lease: AdapterLease | undefined, events: EventStream): Sequence {
    this.#arrivals += 1;
    return new Sequence({
      request,
      arrival: this.#arrivals,
      lease,
      baseFingerprint: this.info.baseFingerprint,
      table: this.#ledger.open(),
      events,
      maxModelLen: this.info.maxModelLen,
      eosTokenIds: this.#eosTokenIds,
    });
  }

  /** A submission that had already ended when it was interrupted is told so at once. */
  #start(sequence: Sequence): void {
    const end = sequence.endBeforeWork();
    if (end === undefined) {
      this.#loop.add(sequence);
      return;
    }
    this.#ledger.close(sequence.table);
    sequence.lease?.release();
    sequence.flushPromptLogprobs();
    sequence.events.push({ type: 'done', ...end, usage: sequence.usage() });
  }

  async #compile(location: AdapterLocation): Promise<CompiledAdapter> {
    const { native, model, baseFingerprint, adapterLimits: limits, compile } = this.#options;
    const base = nativeBaseWeights(native);
    const compiled =
      compile === undefined
        ? await compileAdapter(location, { model, base, baseFingerprint, limits })
        : await compile(location);
    const prefixTokens = positionsBefore(termSetFacts(compiled.terms));
    if (prefixTokens < this.info.maxModelLen) return compiled;
    throw new ManyfoldError(
      'invalid_adapter',
      `The adapter's prefix takes ${prefixTokens} positions, the longest context has ${this.info.maxModelLen}. ` +
        'Raise --max-model-len, or train a shorter prefix.',
    );
  }
}

/** Positions that an adapter takes before the first token of the prompt. */
function positionsBefore(facts: TermSetFacts | undefined): number {
  return facts === undefined ? 0 : facts.prefixTokens + facts.softPromptTokens;
}

function checkLimits({
  maxModelLen,
  kvPages,
  pageTokens,
  maxNumSeqs,
  maxRows,
  maxEntries,
  maxChunk,
}: EngineLimits): void {
  const sizes = { maxModelLen, kvPages, pageTokens, maxNumSeqs, maxRows, maxEntries, maxChunk };
  for (const [name, value] of Object.entries(sizes)) {
    if (!Number.isInteger(value) || value < 1)
      bug(`the engine's ${name} is ${value}, expected an integer of at least 1`);
  }
  if (maxModelLen <= kvPages * pageTokens) return;
  throw new ManyfoldError(
    'invalid_config',
    `The KV pool holds ${kvPages * pageTokens} tokens, one sequence may have ${maxModelLen}. ` +
      'Raise --kv-bytes or lower --max-model-len.',
  );
}

/** Every running sequence gets at least a row and an entry in each step, so none starves. */
function budgetOf({ maxRows, maxEntries, maxNumSeqs, maxChunk, pageTokens }: EngineLimits): ScheduleBudget {
  return { maxRows, maxEntries, maxChunk, pageTokens, maxRunning: Math.min(maxNumSeqs, maxRows, maxEntries) };
}

function infoOf({ native, model, limits, dtype, baseFingerprint }: InProcessEngineOptions): EngineInfo {
  const { isa, threads, weightBytes, kvBytes } = native.info();
  return {
    vocabSize: model.vocabSize,
    maxModelLen: limits.maxModelLen,
    maxNumSeqs: budgetOf(limits).maxRunning,
    maxQueue: limits.maxQueue,
    pageTokens: limits.pageTokens,
    kvPages: limits.kvPages,
    weightBytes,
    kvBytes,
    dtype,
    isa,
    threads,
    baseFingerprint,
  };
}

function describe({ version, facts, notes }: ResidentAdapter): LoadedAdapter {
  return { version, terms: facts.kinds, bytes: facts.bytes, maxRank: facts.maxRank, notes };
}

function shuttingDown(): ManyfoldError {
  return new ManyfoldError('shutting_down', 'The engine is shutting down. Send the request to another instance.');
}
