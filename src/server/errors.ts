/** Errors on the wire: OpenAI's envelope with vLLM's numeric code, and the headers that clients obey. Pure. */
import { ManyfoldError, toPlainError, fromPlainError } from '../core/errors.js';
import type { PlainError } from '../core/errors.js';

export interface ErrorAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

export function errorEnvelope(error: ManyfoldError): { error: Record<string, string | number | null> } {
  return { error: { message: error.message, type: error.type, param: error.param ?? null, code: error.status } };
}

/** Any thrown value as a registered error. */
export function asManyfoldError(thrown: unknown): ManyfoldError {
  return thrown instanceof ManyfoldError ? thrown : fromPlainError(toPlainError(thrown));
}

/** The same envelope inside a stream whose status is already sent. */
export function errorFrame(error: PlainError): string {
  return `data: ${JSON.stringify(errorEnvelope(fromPlainError(error)))}\n\n`;
}

export function errorAnswer(error: ManyfoldError): ErrorAnswer {
  const headers: Record<string, string> = { 'content-type': 'application/json' };
  if (error.status === 401) headers['www-authenticate'] = 'Bearer';
  if (error.status === 429 || error.status === 503) {
    const seconds = error.retryAfterSeconds ?? 1;
    headers['retry-after'] = String(Math.ceil(seconds));
    headers['retry-after-ms'] = String(Math.round(seconds * 1000));
  }
  if (error.code === 'overloaded') headers['x-llm-d-request-dropped-reason'] = 'rejected-saturated';
  if (error.code === 'shutting_down') {
    headers['x-llm-d-request-dropped-reason'] = 'rejected-shutting-down';
    headers['connection'] = 'close';
  }
  // Clients retry every 5xx by themselves unless told that it cannot help.
  if (error.status >= 500 && !error.retryable) headers['x-should-retry'] = 'false';
  return { status: error.status, headers, body: JSON.stringify(errorEnvelope(error)) };
}
