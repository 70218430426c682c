/**
 * Which adapter versions the engine holds in backend memory. One owner, one transition function over a closed set of
 * states, and counted leases: a sequence holds one from submission to its end, and a version's memory goes when it is
 * released and its last lease has dropped. Loads are single-flight; a failure is remembered for a short while, so that a
 * broken adapter which many ask for is not read again for each of them.
 */
import type { Clock } from '../core/clock.js';
import { bug, ManyfoldError } from '../core/errors.js';
import type { AdapterVersion } from '../core/ids.js';
import type { NativeEngine } from '../native/binding-types.js';
import type { AdapterLocation } from './compile-adapter.js';
import type { CompiledAdapter } from './importer.js';
import { termSetFacts, toNativeTerms } from './native-terms.js';
import { toFloats } from './tensor-values.js';
import type { TermSetFacts } from './native-terms.js';

export type ResidencyState =
  | { readonly at: 'absent' }
  /** `wanted` is false when the version was released while it was loading. */
  | { readonly at: 'loading'; readonly wanted: boolean }
  | { readonly at: 'resident'; readonly leases: number }
  /** Released; may not be leased any more; leases >= 1. */
  | { readonly at: 'retiring'; readonly leases: number }
  | { readonly at: 'failed'; readonly untilMs: number };

export type ResidencyEvent =
  | { readonly type: 'load'; readonly nowMs: number }
  | { readonly type: 'loaded' }
  | { readonly type: 'loadFailed'; readonly retryAtMs: number }
  | { readonly type: 'lease' }
  | { readonly type: 'unlease' }
  | { readonly type: 'release' };

/** start: begin to load; free: give the memory back; refuse: the event is not allowed in this state. */
export type ResidencyEffect = 'none' | 'start' | 'free' | 'refuse';

export interface Transition {
  readonly state: ResidencyState;
  readonly effect: ResidencyEffect;
}

const ABSENT: ResidencyState = { at: 'absent' };

/** The whole life of a version. Pure; impossible events throw. */
export function transition(state: ResidencyState, event: ResidencyEvent): Transition {
  switch (event.type) {
    case 'load':
      return onLoad(state, event.nowMs);
    case 'loaded':
      if (state.at !== 'loading') return bug(`a load ended while the adapter was ${state.at}`);
      return state.wanted
        ? { state: { at: 'resident', leases: 0 }, effect: 'none' }
        : { state: ABSENT, effect: 'free' };
    case 'loadFailed':
      if (state.at !== 'loading') return bug(`a load failed while the adapter was ${state.at}`);
      return { state: state.wanted ? { at: 'failed', untilMs: event.retryAtMs } : ABSENT, effect: 'none' };
    case 'lease':
      if (state.at !== 'resident') return { state, effect: 'refuse' };
      return { state: { at: 'resident', leases: state.leases + 1 }, effect: 'none' };
    case 'unlease':
      return onUnlease(state);
    case 'release':
      return onRelease(state);
  }
}

function onLoad(state: ResidencyState, nowMs: number): Transition {
  switch (state.at) {
    case 'absent':
      return { state: { at: 'loading', wanted: true }, effect: 'start' };
    case 'loading':
      return { state: { at: 'loading', wanted: true }, effect: 'none' };
    case 'resident':
      return { state, effect: 'none' };
    case 'retiring':
      return { state: { at: 'resident', leases: state.leases }, effect: 'none' };
    case 'failed':
      return nowMs < state.untilMs
        ? { state, effect: 'refuse' }
        : { state: { at: 'loading', wanted: true }, effect: 'start' };
  }
}

function onUnlease(state: ResidencyState): Transition {
  if ((state.at !== 'resident' && state.at !== 'retiring') || state.leases === 0) {
    return bug(`a lease was returned to an adapter that is ${state.at}`);
  }
  const leases = state.leases - 1;
  if (state.at === 'retiring' && leases === 0) return { state: ABSENT, effect: 'free' };
  return { state: { at: state.at, leases }, effect: 'none' };
}

function onRelease(state: ResidencyState): Transition {
  switch (state.at) {
    case 'loading':
      return { state: { at: 'loading', wanted: false }, effect: 'none' };
    case 'resident':
      return state.leases > 0
        ? { state: { at: 'retiring', leases: state.leases }, effect: 'none' }
        : { state: ABSENT, effect: 'free' };
    case 'failed':
      return { state: ABSENT, effect: 'none' };
    case 'absent':
    case 'retiring':
      return { state, effect: 'none' };
  }
}

export interface ResidentAdapter {
  readonly version: AdapterVersion;
  /** Of the native engine. */
  readonly handle: number;
  readonly facts: TermSetFacts;
  /** Rows of the soft prompt, `[softPromptTokens, hidden]`; undefined when there is none. */
  readonly softPrompt?: Float32Array;
  readonly notes: readonly string[];
}

export interface AdapterLease {
  readonly adapter: ResidentAdapter;
  /** Idempotent. */
  release(): void;
}

