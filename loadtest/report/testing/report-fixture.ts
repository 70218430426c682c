/**
 * Reports made without a server, for tests of tables, pages and comparisons: every figure follows from the seed. The
 * aggregates are computed the slow and obvious way from the requests, apart from the code that real runs use.
 */
import { createHash } from 'node:crypto';
import { seededRandom } from '../../workload/random.js';
import { gapBinsOf } from '../gap-bins.js';
import type { ClientReport, RequestRecord, RunReport, ServerReport, TimelineBucket } from '../run-report.js';
import { REPORT_FORMAT, REPORT_VERSION } from '../run-report.js';
import { adapterAggregates, aggregate } from './fixture-aggregate.js';

export interface FixtureOptions {
  readonly seed?: number;
  /** Measured requests. */
  readonly requests?: number;
  readonly warmup?: number;
  /** Names, picked by Zipf's law in this order; `null` is the base model. */
  readonly adapters?: readonly (string | null)[];
  readonly askedPerSecond?: number;
  /** Multiplies every latency. */
  readonly slow?: number;
  readonly errorShare?: number;
  readonly errorText?: string;
  readonly withServer?: boolean;
  readonly name?: string;
  /** Seed of what the client decides (times, adapters); runs of one trace share it. */
  readonly traceSeed?: number;
}

type Filled = Required<FixtureOptions>;
const SLO = { ttftMs: 400, tpotMs: 60, itlP99Ms: null, e2eMs: 8000 } as const;

export function fixtureReport(options: FixtureOptions = {}): RunReport {
  const filled: Filled = {
    seed: 1,
    requests: 400,
    warmup: 20,
    adapters: ['support', 'legal', null, 'sales'],
    askedPerSecond: 20,
    slow: 1,
    errorShare: 0.02,
    errorText: 'upstream closed',
    withServer: true,
    name: 'fixture',
    traceSeed: 7,
    ...options,
  };
  const requests = makeRequests(filled);
  const measuredFromMs = (filled.warmup / filled.askedPerSecond) * 1000;
  const measuredToMs = measuredFromMs + (filled.requests / filled.askedPerSecond) * 1000;
  const durationMs = requests.reduce((last, { endAtMs }) => Math.max(last, endAtMs ?? 0), measuredToMs);
  const measured = requests.filter(({ phase }) => phase === 'measured');
  const spanMs = Math.max(1, durationMs - measuredFromMs);
  const total = aggregate(measured, spanMs);
  return {
    format: REPORT_FORMAT,
    formatVersion: REPORT_VERSION,
    run: runIdentity(filled, durationMs),
    workload: {
      loop: 'open',
      arrivals: 'poisson',
      description: `poisson, ${filled.askedPerSecond} requests/s; ${filled.adapters.length} adapters, Zipf 1`,
      measuredFromMs,
      measuredToMs,
      warmupRequests: filled.warmup,
      scheduledRequests: requests.length,
      askedPerSecond: filled.askedPerSecond,
      sentPerSecond: filled.askedPerSecond,
      completedPerSecond: total.requestsPerSecond,
      achievedShare: filled.requests === 0 ? null : 1 - filled.errorShare,
      concurrency: null,
      slo: SLO,
    },
    verdict: {
      valid: filled.requests > 0,
      findings:
        filled.requests > 0
          ? []
          : [{ kind: 'no_requests', severity: 'invalid', message: 'Nothing was measured. Ask for a longer run.' }],
    },
    total,
    adapters: adapterAggregates(measured, spanMs),
    timeline: makeTimeline(requests, durationMs),
    server: filled.withServer ? makeServer(durationMs) : null,
    client: makeClient(durationMs),
    requests,
    trace: {
      generatorVersion: 1,
      sha256: createHash('sha256').update(`${filled.traceSeed} ${filled.requests}`).digest('hex'),
      requests: requests.map((request) => ({
        atMs: request.scheduledAtMs - measuredFromMs,
        adapter: request.adapter,
        promptTokens: request.promptTokensAsked,
        outputTokens: request.outputTokensAsked,
        promptSeed: request.index,
      })),
    },
  };
}

