/** Reads a report.json back, for comparisons and for pages made later. Whatever else is found there is refused by name. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ManyfoldError } from '../../src/core/errors.js';
import { plainText } from './text-table.js';
import { ReportSchema } from './report-schema.js';
import type { RunReport } from './run-report.js';
import { REPORT_FORMAT, REPORT_VERSION } from './run-report.js';

/** V8 holds no longer string; a larger file fails inside `readFile` with a message that helps nobody. */
const MAX_BYTES = 500 * 2 ** 20;

/** `path` is a report.json or a folder with one. Refuses with `invalid_config`: the path came from the command line. */
export async function readReport(path: string): Promise<RunReport> {
  return parseReport(await readText(path), path);
}

/** The report in `text`; `path` is for messages. */
export function parseReport(text: string, path: string): RunReport {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw refusal(path, 'is not JSON', 'Give the report.json of a finished run', cause);
  }
  checkFormat(parsed, path);
  const report = ReportSchema.safeParse(parsed);
  if (report.success) return report.data;
  const [issue] = report.error.issues;
  const place = issue?.path.map(String).join('.') ?? '';
  throw refusal(
    path,
    `is no whole report: ${plainText(place === '' ? 'the top' : place)}: ${plainText(issue?.message ?? 'unknown')}`,
    'Give a report.json as it was written, not edited',
  );
}

async function readText(path: string): Promise<string> {
  try {
    const isFolder = (await stat(path)).isDirectory();
    const file = isFolder ? join(path, 'report.json') : path;
    const { size } = await stat(file);
    if (size > MAX_BYTES) {
      throw refusal(file, `has ${size} bytes, over ${MAX_BYTES}`, 'Run with fewer requests or without record-pieces');
    }
    return await readFile(file, 'utf8');
  } catch (cause) {
    if (cause instanceof ManyfoldError) throw cause;
    const reason = cause instanceof Error && 'code' in cause ? String(cause.code) : 'unknown error';
    throw refusal(
      path,
      `cannot be read (${reason})`,
      'Give a report.json, or the folder that `manyfold bench` wrote',
      cause,
    );
  }
}

/** Before the whole shape: "another version" helps, the first missing field of it does not. */
function checkFormat(parsed: unknown, path: string): void {
  const isObject = typeof parsed === 'object' && parsed !== null;
  const format = isObject && 'format' in parsed ? parsed.format : undefined;
  const version = isObject && 'formatVersion' in parsed ? parsed.formatVersion : undefined;
  if (format !== REPORT_FORMAT) {
    throw refusal(path, `is JSON, but not a load test's report: no "format": "${REPORT_FORMAT}"`, 'Give a report.json');
  }
  if (version !== REPORT_VERSION) {
    const found = typeof version === 'number' ? String(version) : 'none';
    throw refusal(
      path,
      `has report version ${found}; this build reads version ${REPORT_VERSION}`,
      'Read it with the Manyfold version that wrote it, or run again',
    );
  }
}

function refusal(path: string, found: string, mend: string, cause?: unknown): ManyfoldError {
  return new ManyfoldError('invalid_config', `Report '${plainText(path)}' ${found}. ${mend}.`, { cause });
}
