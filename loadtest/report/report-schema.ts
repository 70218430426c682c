/**
 * The shape of report.json, checked when one is read back: a report may be handed from one person to another, or be edited.
 * Fields that this version does not know are dropped, as formatVersion promises (run-report.ts).
 */
import { z } from 'zod';
import type { TracedRequest } from './report-trace.js';
import type { RunReport } from './run-report.js';
import { OUTCOMES, REPORT_FORMAT, REPORT_VERSION } from './run-report.js';

const ms = z.number();
const count = z.number().int().nonnegative();
const text = z.string();
const maybe = <Schema extends z.ZodType>(schema: Schema): z.ZodNullable<Schema> => z.nullable(schema);

const Distribution = z.object({
  count,
  meanMs: maybe(ms),
  standardDeviationMs: maybe(ms),
  minMs: maybe(ms),
  maxMs: maybe(ms),
  p50Ms: maybe(ms),
  p90Ms: maybe(ms),
  p95Ms: maybe(ms),
  p99Ms: maybe(ms),
  p999Ms: maybe(ms),
  bins: z.array(z.object({ fromMs: ms, toMs: ms, count })),
});

const aggregateFields = {
  requests: count,
  ok: count,
  errors: z.partialRecord(z.enum(OUTCOMES), count),
  good: count,
  promptTokens: count,
  outputTokens: count,
  requestsPerSecond: z.number(),
  outputTokensPerSecond: z.number(),
  totalTokensPerSecond: z.number(),
  goodputPerSecond: z.number(),
  goodShare: z.number(),
  spanMs: ms,
  latency: z.object({
    ttft: Distribution,
    ttftFromSent: Distribution,
    tpot: Distribution,
    itl: Distribution,
    e2e: Distribution,
    e2eFromSent: Distribution,
    sendDelay: Distribution,
  }),
};

const Run = z.object({
  id: text,
  name: text,
  startedAt: text,
  durationMs: ms,
  seed: z.number(),
  command: text,
  targetUrl: text,
  dialect: text,
  scenarioText: text,
  scenarioPath: text,
  versions: z.object({ manyfold: text, node: text, undici: text, server: maybe(text) }),
  machine: z.object({
    platform: text,
    arch: text,
    cpuModel: text,
    cpuCount: count,
    memoryBytes: z.number(),
  }),
  interrupted: z.boolean(),
});

const Workload = z.object({
  loop: z.enum(['open', 'closed']),
  arrivals: text,
  description: text,
  measuredFromMs: ms,
  measuredToMs: ms,
  warmupRequests: count,
  scheduledRequests: count,
  askedPerSecond: maybe(z.number()),
  sentPerSecond: z.number(),
  completedPerSecond: z.number(),
  achievedShare: maybe(z.number()),
  concurrency: maybe(count),
  slo: z.object({ ttftMs: maybe(ms), tpotMs: maybe(ms), itlP99Ms: maybe(ms), e2eMs: maybe(ms) }),
});

const Finding = z.object({
  kind: z.enum([
    'achieved_rate',
    'client_limit',
    'no_requests',
    'interrupted',
    'errors',
    'too_few',
    'unknown_tokens',
    'disagreement',
  ]),
  severity: z.enum(['invalid', 'warning']),
  message: text,
});

const TimelineBucket = z.object({
  fromMs: ms,
  toMs: ms,
  scheduled: count,
  sent: count,
  ok: count,
  errors: count,
  pieces: count,
  inFlightMax: count,
  ttftP50Ms: maybe(ms),
  ttftP99Ms: maybe(ms),
  e2eP50Ms: maybe(ms),
  e2eP99Ms: maybe(ms),
  itlP99Ms: maybe(ms),
});

const gauge = maybe(z.number());
const Server = z.object({
  metricsUrl: text,
  flavour: text,
  samples: z.array(
    z.object({
      atMs: ms,
      running: gauge,
      waiting: gauge,
      kvUsageShare: gauge,
      adaptersResident: gauge,
      adaptersWaiting: gauge,
      promptTokens: gauge,
      outputTokens: gauge,
      requestsDone: gauge,
      preemptions: gauge,
      prefixHitTokens: gauge,
    }),
  ),
  failedScrapes: count,
  disagreements: z.array(
    z.object({
      what: text,
      unit: text,
      client: z.number(),
      server: z.number(),
      toleranceShare: z.number(),
      message: text,
    }),
  ),
});

const Client = z.object({
  samples: z.array(
    z.object({
      atMs: ms,
      cpuShare: z.number(),
      eventLoopLagP99Ms: ms,
      eventLoopLagMaxMs: ms,
      memoryBytes: z.number(),
      inFlight: count,
    }),
  ),
  eventLoopLagMs: z.object({ mean: ms, p50: ms, p99: ms, p999: ms, max: ms }),
  cpuShareMean: z.number(),
  cpuShareMax: z.number(),
  memoryMaxBytes: z.number(),
  wasLimit: z.boolean(),
});

const Request = z.object({
  index: count,
  phase: z.enum(['warmup', 'measured']),
  adapter: maybe(text),
  user: maybe(count),
  scheduledAtMs: ms,
  sentAtMs: maybe(ms),
  headersAtMs: maybe(ms),
  firstTokenAtMs: maybe(ms),
  lastTokenAtMs: maybe(ms),
  endAtMs: maybe(ms),
  promptTokensAsked: count,
  outputTokensAsked: count,
  promptTokens: maybe(count),
  outputTokens: count,
  pieces: count,
  itl: maybe(z.object({ meanMs: ms, p50Ms: ms, p99Ms: ms, maxMs: ms, bins: z.array(z.number().int()).optional() })),
  pieceAtMs: maybe(z.array(ms)),
  outcome: z.enum(OUTCOMES),
  status: maybe(z.number().int()),
  finishReason: maybe(text),
  errorText: maybe(text),
  retryAfterSeconds: maybe(z.number()),
  good: z.boolean(),
});

/** By name, so that an optional field that report-trace.ts gains does not compile until it is here. */
const tracedFields = {
  atMs: maybe(ms),
  adapter: maybe(text),
  promptTokens: count,
  outputTokens: count,
  promptSeed: z.number().exactOptional(),
  prefixTokens: count.exactOptional(),
  prefixSeed: z.number().exactOptional(),
  prompt: text.exactOptional(),
} satisfies Record<keyof TracedRequest, z.ZodType>;

const Trace = z.object({
  generatorVersion: z.number().int(),
  sha256: text,
  requests: z.array(z.object(tracedFields)),
});

/** Annotated, so that a field that run-report.ts gains and this file lacks does not compile. */
export const ReportSchema: z.ZodType<RunReport> = z.object({
  format: z.literal(REPORT_FORMAT),
  formatVersion: z.literal(REPORT_VERSION),
  run: Run,
  workload: Workload,
  verdict: z.object({ valid: z.boolean(), findings: z.array(Finding) }),
  total: z.object(aggregateFields),
  adapters: z.array(z.object({ ...aggregateFields, adapter: maybe(text), requestShare: z.number() })),
  timeline: z.array(TimelineBucket),
  server: maybe(Server),
  client: Client,
  requests: z.array(Request),
  trace: Trace,
});
