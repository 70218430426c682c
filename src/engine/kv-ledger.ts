/**
 * Who holds which page of the KV pool. A page is held by one table or by several (a prefix that they share), or it is idle
 * (nobody holds it, but its content is known by a key and may be wanted again), or free. The sum is checked. Idle pages
 * are taken back least recently used first, and count as free for whoever plans.
 *
 * Pages of one sequence are placed one after another wherever possible, because attention over long runs of memory is
 * several times faster: a table that must start a new run gets the middle of the widest gap, so that its run, and the run
 * before the gap, can both double. Called by the loop; knows no sequence.
 */
import { bug } from '../core/errors.js';

/** Pages below which a run slows attention down: idle pages are given up rather than start a shorter one. */
const SHORT_RUN = 8;

/** The pages of one sequence, in order of its tokens. Made by {@link KvLedger.open}, changed by the ledger only. */
export class PageTable {
  /** Page numbers; only the first {@link count} count. */
  pages = new Int32Array(4);
  count = 0;
  /** Keys of the pages that are full, see page-identity.ts. */
  readonly keys: string[] = [];

  constructor(readonly id: number) {}
}

/** Pages that a sequence could begin with. */
export interface PrefixMatch {
  readonly pages: number;
  /** Of those, how many nobody holds: they count as free until they are adopted. */
  readonly idle: number;
}

export class KvLedger {
  /** Tables that hold each page. */
  readonly #holders: Int32Array;
  /** What each page is known to hold; undefined where it is unknown or may still change. */
  readonly #keyOf: (string | undefined)[];
  readonly #pageOf = new Map<string, number>();
  /** Known pages that nobody holds, least recently used first. */
  readonly #idle = new Set<number>();
  readonly #tables = new Map<number, PageTable>();
  /** Pages that nobody holds and nobody knows. */
  #blank: number;
  #nextId = 0;

  constructor(
    readonly pageCount: number,
    readonly pageTokens: number,
    /** Whether pages that nobody holds are remembered. */
    private readonly remembers = true,
  ) {
    this.#holders = new Int32Array(pageCount);
    this.#keyOf = new Array<string | undefined>(pageCount).fill(undefined);
    this.#blank = pageCount;
  }

  /** Pages that can be had, idle ones among them. */
  get freePages(): number {
    return this.#blank + this.#idle.size;
  }

  /** Pages that nobody holds and whose content may be wanted again. */
  get idlePages(): number {
    return this.#idle.size;
  }

  /** Tables that are open; each holds zero or more pages. */
  get openTables(): number {
    return this.#tables.size;
  }

