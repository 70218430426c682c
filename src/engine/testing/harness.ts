/** An engine around the fake native one, and requests for it; every message goes through structuredClone. */
import assert from 'node:assert/strict';

import type { CompiledAdapter } from '../../adapters/importer.js';
import type { Clock } from '../../core/clock.js';
import { parseAdapterVersion, sequenceId } from '../../core/ids.js';
import type { AdapterVersion } from '../../core/ids.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { SamplingParams } from '../../core/sampling.js';
import type { Term } from '../../core/terms.js';
import { createInProcessEngine } from '../in-process-engine.js';
import type { EngineLimits } from '../in-process-engine.js';
import type { EngineEvent, EnginePort, EngineRequest } from '../port.js';
import { FakeNative } from './fake-native.js';

export const VOCAB = 50;
export const EOS = 3;

export const FAKE_MODEL: ModelConfig = {
  family: 'llama',
  vocabSize: VOCAB,
  hiddenSize: 4,
  numHeads: 1,
  numKvHeads: 1,
  headDim: 4,
  ffnSize: 4,
  normEps: 1e-5,
  activation: 'silu',
  qkNorm: false,
  postNorms: false,
  tiedHead: true,
  embedScale: 1,
  attnScale: 0.5,
  layers: [{ window: 0, rope: 0 }],
  ropes: [{ invFreq: new Float32Array(2), scale: 1 }],
  maxPositions: 4096,
};

export const ROOMY: EngineLimits = {
  maxModelLen: 128,
  maxNumSeqs: 16,
  maxQueue: 64,
  maxRows: 256,
  maxEntries: 256,
  maxChunk: 64,
  kvPages: 200,
  pageTokens: 16,
  prefixCache: true,
};

/** A clock that tests move by hand. */
export class ManualClock implements Clock {
  ms = 0;
  nowMs(): number {
    return this.ms;
  }
  unixSeconds(): number {
    return Math.floor(this.ms / 1000);
  }
}

/** Adapter 1 and 2 are low rank, 3 has a shared prefix of 5 positions, 4 a gated one, 5 a soft prompt of 3 rows, 6 is activated by
 * the tokens 11 12, 9 cannot be compiled. */
export function version(number: number): AdapterVersion {
  return parseAdapterVersion(`sha256:${String(number).padStart(64, '0')}`) ?? assert.fail('no version');
}

const BROKEN = 9;

export function fakeCompile(adapter: AdapterVersion): CompiledAdapter {
  const number = Number(adapter.slice('sha256:'.length));
  if (number === BROKEN) throw new Error('cannot be compiled');
  const values = (shape: number[]): { dtype: 'f32'; shape: number[]; data: Float32Array } => {
    const count = shape.reduce((product, dim) => product * dim, 1);
    return { dtype: 'f32', shape, data: new Float32Array(count).fill(number) };
  };
  const terms: Term[] = [
    { kind: 'lowrank', site: { layer: 0, site: 'q' }, a: values([2, 4]), b: values([4, 2]), scale: number },
  ];
  const prefix = {
    kind: 'prefix',
    site: { layer: 0, site: 'attention' },
    k: values([5, 1, 4]),
    v: values([5, 1, 4]),
  } as const;
  if (number === 3) terms.push(prefix);
  if (number === 4) terms.push({ ...prefix, gate: 0.5 });
  const softPrompt = number === 5 ? { softPrompt: values([3, 4]) } : {};
  const invocation = number === 6 ? { invocation: [11, 12] } : {};
  return { terms: { terms, ...softPrompt, ...invocation }, notes: [] };
}

export interface Harness {
  readonly engine: EnginePort;
  readonly native: FakeNative;
  readonly clock: ManualClock;
  /** How often each adapter's folder was read. */
  readonly reads: Map<AdapterVersion, number>;
}