export interface ResidencyOptions {
  readonly compile: (location: AdapterLocation) => Promise<CompiledAdapter>;
  readonly native: Pick<NativeEngine, 'loadTerms' | 'freeTerms'>;
  readonly clock: Clock;
  /** How long a failed load is remembered. */
  readonly failureMs: number;
}

interface Entry {
  state: ResidencyState;
  loading: Promise<void> | undefined;
  adapter: ResidentAdapter | undefined;
  failure: unknown;
}

export class Residency {
  readonly #options: ResidencyOptions;
  readonly #entries = new Map<AdapterVersion, Entry>();
  #leases = 0;

  constructor(options: ResidencyOptions) {
    this.#options = options;
  }

  /** Resolves when the version may be leased. Throws 'invalid_adapter', or 'adapter_conflict' when it was released meanwhile. */
  async load(location: AdapterLocation): Promise<ResidentAdapter> {
    const { version } = location;
    const entry = this.#entry(version);
    const effect = this.#apply(version, entry, { type: 'load', nowMs: this.#options.clock.nowMs() });
    if (effect === 'refuse') throw entry.failure;
    if (effect === 'start') entry.loading = this.#start(location, entry);
    await entry.loading;
    if (entry.adapter !== undefined && entry.state.at === 'resident') return entry.adapter;
    throw new ManyfoldError('adapter_conflict', `${version} was unloaded while it was loading. Load it again.`);
  }

  /** A lease on a resident version; undefined for any other. */
  lease(version: AdapterVersion): AdapterLease | undefined {
    const entry = this.#entries.get(version);
    if (entry?.adapter === undefined || this.#apply(version, entry, { type: 'lease' }) === 'refuse') return undefined;
    this.#leases += 1;
    let held = true;
    const release = (): void => {
      if (!held) return;
      held = false;
      this.#leases -= 1;
      this.#apply(version, entry, { type: 'unlease' });
    };
    return { adapter: entry.adapter, release };
  }

  /** The version may not be leased any more. Unknown versions are ignored. */
  release(version: AdapterVersion): void {
    const entry = this.#entries.get(version);
    if (entry !== undefined) this.#apply(version, entry, { type: 'release' });
  }

  /** Versions in backend memory, released ones with leases included. */
  list(): { readonly version: AdapterVersion; readonly leases: number; readonly bytes: number }[] {
    return [...this.#entries.values()].flatMap(({ state, adapter }) =>
      adapter !== undefined && (state.at === 'resident' || state.at === 'retiring')
        ? [{ version: adapter.version, leases: state.leases, bytes: adapter.facts.bytes }]
        : [],
    );
  }

  /** Releases every version and waits for loads on their way. All leases must have been returned. */
  async close(): Promise<void> {
    const loads = [...this.#entries.values()].flatMap(({ loading }) => loading ?? []);
    for (const version of [...this.#entries.keys()]) this.release(version);
    await Promise.allSettled(loads);
    this.assertConsistent();
    if (this.#entries.size > 0) bug(`${this.#entries.size} adapters were left after all were released`);
  }

  /** The sum over all versions is the number of leases given out, and memory is held exactly where a state says so. */
  assertConsistent(): void {
    let leases = 0;
    for (const [version, { state, adapter }] of this.#entries) {
      const holds = state.at === 'resident' || state.at === 'retiring';
      if (holds) leases += state.leases;
      if (holds !== (adapter !== undefined))
        bug(`${version} is ${state.at} and memory is held: ${adapter !== undefined}`);
      if (state.at === 'absent') bug(`${version} is absent and still listed`);
    }
    if (leases !== this.#leases) bug(`adapters count ${leases} leases, ${this.#leases} were given out`);
  }

  #entry(version: AdapterVersion): Entry {
    const known = this.#entries.get(version);
    if (known !== undefined) return known;
    const entry: Entry = { state: ABSENT, loading: undefined, adapter: undefined, failure: undefined };
    this.#entries.set(version, entry);
    return entry;
  }

  #apply(version: AdapterVersion, entry: Entry, event: ResidencyEvent): ResidencyEffect {
    const { state, effect } = transition(entry.state, event);
    entry.state = state;
    if (effect === 'free') {
      if (entry.adapter !== undefined) this.#options.native.freeTerms(entry.adapter.handle);
      entry.adapter = undefined;
    }
    if (state.at === 'absent') this.#entries.delete(version);
    return effect;
  }

  async #start(location: AdapterLocation, entry: Entry): Promise<void> {
    const { version } = location;
    const { compile, native, clock, failureMs } = this.#options;
    try {
      const { terms, notes } = await compile(location);
      const handle = await native.loadTerms(toNativeTerms(terms));
      const rows = terms.softPrompt === undefined ? {} : { softPrompt: toFloats(terms.softPrompt) };
      entry.adapter = { version, handle, facts: termSetFacts(terms), ...rows, notes };
      this.#apply(version, entry, { type: 'loaded' });
    } catch (error) {
      entry.failure = error;
      this.#apply(version, entry, { type: 'loadFailed', retryAtMs: clock.nowMs() + failureMs });
      throw error;
    } finally {
      entry.loading = undefined;
    }
  }
}
