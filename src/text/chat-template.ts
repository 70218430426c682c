/**
 * Renders chat templates in worker threads with a deadline, so that a slow or hostile template fails its own request
 * and nothing else. Threads start with the first rendering, are replaced when they overrun, and never keep the process
 * alive. One renderer serves the whole front; text-model.ts calls it.
 */
import { Worker } from 'node:worker_threads';
import type { Clock } from '../core/clock.js';
import { ManyfoldError } from '../core/errors.js';
import type { JsonValue } from './json-value.js';
import { TEXT_LIMITS } from './limits.js';
import type { RenderJob, RenderReply } from './template-worker.js';

export interface TemplateRendererOptions {
  /** Tells the date to templates that ask for it. */
  readonly clock: Clock;
  /** Milliseconds that one rendering may take. */
  readonly deadlineMs?: number;
  /** Threads at most; one that is busy with a slow template holds up only what no other thread can take. */
  readonly threads?: number;
}

export interface RenderOptions {
  /** Another deadline for this rendering alone. */
  readonly deadlineMs?: number;
}

export interface TemplateRenderer {
  /** The template with these variables as text; 'invalid_template' when it raises, overruns or does not parse. */
  render(template: string, variables: Readonly<Record<string, JsonValue>>, options?: RenderOptions): Promise<string>;
  /** Ends the threads; renderings under way fail. */
  close(): Promise<void>;
}

interface Pending {
  readonly job: RenderJob;
  readonly deadlineMs: number;
  readonly resolve: (text: string) => void;
  readonly reject: (error: ManyfoldError) => void;
}

interface Thread {
  readonly worker: Worker;
  ready: boolean;
  current: Pending | undefined;
  timer: NodeJS.Timeout | undefined;
}

export function createTemplateRenderer(options: TemplateRendererOptions): TemplateRenderer {
  return new WorkerRenderer(options);
}

class WorkerRenderer implements TemplateRenderer {
  readonly #clock: Clock;
  readonly #deadlineMs: number;
  readonly #threadsMax: number;
  readonly #threads: Thread[] = [];
  readonly #waiting: Pending[] = [];
  #nextId = 1;
  #closed = false;

  constructor(options: TemplateRendererOptions) {
    this.#clock = options.clock;
    this.#deadlineMs = options.deadlineMs ?? TEXT_LIMITS.renderDeadlineMs;
    this.#threadsMax = options.threads ?? 2;
  }

