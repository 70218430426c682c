/**
 * Which rows the next step computes: a pure function of state and budget. No clock, no randomness, nothing changed.
 *
 * Order of service is order of arrival. Sequences that decode go first (one row each), then chunks of running prompts,
 * then new sequences. A sequence that cannot advance for want of pages takes those of the newest running one, which
 * waits and is computed again later (preemption by recompute); the newest itself only stands still. So the oldest
 * sequence advances in every step, and nothing starves. A queue's head that does not fit is never overtaken.
 */

/** What the scheduler must know of a sequence. Tokens are counted from the sequence's first, without prefixes. */
export interface Schedulable {
  /** Unique, ascending in order of arrival; kept across preemptions. */
  readonly arrival: number;
  /** Tokens known, prompt and output. */
  readonly length: number;
  /** Tokens whose KV is in its pages, or for a waiting one in pages of the pool that it would begin with. */
  readonly computed: number;
  /** Tokens to compute before the next token is known or the sequence ends; at least computed + 1. */
  readonly goal: number;
  /** Whether the row of token goal - 1 samples. */
  readonly samples: boolean;
  /** Rows scoreFrom .. scoreTo - 1 want the log-probability of their next token. */
  readonly scoreFrom: number;
  readonly scoreTo: number;
  /** Pages held, or that a waiting one would begin with. */
  readonly pages: number;
  /** Pages that a waiting one would begin with and that count as free; 0 for running ones. */
  readonly idlePages: number;
}

export interface ScheduleState<S extends Schedulable> {
  /** In order of arrival. */
  readonly running: readonly S[];
  /** In order of arrival. */
  readonly waiting: readonly S[];
  readonly freePages: number;
}

export interface ScheduleBudget {
  /** Rows of a step; at least maxRunning. */
  readonly maxRows: number;
  /** Logits entries of a step; at least maxRunning. */
  readonly maxEntries: number;
  readonly maxRunning: number;
  /** Rows of one sequence in a step. */
  readonly maxChunk: number;
  readonly pageTokens: number;
}

/** Rows computed .. computed + count - 1 of one sequence. */
export interface Chunk<S> {
  readonly sequence: S;
  readonly count: number;
}

export interface Plan<S> {
  readonly chunks: readonly Chunk<S>[];
  /** Taken out of running, newest first. */
  readonly preempted: readonly S[];
  /** Taken out of waiting, in order. */
  readonly admitted: readonly S[];
}

export function schedule<S extends Schedulable>(state: ScheduleState<S>, budget: ScheduleBudget): Plan<S> {
  const planner = new Planner(state, budget);
  planner.decode();
  planner.prefill();
  planner.admit();
  return planner.plan();
}

/** Logits entries that rows from .. to - 1 of a sequence need. */
export function entriesOf(sequence: Schedulable, from: number, to: number): number {
  const scored = Math.min(to, sequence.scoreTo) - Math.max(from, sequence.scoreFrom);
  return Math.max(0, scored) + (to === sequence.goal && sequence.samples ? 1 : 0);
}

class Planner<S extends Schedulable> {
  readonly #budget: ScheduleBudget;
  readonly #running: readonly S[];
  readonly #waiting: readonly S[];
  /** Rows for running[i]; preempted ones are cut off the end. */
  readonly #counts: number[];
  readonly #admitted: S[] = [];
  readonly #admittedCounts: number[] = [];
  /** running[alive ..] are preempted. */
  #alive: number;
  #rows: number;
  #entries: number;
  #pages: number;

  constructor(state: ScheduleState<S>, budget: ScheduleBudget) {
    this.#budget = budget;
    this.#running = state.running;
    this.#waiting = state.waiting;
    this.#alive = state.running.length;
    this.#counts = new Array<number>(state.running.length).fill(0);
    this.#rows = budget.maxRows;
    this.#entries = budget.maxEntries;
    this.#pages = state.freePages;
  }

