/**
 * A finished run as plain data: what the runner makes, what report.json holds, what tables, pages and comparisons read.
 * Nothing here has a method, a Date or a Map, so `JSON.parse(JSON.stringify(report))` is the same report.
 *
 * Units stand last in names: `Ms` milliseconds, `PerSecond` rates, `Bytes`, `Share` 0..1. Every `…AtMs` is on one time
 * axis: milliseconds since the run began (the first warm-up request, or the first request when there is no warm-up).
 * `null` means "not known" or "does not apply", never zero.
 *
 * Definitions, those of the field (vLLM's and inference-perf's benchmarks use them):
 *   TTFT  first token with text − start            TPOT  (last token − first token) / (tokens out − 1)
 *   ITL   gap between two pieces of one stream     E2E   end − start
 * Each of TTFT and E2E is there twice: from the time the request was *scheduled* (what a user who wanted it then waits,
 * free of coordinated omission: Tene, "How NOT to measure latency"), and from the time it was *sent*.
 */
import type { GapBins } from './gap-bins.js';
import type { ReportTrace } from './report-trace.js';

export const REPORT_FORMAT = 'manyfold-loadtest-report';
/** Raised when a field changes its meaning or goes away; new fields do not raise it. */
export const REPORT_VERSION = 1;

export interface RunReport {
  readonly format: typeof REPORT_FORMAT;
  readonly formatVersion: typeof REPORT_VERSION;
  readonly run: RunIdentity;
  readonly workload: WorkloadReport;
  readonly verdict: Verdict;
  /** All measured requests together; warm-up is in `requests` only. */
  readonly total: Aggregate;
  /** One entry an adapter name (base model included, as `null`), most requests first. Measured requests only. */
  readonly adapters: readonly AdapterAggregate[];
  /** Consecutive slices of equal length over the whole run, warm-up and drain included; no gaps. */
  readonly timeline: readonly TimelineBucket[];
  /** `null` when the target has no readable /metrics. */
  readonly server: ServerReport | null;
  readonly client: ClientReport;
  /** Every request that the schedule held, in schedule order, warm-up included. Nothing is dropped. */
  readonly requests: readonly RequestRecord[];
  /** What is needed to send the very same requests again: prompts and lengths. */
  readonly trace: ReportTrace;
}

/** What ran, against what, from where. */
export interface RunIdentity {
  /** Random, of this run alone; file names and comparisons show it. */
  readonly id: string;
  /** The scenario's `name`. */
  readonly name: string;
  /** ISO 8601, UTC. */
  readonly startedAt: string;
  /** From the run's begin to the end of its last request, milliseconds. */
  readonly durationMs: number;
  readonly seed: number;
  /** The command line, secrets taken out; can be pasted to repeat the run. */
  readonly command: string;
  /** Base URL without credentials, query or slash at the end. */
  readonly targetUrl: string;
  /** Which body and route the requests had: `openai-chat`, `openai-completions`, `llama-server`, `vllm`, `lorax`, `manyfold`. */
  readonly dialect: string;
  /** The scenario file as it was read, so that it can be run again. */
  readonly scenarioText: string;
  readonly scenarioPath: string;
  readonly versions: {
    readonly manyfold: string;
    readonly node: string;
    readonly undici: string;
    /** What the server says of itself (`server` header, /version); `null` when it says nothing. */
    readonly server: string | null;
  };
  readonly machine: {
    readonly platform: string;
    readonly arch: string;
    readonly cpuModel: string;
    readonly cpuCount: number;
    readonly memoryBytes: number;
  };
  /** True when SIGINT ended the run before its schedule did. */
  readonly interrupted: boolean;
}

export interface WorkloadReport {
  readonly loop: 'open' | 'closed';
  /** Of the scenario: `poisson`, `constant`, `bursts`, `ramp`, `trace`, or `closed`. */
  readonly arrivals: string;
  /** One line for people, such as `poisson, 20 requests/s for 60 s; 64 adapters, Zipf 1.1`. */
  readonly description: string;
  /** The measured window on the time axis: from its first scheduled request to the end of its schedule. */
  readonly measuredFromMs: number;
  readonly measuredToMs: number;
  readonly warmupRequests: number;
  readonly scheduledRequests: number;
  /** Requests a second of the measured window. `null` for a closed loop, which asks for concurrency. */
  readonly askedPerSecond: number | null;
  /** Rate at which requests left the client; falls behind `asked` when the client is the limit. */
  readonly sentPerSecond: number;
  /** Rate at which answers were complete and without error; falls behind when the server is the limit. */
  readonly completedPerSecond: number;
  /** The smaller of sent/asked and completed/asked; under 0.95 the run is not valid. `null` for a closed loop. */
  readonly achievedShare: number | null;
  /** Closed loop only. */
  readonly concurrency: number | null;
  readonly slo: Slo;
}

