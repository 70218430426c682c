/**
 * Several event streams as one, in order of arrival. Each source has one event in flight at most: who reads slowly
 * holds the sources back.
 */
export interface Merged<T> {
  readonly source: number;
  /** Undefined when the source ended without another event. */
  readonly value?: T;
  readonly failure?: unknown;
}

export class Merge<T> {
  readonly #iterators: readonly AsyncIterator<T>[];
  readonly #ready: Merged<T>[] = [];
  #wake: (() => void) | undefined;
  #live: number;
  /** The source whose event was handed out last; it is asked for its next one when the reader comes back. */
  #owing: number | undefined;

  /** Asks every source for its first event at once. */
  constructor(sources: readonly AsyncIterable<T>[]) {
    this.#iterators = sources.map((source) => source[Symbol.asyncIterator]());
    this.#live = sources.length;
    for (let source = 0; source < sources.length; source += 1) this.#ask(source);
  }

  /** What has arrived and was not read yet. */
  get ready(): readonly Merged<T>[] {
    return this.#ready;
  }

  /** The next event of any source; undefined when all have ended. */
  async next(): Promise<Merged<T> | undefined> {
    if (this.#owing !== undefined) {
      this.#ask(this.#owing);
      this.#owing = undefined;
    }
    while (this.#ready.length === 0) {
      if (this.#live === 0) return undefined;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    const item = this.#ready.shift();
    if (item !== undefined && 'value' in item) this.#owing = item.source;
    return item;
  }

  #ask(source: number): void {
    const iterator = this.#iterators[source];
    if (iterator === undefined) return;
    iterator.next().then(
      (result) => this.#arrive(result.done === true ? { source } : { source, value: result.value }),
      (failure: unknown) => this.#arrive({ source, failure }),
    );
  }

  #arrive(item: Merged<T>): void {
    if (!('value' in item)) this.#live -= 1;
    this.#ready.push(item);
    this.#wake?.();
  }
}
