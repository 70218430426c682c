/**
 * Two runs side by side as plain data, and what the commands call. Where the functions lie:
 *   write-report.ts      writeReport(report, folder, formats): Promise<readonly string[]>     paths written
 *   read-report.ts       readReport(path): Promise<RunReport>        a report.json or a folder with one; refuses others
 *   table.ts             renderTable(report, style): string
 *   compare-runs.ts      compareRuns(before, after): RunComparison   pure
 *   comparison-table.ts  renderComparison(comparison, style): string
 *   write-report.ts      writeComparison(comparison, folder, formats): Promise<readonly string[]>
 */
import type { LatencyKey, RunIdentity, Verdict } from './run-report.js';

/** Which files are written: report.json, the CSV files, report.html. */
export interface ReportFormats {
  readonly json: boolean;
  readonly csv: boolean;
  readonly html: boolean;
}

/** Where a table is shown. */
export interface TableStyle {
  /** Width of the terminal in columns. */
  readonly columns: number;
  readonly colour: boolean;
}

export interface RunComparison {
  readonly before: ComparedRun;
  readonly after: ComparedRun;
  /** What makes the comparison unfair: other traces, rates, lengths, an invalid run. Empty when nothing does. */
  readonly warnings: readonly string[];
  readonly total: readonly ComparedMetric[];
  /** Adapters that both runs have with enough requests, most requests first. */
  readonly adapters: readonly { readonly adapter: string | null; readonly metrics: readonly ComparedMetric[] }[];
}

export interface ComparedRun {
  readonly run: RunIdentity;
  readonly verdict: Verdict;
  readonly traceSha256: string;
}

export type ComparedStatistic = 'mean' | 'p50' | 'p90' | 'p95' | 'p99' | 'p999' | 'rate' | 'share';

/** One figure of both runs. The interval is of the difference, by bootstrap over requests (seeded, so repeatable). */
export interface ComparedMetric {
  readonly metric: LatencyKey | 'requestsPerSecond' | 'outputTokensPerSecond' | 'goodputPerSecond' | 'errorShare';
  readonly statistic: ComparedStatistic;
  readonly unit: 'ms' | '1/s' | 'share';
  readonly before: number;
  readonly after: number;
  /** after − before, in `unit`. */
  readonly difference: number;
  /** after / before − 1; `null` when before is 0. */
  readonly change: number | null;
  /** Of `difference`; `null` with too few samples to say. */
  readonly interval: { readonly low: number; readonly high: number; readonly confidence: number } | null;
  /** `better` or `worse` only when the interval leaves out 0. */
  readonly judgement: 'better' | 'worse' | 'no clear difference' | 'too few samples';
}