function runIdentity({ seed, name }: Filled, durationMs: number): RunReport['run'] {
  return {
    id: `run-${seed}`,
    name,
    startedAt: '2026-03-01T12:00:00.000Z',
    durationMs,
    seed,
    command: `manyfold bench ${name}.yaml --seed ${seed}`,
    targetUrl: 'http://127.0.0.1:8000',
    dialect: 'openai-chat',
    scenarioText: `name: ${name}\narrivals: { kind: poisson, rate: 20 }\n`,
    scenarioPath: `${name}.yaml`,
    versions: { manyfold: '0.1.0', node: '20.0.0', undici: '7.0.0', server: null },
    machine: { platform: 'linux', arch: 'x64', cpuModel: 'Fixture CPU', cpuCount: 2, memoryBytes: 8 * 2 ** 30 },
    interrupted: false,
  };
}

function makeRequests(options: Filled): RequestRecord[] {
  const byTrace = seededRandom(options.traceSeed);
  const byServer = seededRandom(options.seed);
  const weights = options.adapters.map((_, rank) => 1 / (rank + 1));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const requests: RequestRecord[] = [];
  let atMs = 0;
  for (let index = 0; index < options.warmup + options.requests; index += 1) {
    let place = byTrace() * sum;
    const rank = Math.max(
      0,
      weights.findIndex((weight) => (place -= weight) < 0),
    );
    const outputTokens = 8 + Math.floor(byTrace() * 56);
    requests.push(makeRequest(options, { index, atMs, rank, outputTokens, random: byServer }));
    atMs += (-Math.log(1 - byTrace()) * 1000) / options.askedPerSecond;
  }
  return requests;
}

interface Draw {
  readonly index: number;
  readonly atMs: number;
  readonly rank: number;
  readonly outputTokens: number;
  readonly random: () => number;
}

/** Log-normal first token (rare adapters are colder), then evenly paced tokens. */
function makeRequest(options: Filled, { index, atMs, rank, outputTokens, random }: Draw): RequestRecord {
  const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const ttftMs = options.slow * (60 + 2 * Math.min(rank, 50)) * Math.exp(0.5 * normal);
  const tpotMs = options.slow * (18 + 12 * random());
  const isFailed = random() < options.errorShare;
  const sentAtMs = atMs + 0.2 + random();
  const firstTokenAtMs = isFailed ? null : atMs + ttftMs;
  const lastTokenAtMs = firstTokenAtMs === null ? null : firstTokenAtMs + tpotMs * (outputTokens - 1);
  const endAtMs = lastTokenAtMs === null ? sentAtMs + 30 : lastTokenAtMs + 1;
  return {
    index,
    phase: index < options.warmup ? 'warmup' : 'measured',
    adapter: options.adapters[rank] ?? null,
    user: null,
    scheduledAtMs: atMs,
    sentAtMs,
    headersAtMs: sentAtMs + 3,
    firstTokenAtMs,
    lastTokenAtMs,
    endAtMs,
    promptTokensAsked: 100,
    outputTokensAsked: outputTokens,
    promptTokens: isFailed ? null : 100,
    outputTokens: isFailed ? 0 : outputTokens,
    pieces: isFailed ? 0 : outputTokens,
    itl: isFailed ? null : itlOf(tpotMs, outputTokens - 1),
    pieceAtMs: null,
    outcome: isFailed ? (index % 2 === 0 ? 'rate_limited' : 'server_error') : 'ok',
    status: isFailed ? (index % 2 === 0 ? 429 : 500) : 200,
    finishReason: isFailed ? null : 'length',
    errorText: isFailed ? options.errorText : null,
    retryAfterSeconds: isFailed && index % 2 === 0 ? 1 : null,
    good: !isFailed && ttftMs <= SLO.ttftMs && tpotMs <= SLO.tpotMs && endAtMs - atMs <= SLO.e2eMs,
  };
}

/** Of so many gaps every tenth is a third longer. */
function itlOf(tpotMs: number, gaps: number): RequestRecord['itl'] {
  const sorted = Float64Array.from({ length: gaps }, (_, index) => (index % 10 === 9 ? tpotMs * 1.3 : tpotMs)).sort();
  return { meanMs: tpotMs, p50Ms: tpotMs, p99Ms: tpotMs * 1.3, maxMs: tpotMs * 1.3, bins: gapBinsOf(sorted) };
}

