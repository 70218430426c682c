/**
 * The app on a socket: time limits for slow senders, envelopes also for what is no HTTP, and an orderly end.
 * Called by the composition root.
 */
import { createServer, STATUS_CODES } from 'node:http';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { getRequestListener, RequestError } from '@hono/node-server';
import { ManyfoldError } from '../core/errors.js';
import type { Lifecycle } from '../service/lifecycle.js';
import type { App } from './app.js';
import { asManyfoldError, errorAnswer, errorEnvelope } from './errors.js';

export interface ListenOptions {
  readonly host: string;
  /** 0 takes a free port. */
  readonly port: number;
  /** For the headers of a request to arrive. Default 15 s. */
  readonly headersTimeoutMs?: number;
  /** For a whole request to arrive, its body included. Default 30 s. */
  readonly requestTimeoutMs?: number;
  /** An idle connection stays open so long; longer than usual load balancers keep theirs. Default 75 s. */
  readonly keepAliveTimeoutMs?: number;
  /** How often the two limits above are checked. Default 1 s. */
  readonly checkEveryMs?: number;
}

export interface RunningServer {
  readonly host: string;
  readonly port: number;
  readonly url: string;
  /**
   * Takes no new work (readyz fails, requests get 503), lets streams finish for at most `timeoutMs`, ends the rest with
   * an error event, then closes. A second call ends everything at once.
   */
  drain(timeoutMs: number): Promise<void>;
}

const MAX_HEADER_BYTES = 16 * 1024;
const HEADERS_TOO_LARGE = 431;
/** For the last bytes of ended streams to reach their sockets. */
const FLUSH_MS = 1000;

export async function listen(app: App, lifecycle: Lifecycle, options: ListenOptions): Promise<RunningServer> {
  const listener = getRequestListener(app.fetch, { errorHandler: answerAdapterError });
  const server = createServer(
    {
      maxHeaderSize: MAX_HEADER_BYTES,
      headersTimeout: options.headersTimeoutMs ?? 15_000,
      requestTimeout: options.requestTimeoutMs ?? 30_000,
      keepAliveTimeout: options.keepAliveTimeoutMs ?? 75_000,
      connectionsCheckingInterval: options.checkEveryMs ?? 1000,
    },
    (incoming: IncomingMessage, outgoing: ServerResponse) => void listener(incoming, outgoing),
  );
  server.on('clientError', answerClientError);
  await bind(server, options);
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : options.port;
  const shown = options.host.includes(':') ? `[${options.host}]` : options.host;
  const drainer = new Drainer(server, lifecycle);
  return { host: options.host, port, url: `http://${shown}:${port}`, drain: (timeoutMs) => drainer.drain(timeoutMs) };
}

function bind(server: Server, { host, port }: ListenOptions): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const why = cause.code === 'EADDRINUSE' ? 'another program uses it' : cause.message;
      const message = `Cannot listen on ${host}, port ${port}: ${why}. Choose another with --host and --port.`;
      reject(new ManyfoldError('invalid_config', message, { param: 'port', cause }));
    });
    server.listen(port, host, resolve);
  });
}

/** The end of a server; two calls of drain share it. */
class Drainer {
  readonly #server: Server;
  readonly #lifecycle: Lifecycle;
  #ended: Promise<void> | undefined;
  #hurry: () => void = () => undefined;

  constructor(server: Server, lifecycle: Lifecycle) {
    this.#server = server;
    this.#lifecycle = lifecycle;
  }

  drain(timeoutMs: number): Promise<void> {
    if (this.#ended === undefined) this.#ended = this.#end(timeoutMs);
    else this.#hurry();
    return this.#ended;
  }

  async #end(timeoutMs: number): Promise<void> {
    const hurried = new Promise<void>((resolve) => (this.#hurry = resolve));
    const idle = this.#lifecycle.drain();
    // New connections are still taken, so that probes and clients are told instead of refused.
    await this.#within(timeoutMs, idle, hurried);
    this.#lifecycle.stopAll();
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    await this.#within(FLUSH_MS, closed, hurried);
    this.#server.closeAllConnections();
    await closed;
  }

  async #within(ms: number, ...events: Promise<void>[]): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
    await Promise.race([...events, late]);
    clearTimeout(timer);
  }
}

/** Requests that the adapter cannot make a URL of; anything else that it throws is a bug. */
function answerAdapterError(thrown: unknown): Response {
  const error =
    thrown instanceof RequestError
      ? new ManyfoldError(
          'invalid_request',
          'The request line or the Host header is malformed. Send a plain path and the name of this server.',
        )
      : asManyfoldError(thrown);
  const { status, headers, body } = errorAnswer(error);
  return new Response(body, { status, headers });
}

/** What Node's parser refuses: too slow, too large a header, or no HTTP at all. */
function answerClientError(cause: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable || cause.code === 'ECONNRESET') {
    socket.destroy();
    return;
  }
  const { error } = errorEnvelope(clientError(cause.code));
  const status = cause.code === 'HPE_HEADER_OVERFLOW' ? HEADERS_TOO_LARGE : Number(error['code']);
  const body = JSON.stringify({ error: { ...error, code: status } });
  const length = Buffer.byteLength(body);
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? ''}\r\ncontent-type: application/json\r\ncontent-length: ${length}\r\nconnection: close\r\n\r\n${body}`,
  );
}

function clientError(code: string | undefined): ManyfoldError {
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    return new ManyfoldError('request_timeout', 'The request did not arrive in time. Send it whole, without pauses.');
  }
  if (code === 'HPE_HEADER_OVERFLOW') {
    return new ManyfoldError(
      'request_too_large',
      `The headers may have ${MAX_HEADER_BYTES} bytes. Send fewer or shorter ones.`,
    );
  }
  return new ManyfoldError(
    'invalid_request',
    'What came is no HTTP/1.1 request. Check the client, and http against https.',
  );
}
