/**
 * One accepted request while it runs: submits its sequences, merges their events, ends in exactly one terminal event
 * whatever happens (client gone, engine failure, shutdown). Made by generate.ts.
 */
import type { Clock } from '../core/clock.js';
import { fromPlainError, ManyfoldError, toPlainError } from '../core/errors.js';
import type { PlainError } from '../core/errors.js';
import type { EngineEvent, EnginePort, EngineRequest, EngineUsage } from '../engine/port.js';
import type { GenerationEnd, RequestRecord } from '../telemetry/request-record.js';
import type { Choice, ChoiceOutput } from './choice.js';
import type { Generation, GenerationEvent, Usage } from './events.js';
import { Merge } from './merge.js';
import type { PreparedPrompt } from './prepare.js';
import type { QueueEstimate } from './queue-estimate.js';
import type { ModelTarget } from './served-models.js';

export interface Sequence {
  readonly request: EngineRequest;
  readonly choice: Choice;
  /** Index of its prompt within the request. */
  readonly prompt: number;
}

export interface RunDeps {
  readonly engine: EnginePort;
  readonly estimate: QueueEstimate;
  readonly clock: Clock;
}

export interface RunOptions {
  readonly sequences: readonly Sequence[];
  readonly prompts: readonly PreparedPrompt[];
  /** Aborted when the client goes away. */
  readonly client: AbortSignal;
  /** Aborted, with the error to tell, when the shutdown's time is over. */
  readonly shutdown: AbortSignal;
  readonly record: RequestRecord;
  /** Called once, when nothing of the request is left. */
  readonly leave: () => void;
}

export interface RunDescription {
  readonly id: string;
  readonly target: ModelTarget;
  readonly choicesPerPrompt: number;
}

export class GenerationRun {
  readonly #deps: RunDeps;
  readonly #options: RunOptions;
  /** Indexes of the sequences whose stream has not ended. */
  readonly #live = new Set<number>();
  readonly #lastTokenMs: (number | undefined)[] = [];
  readonly #engineUsage: (EngineUsage | undefined)[] = [];
  readonly #cancelAll = (): void => this.#cancelLive();
  #merge: Merge<EngineEvent> | undefined;
  #submittedMs = 0;
  #failure: PlainError | undefined;

  constructor(deps: RunDeps, options: RunOptions) {
    this.#deps = deps;
    this.#options = options;
  }

  /** Submits all sequences or none. Throws when the engine refuses at once. */
  async start(): Promise<void> {
    const { client, shutdown } = this.#options;
    if (shutdown.aborted) throw asError(shutdown.reason);
    // A client that left while its prompt was prepared costs the engine nothing.
    if (client.aborted) return;
    this.#submittedMs = this.#deps.clock.nowMs();
    try {
      this.#merge = new Merge(this.#submit());
      // An engine that refuses on its stream instead of at once does so within this turn of the event loop.
      await new Promise((resolve) => setImmediate(resolve));
      for (const { value, failure } of this.#merge.ready) {
        if (failure !== undefined) throw asError(failure);
        if (value?.type === 'failed') throw fromPlainError(value.error);
      }
    } catch (error) {
      this.#cancelLive();
      throw asError(this.#withRetryAfter(error));
    }
    client.addEventListener('abort', this.#cancelAll);
    shutdown.addEventListener('abort', this.#cancelAll);
    if (this.#stopped) this.#cancelLive();
  }

  describe(description: RunDescription): Generation {
    const { prompts, sequences } = this.#options;
    return {
      id: description.id,
      createdSeconds: this.#deps.clock.unixSeconds(),
      model: description.target.name,
      fingerprint: description.target.fingerprint,
      choices: sequences.length,
      promptTokens: this.#promptTokens(),
      promptIds: (choice) => prompts[Math.floor(choice / description.choicesPerPrompt)]?.ids ?? [],
      completionTokens: () => this.#completionTokens(),
      events: this.#events(),
    };
  }

  get #stopped(): boolean {
    return this.#options.client.aborted || this.#options.shutdown.aborted;
  }

  #submit(): AsyncIterable<EngineEvent>[] {
    return this.#options.sequences.map(({ request }, index) => {
      const events = this.#deps.engine.submit(request);
      this.#live.add(index);
      return events;
    });
  }

  async *#events(): AsyncGenerator<GenerationEvent> {
    try {
      for (;;) {
        const item = await this.#merge?.next();
        if (item === undefined) break;
        if (item.value === undefined) this.#sourceEnded(item.source, item.failure);
        else yield* this.#onEvent(item.source, item.value);
        if (this.#failure !== undefined) break;
      }
      yield this.#terminal();
    } finally {
      this.#end();
    }
  }

