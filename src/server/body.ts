/** The JSON body of a request: counted while it arrives, decoded strictly. Called by the routes. */
import { ManyfoldError } from '../core/errors.js';
import type { AppContext } from './context.js';

export type JsonObject = Readonly<Record<string, unknown>>;

/** Throws 415 for other media types, 413 as soon as the limit is passed, 400 for what is no JSON object. */
export async function readJsonObject(c: AppContext, limitBytes: number): Promise<JsonObject> {
  checkMediaType(c);
  const bytes = await readBytes(c, limitBytes);
  const value = parse(bytes);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ManyfoldError(
      'invalid_request',
      `The body must be a JSON object; ${Array.isArray(value) ? 'an array' : value === null ? 'null' : `a ${typeof value}`} ` +
        'came. Send the parameters as { "name": value, ... }.',
    );
  }
  return value as JsonObject;
}

function checkMediaType(c: AppContext): void {
  const type = (c.req.header('content-type') ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? '';
  if (type !== 'application/json' && !/^application\/[\w.-]+\+json$/.test(type)) {
    throw new ManyfoldError(
      'unsupported_media_type',
      `The body must be JSON; the content type is '${type.slice(0, 64)}'. Send the header "Content-Type: application/json".`,
    );
  }
  const encoding = (c.req.header('content-encoding') ?? 'identity').trim().toLowerCase();
  if (encoding !== 'identity') {
    throw new ManyfoldError(
      'unsupported_media_type',
      `The body must not be compressed; its encoding is '${encoding.slice(0, 64)}'. Send it as it is.`,
    );
  }
}

async function readBytes(c: AppContext, limitBytes: number): Promise<Uint8Array> {
  const declared = Number(c.req.header('content-length') ?? 0);
  if (declared > limitBytes) throw tooLarge(limitBytes);
  const body: ReadableStream<Uint8Array> | null = c.req.raw.body;
  if (body === null) return new Uint8Array();
  const reader = body.getReader();
  const chunks: Uint8Array[] = [];
  let total = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(brokeOff);
    if (done) return chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks);
    total += value.byteLength;
    if (total > limitBytes) throw tooLarge(limitBytes);
    chunks.push(value);
  }
}

/** The client went away, or was too slow, before its body was whole. */
function brokeOff(cause: unknown): never {
  throw new ManyfoldError('invalid_request', 'The body broke off before its end. Send it whole.', { cause });
}

function tooLarge(limitBytes: number): ManyfoldError {
  return new ManyfoldError(
    'request_too_large',
    `The body may have ${limitBytes} bytes; more came. Send less, or start the server with a larger --max-body-bytes.`,
  );
}

function parse(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    const why = cause instanceof SyntaxError ? cause.message.slice(0, 160) : 'it is not UTF-8';
    throw new ManyfoldError('invalid_request', `The body must be JSON: ${why}. Correct it and send it again.`, {
      cause,
    });
  }
}