/** Limits that a request must keep to count as good. Absent ones are `null` and always kept. */
export interface Slo {
  readonly ttftMs: number | null;
  readonly tpotMs: number | null;
  readonly itlP99Ms: number | null;
  readonly e2eMs: number | null;
}

export interface Verdict {
  readonly valid: boolean;
  /** Not empty when not valid; also holds warnings of a valid run. */
  readonly findings: readonly Finding[];
}

export type FindingKind =
  | 'achieved_rate' // sent or completed rate under 95 % of the asked one
  | 'client_limit' // event-loop lag or CPU: the figures are partly the client's own
  | 'no_requests' // nothing was measured, or nothing succeeded
  | 'interrupted'
  | 'errors' // a share of requests failed; latencies are of those that did not
  | 'too_few' // too few samples for the highest percentiles
  | 'unknown_tokens' // the server sends no usage: pieces of the stream were counted as tokens
  | 'disagreement'; // client and server differ, see server.disagreements

export interface Finding {
  readonly kind: FindingKind;
  /** `invalid` takes the verdict away, `warning` does not. */
  readonly severity: 'invalid' | 'warning';
  /** One or two sentences: what was found, what was expected, the mend. */
  readonly message: string;
}

/** How a request ended. One word each; tables and timelines count by it. */
export const OUTCOMES = [
  'ok',
  'unreachable', // no connection: refused, unknown host, TLS
  'connection_lost', // reset or closed before the first byte of the answer
  'stream_cut', // the stream ended without its end mark, or was reset in the middle
  'rate_limited', // 429
  'client_error', // any other 4xx
  'server_error', // 5xx
  'stream_error', // an `error` event inside the stream
  'bad_answer', // 200 with something that is not the protocol
  'empty_answer', // well-formed and ended, but without a single token
  'timeout_first_token',
  'timeout_idle', // longer than allowed between two pieces
  'timeout_total',
  'cancelled', // SIGINT, or still running when the drain time was over
  'not_sent', // scheduled, but the run ended first
] as const;
export type Outcome = (typeof OUTCOMES)[number];

/** One scheduled request and what became of it. Times are `null` where the request did not get that far. */
export interface RequestRecord {
  /** Position in the schedule, from 0. */
  readonly index: number;
  readonly phase: 'warmup' | 'measured';
  /** `null`: the base model. */
  readonly adapter: string | null;
  /** Closed loop: the user (0..concurrency−1) who sent it. */
  readonly user: number | null;
  /** Closed loop: the time at which the user was free to send. */
  readonly scheduledAtMs: number;
  readonly sentAtMs: number | null;
  /** Response headers. */
  readonly headersAtMs: number | null;
  /** First piece with text. */
  readonly firstTokenAtMs: number | null;
  readonly lastTokenAtMs: number | null;
  readonly endAtMs: number | null;
  readonly promptTokensAsked: number;
  readonly outputTokensAsked: number;
  /** By the server's `usage`; `null` when it sends none. */
  readonly promptTokens: number | null;
  /** By the server's `usage`, else the number of pieces with text. */
  readonly outputTokens: number;
  /** Pieces with text that arrived. */
  readonly pieces: number;
  /** `null` for fewer than two pieces. */
  readonly itl: ItlSummary | null;
  /** Arrival of every piece, only when the scenario asks for it (`record-pieces: true`). */
  readonly pieceAtMs: readonly number[] | null;
  readonly outcome: Outcome;
  readonly status: number | null;
  /** The server's `finish_reason`. */
  readonly finishReason: string | null;
  /** First 200 characters of the error, control characters taken out. */
  readonly errorText: string | null;
  /** Of a 429 or 503, in seconds. The harness does not retry: a retry would be load that nobody scheduled. */
  readonly retryAfterSeconds: number | null;
  /** Kept every limit of the SLO. False for any outcome but `ok`. */
  readonly good: boolean;
}

export interface ItlSummary {
  readonly meanMs: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
  /** Absent in reports of versions before 0.2, whose ITL is compared by its mean only. */
  readonly bins?: GapBins | undefined;
}

/** Figures of one set of requests. Latencies are of `ok` requests only; failures are counted beside them. */
export interface Aggregate {
  readonly requests: number;
  readonly ok: number;
  /** Outcomes other than `ok` that occurred at least once. */
  readonly errors: Readonly<Partial<Record<Outcome, number>>>;
  readonly good: number;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Over `spanMs`. */
  readonly requestsPerSecond: number;
  readonly outputTokensPerSecond: number;
  /** Prompt and output together. */
  readonly totalTokensPerSecond: number;
  /** Good requests a second. */
  readonly goodputPerSecond: number;
  /** good / requests; 0 when there are none. */
  readonly goodShare: number;
  /** From the measured window's begin to the end of its last request, the same for all aggregates of a run. */
  readonly spanMs: number;
  readonly latency: Latencies;
}