function makeTimeline(requests: readonly RequestRecord[], durationMs: number): TimelineBucket[] {
  const sliceMs = 1000;
  const count = Math.max(1, Math.ceil((durationMs + 1) / sliceMs));
  const slices = Array.from({ length: count }, (_, index) => ({
    fromMs: index * sliceMs,
    toMs: (index + 1) * sliceMs,
    scheduled: 0,
    sent: 0,
    ok: 0,
    errors: 0,
    pieces: 0,
    inFlightMax: 0,
    ttftP50Ms: null as number | null,
    ttftP99Ms: null as number | null,
    e2eP50Ms: null as number | null,
    e2eP99Ms: null as number | null,
    itlP99Ms: null as number | null,
  }));
  const at = (ms: number | null): (typeof slices)[number] | undefined =>
    ms === null ? undefined : slices[Math.floor(ms / sliceMs)];
  for (const request of requests) {
    const { scheduledAtMs, sentAtMs, firstTokenAtMs, endAtMs, pieces } = request;
    const begin = at(scheduledAtMs);
    if (begin !== undefined) begin.scheduled += 1;
    const sent = at(sentAtMs);
    if (sent !== undefined) sent.sent += 1;
    const first = at(firstTokenAtMs);
    if (first !== undefined && firstTokenAtMs !== null) {
      first.ttftP50Ms = firstTokenAtMs - scheduledAtMs;
      first.ttftP99Ms = Math.max(first.ttftP99Ms ?? 0, firstTokenAtMs - scheduledAtMs);
    }
    const end = at(endAtMs);
    if (end === undefined || endAtMs === null) continue;
    if (request.outcome === 'ok') end.ok += 1;
    else end.errors += 1;
    end.pieces += pieces;
    end.e2eP50Ms = endAtMs - scheduledAtMs;
    end.e2eP99Ms = Math.max(end.e2eP99Ms ?? 0, endAtMs - scheduledAtMs);
    for (let slice = Math.floor(scheduledAtMs / sliceMs); slice <= endAtMs / sliceMs; slice += 1) {
      const touched = slices[slice];
      if (touched !== undefined) touched.inFlightMax += 1;
    }
  }
  return slices;
}

function makeServer(durationMs: number): ServerReport {
  const samples = Array.from({ length: Math.ceil(durationMs / 1000) + 1 }, (_, index) => ({
    atMs: index * 1000,
    running: 8 + (index % 5),
    waiting: index % 7 === 0 ? 6 : 1,
    kvUsageShare: Math.min(0.97, index / (durationMs / 1000 + 1)),
    adaptersResident: Math.min(4, 1 + index),
    adaptersWaiting: 0,
    promptTokens: index * 2000,
    outputTokens: index * 700,
    requestsDone: index * 20,
    preemptions: 0,
    prefixHitTokens: null,
  }));
  return {
    metricsUrl: 'http://127.0.0.1:8000/metrics',
    flavour: 'vllm',
    samples,
    failedScrapes: 1,
    disagreements: [
      {
        what: 'output tokens',
        unit: 'tokens',
        client: 14_000,
        server: 14_900,
        toleranceShare: 0.02,
        message: 'The server also counts tokens of requests that were cancelled.',
      },
    ],
  };
}

function makeClient(durationMs: number): ClientReport {
  return {
    samples: Array.from({ length: Math.ceil(durationMs / 1000) }, (_, index) => ({
      atMs: (index + 1) * 1000,
      cpuShare: 0.1 + 0.01 * (index % 4),
      eventLoopLagP99Ms: 0.8 + 0.1 * (index % 3),
      eventLoopLagMaxMs: 2,
      memoryBytes: 90e6,
      inFlight: 10,
    })),
    eventLoopLagMs: { mean: 0.2, p50: 0.1, p99: 0.9, p999: 1.8, max: 2 },
    cpuShareMean: 0.115,
    cpuShareMax: 0.13,
    memoryMaxBytes: 90e6,
    wasLimit: false,
  };
}
