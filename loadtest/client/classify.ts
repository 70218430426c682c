/** Errors and headers → the words of a report. Pure but for the clock that dates are compared with. */
import type { Clock } from '../../src/core/clock.js';
import type { Outcome } from '../report/run-report.js';

/** Codes of Node and undici that mean: no connection was made. */
const UNREACHABLE = new Set([
  'ECONNREFUSED',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENETDOWN',
  'EADDRNOTAVAIL',
  'ETIMEDOUT',
  'EMFILE',
  'ENFILE',
  'UND_ERR_CONNECT_TIMEOUT',
]);

/** Which outcome an error of the connection is. */
export function classifyError(error: Error, hasHeaders: boolean): Outcome {
  const codes = codesOf(error);
  if (
    codes.some(
      (code) => UNREACHABLE.has(code) || /^(ERR_TLS|ERR_SSL|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO)/.test(code),
    )
  ) {
    return 'unreachable';
  }
  const isParser = error.name === 'HTTPParserError' || codes.includes('UND_ERR_HEADERS_OVERFLOW');
  if (isParser || codes.some((code) => code.startsWith('HPE_'))) {
    // The parser also meets a body that is shorter than announced, which is a cut and no garbage.
    return codes.includes('HPE_INVALID_EOF_STATE') && hasHeaders ? 'stream_cut' : 'bad_answer';
  }
  return hasHeaders ? 'stream_cut' : 'connection_lost';
}

/** Of the error, of its cause and, where several addresses were tried, of each try. */
function codesOf(error: unknown, depth = 0): string[] {
  if (typeof error !== 'object' || error === null || depth > 4) return [];
  const own = 'code' in error && typeof error.code === 'string' ? [error.code] : [];
  const inner = error instanceof AggregateError ? (error.errors as unknown[]) : [];
  const cause = 'cause' in error ? [error.cause] : [];
  return [...own, ...[...inner, ...cause].flatMap((one) => codesOf(one, depth + 1))];
}

/** The message of an error's body: that of the usual envelopes, else the body itself. */
export function errorMessage(body: string): string {
  try {
    const json = JSON.parse(body) as unknown;
    if (typeof json !== 'object' || json === null) return body;
    const error: unknown = 'error' in json ? json.error : json;
    if (typeof error === 'string') return error;
    const holder = typeof error === 'object' && error !== null ? error : json;
    return 'message' in holder && typeof holder.message === 'string' ? holder.message : body;
  } catch {
    return body; // Not JSON, or cut: shown as it is.
  }
}

const MAX_TEXT = 200;

/** The first 200 characters on one line, control characters taken out: a hostile server must not steer a terminal. */
export function printable(text: string): string {
  return text
    .slice(0, 4 * MAX_TEXT)
    .replace(/[\p{Cc}\p{Cf}\p{Z}]+/gu, ' ')
    .trim()
    .slice(0, MAX_TEXT);
}

/** Seconds of a `retry-after` header, which holds seconds or a date (RFC 9110, 10.2.3). `null` when there is none. */
export function retryAfterSeconds(header: string | string[] | undefined, clock: Clock): number | null {
  const text = (Array.isArray(header) ? header[0] : header)?.trim() ?? '';
  if (/^\d{1,9}(\.\d+)?$/.test(text)) return Number(text);
  const date = text === '' ? NaN : Date.parse(text);
  return Number.isNaN(date) ? null : Math.max(0, date / 1000 - clock.unixSeconds());
}
