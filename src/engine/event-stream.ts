/**
 * The events of one sequence on their way to the front: pushed by the loop, read by one reader, in order. Exactly one
 * terminal event ends the stream; a reader that gives up before it tells the engine.
 */
import { bug } from '../core/errors.js';
import type { EngineEvent } from './port.js';

type Waiter = (result: IteratorResult<EngineEvent, undefined>) => void;

export class EventStream implements AsyncIterableIterator<EngineEvent, undefined> {
  readonly #events: EngineEvent[] = [];
  readonly #abandoned: () => void;
  #waiters: Waiter[] = [];
  #ended = false;
  #closed = false;

  /** `abandoned` is called when the reader leaves before the terminal event. */
  constructor(abandoned: () => void) {
    this.#abandoned = abandoned;
  }

  push(event: EngineEvent): void {
    if (this.#ended) bug(`a ${event.type} event came after the end of its stream`);
    this.#ended = event.type === 'done' || event.type === 'cancelled' || event.type === 'failed';
    if (this.#closed) return;
    const waiter = this.#waiters.shift();
    if (waiter === undefined) this.#events.push(event);
    else waiter({ done: false, value: event });
    if (this.#ended) this.#wakeAll();
  }

  next(): Promise<IteratorResult<EngineEvent, undefined>> {
    const event = this.#events.shift();
    if (event !== undefined) return Promise.resolve({ done: false, value: event });
    if (this.#ended || this.#closed) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => this.#waiters.push(resolve));
  }

  return(): Promise<IteratorResult<EngineEvent, undefined>> {
    if (!this.#ended && !this.#closed) this.#abandoned();
    this.#closed = true;
    this.#events.length = 0;
    this.#wakeAll();
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  #wakeAll(): void {
    for (const waiter of this.#waiters) waiter({ done: true, value: undefined });
    this.#waiters = [];
  }
}
