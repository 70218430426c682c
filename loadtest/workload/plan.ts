/**
 * A scenario's seed → requests: when, which adapter, how long, what text. All of it is fixed before the first byte is
 * sent, and request i is the same whatever came before it: its random numbers come from (seed, use, i) alone.
 */
import { createHash } from 'node:crypto';
import type { ReportTrace, TracedRequest } from '../report/report-trace.js';
import type { Arrivals, Scenario } from '../scenario/scenario.js';
import { adapterChooser } from './adapter-choice.js';
import { arrivalTimes, askedSpanSeconds, MAX_REQUESTS } from './arrivals.js';
import type { End } from './arrivals.js';
import { describeDistribution, draw, drawTokens } from './lengths.js';
import { GENERATOR_VERSION, promptText } from './prompt-text.js';
import { derivedSeed, pick, seededRandom } from './random.js';
import type { TraceLine } from './trace-file.js';

export interface Workload {
  /** Sent before the measured requests; not counted. */
  readonly warmup: readonly TracedRequest[];
  readonly measured: OpenWorkload | ClosedWorkload;
  /** One line for people. */
  readonly description: string;
}

export interface OpenWorkload {
  readonly loop: 'open';
  /** Ascending `atMs`. */
  readonly requests: readonly TracedRequest[];
  readonly askedSpanMs: number;
  /** Requests a second over the asked span. */
  readonly askedPerSecond: number;
}

export interface ClosedWorkload {
  readonly loop: 'closed';
  readonly concurrency: number;
  readonly durationMs: number;
  readonly maxRequests: number;
  request(index: number): TracedRequest;
  /** Pause before a user's next request; `index` is that of the request that just ended. */
  thinkMs(index: number): number;
}

/** `adapterNames`: the pool, resolved (names of the file, or what the server listed). */
export function planWorkload(scenario: Scenario, adapterNames: readonly string[]): Workload {
  const build = requestBuilder(scenario, adapterNames);
  // Warm-up counts backwards from −1, so that more or less of it moves no measured request.
  const warmup = Array.from({ length: scenario.warmup.requests }, (_, index) => build(-1 - index, null, undefined));
  const measured = planMeasured(scenario, build);
  return { warmup, measured, description: describe(scenario, adapterNames.length) };
}

type Build = (index: number, atMs: number | null, line: TraceLine | undefined) => TracedRequest;

function planMeasured(scenario: Scenario, build: Build): OpenWorkload | ClosedWorkload {
  const { arrivals, seed } = scenario;
  if (arrivals.kind === 'closed') {
    return {
      loop: 'closed',
      concurrency: arrivals.concurrency,
      durationMs: (arrivals.end.durationSeconds ?? Infinity) * 1000,
      maxRequests: Math.min(arrivals.end.requests ?? MAX_REQUESTS, MAX_REQUESTS),
      request: (index) => build(index, null, undefined),
      thinkMs: (index) =>
        Math.max(0, draw(arrivals.thinkSeconds, seededRandom(derivedSeed(seed, 'think', index))) * 1000),
    };
  }
  if (arrivals.kind === 'trace') return planTrace(arrivals, build);
  const times = arrivalTimes(arrivals, seededRandom(derivedSeed(seed, 'arrivals')));
  const seconds = askedSpanSeconds(arrivals, times);
  return {
    loop: 'open',
    requests: Array.from(times, (atMs, index) => build(index, roundTime(atMs), undefined)),
    askedSpanMs: seconds * 1000,
    askedPerSecond: seconds > 0 ? times.length / seconds : 0,
  };
}

/** Microseconds are finer than any timer, and keep traces readable. */
function roundTime(atMs: number): number {
  return Math.round(atMs * 1000) / 1000;
}

function planTrace({ lines, speed, end }: Arrivals & { kind: 'trace' }, build: Build): OpenWorkload {
  // Warm-up that an exported trace still holds lies before 0.
  const measured = lines.filter(({ atMs }) => atMs >= 0);
  const first = measured[0]?.atMs ?? 0;
  const requests = cut(measured, first, speed, end).map((line, index) =>
    build(index, roundTime((line.atMs - first) / speed), line),
  );
  const lastMs = requests.at(-1)?.atMs ?? 0;
  // The span of n arrivals has n − 1 gaps; one mean gap more makes the rate of a steady trace come out right.
  const spanMs = requests.length > 1 ? (lastMs * requests.length) / (requests.length - 1) : 1000;
  const askedSpanMs = Math.max(1, Math.min(spanMs, (end.durationSeconds ?? Infinity) * 1000));
  return { loop: 'open', requests, askedSpanMs, askedPerSecond: (requests.length * 1000) / askedSpanMs };
}

function cut(lines: readonly TraceLine[], firstMs: number, speed: number, end: End): readonly TraceLine[] {
  const limitMs = (end.durationSeconds ?? Infinity) * 1000;
  return lines.filter(({ atMs }) => (atMs - firstMs) / speed < limitMs).slice(0, end.requests ?? MAX_REQUESTS);
}