export interface Latencies {
  /** From the scheduled time. The one to judge by. */
  readonly ttft: Distribution;
  readonly ttftFromSent: Distribution;
  /** One value a request (with at least two tokens). */
  readonly tpot: Distribution;
  /** One value a gap, all requests together. */
  readonly itl: Distribution;
  /** From the scheduled time. */
  readonly e2e: Distribution;
  readonly e2eFromSent: Distribution;
  /** sent − scheduled: the client's own delay. */
  readonly sendDelay: Distribution;
}
export type LatencyKey = keyof Latencies;

/** Percentiles are nearest-rank from a histogram whose relative error is at most 0.5 %; min, max, mean are exact. */
export interface Distribution {
  readonly count: number;
  /** All `null` when count is 0. */
  readonly meanMs: number | null;
  readonly standardDeviationMs: number | null;
  readonly minMs: number | null;
  readonly maxMs: number | null;
  readonly p50Ms: number | null;
  readonly p90Ms: number | null;
  readonly p95Ms: number | null;
  readonly p99Ms: number | null;
  readonly p999Ms: number | null;
  /** Occupied bins in ascending order, for plots: `[from, to)` in ms and how many values. Empty when count is 0. */
  readonly bins: readonly HistogramBin[];
}

export interface HistogramBin {
  readonly fromMs: number;
  readonly toMs: number;
  readonly count: number;
}

export interface AdapterAggregate extends Aggregate {
  /** `null`: the base model. */
  readonly adapter: string | null;
  /** Of the measured requests. */
  readonly requestShare: number;
}

export interface TimelineBucket {
  readonly fromMs: number;
  readonly toMs: number;
  /** Counted by scheduled, sent and end time. */
  readonly scheduled: number;
  readonly sent: number;
  readonly ok: number;
  readonly errors: number;
  /** Pieces that arrived in this slice (tokens as the stream shows them). */
  readonly pieces: number;
  /** Highest number of requests in flight at once. */
  readonly inFlightMax: number;
  /** Of requests whose first token, or end, fell into this slice; from the scheduled time; `null` when none did. */
  readonly ttftP50Ms: number | null;
  readonly ttftP99Ms: number | null;
  readonly e2eP50Ms: number | null;
  readonly e2eP99Ms: number | null;
  readonly itlP99Ms: number | null;
}

export interface ServerReport {
  readonly metricsUrl: string;
  /** Whose names were found: `vllm` (ours too), `lorax`, `llama-server`; `unknown` when none were. */
  readonly flavour: string;
  readonly samples: readonly ServerSample[];
  readonly failedScrapes: number;
  readonly disagreements: readonly Disagreement[];
}

/** One scrape. Gauges as they were; totals count from the first scrape of the run. `null`: the server does not tell. */
export interface ServerSample {
  readonly atMs: number;
  readonly running: number | null;
  readonly waiting: number | null;
  readonly kvUsageShare: number | null;
  readonly adaptersResident: number | null;
  readonly adaptersWaiting: number | null;
  readonly promptTokens: number | null;
  readonly outputTokens: number | null;
  readonly requestsDone: number | null;
  readonly preemptions: number | null;
  readonly prefixHitTokens: number | null;
}

/** A figure that both sides know and do not agree on by more than its tolerance. */
export interface Disagreement {
  /** Such as `output tokens`, `requests done`, `mean TTFT`. */
  readonly what: string;
  readonly unit: string;
  readonly client: number;
  readonly server: number;
  readonly toleranceShare: number;
  /** One sentence on what may lie behind it. */
  readonly message: string;
}

/** Whether the load generator itself could be the limit. */
export interface ClientReport {
  readonly samples: readonly ClientSample[];
  /** Over the measured window. Event-loop lag: how late a timer fires because other work held the loop. */
  readonly eventLoopLagMs: {
    readonly mean: number;
    readonly p50: number;
    readonly p99: number;
    readonly p999: number;
    readonly max: number;
  };
  /** Of one core, 0..; above 0.9 the single-threaded client is saturated. */
  readonly cpuShareMean: number;
  readonly cpuShareMax: number;
  readonly memoryMaxBytes: number;
  /** True when a finding of kind `client_limit` stands in the verdict. */
  readonly wasLimit: boolean;
}

export interface ClientSample {
  readonly atMs: number;
  /** Of one core, since the sample before. */
  readonly cpuShare: number;
  readonly eventLoopLagP99Ms: number;
  readonly eventLoopLagMaxMs: number;
  readonly memoryBytes: number;
  readonly inFlight: number;
}
