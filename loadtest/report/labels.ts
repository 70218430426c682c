/** Words that tables, pages and comparisons share, so that one thing has one name everywhere. */
import type { Distribution, LatencyKey, Outcome, RunReport } from './run-report.js';

export const LATENCY_NAMES: Readonly<Record<LatencyKey, string>> = {
  ttft: 'TTFT',
  ttftFromSent: 'TTFT from sent',
  tpot: 'TPOT',
  itl: 'ITL',
  e2e: 'E2E',
  e2eFromSent: 'E2E from sent',
  sendDelay: 'send delay',
};

/** What each latency is, for those who meet the word for the first time. */
export const LATENCY_MEANINGS: Readonly<Record<LatencyKey, string>> = {
  ttft: 'time to first token, from the time at which the request was scheduled',
  ttftFromSent: 'time to first token, from the time at which the request left the client',
  tpot: 'time per output token after the first, one value a request',
  itl: 'gap between two pieces of a stream, one value a gap',
  e2e: 'time to the end of the answer, from the time at which the request was scheduled',
  e2eFromSent: 'time to the end of the answer, from the time at which the request left the client',
  sendDelay: 'time between schedule and sending: the delay of the client itself',
};

export const OUTCOME_MEANINGS: Readonly<Record<Outcome, string>> = {
  ok: 'complete and without error',
  unreachable: 'no connection: refused, unknown host, TLS',
  connection_lost: 'reset or closed before the first byte of the answer',
  stream_cut: 'the stream ended without its end mark',
  rate_limited: 'status 429',
  client_error: 'any other status 4xx',
  server_error: 'status 5xx',
  stream_error: 'an error event inside the stream',
  bad_answer: 'status 200 with something that is not the protocol',
  empty_answer: 'well-formed, but without a single token',
  timeout_first_token: 'no first token in time',
  timeout_idle: 'too long between two pieces',
  timeout_total: 'not complete in time',
  cancelled: 'stopped by the client: interrupted, or still running when the drain time was over',
  not_sent: 'scheduled, but the run ended first',
};

export const PERCENTILES: readonly { readonly key: keyof Distribution & `p${string}Ms`; readonly title: string }[] = [
  { key: 'p50Ms', title: 'p50' },
  { key: 'p90Ms', title: 'p90' },
  { key: 'p95Ms', title: 'p95' },
  { key: 'p99Ms', title: 'p99' },
  { key: 'p999Ms', title: 'p99.9' },
];

/** The base model has no adapter name. */
export function adapterName(adapter: string | null): string {
  return adapter ?? '(base model)';
}

export function verdictText({ verdict }: Pick<RunReport, 'verdict'>): string {
  return verdict.valid ? 'VALID' : 'NOT VALID';
}

/** The limits of the SLO that are set, such as `TTFT ≤ 400 ms`. */
export function sloTexts({ workload: { slo } }: RunReport): readonly string[] {
  const limits: readonly (readonly [string, number | null])[] = [
    ['TTFT', slo.ttftMs],
    ['TPOT', slo.tpotMs],
    ['ITL p99', slo.itlP99Ms],
    ['E2E', slo.e2eMs],
  ];
  return limits.flatMap(([name, limit]) => (limit === null ? [] : [`${name} ≤ ${limit} ms`]));
}
