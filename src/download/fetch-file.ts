/**
 * Downloads one file: it resumes where it broke off (also in a later process), checks size and SHA-256, and appears
 * under its name only when it is whole and on disk. Called by hub.
 */
import { stat, statfs } from 'node:fs/promises';
import path from 'node:path';

import type { Clock } from '../core/clock.js';
import { ManyfoldError } from '../core/errors.js';
import { failed, httpGet, networkFailure, RetryableFailure, statusFailure, STOPPED } from './http-get.js';
import type { HttpContext, HttpResponse } from './http-get.js';
import { PartFile } from './part-file.js';
import { formatBytes } from './progress.js';
import { pauseAfter } from './retry.js';
import type { RetryContext } from './retry.js';

export interface FetchRequest {
  readonly url: string;
  readonly destination: string;
  /** For messages; the destination's file name when absent. */
  readonly label?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** Known size and SHA-256 (hex); both are checked. */
  readonly size?: number;
  readonly sha256?: string;
  /** More than this is never written. */
  readonly maxBytes: number;
}

export interface FetchContext extends HttpContext, RetryContext {
  readonly clock: Clock;
  /** Failures in a row, without a byte between, after which it gives up. */
  readonly maxFailures: number;
  /** Bytes that may still be written where `folder` is; undefined when nobody knows. */
  readonly freeBytes?: (folder: string) => Promise<number | undefined>;
}

export const DEFAULT_STALL_TIMEOUT_MS = 60_000;
export const DEFAULT_MAX_FAILURES = 6;

/** Left free on the disk beside the file. */
const SPARE_BYTES = 64 << 20;

/** Resolves when `destination` is there whole. A file that is already there is taken as it is. */
export async function fetchFile(request: FetchRequest, context: FetchContext): Promise<void> {
  if (await isThere(request)) return;
  const transfer = new Transfer(request, context);
  try {
    await transfer.run();
  } catch (error) {
    throw asDownloadError(error, request.destination);
  } finally {
    await transfer.close();
  }
}

async function isThere({ destination, size }: FetchRequest): Promise<boolean> {
  const info = await stat(destination).catch(() => undefined);
  return info?.isFile() === true && (size === undefined || info.size === size);
}

class Transfer {
  private readonly label: string;
  private part: PartFile | undefined;
  /** Bytes of the part that another process wrote; a wrong hash may be its fault. */
  private inherited = 0;
  private started = false;

  constructor(
    private readonly request: FetchRequest,
    private readonly context: FetchContext,
  ) {
    this.label = request.label ?? path.basename(request.destination);
  }

  async run(): Promise<void> {
    const { destination, url } = this.request;
    this.part = await PartFile.claim(destination, url, this.context.clock);
    this.inherited = this.part?.bytes ?? 0;
    for (let failures = 0; ;) {
      const before = this.part?.bytes ?? 0;
      try {
        const part = await this.attempt();
        if (await this.verify(part)) return;
      } catch (error) {
        if (!(error instanceof RetryableFailure)) throw error;
        failures = (this.part?.bytes ?? 0) > before ? 1 : failures + 1;
        if (failures >= this.context.maxFailures) throw this.gaveUp(error, failures);
        await pauseAfter(error, failures, this.context);
      }
    }
  }

  /** Ends the line of progress and leaves what is there for another time. */
  async close(): Promise<void> {
    if (this.started) this.context.progress.finish();
    const { part } = this;
    this.part = undefined;
    await part?.release();
  }

  /** One request, to the end of its body. Returns the part, which then holds the whole file. */
  private async attempt(): Promise<PartFile> {
    if (this.part !== undefined && !this.canResume(this.part)) await this.discard();
    const resumed = this.part;
    if (resumed !== undefined && resumed.bytes === this.request.size) return resumed;
    const response = await httpGet(this.request.url, this.requestHeaders(resumed), this.context);
    const total = await this.acceptStatus(response, resumed);
    const part = this.part ?? (await this.createPart(response));
    this.show(part, total);
    await this.receive(response, part);
    if (total !== undefined && part.bytes < total) {
      throw new RetryableFailure(`${this.label}: the connection ended after ${part.bytes} of ${total} bytes`);
    }
    return part;
  }

