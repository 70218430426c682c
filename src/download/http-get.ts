/**
 * One GET with our rules: redirects are followed by hand so that credentials never leave their origin, nothing is
 * compressed, silence ends it. Used by fetch-file and hub.
 */
import { request } from 'undici';
import type { Dispatcher } from 'undici';

import { ManyfoldError } from '../core/errors.js';

export interface HttpContext {
  /** No byte for so long ends the attempt. */
  readonly stallTimeoutMs: number;
  readonly signal?: AbortSignal;
  /** Where connections come from, for instance a proxy's; undici's own when absent. */
  readonly dispatcher?: Dispatcher;
}

export type HttpResponse = Dispatcher.ResponseData;

/** A failure after which the same request may succeed. */
export class RetryableFailure extends Error {
  constructor(
    message: string,
    /** Wait that the server asked for. */
    readonly afterSeconds?: number,
  ) {
    super(message);
  }
}

export const STOPPED = 'The download was stopped. Start it again to go on from here.';
const MAX_REDIRECTS = 10;
const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
/** Headers that belong to the origin that they were meant for. */
const CREDENTIALS: ReadonlySet<string> = new Set(['authorization', 'cookie', 'proxy-authorization']);

/** Answers with any status but a redirect. Network trouble is a {@link RetryableFailure}. */
export async function httpGet(
  url: string,
  headers: Readonly<Record<string, string>>,
  context: HttpContext,
): Promise<HttpResponse> {
  let current = parseUrl(url);
  let sent: Readonly<Record<string, string>> = { ...headers, 'accept-encoding': 'identity' };
  for (let hops = 0; hops <= MAX_REDIRECTS; hops += 1) {
    const response = await send(current, sent, context);
    const location = response.headers['location'];
    if (!REDIRECTS.has(response.statusCode) || typeof location !== 'string') return response;
    await response.body.dump();
    const next = parseUrl(location, current);
    if (current.protocol === 'https:' && next.protocol !== 'https:') {
      throw failed(`${current.origin} redirects to ${next.origin} without encryption. Use another endpoint.`);
    }
    if (next.origin !== current.origin) {
      sent = Object.fromEntries(Object.entries(sent).filter(([name]) => !CREDENTIALS.has(name.toLowerCase())));
    }
    current = next;
  }
  throw failed(`${url} redirects more than ${MAX_REDIRECTS} times. Check the endpoint.`);
}

async function send(url: URL, headers: Readonly<Record<string, string>>, context: HttpContext): Promise<HttpResponse> {
  try {
    return await request(url, {
      method: 'GET',
      headers,
      headersTimeout: context.stallTimeoutMs,
      bodyTimeout: context.stallTimeoutMs,
      ...(context.signal === undefined ? {} : { signal: context.signal }),
      ...(context.dispatcher === undefined ? {} : { dispatcher: context.dispatcher }),
    });
  } catch (error) {
    throw networkFailure(error, url, context.signal);
  }
}

/** What went wrong on the wire, as something to retry; an abort stays an abort. */
export function networkFailure(error: unknown, url: URL | string, signal: AbortSignal | undefined): Error {
  if (signal?.aborted === true) return failed(STOPPED, error);
  const reason = error instanceof Error ? error.message || error.name : String(error);
  return new RetryableFailure(`${new URL(url).origin}: ${reason}`);
}

export function failed(message: string, cause?: unknown): ManyfoldError {
  return new ManyfoldError('download_failed', message, cause === undefined ? {} : { cause });
}

/** The error of a status that is not a success. */
export function statusFailure(url: string, { statusCode, headers }: HttpResponse): Error {
  const where = new URL(url);
  const what = `${where.origin}${where.pathname} answered ${statusCode}`;
  if (statusCode === 408 || statusCode === 425 || statusCode === 429 || statusCode >= 500) {
    const after = Number(headers['retry-after']);
    return new RetryableFailure(what, Number.isFinite(after) && after >= 0 ? after : undefined);
  }
  if (statusCode === 401 || statusCode === 403) {
    return failed(`${what}. Give a token that may read it, or accept the model's terms on its page.`);
  }
  if (statusCode === 404) return failed(`${what}. Check the model's name, revision and file.`);
  return failed(`${what}. Check the endpoint.`);
}

function parseUrl(url: string, base?: URL): URL {
  let parsed: URL;
  try {
    parsed = new URL(url, base);
  } catch (cause) {
    throw failed(`${JSON.stringify(url.slice(0, 200))} is not an address. Check the endpoint.`, cause);
  }
  if (parsed.protocol === 'https:' || parsed.protocol === 'http:') return parsed;
  throw failed(`${parsed.protocol} addresses cannot be downloaded from, expected https: or http:. Check the endpoint.`);
}
