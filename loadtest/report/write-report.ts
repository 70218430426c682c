/** Writes what a run or a comparison leaves behind. Files are written beside their name first and then moved into place. */
import { randomBytes } from 'node:crypto';
import { mkdir, open, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ManyfoldError } from '../../src/core/errors.js';
import { comparisonPage } from './page/comparison-page.js';
import { runPage } from './page/run-page.js';
import { jsonPieces } from './json-text.js';
import { requestRecords, summaryRecords } from './requests-csv.js';
import type { ReportFormats, RunComparison } from './run-comparison.js';
import type { RunReport } from './run-report.js';
import { sweepPage } from './page/sweep-page.js';

/** Characters that are put together before a write; between writes the event loop turns. */
const CHUNK = 1 << 18;

/** report.json, requests.csv with summary.csv, report.html, as asked. Returns the paths in the order in which they were written. */
export async function writeReport(
  report: RunReport,
  folder: string,
  formats: ReportFormats,
): Promise<readonly string[]> {
  return writeAll(folder, [
    ...(formats.json ? [{ name: 'report.json', pieces: () => jsonPieces(report) }] : []),
    ...(formats.csv
      ? [
          { name: 'requests.csv', pieces: () => requestRecords(report.requests) },
          { name: 'summary.csv', pieces: () => summaryRecords(report) },
        ]
      : []),
    ...(formats.html ? [{ name: 'report.html', pieces: () => [runPage(report)] }] : []),
  ]);
}

/** comparison.json and comparison.html. A comparison has no CSV. */
export async function writeComparison(
  comparison: RunComparison,
  folder: string,
  formats: ReportFormats,
): Promise<readonly string[]> {
  return writeAll(folder, [
    ...(formats.json ? [{ name: 'comparison.json', pieces: () => jsonPieces(comparison) }] : []),
    ...(formats.html ? [{ name: 'comparison.html', pieces: () => [comparisonPage(comparison)] }] : []),
  ]);
}

/** sweep.html: throughput against latency over runs that differ in load. */
export async function writeSweep(reports: readonly RunReport[], folder: string): Promise<readonly string[]> {
  return writeAll(folder, [{ name: 'sweep.html', pieces: () => [sweepPage(reports)] }]);
}

interface Output {
  readonly name: string;
  readonly pieces: () => Iterable<string>;
}

async function writeAll(folder: string, outputs: readonly Output[]): Promise<readonly string[]> {
  const paths: string[] = [];
  try {
    await mkdir(folder, { recursive: true });
    for (const { name, pieces } of outputs) {
      const path = join(folder, name);
      await writePieces(path, pieces());
      paths.push(path);
    }
  } catch (cause) {
    if (!(cause instanceof Error) || !('code' in cause)) throw cause;
    throw new ManyfoldError(
      'invalid_config',
      `The report cannot be written to '${folder}': ${cause.message}. Name a folder that can be written to.`,
      { cause },
    );
  }
  return paths;
}

async function writePieces(path: string, pieces: Iterable<string>): Promise<void> {
  // A name of its own: two runs may write to one folder at once, and then the last whole file stays.
  const part = `${path}.${process.pid}-${randomBytes(4).toString('hex')}.part`;
  const file = await open(part, 'w');
  try {
    let waiting: string[] = [];
    let length = 0;
    for (const piece of pieces) {
      waiting.push(piece);
      length += piece.length;
      if (length < CHUNK) continue;
      await file.appendFile(waiting.join(''));
      waiting = [];
      length = 0;
    }
    await file.appendFile(waiting.join(''));
    await file.close();
    await rename(part, path);
  } catch (cause) {
    await file.close().catch(() => undefined);
    await rm(part, { force: true });
    throw cause;
  }
}
