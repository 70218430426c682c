/**
 * One running generation: its tokens, how far its KV is computed, what it may still emit. Only the loop changes it.
 * Token i of the sequence has position prefix + i and KV slot i. Rows of a soft prompt are its first tokens, -1 - row.
 */
import type { AdapterLease } from '../adapters/residency.js';
import { bug } from '../core/errors.js';
import type { SequenceId } from '../core/ids.js';
import type { FinishReason, SamplingParams, TokenLogprobs } from '../core/sampling.js';
import { adapterPrompt } from './adapter-prompt.js';
import type { EventStream } from './event-stream.js';
import type { KvLedger, PageTable } from './kv-ledger.js';
import { pageKey } from './page-identity.js';
import type { PageOwner } from './page-identity.js';
import type { EngineRequest, EngineUsage } from './port.js';
import type { Schedulable } from './schedule.js';
import { doubled, TokenHistory } from './token-history.js';

export interface SequenceOptions {
  readonly request: EngineRequest;
  readonly arrival: number;
  readonly lease: AdapterLease | undefined;
  readonly baseFingerprint: string;
  readonly table: PageTable;
  readonly events: EventStream;
  /** Tokens of prefix, prompt and output together. */
  readonly maxModelLen: number;
  readonly eosTokenIds: readonly number[];
}

/** How a sequence ends: a stop id was sampled, or there is no room for more. */
export interface SequenceEnd {
  readonly reason: FinishReason;
  readonly stopId?: number;
}

/** Added logits of a sequence, by token id. -Infinity bans. */
export interface Bias {
  readonly ids: Int32Array;
  readonly values: Float32Array;
}

/** OpenAI's logit_bias: this value and below bans. */
const BANNING_BIAS = -100;

export class Sequence implements Schedulable {
  readonly id: SequenceId;
  readonly arrival: number;
  readonly sampling: SamplingParams;
  readonly lease: AdapterLease | undefined;
  readonly table: PageTable;
  readonly events: EventStream;
  readonly history: TokenHistory | undefined;
  /** Positions before token 0 that the adapter's shared prefix owns. */
  readonly prefixTokens: number;
  /** Rows of the adapter's soft prompt, the first tokens of the sequence. */
  readonly softTokens: number;
  /** Index of the first token whose row has the adapter's terms; Infinity: none has. */
  readonly activeFrom: number;
  readonly promptTokens: number;
  /** Set by cancel(); the loop ends it between steps. */
  cancelled = false;
  /** Tokens whose KV is in the pool; of a waiting sequence those that {@link lookUp} found there. */
  computed = 0;
  /** Pages that a waiting sequence could begin with and that count as free. */
  idlePages = 0;
  length: number;
  /** Prompt and output; only the first {@link length} count. */
  tokens: Int32Array;
  readonly #maxOutput: number;
  readonly #stopIds: ReadonlySet<number>;
  readonly #bias: Bias;
  readonly #biasWithoutStops: Bias;
  readonly #owner: PageOwner;
  readonly #base: PageOwner;
  readonly #salt: string | undefined;
  /** Of the pages of known tokens, as far as somebody asked. */
  readonly #keys: string[] = [];
  #cachedTokens: number | undefined;
  #foundPages = 0;
  readonly #promptLogprobs: TokenLogprobs[] = [];
  #promptLogprobsSent: boolean;
  #countedPrompt = 0;

