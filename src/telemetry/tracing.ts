/**
 * One span a request through @opentelemetry/api. Without an SDK every call is free of effect; with one, the caller's
 * W3C trace goes on. Attribute names are those of the OpenTelemetry GenAI conventions; content is never recorded.
 */
import { createTraceState, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import type { Context, Span, Tracer } from '@opentelemetry/api';

export type TraceAttributes = Readonly<Record<string, string | number | boolean | string[] | undefined>>;

export interface RequestSpan {
  /** Hexadecimal id of the trace, or undefined when nobody traces. */
  readonly traceId: string | undefined;
  name(name: string): void;
  attributes(values: TraceAttributes): void;
  end(errorType: string | undefined): void;
}

const NO_TRACE = '0'.repeat(32);
const TRACEPARENT = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** The caller's trace as the parent of our span; a header that breaks the W3C form starts a new trace. */
export function parentContext(traceparent: string | undefined, tracestate: string | undefined): Context {
  const match = traceparent === undefined ? null : TRACEPARENT.exec(traceparent.trim());
  if (match === null) return ROOT_CONTEXT;
  const [, version = '', traceId = '', spanId = '', flags = '', rest] = match;
  const reserved = version === 'ff' || (version === '00' && rest !== undefined);
  if (reserved || traceId === NO_TRACE || spanId === '0'.repeat(16)) return ROOT_CONTEXT;
  return trace.setSpanContext(ROOT_CONTEXT, {
    traceId,
    spanId,
    traceFlags: Number.parseInt(flags, 16) & 1,
    isRemote: true,
    ...(tracestate === undefined ? {} : { traceState: createTraceState(tracestate) }),
  });
}

export interface SpanStart {
  readonly name: string;
  readonly traceparent: string | undefined;
  readonly tracestate: string | undefined;
}

export function startRequestSpan(start: SpanStart, tracer: Tracer = trace.getTracer('manyfold')): RequestSpan {
  const parent = parentContext(start.traceparent, start.tracestate);
  const span: Span = tracer.startSpan(start.name, { kind: SpanKind.SERVER }, parent);
  const traceId = span.spanContext().traceId;
  return {
    traceId: traceId === NO_TRACE ? undefined : traceId,
    name: (name) => void span.updateName(name),
    attributes: (values) => {
      for (const [key, value] of Object.entries(values)) if (value !== undefined) span.setAttribute(key, value);
    },
    end: (errorType) => {
      if (errorType !== undefined) {
        span.setAttribute('error.type', errorType);
        span.setStatus({ code: SpanStatusCode.ERROR });
      }
      span.end();
    },
  };
}
