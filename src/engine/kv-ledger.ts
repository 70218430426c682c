/**
 * Who holds which page of the KV pool. Every page is free or owned by one table, and the sum is checked. Pages of one
 * sequence are placed one after another wherever possible, because attention over long runs of memory is several times
 * faster: a table that must start a new run gets the middle of the widest gap, so that its run, and the run before the
 * gap, can both double. Called by the loop; knows no sequence.
 */
import { bug } from '../core/errors.js';

const FREE = -1;

/** The pages of one sequence, in order of its tokens. Made by {@link KvLedger.open}, changed by the ledger only. */
export class PageTable {
  /** Page numbers; only the first {@link count} count. */
  pages = new Int32Array(4);
  count = 0;
  /** Keys of the pages that are full, see page-identity.ts. */
  readonly keys: Uint8Array[] = [];

  constructor(readonly id: number) {}
}

export class KvLedger {
  /** Table id of each page, or FREE. */
  readonly #owner: Int32Array;
  readonly #tables = new Map<number, PageTable>();
  #free: number;
  #nextId = 0;

  constructor(
    readonly pageCount: number,
    readonly pageTokens: number,
  ) {
    this.#owner = new Int32Array(pageCount).fill(FREE);
    this.#free = pageCount;
  }

  get freePages(): number {
    return this.#free;
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

  /**
   * Makes room for so many tokens; `expectedTokens` is how many will be needed soon, for placement only. False, with
   * nothing changed, when there are too few free pages.
   */
  grow(table: PageTable, tokens: number, expectedTokens: number): boolean {
    const wanted = this.pagesFor(tokens);
    if (wanted - table.count > this.#free) return false;
    while (table.count < wanted) {
      const next = table.count === 0 ? FREE : (table.pages[table.count - 1] as number) + 1;
      const fits = next !== FREE && next < this.pageCount && this.#owner[next] === FREE;
      this.#take(table, fits ? next : this.#newRun(Math.max(this.pagesFor(expectedTokens) - table.count, table.count)));
    }
    return true;
  }

  /** Rolls back to so many tokens: pages that hold none of them are free again, keys of cut pages are forgotten. */
  truncate(table: PageTable, tokens: number): void {
    const kept = this.pagesFor(tokens);
    for (let i = kept; i < table.count; i += 1) this.#owner[table.pages[i] as number] = FREE;
    if (kept < table.count) {
      this.#free += table.count - kept;
      table.count = kept;
    }
    table.keys.length = Math.min(table.keys.length, Math.floor(tokens / this.pageTokens));
  }

  /** Notes what the next full page holds, see page-identity.ts. */
  seal(table: PageTable, key: Uint8Array): void {
    if (table.keys.length >= table.count) bug(`table ${table.id} has no page for another key`);
    table.keys.push(key);
  }

  /** Gives all pages back; the table must not be used afterwards. */
  close(table: PageTable): void {
    this.truncate(table, 0);
    if (!this.#tables.delete(table.id)) bug(`the page table ${table.id} was closed twice`);
  }

  pagesFor(tokens: number): number {
    return Math.ceil(tokens / this.pageTokens);
  }

  /** free + held = total, and every table owns exactly the pages that it lists. */
  assertConsistent(): void {
    let held = 0;
    for (const table of this.#tables.values()) {
      held += table.count;
      for (let i = 0; i < table.count; i += 1) {
        const page = table.pages[i] as number;
        if (this.#owner[page] !== table.id) bug(`page ${page} of table ${table.id} belongs to ${this.#owner[page]}`);
      }
      if (table.keys.length > table.count)
        bug(`table ${table.id} has ${table.keys.length} keys for ${table.count} pages`);
    }
    const owned = this.#owner.reduce((sum, owner) => sum + (owner === FREE ? 0 : 1), 0);
    if (owned !== held || held + this.#free !== this.pageCount) {
      bug(`${this.#free} pages are free and ${held} held (${owned} owned) of ${this.pageCount}`);
    }
  }

  #take(table: PageTable, page: number): void {
    this.#owner[page] = table.id;
    this.#free -= 1;
    if (table.count === table.pages.length) {
      const wider = new Int32Array(table.pages.length * 2);
      wider.set(table.pages);
      table.pages = wider;
    }
    table.pages[table.count] = page;
    table.count += 1;
  }

  /** First page of a new run of about `pages`: see the head of this file. There is a free page. */
  #newRun(pages: number): number {
    let start = 0;
    let length = 0;
    for (let at = 0; at < this.pageCount; at += 1) {
      if (this.#owner[at] !== FREE) continue;
      const from = at;
      while (at < this.pageCount && this.#owner[at] === FREE) at += 1;
      if (at - from > length) [start, length] = [from, at - from];
    }
    if (length === 0) return bug('a page was asked for when none was free');
    // What stands before the gap may be a run that grows into it; at the pool's start there is none.
    const spare = start === 0 ? 0 : Math.max(0, length - pages);
    return start + Math.floor(spare / 2);
  }
}