export function makeHarness(limits: Partial<EngineLimits> = {}): Harness {
  const all = { ...ROOMY, ...limits };
  const native = new FakeNative({ ...all, vocabSize: VOCAB });
  const clock = new ManualClock();
  const reads = new Map<AdapterVersion, number>();
  const engine = createInProcessEngine({
    native,
    model: FAKE_MODEL,
    baseFingerprint: 'f'.repeat(64),
    eosTokenIds: [EOS, VOCAB + 100],
    dtype: 'f32',
    limits: all,
    adapterLimits: { maxRank: 8, maxBytes: 1e6 },
    clock,
    compile: async (location) => {
      reads.set(location.version, (reads.get(location.version) ?? 0) + 1);
      return fakeCompile(location.version);
    },
  });
  return { engine: cloning(engine), native, clock, reads };
}

/** The port with every message cloned, as a process border would do. */
function cloning(engine: EnginePort): EnginePort {
  async function* cloned(events: AsyncIterable<EngineEvent>): AsyncGenerator<EngineEvent> {
    for await (const event of events) yield structuredClone(event);
  }
  return {
    info: structuredClone(engine.info),
    submit: (request) => cloned(engine.submit(structuredClone(request))),
    cancel: (id) => engine.cancel(structuredClone(id)),
    load: async (source) => structuredClone(await engine.load(structuredClone(source))),
    release: (adapter) => engine.release(structuredClone(adapter)),
    stats: () => structuredClone(engine.stats()),
    close: () => engine.close(),
  };
}

export async function loadAdapter(engine: EnginePort, number: number): Promise<AdapterVersion> {
  await engine.load({ version: version(number), directory: `/adapters/${number}` });
  return version(number);
}

export const GREEDY: SamplingParams = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  logitBias: [],
  seed: 0,
  choice: 0,
  maxTokens: 8,
  minTokens: 0,
  ignoreEos: true,
  stopTokenIds: [],
};

let requests = 0;

export function request(
  promptIds: readonly number[],
  sampling: Partial<SamplingParams> = {},
  others: Partial<EngineRequest> = {},
): EngineRequest {
  requests += 1;
  return { id: sequenceId(`r${requests}`), promptIds, emittedIds: [], sampling: { ...GREEDY, ...sampling }, ...others };
}

/** So many ids that differ from prompt to prompt. */
export function prompt(length: number, salt = 1): number[] {
  return Array.from({ length }, (_, i) => (i * salt * 7 + salt) % VOCAB);
}

export interface Outcome {
  readonly tokens: readonly number[];
  readonly events: readonly EngineEvent[];
  readonly last: Extract<EngineEvent, { readonly type: 'done' | 'cancelled' | 'failed' }>;
}

/** Reads a stream to its end, and checks that it has one. */
export async function collect(events: AsyncIterable<EngineEvent>): Promise<Outcome> {
  const all: EngineEvent[] = [];
  for await (const event of events) all.push(event);
  const last = all.at(-1);
  if (last?.type !== 'done' && last?.type !== 'cancelled' && last?.type !== 'failed') {
    return assert.fail(`a stream ended with ${last?.type}`);
  }
  const terminals = all.filter(({ type }) => type === 'done' || type === 'cancelled' || type === 'failed');
  assert.equal(terminals.length, 1, 'a stream has one terminal event');
  return { tokens: all.flatMap((event) => (event.type === 'token' ? [event.tokenId] : [])), events: all, last };
}

export function run(engine: EnginePort, submitted: EngineRequest): Promise<Outcome> {
  return collect(engine.submit(submitted));
}

/** Nothing runs, nothing is held, and the engine closes with its sums in order. */
export async function closeClean({ engine, native }: Harness): Promise<void> {
  const { running, waiting, freePages, residentAdapters } = engine.stats();
  assert.deepEqual({ running, waiting, freePages }, { running: 0, waiting: 0, freePages: engine.info.kvPages });
  for (const { leases } of residentAdapters) assert.equal(leases, 0, 'a lease was leaked');
  await engine.close();
  assert.equal(native.info().termSets, 0, 'terms were leaked');
  assert.ok(native.disposed);
}