  constructor(options: SequenceOptions) {
    const { request, lease } = options;
    const { promptIds, emittedIds, sampling } = request;
    this.id = request.id;
    this.arrival = options.arrival;
    this.sampling = sampling;
    this.lease = lease;
    this.table = options.table;
    this.events = options.events;
    this.prefixTokens = lease?.adapter.facts.prefixTokens ?? 0;
    const { softTokens, activeFrom } = adapterPrompt(lease?.adapter, promptIds);
    this.softTokens = softTokens;
    this.activeFrom = activeFrom;
    this.promptTokens = promptIds.length;
    this.length = this.#promptEnd + emittedIds.length;
    this.tokens = new Int32Array(this.length + 16);
    for (let row = 0; row < softTokens; row += 1) this.tokens[row] = -1 - row;
    this.tokens.set(promptIds, softTokens);
    this.tokens.set(emittedIds, this.#promptEnd);
    this.history = TokenHistory.for(sampling, promptIds);
    for (const id of emittedIds) this.history?.addOutput(id);
    this.#maxOutput = Math.min(sampling.maxTokens, options.maxModelLen - this.prefixTokens - this.#promptEnd);
    this.#stopIds = new Set([...(sampling.ignoreEos ? [] : options.eosTokenIds), ...sampling.stopTokenIds]);
    this.#bias = biasOf(sampling, []);
    this.#biasWithoutStops = biasOf(sampling, [...this.#stopIds]);
    this.#base = { kind: 'base', fingerprint: options.baseFingerprint };
    this.#owner = lease === undefined ? this.#base : { kind: 'adapter', version: lease.adapter.version };
    this.#salt = request.cacheSalt;
    // Whoever already gave out tokens has given out the prompt's log-probabilities before them.
    this.#promptLogprobsSent = sampling.promptLogprobs === undefined || emittedIds.length > 0;
  }

  get pages(): number {
    return Math.max(this.table.count, this.#foundPages);
  }

  /** Tokens before the first output: soft prompt and prompt. */
  get #promptEnd(): number {
    return this.softTokens + this.promptTokens;
  }

  get outputTokens(): number {
    return this.length - this.#promptEnd;
  }

  /** Whether another token is to be generated; else only the prompt's log-probabilities are wanted. */
  get samples(): boolean {
    return this.outputTokens < this.#maxOutput;
  }

  /** The last prompt row only matters for what follows it. */
  get goal(): number {
    return this.samples ? this.length : this.#promptEnd - 1;
  }

  get scoreFrom(): number {
    return this.softTokens + this.#promptLogprobs.length;
  }

  get scoreTo(): number {
    return this.#promptLogprobsSent ? 0 : this.#promptEnd - 1;
  }

  get bias(): Bias {
    return this.outputTokens < this.sampling.minTokens ? this.#biasWithoutStops : this.#bias;
  }

  /** Where a sequence stands before its first step: undefined when there is work to do. */
  endBeforeWork(): SequenceEnd | undefined {
    const end = this.outputTokens > 0 ? this.endAfter(this.tokens[this.length - 1] as number) : undefined;
    if (end !== undefined) return end;
    if (this.samples) return undefined;
    return this.#promptLogprobsSent || this.promptTokens === 1 ? { reason: 'length' } : undefined;
  }

  /** Takes a sampled token. */
  append(token: number): void {
    if (this.length === this.tokens.length) this.tokens = doubled(this.tokens);
    this.tokens[this.length] = token;
    this.length += 1;
    this.history?.addOutput(token);
  }

  /** Whether the sequence ends with the token that was just appended. */
  endAfter(token: number): SequenceEnd | undefined {
    if (this.#stopIds.has(token)) return { reason: 'stop', stopId: token };
    return this.samples ? undefined : { reason: 'length' };
  }

  /** Rows up to `end` are in the KV pool now; pages that became full get their key. */
  advance(end: number, ledger: KvLedger): void {
    this.computed = end;
    for (let page = this.table.keys.length; (page + 1) * ledger.pageTokens <= end; page += 1) {
      ledger.seal(this.table, this.#key(page, ledger.pageTokens));
    }
  }

  /**
   * Before it is scheduled: how much of its text is in the pool already. At least one row is left to compute, and rows whose
   * log-probabilities are wanted are computed.
   */
  lookUp(ledger: KvLedger): void {
    const wanted = this.scoreTo > this.scoreFrom ? 0 : Math.floor((this.goal - 1) / ledger.pageTokens);
    const { pages, idle } = ledger.match(this.#keysUpTo(wanted, ledger.pageTokens));
    this.#foundPages = pages;
    this.idlePages = idle;
    this.computed = pages * ledger.pageTokens;
  }

  /** Takes what {@link lookUp} found. Gives the tokens that it did not have to compute: of the prompt, at the first time. */
  admit(ledger: KvLedger): { readonly asked: number; readonly found: number } {
    ledger.adopt(this.table, this.#keys.slice(0, this.#foundPages));
    this.#foundPages = this.idlePages = 0;
    if (this.#cachedTokens !== undefined) return { asked: 0, found: 0 };
    this.#cachedTokens = Math.max(0, Math.min(this.computed, this.#promptEnd) - this.softTokens);
    this.#countedPrompt = this.#cachedTokens;
    return { asked: this.promptTokens, found: this.#cachedTokens };
  }

  *#keysUpTo(pages: number, pageTokens: number): Generator<string> {
    for (let page = 0; page < pages; page += 1) yield this.#key(page, pageTokens);
  }

  /** Of a page whose tokens are all known. */
  #key(page: number, pageTokens: number): string {
    for (let i = this.#keys.length; i <= page; i += 1) {
      const first = i * pageTokens;
      const tokens = this.tokens.subarray(first, first + pageTokens);
      const owner = this.#ownerOf(first, pageTokens);
      this.#keys.push(pageKey({ parent: this.#keys[i - 1], owner, salt: this.#salt, tokens }));
    }
    return this.#keys[page] ?? bug('a key was asked for that was not made');
  }

  /** Pages before an activated adapter's first row are the base's. */
  #ownerOf(first: number, pageTokens: number): PageOwner {
    const { kind } = this.#owner;
    if (kind === 'base' || this.activeFrom <= first) return this.#owner;
    if (this.activeFrom >= first + pageTokens) return this.#base;
    return { ...this.#owner, activeFrom: this.activeFrom - first };
  }

  /** Gives all pages back; its KV is computed again when it runs next. */
  preempt(ledger: KvLedger): void {
    ledger.truncate(this.table, 0);
    this.computed = 0;
  }

  addPromptLogprobs(row: number, logprobs: TokenLogprobs): void {
    if (row !== this.scoreFrom) bug(`sequence ${this.id} got prompt row ${row} out of order`);
    this.#promptLogprobs.push(logprobs);
  }

  /** Sends the prompt's log-probabilities once they are complete. */
  flushPromptLogprobs(): void {
    if (this.#promptLogprobsSent || this.#promptLogprobs.length < this.promptTokens - 1) return;
    this.#promptLogprobsSent = true;
    this.events.push({ type: 'prompt_logprobs', positions: this.#promptLogprobs });
  }

  /** Prompt tokens computed since the last call; those computed again after a preemption do not count again. */
  newPromptTokens(): number {
    const computed = Math.min(this.computed, this.#promptEnd) - this.softTokens;
    const fresh = Math.max(0, computed - this.#countedPrompt);
    this.#countedPrompt += fresh;
    return fresh;
  }

  usage(): EngineUsage {
    const { promptTokens, outputTokens: completionTokens } = this;
    return { promptTokens, completionTokens, cachedTokens: this.#cachedTokens ?? 0 };
  }
}

function biasOf(sampling: SamplingParams, banned: readonly number[]): Bias {
  const bias = new Map(
    sampling.logitBias.map(([id, value]) => [id, value <= BANNING_BIAS ? -Infinity : value] as const),
  );
  for (const id of banned) bias.set(id, -Infinity);
  return { ids: Int32Array.from(bias.keys()), values: Float32Array.from(bias.values()) };
}