  decode(): void {
    for (let i = 0; i < this.#alive; i += 1) if (isDecoding(this.#running[i] as S)) this.#advance(i);
  }

  prefill(): void {
    for (let i = 0; i < this.#alive; i += 1) if (!isDecoding(this.#running[i] as S)) this.#advance(i);
  }

  /** Takes waiting sequences while their whole known text fits beside what the running ones will need. */
  admit(): void {
    if (this.#alive < this.#running.length) return;
    let promised = 0;
    for (let i = 0; i < this.#alive; i += 1) promised += this.#pagesStillNeeded(i);
    for (const sequence of this.#waiting) {
      const others = this.#alive + this.#admitted.length;
      if (others >= this.#budget.maxRunning || this.#rows === 0 || this.#entries === 0) return;
      const pages = this.#pagesFor(sequence.goal) - sequence.pages;
      const { idlePages } = sequence;
      // One page each for those that run: admitting a sequence only to preempt it soon would waste its prompt's work.
      if (others > 0 && idlePages + pages + promised + others > this.#pages) return;
      this.#pages -= idlePages;
      const count = this.#largest(sequence, this.#pages);
      this.#spend(sequence, count, 1);
      this.#admitted.push(sequence);
      this.#admittedCounts.push(count);
      promised += Math.max(0, this.#pagesFor(sequence.goal) - this.#pagesFor(sequence.computed + count));
    }
  }

  plan(): Plan<S> {
    const chunks: Chunk<S>[] = [];
    for (let i = 0; i < this.#alive; i += 1) this.#addChunk(chunks, this.#running[i] as S, this.#counts[i] as number);
    this.#admitted.forEach((sequence, i) => this.#addChunk(chunks, sequence, this.#admittedCounts[i] as number));
    return { chunks, preempted: this.#running.slice(this.#alive).reverse(), admitted: this.#admitted };
  }

  #addChunk(chunks: Chunk<S>[], sequence: S, count: number): void {
    if (count > 0) chunks.push({ sequence, count });
  }

  /** Gives running[i] the rows that it can have, preempting newer ones when it could not advance at all. */
  #advance(i: number): void {
    const sequence = this.#running[i] as S;
    if (this.#rows === 0) return;
    let count = this.#largest(sequence, this.#pages);
    while (count === 0 && this.#entries > 0 && this.#alive > i + 1) {
      this.#preemptNewest();
      count = this.#largest(sequence, this.#pages);
    }
    this.#spend(sequence, count, 1);
    this.#counts[i] = count;
  }

  #preemptNewest(): void {
    this.#alive -= 1;
    const victim = this.#running[this.#alive] as S;
    this.#spend(victim, this.#counts[this.#alive] as number, -1);
    this.#pages += victim.pages;
  }

  /** Rows, entries and pages of a chunk; sign -1 gives them back. */
  #spend(sequence: S, count: number, sign: 1 | -1): void {
    if (count === 0) return;
    const end = sequence.computed + count;
    this.#rows -= sign * count;
    this.#entries -= sign * entriesOf(sequence, sequence.computed, end);
    this.#pages -= sign * Math.max(0, this.#pagesFor(end) - sequence.pages);
  }

  /** Most rows that the sequence can have with what is left. */
  #largest(sequence: S, freePages: number): number {
    const { computed, goal, pages } = sequence;
    const room = (pages + freePages) * this.#budget.pageTokens - computed;
    let count = Math.min(goal - computed, this.#budget.maxChunk, this.#rows, room);
    while (count > 0 && entriesOf(sequence, computed, computed + count) > this.#entries) {
      // Every row has at most one entry, so cutting by the excess is enough, and cuts at least one.
      count -= entriesOf(sequence, computed, computed + count) - this.#entries;
    }
    return Math.max(0, count);
  }

  /** Pages that running[i] needs for its known text beyond those that it has after this step. */
  #pagesStillNeeded(i: number): number {
    const sequence = this.#running[i] as S;
    const after = Math.max(sequence.pages, this.#pagesFor(sequence.computed + (this.#counts[i] as number)));
    return Math.max(0, this.#pagesFor(sequence.goal) - after);
  }

  #pagesFor(tokens: number): number {
    return Math.ceil(tokens / this.#budget.pageTokens);
  }
}

/** One row is left before its next token, and it has begun. */
function isDecoding(sequence: Schedulable): boolean {
  return sequence.computed > 0 && sequence.goal - sequence.computed === 1;
}