  /** Without a validator only a known hash can tell whether the rest is of the same file. */
  private canResume(part: PartFile): boolean {
    const { size, sha256 } = this.request;
    if (size !== undefined && part.bytes > size) return false;
    return part.bytes > 0 && (part.source.validator !== undefined || sha256 !== undefined);
  }

  private requestHeaders(part: PartFile | undefined): Record<string, string> {
    const headers: Record<string, string> = { ...this.request.headers };
    if (part === undefined) return headers;
    headers['range'] = `bytes=${part.bytes}-`;
    if (part.source.validator !== undefined) headers['if-range'] = part.source.validator;
    return headers;
  }

  /** The file's whole size if the answer tells it. After a 200 in place of a 206 the part begins anew. */
  private async acceptStatus(response: HttpResponse, resumed: PartFile | undefined): Promise<number | undefined> {
    const { statusCode } = response;
    if (statusCode === 416 && resumed !== undefined) {
      await response.body.dump();
      // The validator held, or it would be a 200: there is nothing left to send.
      if (response.headers['content-range'] === `bytes */${resumed.bytes}`) return resumed.bytes;
      await this.discard();
      throw new RetryableFailure(`${this.label}: the server no longer has the rest of the file`);
    }
    if (statusCode !== 200 && statusCode !== 206) {
      await response.body.dump();
      throw statusFailure(this.request.url, response);
    }
    const range = statusCode === 206 ? contentRange(response) : undefined;
    if (statusCode === 206 && !this.fits(response, range, resumed)) {
      response.body.destroy();
      await this.discard();
      throw new RetryableFailure(`${this.label}: the server sent a part of another file, or another part`);
    }
    if (statusCode === 200 && resumed !== undefined) await this.discard();
    const total = range?.total ?? contentLength(response) ?? this.request.size;
    await this.checkSize(total, response);
    return total;
  }

  /** Some servers send a range whatever If-Range says. */
  private fits(response: HttpResponse, range: ContentRange | undefined, resumed: PartFile | undefined): boolean {
    if (range?.start !== (resumed?.bytes ?? 0)) return false;
    const [before, now] = [resumed?.source.validator, validatorOf(response)];
    return before === undefined || now === undefined || before === now;
  }

  private async checkSize(total: number | undefined, response: HttpResponse): Promise<void> {
    const { size, maxBytes, destination } = this.request;
    const encoding = response.headers['content-encoding'];
    let problem: string | undefined;
    if (encoding !== undefined && encoding !== 'identity') {
      problem = `${this.label} comes encoded as ${String(encoding)}, which was not asked for. Use another endpoint.`;
    } else if (size !== undefined && total !== undefined && total !== size) {
      problem = `${this.label} has ${total} bytes on the server, expected ${size}. Try again, or another revision.`;
    } else if (total !== undefined && total > maxBytes) {
      problem = `${this.label} has ${total} bytes, at most ${maxBytes} are allowed. Check that it is the right file.`;
    } else {
      const missing = (total ?? 0) - (this.part?.bytes ?? 0);
      const free = await (this.context.freeBytes ?? freeBytesOf)(path.dirname(destination));
      if (free !== undefined && missing + SPARE_BYTES > free) {
        problem =
          `${this.label} needs ${formatBytes(missing)} more, ${path.dirname(destination)} has ${formatBytes(free)} free. ` +
          'Free some space, or set another cache folder.';
      }
    }
    if (problem === undefined) return;
    response.body.destroy();
    throw failed(problem);
  }

  private async createPart(response: HttpResponse): Promise<PartFile> {
    this.inherited = 0;
    this.part = await PartFile.create(this.request.destination, {
      url: this.request.url,
      validator: validatorOf(response),
    });
    return this.part;
  }

