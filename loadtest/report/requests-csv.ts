/** requests.csv and summary.csv: what a spreadsheet or a data frame wants to have. Columns are named as in report.json. */
import type { Cell } from './csv.js';
import { csvRecord } from './csv.js';
import type { Aggregate, LatencyKey, RequestRecord, RunReport } from './run-report.js';
import { OUTCOMES } from './run-report.js';

type Column<Row> = readonly [title: string, cell: (row: Row) => Cell];

const REQUEST_COLUMNS: readonly Column<RequestRecord>[] = [
  ['index', (request) => request.index],
  ['phase', (request) => request.phase],
  ['adapter', (request) => request.adapter],
  ['user', (request) => request.user],
  ['scheduledAtMs', (request) => request.scheduledAtMs],
  ['sentAtMs', (request) => request.sentAtMs],
  ['headersAtMs', (request) => request.headersAtMs],
  ['firstTokenAtMs', (request) => request.firstTokenAtMs],
  ['lastTokenAtMs', (request) => request.lastTokenAtMs],
  ['endAtMs', (request) => request.endAtMs],
  ['ttftMs', (request) => minus(request.firstTokenAtMs, request.scheduledAtMs)],
  ['e2eMs', (request) => minus(request.endAtMs, request.scheduledAtMs)],
  ['itlMeanMs', (request) => request.itl?.meanMs],
  ['itlP99Ms', (request) => request.itl?.p99Ms],
  ['itlMaxMs', (request) => request.itl?.maxMs],
  ['promptTokensAsked', (request) => request.promptTokensAsked],
  ['outputTokensAsked', (request) => request.outputTokensAsked],
  ['promptTokens', (request) => request.promptTokens],
  ['outputTokens', (request) => request.outputTokens],
  ['pieces', (request) => request.pieces],
  ['outcome', (request) => request.outcome],
  ['status', (request) => request.status],
  ['finishReason', (request) => request.finishReason],
  ['retryAfterSeconds', (request) => request.retryAfterSeconds],
  ['good', (request) => request.good],
  ['errorText', (request) => request.errorText],
];

function minus(end: number | null, begin: number): number | null {
  return end === null ? null : end - begin;
}

/** The head, then one record a request, warm-up included. The base model's adapter is empty. */
export function* requestRecords(requests: readonly RequestRecord[]): Generator<string> {
  yield csvRecord(REQUEST_COLUMNS.map(([title]) => title));
  for (const request of requests) yield csvRecord(REQUEST_COLUMNS.map(([, cell]) => cell(request)));
}

const LATENCY_KEYS: readonly LatencyKey[] = ['ttft', 'ttftFromSent', 'tpot', 'itl', 'e2e', 'e2eFromSent', 'sendDelay'];
const FIGURES = ['count', 'meanMs', 'minMs', 'p50Ms', 'p90Ms', 'p95Ms', 'p99Ms', 'p999Ms', 'maxMs'] as const;

const SUMMARY_COLUMNS: readonly Column<Aggregate>[] = [
  ['requests', (row) => row.requests],
  ['ok', (row) => row.ok],
  ['good', (row) => row.good],
  ['goodShare', (row) => row.goodShare],
  ['promptTokens', (row) => row.promptTokens],
  ['outputTokens', (row) => row.outputTokens],
  ['requestsPerSecond', (row) => row.requestsPerSecond],
  ['outputTokensPerSecond', (row) => row.outputTokensPerSecond],
  ['totalTokensPerSecond', (row) => row.totalTokensPerSecond],
  ['goodputPerSecond', (row) => row.goodputPerSecond],
  ...LATENCY_KEYS.flatMap((key) =>
    FIGURES.map((figure): Column<Aggregate> => [`${key}.${figure}`, (row) => row.latency[key][figure]]),
  ),
  ...OUTCOMES.filter((outcome) => outcome !== 'ok').map((outcome): Column<Aggregate> => [
    `errors.${outcome}`,
    (row) => row.errors[outcome] ?? 0,
  ]),
];

/** The head, a record for all measured requests (`scope` total), then one an adapter; the base model's name is empty. */
export function* summaryRecords({ total, adapters }: RunReport): Generator<string> {
  const cells = (row: Aggregate): Cell[] => SUMMARY_COLUMNS.map(([, cell]) => cell(row));
  yield csvRecord(['scope', 'adapter', ...SUMMARY_COLUMNS.map(([title]) => title)]);
  yield csvRecord(['total', null, ...cells(total)]);
  for (const row of adapters) yield csvRecord(['adapter', row.adapter, ...cells(row)]);
}
