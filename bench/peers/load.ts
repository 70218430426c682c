/**
 * What is asked of ours and of a peer alike: some streams at once, each with a prompt of random token ids and a fixed
 * number of greedy tokens. A prefill is one stream with one token; a decode is one stream with a short prompt.
 */
export type AdapterUse = 'none' | 'one' | 'distinct';

export interface Load {
  readonly streams: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** `one`: every stream the first adapter; `distinct`: stream i adapter i. */
  readonly adapters: AdapterUse;
}

/** Times in milliseconds of one clock; tokens as the system counts them. */
export interface StreamTimes {
  readonly promptTokens: number;
  readonly tokens: number;
  readonly firstMs: number;
  readonly lastMs: number;
  /** What was generated, where the system tells; only compared for being different. */
  readonly ids?: readonly number[];
}

export interface LoadTimes {
  readonly startMs: number;
  readonly endMs: number;
  readonly streams: readonly StreamTimes[];
}

export interface Sample {
  /** Prompt tokens ÷ TTFT of a prefill; the stream's decode rate of a single stream; else generated tokens ÷ wall. */
  readonly tokensPerSecond: number;
  /** Nearest rank over the streams; null where the system does not tell (llama-bench). */
  readonly ttftP99Ms: number | null;
}

/** Throws when the system did less work than asked: its figure would be another's. */
export function sampleOf(load: Load, times: LoadTimes): Sample {
  const { streams } = times;
  if (streams.length !== load.streams) throw new Error(`expected ${load.streams} streams, got ${streams.length}`);
  for (const { promptTokens, tokens } of streams) {
    if (promptTokens === load.promptTokens && tokens === load.outputTokens) continue;
    throw new Error(
      `expected ${load.promptTokens} + ${load.outputTokens} tokens a stream, the system counted ${promptTokens} + ${tokens}`,
    );
  }
  const ttft = streams.map(({ firstMs }) => firstMs - times.startMs);
  return { tokensPerSecond: rate(load, times), ttftP99Ms: nearestRank(ttft, 0.99) };
}

function rate({ streams, promptTokens, outputTokens }: Load, times: LoadTimes): number {
  const [first] = times.streams;
  if (first === undefined) throw new Error('no streams');
  if (streams > 1) return (1000 * streams * outputTokens) / (times.endMs - times.startMs);
  if (outputTokens === 1) return (1000 * promptTokens) / (first.firstMs - times.startMs);
  return (1000 * (outputTokens - 1)) / (first.lastMs - first.firstMs);
}

export function nearestRank(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? NaN;
}

/** Ids of one prompt a stream: the same for every system that is given the seed, and without a common beginning. */
export function promptsOf(load: Load, seed: number): number[][] {
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bf03635) >>> 0;
  const next = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return FIRST_ID + Math.floor((state / 2 ** 32) * ID_COUNT);
  };
  return Array.from({ length: load.streams }, () => Array.from({ length: load.promptTokens }, next));
}

/** Ordinary tokens of the default model's vocabulary (49152): the first ones are special. */
const FIRST_ID = 300;
const ID_COUNT = 48_000;
