/**
 * One request and its answer, from the first byte sent to exactly one outcome. Takes undici's callbacks, not its streams:
 * a piece's time is taken in the same turn of the event loop in which its bytes were read from the socket.
 */
import type { Dispatcher } from 'undici';
import type { Clock } from '../../src/core/clock.js';
import type { Outcome } from '../report/run-report.js';
import { classifyError, errorMessage, printable, retryAfterSeconds } from './classify.js';
import type { ReadEvent } from './events.js';
import { EventTooLarge, SseParser } from './sse-parser.js';
import type { ServerSentEvent } from './sse-parser.js';

/** Times are the clock's; `null` where the exchange did not get that far. */
export interface ExchangeResult {
  readonly outcome: Outcome;
  readonly sentAt: number;
  readonly headersAt: number | null;
  /** Arrival of each piece with text, ascending. */
  readonly pieceAt: readonly number[];
  readonly endAt: number;
  readonly status: number | null;
  readonly promptTokens: number | null;
  /** By the server's word. */
  readonly outputTokens: number | null;
  readonly finishReason: string | null;
  readonly errorText: string | null;
  readonly retryAfterSeconds: number | null;
}

export interface ExchangeLimits {
  readonly firstTokenMs: number;
  readonly idleMs: number;
  readonly totalMs: number;
}

/** An error's body is read so far; the rest is thrown away. */
const MAX_ERROR_BYTES = 16 * 1024;
/** After its end mark a stream gets this long to close, else its socket is closed from here. */
const LINGER_MS = 1000;

/** For a display of the running load: how many pieces there are now, and the time since the send. */
export type OnPiece = (count: number, sinceSentMs: number) => void;

export interface ExchangeParts {
  readonly clock: Clock;
  readonly readEvent: ReadEvent;
  readonly limits: ExchangeLimits;
  readonly onPiece?: OnPiece | undefined;
}

type Controller = Dispatcher.DispatchController;

export class Exchange implements Dispatcher.DispatchHandler {
  readonly #clock: Clock;
  readonly #readEvent: ReadEvent;
  readonly #limits: ExchangeLimits;
  readonly #onDone: (result: ExchangeResult) => void;
  readonly #onPiece: OnPiece | undefined;
  readonly #parser = new SseParser((event) => this.#event(event));
  readonly #sentAt: number;
  readonly #pieceAt: number[] = [];
  #controller: Controller | undefined;
  #isDone = false;
  /** Of the bytes that are being read now; all events in them arrived together. */
  #now: number;
  #lastAt: number;
  #headersAt: number | null = null;
  #status: number | null = null;
  #isStream = false;
  #body = '';
  #retryAfter: number | null = null;
  #promptTokens: number | null = null;
  #outputTokens: number | null = null;
  #finishReason: string | null = null;
  #linger: NodeJS.Timeout | undefined;

  constructor({ clock, readEvent, limits, onPiece }: ExchangeParts, onDone: (result: ExchangeResult) => void) {
    this.#clock = clock;
    this.#readEvent = readEvent;
    this.#limits = limits;
    this.#onDone = onDone;
    this.#onPiece = onPiece;
    this.#sentAt = clock.nowMs();
    this.#now = this.#sentAt;
    this.#lastAt = this.#sentAt;
  }

