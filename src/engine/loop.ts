/**
 * The step loop: schedule, allocate, build, await native code, apply. It runs while there is work, between steps only
 * plain bookkeeping happens, and the event loop is free while native code computes. Sequences change nowhere else; a
 * cancel only marks, so nothing is taken from a step that is under way.
 */
import type { Clock } from '../core/clock.js';
import { bug, ManyfoldError, toPlainError } from '../core/errors.js';
import type { PlainError } from '../core/errors.js';
import type { SequenceId } from '../core/ids.js';
import type { TokenLogprobs } from '../core/sampling.js';
import type { NativeEngine, NativeResult } from '../native/binding-types.js';
import { PlanBuilder, SAMPLE } from './build-plan.js';
import type { BuiltStep } from './build-plan.js';
import type { KvLedger } from './kv-ledger.js';
import type { EngineEvent } from './port.js';
import { schedule } from './schedule.js';
import type { Chunk, Plan, ScheduleBudget } from './schedule.js';
import type { Sequence } from './sequence.js';
import { Throughput } from './throughput.js';

export interface LoopOptions {
  readonly native: Pick<NativeEngine, 'step'>;
  readonly ledger: KvLedger;
  readonly budget: ScheduleBudget;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  /** Whether what is in the pool is looked up for new sequences. */
  readonly prefixCache: boolean;
  readonly clock: Clock;
}

export interface LoopCounters {
  steps: number;
  promptTokens: number;
  generationTokens: number;
  preemptions: number;
  /** Prompt tokens looked up for reuse, and those that were reused. */
  prefixQueries: number;
  prefixHits: number;
}

type Terminal = Extract<EngineEvent, { readonly type: 'done' | 'cancelled' | 'failed' }>;

export class StepLoop {
  readonly counters: LoopCounters = {
    steps: 0,
    promptTokens: 0,
    generationTokens: 0,
    preemptions: 0,
    prefixQueries: 0,
    prefixHits: 0,
  };
  readonly throughput = new Throughput();
  readonly #options: LoopOptions;
  readonly #builder: PlanBuilder;
  readonly #byId = new Map<SequenceId, Sequence>();
  /** Both in order of arrival. */
  #running: Sequence[] = [];
  #waiting: Sequence[] = [];
  /** Settles when the loop has nothing left to do; undefined while it stands still. */
  #active: Promise<void> | undefined;
  #lastStepMs = 0;