  private show(part: PartFile, total: number | undefined): void {
    if (this.started) this.context.progress.update(part.bytes);
    else this.context.progress.start({ label: this.label, total, done: part.bytes });
    this.started = true;
  }

  private async receive(response: HttpResponse, part: PartFile): Promise<void> {
    const limit = this.request.size ?? this.request.maxBytes;
    const chunks = response.body[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>;
    for (;;) {
      let next: IteratorResult<Uint8Array>;
      try {
        next = await chunks.next();
      } catch (error) {
        throw networkFailure(error, this.request.url, this.context.signal);
      }
      if (next.done === true) return;
      if (part.bytes + next.value.length > limit) {
        response.body.destroy();
        await this.discard();
        throw failed(`${this.label} is longer than ${limit} bytes. Check that it is the right file.`);
      }
      await part.append(next.value);
      this.context.progress.update(part.bytes);
    }
  }

  /** False when the file must be fetched again from its beginning. */
  private async verify(part: PartFile): Promise<boolean> {
    const { sha256 } = this.request;
    const found = part.sha256();
    if (sha256 === undefined || found === sha256.toLowerCase()) {
      this.part = undefined;
      await part.complete();
      return true;
    }
    const wasInherited = this.inherited > 0;
    await this.discard();
    if (!wasInherited) {
      throw failed(
        `${this.label}: SHA-256 is ${found}, expected ${sha256}. The server's file is damaged or was replaced; ` +
          'try again later, or another revision.',
      );
    }
    this.context.progress.note(
      `${this.label}: the part of an earlier run does not fit, fetching it from the beginning`,
    );
    return false;
  }

  private async discard(): Promise<void> {
    const { part } = this;
    this.part = undefined;
    this.inherited = 0;
    await part?.discard();
  }

  private gaveUp(failure: RetryableFailure, failures: number): ManyfoldError {
    const kept = this.part === undefined ? '' : ` ${formatBytes(this.part.bytes)} are kept.`;
    return failed(
      `${failure.message} (${failures} times in a row).${kept} Check the network and start it again to go on from here.`,
      failure,
    );
  }
}

/** What If-Range may carry: weak tags do not promise the same bytes. */
function validatorOf(response: HttpResponse): string | undefined {
  const etag = response.headers['etag'];
  if (typeof etag === 'string' && /^"[^"]*"$/.test(etag)) return etag;
  const date = response.headers['last-modified'];
  return typeof date === 'string' ? date : undefined;
}

interface ContentRange {
  readonly start: number;
  readonly total: number | undefined;
}

function contentRange(response: HttpResponse): ContentRange | undefined {
  const match = /^bytes ([0-9]+)-[0-9]+\/([0-9]+|\*)$/.exec(String(response.headers['content-range']));
  if (match === null) return undefined;
  return { start: Number(match[1]), total: match[2] === '*' ? undefined : Number(match[2]) };
}

function contentLength(response: HttpResponse): number | undefined {
  const length = response.headers['content-length'];
  return typeof length === 'string' && /^[0-9]+$/.test(length) ? Number(length) : undefined;
}

async function freeBytesOf(folder: string): Promise<number | undefined> {
  // The folder may not be there yet; the disk is that of the nearest one that is.
  for (let at = path.resolve(folder); ; at = path.dirname(at)) {
    const info = await statfs(at).catch(() => undefined);
    if (info !== undefined) return info.bavail * info.bsize;
    if (at === path.dirname(at)) return undefined;
  }
}

/** Trouble with the disk as a sentence with a mend. */
function asDownloadError(error: unknown, destination: string): unknown {
  if (error instanceof ManyfoldError || !(error instanceof Error) || !('code' in error)) return error;
  if (error.name === 'AbortError') return failed(STOPPED, error);
  const mend =
    error.code === 'ENOSPC'
      ? 'Free some space, or set another cache folder.'
      : 'Check the cache folder and its permissions.';
  return failed(`${destination} cannot be written (${error.message}). ${mend}`, error);
}