  /** Called every few milliseconds. Ends the exchange when one of its times is up. */
  checkTime(now: number): void {
    const { firstTokenMs, idleMs, totalMs } = this.#limits;
    const hasToken = this.#pieceAt.length > 0;
    if (now - this.#sentAt > totalMs) this.#abandon('timeout_total', `no end after ${totalMs} ms`);
    else if (!hasToken && now - this.#sentAt > firstTokenMs) {
      this.#abandon('timeout_first_token', `no token after ${firstTokenMs} ms`);
    } else if (hasToken && now - this.#lastAt > idleMs) {
      this.#abandon('timeout_idle', `nothing for ${idleMs} ms in the middle of the stream`);
    }
  }

  cancel(): void {
    this.#abandon('cancelled', 'the run ended first');
  }

  onRequestStart(controller: Controller): void {
    this.#controller = controller;
    if (this.#isDone) controller.abort(new Error('the exchange is over'));
  }

  onResponseStart(
    _controller: Controller,
    status: number,
    headers: Record<string, string | string[] | undefined>,
  ): void {
    // 1xx are only announcements of the answer.
    if (status < 200 || this.#isDone) return;
    this.#headersAt = this.#clock.nowMs();
    this.#status = status;
    const type = String(headers['content-type'] ?? '').toLowerCase();
    this.#isStream = status < 300 && type.startsWith('text/event-stream');
    const encoding = String(headers['content-encoding'] ?? 'identity').toLowerCase();
    if (this.#isStream && encoding !== 'identity') {
      return this.#abandon('bad_answer', `the stream is packed (${encoding}), which was not asked for`);
    }
    this.#retryAfter = retryAfterSeconds(headers['retry-after'], this.#clock);
  }

  onResponseData(_controller: Controller, chunk: Buffer): void {
    if (this.#isDone) return;
    this.#now = this.#clock.nowMs();
    if (!this.#isStream) {
      if (this.#body.length < MAX_ERROR_BYTES) this.#body += chunk.toString('utf8');
      else this.#endWithStatus();
      return;
    }
    try {
      this.#parser.push(chunk);
    } catch (error) {
      if (!(error instanceof EventTooLarge)) throw error;
      this.#abandon('bad_answer', error.message);
    }
  }

  onResponseEnd(): void {
    clearTimeout(this.#linger);
    if (this.#isDone) return;
    this.#now = this.#clock.nowMs();
    if (!this.#isStream) this.#endWithStatus();
    else if (this.#finishReason !== null && !this.#parser.isInsideEvent) this.#endOfAnswer();
    else this.#end('stream_cut', `the stream ended without an end mark after ${this.#pieceAt.length} pieces`);
  }

  onResponseError(_controller: Controller, error: Error): void {
    clearTimeout(this.#linger);
    if (this.#isDone) return;
    this.#now = this.#clock.nowMs();
    // What the server said before the connection broke is the better news.
    if (this.#status !== null && !this.#isStream) this.#endWithStatus();
    else this.#end(classifyError(error, this.#headersAt !== null), printable(error.message || String(error)));
  }

  #event({ data, type }: ServerSentEvent): void {
    if (this.#isDone) return;
    const meaning = this.#readEvent(data, type);
    if (meaning === undefined) return this.#abandon('bad_answer', `not an event of the protocol: ${data}`);
    if (meaning.error !== undefined) return this.#abandon('stream_error', meaning.error);
    this.#lastAt = this.#now;
    if (meaning.hasText) {
      this.#pieceAt.push(this.#now);
      this.#onPiece?.(this.#pieceAt.length, this.#now - this.#sentAt);
    }
    if (meaning.finishReason !== undefined) this.#finishReason = meaning.finishReason;
    if (meaning.promptTokens !== undefined) this.#promptTokens = meaning.promptTokens;
    if (meaning.outputTokens !== undefined) this.#outputTokens = meaning.outputTokens;
    if (meaning.isEnd !== true) return;
    this.#endOfAnswer();
    this.#linger = setTimeout(() => this.#controller?.abort(new Error('the stream did not close')), LINGER_MS);
    this.#linger.unref();
  }

  #endOfAnswer(): void {
    if (this.#pieceAt.length > 0) this.#end('ok', null);
    else this.#end('empty_answer', 'the stream ended without a token');
  }

  #endWithStatus(): void {
    const status = this.#status ?? 0;
    const text = printable(errorMessage(this.#body));
    if (status === 429) this.#end('rate_limited', text);
    else if (status >= 500) this.#end('server_error', text);
    else if (status >= 400) this.#end('client_error', text);
    else if (status >= 300) this.#end('bad_answer', `status ${status}; redirects are not followed`);
    else this.#end('bad_answer', `expected text/event-stream, got: ${text}`);
    if (this.#body.length >= MAX_ERROR_BYTES) this.#controller?.abort(new Error('the rest is not needed'));
  }

  /** An end that the server did not bring about: the connection is of no more use. */
  #abandon(outcome: Outcome, text: string): void {
    if (this.#isDone) return;
    this.#now = this.#clock.nowMs();
    this.#end(outcome, printable(text));
    this.#controller?.abort(new Error(text.slice(0, 200)));
  }

  #end(outcome: Outcome, errorText: string | null): void {
    this.#isDone = true;
    this.#onDone({
      outcome,
      sentAt: this.#sentAt,
      headersAt: this.#headersAt,
      pieceAt: this.#pieceAt,
      endAt: this.#now,
      status: this.#status,
      promptTokens: this.#promptTokens,
      outputTokens: this.#outputTokens,
      finishReason: this.#finishReason,
      errorText,
      retryAfterSeconds: outcome === 'ok' ? null : this.#retryAfter,
    });
  }
}
