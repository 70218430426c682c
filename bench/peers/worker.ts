/** A system in a process of its own without HTTP: loads go to its stdin, times come from its stdout, a line of JSON each. */
import { createInterface, type Interface } from 'node:readline';
import { Child, type Command } from './child.js';
import type { LoadTimes } from './load.js';

/** How long a worker that has closed its output may take to end. */
const ENDED_MS = 5000;

/** What a worker reads. */
export interface WorkerRequest {
  readonly prompts: readonly (readonly number[])[];
  readonly outputTokens: number;
  /** Every stream with the one adapter that it was started with. */
  readonly adapter: boolean;
}

export class Worker {
  readonly child: Child;
  readonly #lines: Interface;
  readonly #answers: AsyncIterator<string, undefined>;

  constructor(command: Command) {
    this.child = new Child(command, 'worker');
    const { stdout } = this.child.process;
    if (stdout === null) throw new Error('a worker has a stdout');
    this.#lines = createInterface({ input: stdout });
    this.#answers = this.#lines[Symbol.asyncIterator]();
  }

  /** Resolves when it says that it is ready. */
  async ready(): Promise<void> {
    await this.#next();
  }

  async run(request: WorkerRequest): Promise<LoadTimes> {
    this.child.process.stdin?.write(`${JSON.stringify(request)}\n`);
    return (await this.#next()) as LoadTimes;
  }

  async stop(): Promise<void> {
    this.#lines.close();
    await this.child.stop();
  }

  async #next(): Promise<unknown> {
    for (;;) {
      const { done, value }: IteratorResult<string, undefined> = await this.#answers.next();
      if (done === true) {
        await this.child.ended(ENDED_MS);
        this.child.check();
        throw new Error('the worker closed its output');
      }
      if (!value.startsWith('{')) continue; // Libraries print what they like.
      const answer = JSON.parse(value) as { error?: string };
      if (answer.error !== undefined) throw new Error(answer.error);
      return answer;
    }
  }
}