function requestBuilder(scenario: Scenario, adapterNames: readonly string[]): Build {
  const { seed, prompt, output, adapters } = scenario;
  const choose = adapterChooser(adapters.popularity, adapterNames, adapters.baseShare);
  return (index, atMs, line) => {
    const lengths = seededRandom(derivedSeed(seed, 'lengths', index));
    const adapter =
      line?.adapter === undefined ? choose(index, seededRandom(derivedSeed(seed, 'adapters', index))) : line.adapter;
    const promptTokens = line?.promptTokens ?? drawTokens(prompt.tokens, lengths);
    const outputTokens = line?.outputTokens ?? drawTokens(output.tokens, lengths);
    const base = { atMs, adapter, outputTokens };
    const text = line?.prompt ?? givenText(prompt.texts, index);
    if (text !== undefined) return { ...base, promptTokens, prompt: text };
    const promptSeed = line?.promptSeed ?? derivedSeed(seed, 'prompt', index);
    const prefix = line === undefined ? sharedPrefix(scenario, index, adapter) : linePrefix(line);
    return {
      ...base,
      promptTokens: promptTokens + (line === undefined ? (prefix?.prefixTokens ?? 0) : 0),
      promptSeed,
      ...prefix,
    };
  };
}

function givenText(texts: readonly string[] | undefined, index: number): string | undefined {
  return texts?.[((index % texts.length) + texts.length) % texts.length];
}

function linePrefix({ prefixTokens, prefixSeed }: TraceLine): { prefixTokens: number; prefixSeed: number } | undefined {
  return prefixTokens === undefined || prefixSeed === undefined ? undefined : { prefixTokens, prefixSeed };
}

function sharedPrefix(
  { prompt: { prefix }, seed }: Scenario,
  index: number,
  adapter: string | null,
): { prefixTokens: number; prefixSeed: number } | undefined {
  if (prefix === undefined) return undefined;
  const group =
    prefix.groups === undefined
      ? hashOf(adapter ?? '')
      : pick(prefix.groups, seededRandom(derivedSeed(seed, 'prefix', index)));
  return { prefixTokens: prefix.tokens, prefixSeed: derivedSeed(seed, 'prefix', group) };
}

/** FNV-1a, 32 bits (Fowler, Noll and Vo). */
function hashOf(text: string): number {
  let hash = 0x811c9dc5;
  for (let index = 0; index < text.length; index++) hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193);
  return hash >>> 0;
}

/** The text of a planned request. `promptTokens` counts the shared prefix as well. */
export function promptOf({ prompt, promptSeed, promptTokens, prefixTokens, prefixSeed }: TracedRequest): string {
  if (prompt !== undefined) return prompt;
  if (prefixTokens === undefined || prefixSeed === undefined) return promptText(promptSeed ?? 0, promptTokens);
  const own = promptText(promptSeed ?? 0, Math.max(1, promptTokens - prefixTokens));
  return `${promptText(prefixSeed, prefixTokens)} ${own}`;
}

/** What a report keeps of the requests that were really scheduled. */
export function toReportTrace(requests: readonly TracedRequest[]): ReportTrace {
  const hash = createHash('sha256').update(`${GENERATOR_VERSION}\n`);
  for (const request of requests) hash.update(`${JSON.stringify(canonical(request))}\n`);
  return { generatorVersion: GENERATOR_VERSION, sha256: hash.digest('hex'), requests };
}

function canonical(request: TracedRequest): unknown[] {
  const { atMs, adapter, promptTokens, outputTokens, promptSeed, prefixTokens, prefixSeed, prompt } = request;
  return [atMs, adapter, promptTokens, outputTokens, promptSeed, prefixTokens, prefixSeed, prompt];
}

function describe(scenario: Scenario, adapterCount: number): string {
  const { prompt, output, adapters } = scenario;
  const prefix = prompt.prefix === undefined ? '' : ` after a shared prefix of ${prompt.prefix.tokens}`;
  const prompts =
    prompt.texts === undefined ? `${describeDistribution(prompt.tokens)} tokens` : `${prompt.texts.length} texts`;
  const popularity = adapters.popularity;
  const { arrivals } = scenario;
  const isTraced = arrivals.kind === 'trace' && arrivals.lines.every(({ adapter }) => adapter !== undefined);
  const who = isTraced
    ? 'adapters of the trace'
    : popularity.kind === 'none'
      ? 'base model only'
      : `${adapterCount} adapters, ${popularity.kind === 'zipf' ? `Zipf ${popularity.exponent}` : popularity.kind}` +
        (adapters.baseShare > 0 ? `, ${Math.round(adapters.baseShare * 100)} % to the base` : '');
  const lengths =
    arrivals.kind === 'trace'
      ? 'lengths of the trace'
      : `prompts ${prompts}${prefix}, answers ${describeDistribution(output.tokens)} tokens`;
  return `${describeArrivals(arrivals)}; ${who}; ${lengths}`;
}

function describeArrivals(arrivals: Arrivals): string {
  const until = arrivals.kind === 'ramp' ? ` for ${arrivals.durationSeconds} s` : describeEnd(arrivals.end);
  switch (arrivals.kind) {
    case 'poisson':
    case 'constant':
      return `${arrivals.kind}, ${arrivals.ratePerSecond} requests/s${until}`;
    case 'bursts':
      return `bursts of ${arrivals.size} every ${arrivals.everySeconds} s${until}`;
    case 'ramp':
      return `ramp from ${arrivals.fromPerSecond} to ${arrivals.toPerSecond} requests/s${until}`;
    case 'trace':
      return `trace of ${arrivals.lines.length} requests${arrivals.speed === 1 ? '' : ` at ${arrivals.speed} times its speed`}${until}`;
    case 'closed':
      return `closed loop of ${arrivals.concurrency} users, think time ${describeDistribution(arrivals.thinkSeconds)} s${until}`;
  }
}

function describeEnd({ durationSeconds, requests }: End): string {
  const parts = [
    ...(durationSeconds === undefined ? [] : [`for ${durationSeconds} s`]),
    ...(requests === undefined ? [] : [`up to ${requests} requests`]),
  ];
  return parts.length === 0 ? '' : ` ${parts.join(' or ')}`;
}