  *#onEvent(index: number, event: EngineEvent): Generator<GenerationEvent> {
    const sequence = this.#options.sequences[index];
    if (sequence === undefined) return;
    const { choice } = sequence;
    if (event.type === 'token') this.#onToken(index, choice);
    else if (event.type !== 'prompt_logprobs') this.#onEnd(index, choice, event);
    const wasFinished = choice.finish !== undefined;
    const output = choice.accept(event);
    if (choice.finish !== undefined && !wasFinished && event.type === 'token') {
      // A stop string was met: what the engine still computes for this choice is dropped.
      this.#deps.engine.cancel(choice.id);
    }
    if (output !== undefined) yield* outputEvents(index, output);
  }

  #onToken(index: number, choice: Choice): void {
    if (choice.finish !== undefined) return;
    const nowMs = this.#deps.clock.nowMs();
    this.#options.record.token(this.#lastTokenMs[index], nowMs);
    this.#lastTokenMs[index] = nowMs;
  }

  #onEnd(index: number, choice: Choice, event: Extract<EngineEvent, { type: 'done' | 'cancelled' | 'failed' }>): void {
    this.#live.delete(index);
    if (event.type === 'failed') {
      if (choice.finish === undefined) this.#failure = event.error;
      return;
    }
    this.#engineUsage[index] = event.usage;
    this.#deps.estimate.record((this.#deps.clock.nowMs() - this.#submittedMs) / 1000);
    if (event.type === 'cancelled' && choice.finish === undefined && !this.#stopped) {
      this.#failure = engineStopped('cancelled a sequence that nobody had asked it to');
    }
  }

  #sourceEnded(index: number, failure: unknown): void {
    if (failure !== undefined) this.#failure = toPlainError(this.#withRetryAfter(failure));
    else if (this.#live.has(index)) this.#failure = engineStopped('ended a sequence without saying why');
    this.#live.delete(index);
  }

  /** Decides how the request ended, and tells telemetry. */
  #terminal(): GenerationEvent {
    const usage = this.#usage();
    const unfinished = this.#options.sequences.some(({ choice }) => choice.finish === undefined);
    const { shutdown } = this.#options;
    if (this.#failure === undefined && unfinished && shutdown.aborted) this.#failure = toPlainError(shutdown.reason);
    if (this.#failure !== undefined) {
      this.#options.record.error(this.#failure.code);
      this.#record('failed', usage);
      return { type: 'failed', error: this.#failure };
    }
    const type = unfinished ? 'cancelled' : 'done';
    this.#record(type, usage);
    return { type, usage };
  }

  #record(outcome: GenerationEnd['outcome'], usage: Usage): void {
    const finishReasons = this.#options.sequences.flatMap(({ choice }) => choice.finish?.reason ?? []);
    this.#options.record.generationEnded({ outcome, finishReasons, ...usage });
  }

  /** Runs once, also when the reader gave up before the terminal event. */
  #end(): void {
    const { client, shutdown, leave } = this.#options;
    client.removeEventListener('abort', this.#cancelAll);
    shutdown.removeEventListener('abort', this.#cancelAll);
    this.#cancelLive();
    this.#record('cancelled', this.#usage());
    leave();
  }

  #cancelLive(): void {
    for (const index of this.#live) {
      const sequence = this.#options.sequences[index];
      if (sequence !== undefined) this.#deps.engine.cancel(sequence.request.id);
    }
  }

  #usage(): Usage {
    const { prompts, sequences } = this.#options;
    let cachedTokens = 0;
    prompts.forEach((_, prompt) => {
      // The prompt counts once, so its reuse is that of its first choice.
      const first = sequences.findIndex((sequence) => sequence.prompt === prompt);
      cachedTokens += this.#engineUsage[first]?.cachedTokens ?? 0;
    });
    return { promptTokens: this.#promptTokens(), completionTokens: this.#completionTokens(), cachedTokens };
  }

  #promptTokens(): number {
    return this.#options.prompts.reduce((sum, prompt) => sum + prompt.ids.length, 0);
  }

  #completionTokens(): number {
    return this.#options.sequences.reduce((sum, { choice }) => sum + choice.counted, 0);
  }

  #withRetryAfter(error: unknown): unknown {
    if (!(error instanceof ManyfoldError)) return error;
    if (error.code !== 'overloaded' || error.retryAfterSeconds !== undefined) return error;
    return this.#deps.estimate.overloaded();
  }
}

function* outputEvents(choice: number, output: ChoiceOutput): Generator<GenerationEvent> {
  if (output.promptLogprobs !== undefined) {
    yield { type: 'prompt_logprobs', choice, positions: output.promptLogprobs };
  }
  const { text, ids, tokens, finish } = output;
  if (text !== '' || ids.length > 0 || tokens.length > 0) yield { type: 'delta', choice, text, ids, tokens };
  if (finish !== undefined) yield { type: 'choice_done', choice, ...finish };
}

function engineStopped(what: string): PlainError {
  return {
    code: 'engine_failure',
    message: `The engine ${what}. Send the request again; if it goes on, look at the server's log.`,
  };
}

function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : fromPlainError(toPlainError(thrown));
}
