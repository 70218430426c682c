/**
 * The life of one HTTP request as telemetry sees it: made by the server when the request arrives, filled by the service,
 * finished once by the server. Finishing writes the log line, the metrics and the span.
 */
import type { Tracer } from '@opentelemetry/api';
import type { Clock } from '../core/clock.js';
import { ERROR_CODES } from '../core/errors.js';
import type { ErrorCode } from '../core/errors.js';
import type { AdapterVersion } from '../core/ids.js';
import type { FinishReason } from '../core/sampling.js';
import type { Logger } from './log.js';
import type { Metrics } from './metrics.js';
import { startRequestSpan } from './tracing.js';
import type { RequestSpan, TraceAttributes } from './tracing.js';

export interface Telemetry {
  readonly logger: Logger;
  readonly metrics: Metrics;
  readonly clock: Clock;
  /** The global tracer when absent. */
  readonly tracer?: Tracer;
}

export interface RequestStart {
  readonly id: string;
  readonly method: string;
  /** The path that was asked, without its query; not trusted, so cut short in the log. */
  readonly path: string;
  readonly traceparent: string | undefined;
  readonly tracestate: string | undefined;
}

export interface GenerationStart {
  readonly operation: 'chat' | 'text_completion';
  readonly responseId: string;
  readonly model: string;
  readonly adapterVersion: AdapterVersion | undefined;
  /** `gen_ai.request.*` attributes of the request. */
  readonly attributes: TraceAttributes;
}

export interface GenerationEnd {
  readonly outcome: 'done' | 'cancelled' | 'failed';
  readonly promptTokens: number;
  readonly completionTokens: number;
  readonly cachedTokens: number;
  readonly finishReasons: readonly FinishReason[];
}

const MAX_LOGGED_PATH = 96;
/** Overload and shutdown are no fault of the server: many of them must not look like many errors. */
const SERVICE_UNAVAILABLE = 503;

export class RequestRecord {
  readonly id: string;
  readonly startMs: number;
  readonly #telemetry: Telemetry;
  readonly #span: RequestSpan;
  readonly #start: RequestStart;
  #generation: GenerationStart | undefined;
  #end: GenerationEnd | undefined;
  #errorCode: ErrorCode | undefined;
  #firstTokenMs: number | undefined;
  #quiet = false;
  #finished = false;

  constructor(telemetry: Telemetry, start: RequestStart) {
    this.id = start.id;
    this.startMs = telemetry.clock.nowMs();
    this.#telemetry = telemetry;
    this.#start = start;
    const path = start.path.slice(0, MAX_LOGGED_PATH);
    this.#span = startRequestSpan({ ...start, name: `${start.method} ${path}` }, telemetry.tracer);
    this.#span.attributes({ 'http.request.method': start.method, 'url.path': path });
  }

  /** Probes and scrapes come many times a second: they are logged at debug level only. */
  quiet(): void {
    this.#quiet = true;
  }

  generationStarted(start: GenerationStart): void {
    this.#generation = start;
    this.#span.name(`${start.operation} ${start.model}`);
    this.#span.attributes({
      'gen_ai.operation.name': start.operation,
      'gen_ai.provider.name': 'manyfold',
      'gen_ai.request.model': start.model,
      'gen_ai.response.model': start.model,
      'gen_ai.response.id': start.responseId,
      ...start.attributes,
    });
  }

  /** One token at `nowMs`; `previousMs` is when its choice had the one before, undefined for its first. */
  token(previousMs: number | undefined, nowMs: number): void {
    if (previousMs !== undefined) {
      this.#telemetry.metrics.interToken((nowMs - previousMs) / 1000);
    } else if (this.#firstTokenMs === undefined) {
      this.#firstTokenMs = nowMs;
      this.#telemetry.metrics.firstToken((nowMs - this.startMs) / 1000);
    }
  }

  generationEnded(end: GenerationEnd): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    const { metrics, clock } = this.#telemetry;
    if (end.outcome === 'cancelled') metrics.requestCancelled();
    if (end.outcome !== 'done') return;
    for (const reason of end.finishReasons) metrics.choiceFinished(reason);
    metrics.requestDone((clock.nowMs() - this.startMs) / 1000);
  }

  /** An error that the client is told, as a status or inside the stream; the first one counts. */
  error(code: ErrorCode): void {
    if (this.#errorCode !== undefined) return;
    this.#errorCode = code;
    this.#telemetry.metrics.errorAnswered(code);
  }

  /** Writes the line and ends the span; only the first call counts. */
  finish(status: number): void {
    if (this.#finished) return;
    this.#finished = true;
    this.#endSpan(status);
    const { logger } = this.#telemetry;
    const fields = this.#line(status);
    const severity = this.#severity(status);
    if (severity >= 500 && severity !== SERVICE_UNAVAILABLE) logger.error(fields, 'request');
    else if (severity === SERVICE_UNAVAILABLE) logger.warn(fields, 'request');
    else if (this.#quiet && severity < 400) logger.debug(fields, 'request');
    else logger.info(fields, 'request');
  }

  /** A stream that broke has status 200 on the wire; its error counts. */
  #severity(status: number): number {
    return Math.max(status, this.#errorCode === undefined ? 0 : ERROR_CODES[this.#errorCode].status);
  }

  #endSpan(status: number): void {
    const end = this.#end;
    this.#span.attributes({
      'http.response.status_code': status,
      'gen_ai.usage.input_tokens': end?.promptTokens,
      'gen_ai.usage.output_tokens': end?.completionTokens,
      'gen_ai.usage.cache_read.input_tokens': end?.cachedTokens,
      'gen_ai.response.finish_reasons': end === undefined ? undefined : [...end.finishReasons],
      'gen_ai.response.time_to_first_chunk':
        this.#firstTokenMs === undefined ? undefined : (this.#firstTokenMs - this.startMs) / 1000,
    });
    this.#span.end(this.#errorCode ?? (status >= 500 ? String(status) : undefined));
  }

  #line(status: number): Record<string, unknown> {
    const end = this.#end;
    const line: Record<string, unknown> = {
      requestId: this.id,
      method: this.#start.method,
      route: this.#start.path.slice(0, MAX_LOGGED_PATH),
      status,
      durationMs: Math.round(this.#telemetry.clock.nowMs() - this.startMs),
    };
    if (this.#span.traceId !== undefined) line['traceId'] = this.#span.traceId;
    if (this.#errorCode !== undefined) line['error'] = this.#errorCode;
    if (this.#generation !== undefined) {
      line['responseId'] = this.#generation.responseId;
      line['model'] = this.#generation.model;
      if (this.#generation.adapterVersion !== undefined) line['adapterVersion'] = this.#generation.adapterVersion;
    }
    if (this.#firstTokenMs !== undefined) line['ttftMs'] = Math.round(this.#firstTokenMs - this.startMs);
    if (end === undefined) return line;
    line['outcome'] = end.outcome;
    line['promptTokens'] = end.promptTokens;
    line['completionTokens'] = end.completionTokens;
    line['cachedTokens'] = end.cachedTokens;
    line['finishReason'] = end.finishReasons.join(',');
    return line;
  }
}