  open(): PageTable {
    const table = new PageTable(this.#nextId);
    this.#nextId += 1;
    this.#tables.set(table.id, table);
    return table;
  }

  /** How many of the keys, from the first on, are those of pages in the pool. */
  match(keys: Iterable<string>): PrefixMatch {
    let pages = 0;
    let idle = 0;
    for (const key of keys) {
      const page = this.#pageOf.get(key);
      if (page === undefined) break;
      pages += 1;
      if (this.#holders[page] === 0) idle += 1;
    }
    return { pages, idle };
  }

  /** Begins an empty table with the pages of these keys, which {@link match} has just found. They are read, never written. */
  adopt(table: PageTable, keys: readonly string[]): void {
    if (table.count > 0) bug(`table ${table.id} has ${table.count} pages and cannot begin with others`);
    for (const key of keys) {
      const page = this.#pageOf.get(key) ?? bug('a page was adopted that is not in the pool');
      this.#idle.delete(page);
      this.#append(table, page);
      table.keys.push(key);
    }
  }

  /**
   * Makes room for so many tokens; `expectedTokens` is how many will be needed soon, for placement only. False, with
   * nothing changed, when there are too few free pages.
   */
  grow(table: PageTable, tokens: number, expectedTokens: number): boolean {
    const wanted = this.pagesFor(tokens);
    if (wanted - table.count > this.freePages) return false;
    while (table.count < wanted) {
      const next = table.count === 0 ? -1 : (table.pages[table.count - 1] as number) + 1;
      const page = this.#canFollow(next)
        ? next
        : this.#newRun(Math.max(this.pagesFor(expectedTokens) - table.count, table.count));
      this.#forget(page);
      this.#blank -= 1;
      this.#append(table, page);
    }
    return true;
  }

  /**
   * Rolls back to so many tokens: pages that hold none of them are given back, and keys of cut pages are forgotten. A cut
   * page will be written again, so nobody else may hold it.
   */
  truncate(table: PageTable, tokens: number): void {
    const kept = this.pagesFor(tokens);
    const full = Math.floor(tokens / this.pageTokens);
    // The last first: of a prefix that is given back, the end is given up before the beginning.
    for (let i = table.count - 1; i >= kept; i -= 1) this.#release(table.pages[i] as number);
    table.count = Math.min(table.count, kept);
    if (full < kept && full < table.keys.length) this.#reopen(table.pages[full] as number);
    table.keys.length = Math.min(table.keys.length, full);
  }

  /** Notes what the next full page holds, see page-identity.ts. */
  seal(table: PageTable, key: string): void {
    if (table.keys.length >= table.count) bug(`table ${table.id} has no page for another key`);
    const page = table.pages[table.keys.length] as number;
    table.keys.push(key);
    // Two sequences may have computed the same at once; the second copy stays unknown.
    if (!this.remembers || this.#pageOf.has(key)) return;
    this.#pageOf.set(key, page);
    this.#keyOf[page] = key;
  }

  /** Gives all pages back; the table must not be used afterwards. */
  close(table: PageTable): void {
    this.truncate(table, 0);
    if (!this.#tables.delete(table.id)) bug(`the page table ${table.id} was closed twice`);
  }

  /** Gives up every idle page. */
  forgetIdle(): void {
    for (const page of [...this.#idle]) this.#forget(page);
  }

  pagesFor(tokens: number): number {
    return Math.ceil(tokens / this.pageTokens);
  }

  /** held + idle + blank = total, pages are held by exactly the tables that list them, and each key names one page. */
  assertConsistent(): void {
    const holders = new Int32Array(this.pageCount);
    for (const table of this.#tables.values()) {
      for (let i = 0; i < table.count; i += 1) {
        const page = table.pages[i] as number;
        holders[page] = (holders[page] as number) + 1;
      }
      if (table.keys.length > table.count)
        bug(`table ${table.id} has ${table.keys.length} keys for ${table.count} pages`);
    }
    let held = 0;
    for (let page = 0; page < this.pageCount; page += 1) {
      if (holders[page] !== this.#holders[page])
        bug(`page ${page} is held by ${holders[page]} tables, and counted ${this.#holders[page]} times`);
      const key = this.#keyOf[page];
      if (key !== undefined && this.#pageOf.get(key) !== page) bug(`page ${page} has a key that names another page`);
      if (this.#idle.has(page) !== (holders[page] === 0 && key !== undefined))
        bug(`page ${page} is idle, or should be`);
      if ((holders[page] as number) > 0) held += 1;
    }
    if (held + this.#idle.size + this.#blank !== this.pageCount) {
      bug(`${held} pages are held, ${this.#idle.size} idle and ${this.#blank} blank of ${this.pageCount}`);
    }
  }

  #append(table: PageTable, page: number): void {
    this.#holders[page] = (this.#holders[page] as number) + 1;
    if (table.count === table.pages.length) {
      const wider = new Int32Array(table.pages.length * 2);
      wider.set(table.pages);
      table.pages = wider;
    }
    table.pages[table.count] = page;
    table.count += 1;
  }

  #release(page: number): void {
    this.#holders[page] = (this.#holders[page] as number) - 1;
    if (this.#holders[page] > 0) return;
    if (this.#keyOf[page] === undefined) this.#blank += 1;
    else this.#idle.add(page);
  }

  /** The page's content will change. */
  #reopen(page: number): void {
    if ((this.#holders[page] as number) > 1) bug(`page ${page} was rolled back into while others read it`);
    const key = this.#keyOf[page];
    if (key === undefined) return;
    this.#pageOf.delete(key);
    this.#keyOf[page] = undefined;
  }

  /** An idle page becomes blank. */
  #forget(page: number): void {
    if (!this.#idle.delete(page)) return;
    this.#reopen(page);
    this.#blank += 1;
  }

  #isBlank(page: number): boolean {
    return this.#holders[page] === 0 && this.#keyOf[page] === undefined;
  }

  /** Whether a run may go on at this page: it is blank, or idle while there is nothing better. */
  #canFollow(page: number): boolean {
    if (page < 0 || page >= this.pageCount || (this.#holders[page] as number) > 0) return false;
    return this.#keyOf[page] === undefined || this.#blank === 0;
  }

  /** First page of a new run of about `pages`: see the head of this file. There is a free page. */
  #newRun(pages: number): number {
    let gap = this.#widestGap();
    while (gap.length < Math.min(pages, SHORT_RUN) && this.#idle.size > 0) {
      this.#forgetOldest(Math.max(pages, SHORT_RUN));
      gap = this.#widestGap();
    }
    if (gap.length === 0) return bug('a page was asked for when none was free');
    // What stands before the gap may be a run that grows into it; at the pool's start there is none.
    const spare = gap.start === 0 ? 0 : Math.max(0, gap.length - pages);
    return gap.start + Math.floor(spare / 2);
  }

  #forgetOldest(count: number): void {
    for (const page of this.#idle) {
      if (count === 0) return;
      this.#forget(page);
      count -= 1;
    }
  }

  /** The longest run of blank pages. */
  #widestGap(): { start: number; length: number } {
    let start = 0;
    let length = 0;
    for (let at = 0; at < this.pageCount; at += 1) {
      if (!this.#isBlank(at)) continue;
      const from = at;
      while (at < this.pageCount && this.#isBlank(at)) at += 1;
      if (at - from > length) [start, length] = [from, at - from];
    }
    return { start, length };
  }
}