  constructor(options: LoopOptions) {
    const { budget, ledger, vocabSize, hiddenSize } = options;
    this.#options = options;
    this.#builder = new PlanBuilder({
      maxRows: budget.maxRows,
      maxEntries: budget.maxEntries,
      maxSequences: budget.maxRunning,
      kvPages: ledger.pageCount,
      pageTokens: ledger.pageTokens,
      vocabSize,
      hiddenSize,
    });
  }

  get running(): number {
    return this.#running.length;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /** Milliseconds since a step last ended while there is work; 0 without. */
  get stalledMs(): number {
    return this.#active === undefined ? 0 : this.#options.clock.nowMs() - this.#lastStepMs;
  }

  has(id: SequenceId): boolean {
    return this.#byId.has(id);
  }

  /** Takes a sequence over; it ends with exactly one terminal event. */
  add(sequence: Sequence): void {
    this.#byId.set(sequence.id, sequence);
    this.#waiting.push(sequence);
    this.#active ??= this.#run();
  }

  /** Ends the sequence before the next step; unknown ids are ignored. */
  cancel(id: SequenceId): void {
    const sequence = this.#byId.get(id);
    if (sequence !== undefined) sequence.cancelled = true;
  }

  /** Cancels everything; resolves when nothing is left. */
  async stop(): Promise<void> {
    for (const sequence of this.#byId.values()) sequence.cancelled = true;
    await this.#active;
  }

  async #run(): Promise<void> {
    const nowMs = this.#options.clock.nowMs();
    this.#lastStepMs = nowMs;
    this.throughput.begin(nowMs);
    // What is submitted in one turn (the choices of a request) starts in one step.
    await Promise.resolve();
    for (;;) {
      this.#endCancelled();
      if (this.#byId.size === 0) break;
      const plan = this.#schedule();
      if (plan !== undefined) await this.#step(plan);
    }
    this.#active = undefined;
  }

  #endCancelled(): void {
    for (const sequence of this.#byId.values()) {
      if (sequence.cancelled) this.#end(sequence, { type: 'cancelled', usage: sequence.usage() });
    }
  }

  /** Undefined when the scheduler itself failed: then nothing can go on, and every sequence is told. */
  #schedule(): Plan<Sequence> | undefined {
    const { ledger, budget } = this.#options;
    try {
      if (this.#options.prefixCache) {
        const candidates = Math.max(0, budget.maxRunning - this.#running.length);
        for (const sequence of this.#waiting.slice(0, candidates)) sequence.lookUp(ledger);
      }
      const state = { running: this.#running, waiting: this.#waiting, freePages: ledger.freePages };
      const plan = schedule(state, budget);
      if (plan.chunks.length === 0) bug(`a step was empty with ${this.running} running and ${this.waiting} waiting`);
      return plan;
    } catch (error) {
      this.#failAll([...this.#byId.values()], toPlainError(error));
      return undefined;
    }
  }

  async #step(plan: Plan<Sequence>): Promise<void> {
    try {
      this.#move(plan);
      for (const { sequence, count } of plan.chunks) this.#allocate(sequence, count);
      const step = this.#builder.build(plan.chunks);
      const result = await this.#options.native.step(step.plan);
      this.#apply(plan.chunks, step, result);
    } catch (error) {
      this.#failAll(
        plan.chunks.map(({ sequence }) => sequence),
        stepError(error),
      );
    }
    this.counters.steps += 1;
    this.#lastStepMs = this.#options.clock.nowMs();
  }

  #move({ preempted, admitted }: Plan<Sequence>): void {
    if (preempted.length > 0) {
      this.counters.preemptions += preempted.length;
      for (const sequence of preempted) sequence.preempt(this.#options.ledger);
      // The newest of those that run are older than all that never ran.
      this.#running.length -= preempted.length;
      this.#waiting = [...preempted, ...this.#waiting].sort(byArrival);
    }
    if (admitted.length > 0) {
      for (const sequence of admitted) {
        const { asked, found } = sequence.admit(this.#options.ledger);
        this.counters.prefixQueries += asked;
        this.counters.prefixHits += found;
      }
      this.#waiting.splice(0, admitted.length);
      this.#running = [...this.#running, ...admitted].sort(byArrival);
    }
  }

  #allocate(sequence: Sequence, count: number): void {
    const { ledger } = this.#options;
    if (ledger.grow(sequence.table, sequence.computed + count, sequence.goal)) return;
    bug(`the plan gave ${count} rows to ${sequence.id}, the pool has ${ledger.freePages} free pages`);
  }

  #apply(chunks: readonly Chunk<Sequence>[], step: BuiltStep, result: NativeResult): void {
    for (const { sequence, count } of chunks) sequence.advance(sequence.computed + count, this.#options.ledger);
    const { entryTopLogprobs } = step.plan;
    let top = 0;
    for (let e = 0; e < step.entryChunk.length; e += 1) {
      const { sequence } = chunks[step.entryChunk[e] as number] as Chunk<Sequence>;
      const wanted = entryTopLogprobs[e] as number;
      const logprobs = wanted < 0 ? undefined : logprobsOf(result, e, top, wanted);
      top += Math.max(0, wanted);
      // Its stream ends with `cancelled` before the next step, and what came since is dropped.
      if (sequence.cancelled || !this.#byId.has(sequence.id)) continue;
      const row = step.entryScores[e] as number;
      if (row === SAMPLE || !this.#isToken(result.tokens[e] as number))
        this.#onToken(sequence, result.tokens[e] as number, logprobs);
      else sequence.addPromptLogprobs(row, logprobs ?? bug('a scored row has no log-probabilities'));
    }
    for (const { sequence } of chunks) this.#afterRows(sequence);
  }

  /** False where native code says that nothing can be sampled or scored: the logits are not finite. */
  #isToken(tokenId: number): boolean {
    return tokenId >= 0 && tokenId < this.#options.vocabSize;
  }

  #onToken(sequence: Sequence, tokenId: number, logprobs: TokenLogprobs | undefined): void {
    if (!this.#isToken(tokenId)) {
      const message = `The model gave no usable token (${tokenId}): its logits are not finite, or every token is banned.`;
      const error = { code: 'engine_failure', message: `${message} Change the request or the adapter.` } as const;
      this.#end(sequence, { type: 'failed', error });
      return;
    }
    sequence.flushPromptLogprobs();
    sequence.append(tokenId);
    this.counters.generationTokens += 1;
    sequence.events.push({ type: 'token', tokenId, ...(logprobs === undefined ? {} : { logprobs }) });
    const end = sequence.endAfter(tokenId);
    if (end !== undefined) this.#end(sequence, { type: 'done', ...end, usage: sequence.usage() });
  }

  /** Counts prompt tokens, and ends sequences that only wanted their prompt scored. */
  #afterRows(sequence: Sequence): void {
    this.counters.promptTokens += sequence.newPromptTokens();
    if (sequence.cancelled || sequence.samples || sequence.computed < sequence.goal || !this.#byId.has(sequence.id))
      return;
    sequence.flushPromptLogprobs();
    this.#end(sequence, { type: 'done', reason: 'length', usage: sequence.usage() });
  }

  #failAll(sequences: readonly Sequence[], error: PlainError): void {
    for (const sequence of sequences) if (this.#byId.has(sequence.id)) this.#end(sequence, { type: 'failed', error });
  }

  /** Gives back all that the sequence holds, then tells its reader. */
  #end(sequence: Sequence, event: Terminal): void {
    this.#byId.delete(sequence.id);
    remove(this.#running, sequence);
    remove(this.#waiting, sequence);
    this.#options.ledger.close(sequence.table);
    sequence.lease?.release();
    this.throughput.recordEnd(this.#options.clock.nowMs());
    sequence.events.push(event);
  }
}

function byArrival(a: Sequence, b: Sequence): number {
  return a.arrival - b.arrival;
}

function remove(sequences: Sequence[], sequence: Sequence): void {
  const at = sequences.indexOf(sequence);
  if (at >= 0) sequences.splice(at, 1);
}

function logprobsOf(result: NativeResult, entry: number, top: number, count: number): TokenLogprobs {
  return {
    logprob: result.logprobs[entry] as number,
    rank: result.ranks[entry] as number,
    topIds: Array.from(result.topIds.subarray(top, top + count)),
    topLogprobs: Array.from(result.topLogprobs.subarray(top, top + count)),
  };
}

function stepError(error: unknown): PlainError {
  if (error instanceof ManyfoldError) return toPlainError(error);
  const reason = error instanceof Error ? error.message : String(error);
  return {
    code: 'engine_failure',
    message: `The step that computed this request failed: ${reason}. Send the request again; if it goes on, look at the server's log.`,
  };
}
