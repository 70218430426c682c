/** A local HTTP server of one or more files that can break off, forget ranges, change its mind and redirect. */
import { createServer } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface ServedFile {
  body: Buffer;
  etag?: string | undefined;
  lastModified?: string;
  /** Answer 200 and the whole body whatever is asked. */
  ignoresRange?: boolean;
  /** Answer 206 whatever If-Range says. */
  ignoresIfRange?: boolean;
  /** Do not tell the length. */
  chunked?: boolean;
  headers?: Record<string, string>;
}

export interface SeenRequest {
  readonly path: string;
  readonly range: string | undefined;
  readonly ifRange: string | undefined;
  readonly authorization: string | undefined;
  /** Bytes of the body that were written. */
  served: number;
}

/**
 * What becomes of one answer: bytes after which the socket is cut, a status in place of the file, or silence after half
 * of it.
 */
export type Fault =
  | { readonly cutAfter: number }
  | { readonly status: number; readonly headers?: Record<string, string> }
  | { readonly stall: true };

export class FileServer {
  readonly files = new Map<string, ServedFile>();
  readonly redirects = new Map<string, string>();
  readonly requests: SeenRequest[] = [];
  /** Taken one for each request, from the front; none left: all goes well. */
  readonly faults: (Fault | undefined)[] = [];
  private readonly server: Server;

  private constructor() {
    this.server = createServer((request, response) => this.answer(request, response));
  }

  static async start(): Promise<FileServer> {
    const server = new FileServer();
    await new Promise<void>((resolve) => server.server.listen(0, '127.0.0.1', resolve));
    return server;
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent(new URL(request.url ?? '/', 'http://x').pathname);
    const { range, authorization, 'if-range': ifRange } = request.headers;
    const seen: SeenRequest = {
      path,
      range,
      ifRange: typeof ifRange === 'string' ? ifRange : undefined,
      authorization,
      served: 0,
    };
    this.requests.push(seen);
    const target = this.redirects.get(path);
    if (target !== undefined) {
      response.writeHead(302, { location: target }).end();
      return;
    }
    const fault = this.faults.shift();
    const file = this.files.get(path);
    if (fault !== undefined && 'status' in fault) response.writeHead(fault.status, fault.headers).end('no');
    else if (file === undefined) response.writeHead(404).end();
    else this.send(file, seen, response, fault);
  }

  private send(
    file: ServedFile,
    seen: SeenRequest,
    response: ServerResponse,
    fault: Exclude<Fault, { status: number }> | undefined,
  ): void {
    const validator = file.etag ?? file.lastModified;
    const holds = seen.ifRange === undefined || seen.ifRange === validator || file.ignoresIfRange === true;
    const start = file.ignoresRange === true || !holds ? undefined : rangeStart(seen.range);
    const headers: Record<string, string | number> = { ...file.headers };
    if (file.etag !== undefined) headers['etag'] = file.etag;
    if (file.lastModified !== undefined) headers['last-modified'] = file.lastModified;
    if (start !== undefined && start >= file.body.length) {
      response.writeHead(416, { ...headers, 'content-range': `bytes */${file.body.length}` }).end();
      return;
    }
    const body = file.body.subarray(start ?? 0);
    if (file.chunked !== true) headers['content-length'] = body.length;
    if (start !== undefined) headers['content-range'] = `bytes ${start}-${file.body.length - 1}/${file.body.length}`;
    response.writeHead(start === undefined ? 200 : 206, headers);
    const cut = cutOf(fault, body.length);
    seen.served = cut;
    response.write(body.subarray(0, cut), () => {
      if (fault === undefined) response.end();
      // Not at once: a client drops what it has received but not yet read when the connection fails.
      else if ('cutAfter' in fault) setTimeout(() => response.destroy(), 50);
    });
  }
}

function cutOf(fault: Exclude<Fault, { status: number }> | undefined, length: number): number {
  if (fault === undefined) return length;
  return 'cutAfter' in fault ? Math.min(fault.cutAfter, length) : Math.floor(length / 2);
}

function rangeStart(range: string | undefined): number | undefined {
  const match = /^bytes=([0-9]+)-$/.exec(range ?? '');
  return match === null ? undefined : Number(match[1]);
}