  async render(
    template: string,
    variables: Readonly<Record<string, JsonValue>>,
    options: RenderOptions = {},
  ): Promise<string> {
    checkTemplateSize(template);
    if (this.#closed)
      throw new ManyfoldError('shutting_down', 'The server is shutting down. Send the request to another server.');
    return new Promise((resolve, reject) => {
      const unixSeconds = this.#clock.unixSeconds();
      const job = { id: this.#nextId++, template, variables, unixSeconds, charsMax: TEXT_LIMITS.renderedChars };
      this.#waiting.push({ job, deadlineMs: options.deadlineMs ?? this.#deadlineMs, resolve, reject });
      this.#dispatch();
    });
  }

  async close(): Promise<void> {
    this.#closed = true;
    const error = new ManyfoldError(
      'shutting_down',
      'The server is shutting down. Send the request to another server.',
    );
    for (const pending of this.#waiting.splice(0)) pending.reject(error);
    await Promise.all(this.#threads.splice(0).map((thread) => this.#end(thread, error)));
  }

  /** Gives waiting jobs to idle threads; starts a thread where there is work for one. */
  #dispatch(): void {
    for (const thread of this.#threads) {
      if (!thread.ready || thread.current !== undefined) continue;
      const pending = this.#waiting.shift();
      if (pending === undefined) return;
      this.#give(thread, pending);
    }
    const starting = this.#threads.filter((thread) => !thread.ready).length;
    if (this.#waiting.length > starting && this.#threads.length < this.#threadsMax) this.#start();
  }

  #give(thread: Thread, pending: Pending): void {
    thread.current = pending;
    thread.worker.ref();
    thread.worker.postMessage(pending.job);
    // The reply may lie in the queue behind this timer when the event loop was busy: one turn more before judging.
    thread.timer = setTimeout(() => {
      setImmediate(() => {
        if (thread.current === pending) this.#overrun(thread, pending.deadlineMs);
      });
    }, pending.deadlineMs);
  }

  #overrun(thread: Thread, deadlineMs: number): void {
    this.#drop(
      thread,
      new ManyfoldError(
        'invalid_template',
        `The chat template took longer than ${deadlineMs} ms. Simplify the template, or send fewer messages.`,
      ),
    );
  }

  #start(): void {
    const worker = new Worker(new URL('./template-worker.js', import.meta.url), {
      name: 'chat-template',
      // Nothing of the process's environment and flags is a template's business.
      env: {},
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 16, stackSizeMb: 4 },
    });
    const thread: Thread = { worker, ready: false, current: undefined, timer: undefined };
    this.#threads.push(thread);
    worker.on('message', (reply: RenderReply) => this.#receive(thread, reply));
    worker.on('error', (cause) => this.#failed(thread, cause));
  }

  #receive(thread: Thread, reply: RenderReply): void {
    if (reply.kind === 'ready') {
      thread.ready = true;
    } else if (thread.current?.job.id === reply.id) {
      const pending = thread.current;
      clearTimeout(thread.timer);
      thread.current = undefined;
      if (reply.kind === 'text') pending.resolve(reply.text);
      else pending.reject(errorOf(reply));
    }
    this.#dispatch();
    // A thread that waits for work must not keep the process from ending; one at work must.
    if (thread.current === undefined) thread.worker.unref();
  }

  /** The thread died: out of memory under a job, or it could not start at all. */
  #failed(thread: Thread, cause: Error): void {
    if (!thread.ready) {
      const error = new ManyfoldError(
        'bug',
        `The chat template thread did not start: ${cause.message}. Build Manyfold again; if it stays so, report it.`,
        { cause },
      );
      for (const pending of this.#waiting.splice(0)) pending.reject(error);
      this.#drop(thread, error);
      return;
    }
    const message = `The chat template failed: ${cause.message}. Simplify the template, or send fewer messages.`;
    this.#drop(thread, new ManyfoldError('invalid_template', message, { cause }));
  }

  #drop(thread: Thread, error: ManyfoldError): void {
    const at = this.#threads.indexOf(thread);
    if (at < 0) return;
    this.#threads.splice(at, 1);
    void this.#end(thread, error);
    this.#dispatch();
  }

  async #end(thread: Thread, error: ManyfoldError): Promise<void> {
    clearTimeout(thread.timer);
    const pending = thread.current;
    thread.current = undefined;
    pending?.reject(error);
    thread.worker.removeAllListeners('message');
    await thread.worker.terminate();
  }
}

function errorOf(reply: Extract<RenderReply, { kind: 'failed' | 'too-long' }>): ManyfoldError {
  if (reply.kind === 'too-long') {
    return new ManyfoldError(
      'request_too_large',
      `The rendered conversation has ${reply.chars} characters; at most ${TEXT_LIMITS.renderedChars} are served. Send fewer or shorter messages.`,
    );
  }
  return new ManyfoldError(
    'invalid_template',
    `The model's chat template refused these messages: ${reply.message}. Change the messages or chat_template_kwargs ` +
      'to what the template expects.',
  );
}

/** Refuses a template beyond the size limit; called where one is loaded, too. */
export function checkTemplateSize(template: string): void {
  const bytes = Buffer.byteLength(template, 'utf8');
  if (bytes <= TEXT_LIMITS.templateBytes) return;
  throw new ManyfoldError(
    'invalid_template',
    `The chat template has ${bytes} bytes; at most ${TEXT_LIMITS.templateBytes} are served. Use a shorter template.`,
    { param: 'chat_template' },
  );
}
