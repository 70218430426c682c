import assert from 'node:assert/strict';
import { mock, test } from 'node:test';
import { ROOT_CONTEXT, trace } from '@opentelemetry/api';
import type { Context, Span, SpanOptions, Tracer } from '@opentelemetry/api';
import type { Clock } from '../core/clock.js';
import type { ErrorCode } from '../core/errors.js';
import { createLogger } from './log.js';
import { createMetrics } from './metrics.js';
import type { EngineSnapshot, Metrics } from './metrics.js';
import { RequestRecord } from './request-record.js';
import { startStatistics } from './statistics.js';
import { parentContext } from './tracing.js';

class TestClock implements Clock {
  ms = 0;

  nowMs(): number {
    return this.ms;
  }

  unixSeconds(): number {
    return 1_700_000_000;
  }
}

const IDLE: EngineSnapshot = {
  ...{ running: 0, waiting: 0, kvUsage: 0, promptTokens: 0, generationTokens: 0 },
  ...{ preemptions: 0, prefixQueries: 0, prefixHits: 0 },
};

function collectLines(): { lines: Record<string, unknown>[]; destination: { write(line: string): void } } {
  const lines: Record<string, unknown>[] = [];
  return { lines, destination: { write: (line) => void lines.push(JSON.parse(line) as Record<string, unknown>) } };
}

function metricsOf(clock: Clock, engine: () => EngineSnapshot = () => IDLE): Metrics {
  const adapters = () => ({ maxLora: 3, running: ['a', 'b'], waiting: ['c'] });
  return createMetrics({ modelName: 'm', pageTokens: 16, kvPages: 9, engine, adapters }, clock);
}

/** Notes what is said to it. */
class TestTracer {
  readonly attributes: Record<string, unknown> = {};
  name = '';
  ended = 0;
  parent: Context = ROOT_CONTEXT;

  startSpan(name: string, _options: SpanOptions, parent: Context): Span {
    this.name = name;
    this.parent = parent;
    const span = trace.wrapSpanContext({ traceId: '1'.repeat(32), spanId: '2'.repeat(16), traceFlags: 1 });
    span.updateName = (to) => {
      this.name = to;
      return span;
    };
    span.setAttribute = (key, value) => {
      this.attributes[key] = value;
      return span;
    };
    span.end = () => void (this.ended += 1);
    return span;
  }

  startActiveSpan(): never {
    throw new Error('the server starts no active spans');
  }
}

const TRACEPARENT = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';

test('a W3C traceparent becomes the parent; a broken one starts a new trace', () => {
  const parent = trace.getSpanContext(parentContext(TRACEPARENT, 'vendor=1'));
  assert.equal(parent?.traceId, '0af7651916cd43dd8448eb211c80319c');
  assert.equal(parent?.spanId, 'b7ad6b7169203331');
  assert.equal(parent?.isRemote, true);
  assert.equal(parent?.traceState?.get('vendor'), '1');
  const later = trace.getSpanContext(parentContext(`01${TRACEPARENT.slice(2)}-more`, undefined));
  assert.equal(later?.spanId, 'b7ad6b7169203331');
  const zeros = `00-${'0'.repeat(32)}-b7ad6b7169203331-01`;
  for (const bad of [
    undefined,
    '',
    'x',
    zeros,
    `ff${TRACEPARENT.slice(2)}`,
    `${TRACEPARENT}-more`,
    TRACEPARENT.toUpperCase(),
  ]) {
    assert.equal(trace.getSpanContext(parentContext(bad, undefined)), undefined, bad);
  }
});

test('a request is one span with the GenAI names, one line, and its measures', async () => {
  const clock = new TestClock();
  const { lines, destination } = collectLines();
  const tracer = new TestTracer();
  const metrics = metricsOf(clock);
  const logger = createLogger({ level: 'info', destination });
  const start = {
    id: 'r1',
    method: 'POST',
    path: '/v1/chat/completions',
    traceparent: TRACEPARENT,
    tracestate: undefined,
  };
  const record = new RequestRecord({ logger, metrics, clock, tracer: tracer satisfies Tracer }, start);
  const attributes = { 'gen_ai.request.temperature': 0.5, 'gen_ai.request.seed': undefined };
  record.generationStarted({
    operation: 'chat',
    responseId: 'c1',
    model: 'tenant',
    adapterVersion: undefined,
    attributes,
  });
  clock.ms = 40;
  record.token(undefined, 40);
  record.token(40, 60);
  clock.ms = 100;
  const usage = { promptTokens: 7, completionTokens: 2, cachedTokens: 1 };
  record.generationEnded({ outcome: 'done', finishReasons: ['length'], ...usage });
  record.generationEnded({ outcome: 'cancelled', finishReasons: [], ...usage });
  record.finish(200);
  record.finish(500);
  assert.equal(trace.getSpanContext(tracer.parent)?.traceId, '0af7651916cd43dd8448eb211c80319c');
  assert.deepEqual([tracer.name, tracer.ended], ['chat tenant', 1]);
  assert.equal(tracer.attributes['gen_ai.request.temperature'], 0.5);
  assert.ok(!('gen_ai.request.seed' in tracer.attributes));
  assert.equal(tracer.attributes['gen_ai.usage.output_tokens'], 2);
  assert.deepEqual(tracer.attributes['gen_ai.response.finish_reasons'], ['length']);
  assert.equal(tracer.attributes['gen_ai.response.time_to_first_chunk'], 0.04);
  assert.equal(lines.length, 1);
  assert.deepEqual([lines[0]?.['ttftMs'], lines[0]?.['durationMs'], lines[0]?.['outcome']], [40, 100, 'done']);
  const { body } = await metrics.render();
  assert.match(body, /vllm:time_to_first_token_seconds_sum\{model_name="m"\} 0\.04/);
  assert.match(body, /vllm:inter_token_latency_seconds_sum\{model_name="m"\} 0\.02/);
  assert.match(body, /vllm:e2e_request_latency_seconds_sum\{model_name="m"\} 0\.1/);
  assert.match(body, /vllm:request_success_total\{model_name="m",finished_reason="length"\} 1/);
  assert.match(body, /finished_reason="abort"\} 0/);
  assert.match(body, /running_lora_adapters="a,b",waiting_lora_adapters="c"\} 1700000000/);
});

test('the level of a line says whose fault it is, also of a stream that broke after its status', () => {
  const clock = new TestClock();
  const { lines, destination } = collectLines();
  const telemetry = { logger: createLogger({ level: 'info', destination }), metrics: metricsOf(clock), clock };
  const finish = (status: number, code?: ErrorCode): unknown => {
    const start = { id: 'x', method: 'POST', path: '/', traceparent: undefined, tracestate: undefined };
    const record = new RequestRecord(telemetry, start);
    if (code !== undefined) record.error(code);
    record.finish(status);
    return lines.at(-1)?.['level'];
  };
  const [info, warn, error] = [30, 40, 50];
  assert.deepEqual(
    [finish(200), finish(400, 'invalid_request'), finish(503, 'overloaded'), finish(200, 'shutting_down')],
    [info, info, warn, warn],
  );
  assert.deepEqual([finish(500, 'bug'), finish(200, 'engine_failure')], [error, error]);
});

test('totals follow the engine and do not add up over scrapes', async () => {
  let engine = { ...IDLE, promptTokens: 5 };
  const metrics = metricsOf(new TestClock(), () => engine);
  assert.match((await metrics.render()).body, /vllm:prompt_tokens_total\{model_name="m"\} 5\n/);
  engine = { ...IDLE, promptTokens: 9 };
  await metrics.render();
  assert.match((await metrics.render()).body, /vllm:prompt_tokens_total\{model_name="m"\} 9\n/);
});

test('the statistics line comes while there is work, and only then', () => {
  mock.timers.enable({ apis: ['setInterval'] });
  try {
    const clock = new TestClock();
    const { lines, destination } = collectLines();
    const logger = createLogger({ level: 'info', destination });
    let engine = IDLE;
    const stop = startStatistics({ engine: () => engine, logger, clock });
    const pass = (): void => {
      clock.ms += 10_000;
      mock.timers.tick(10_000);
    };
    pass();
    assert.equal(lines.length, 0);
    engine = { ...IDLE, running: 2, waiting: 1, kvUsage: 0.5, promptTokens: 100, generationTokens: 1234 };
    pass();
    assert.deepEqual(
      ['generationTokensPerSecond', 'promptTokensPerSecond', 'running', 'waiting', 'kvUsage'].map(
        (key) => lines[0]?.[key],
      ),
      [123.4, 10, 2, 1, 0.5],
    );
    engine = { ...IDLE, promptTokens: 100, generationTokens: 1234 };
    pass();
    assert.equal(lines.length, 1);
    stop();
    engine = { ...IDLE, running: 1 };
    pass();
    assert.equal(lines.length, 1);
  } finally {
    mock.timers.reset();
  }
});

test('text and keys that are logged by mistake are not written', () => {
  const { lines, destination } = collectLines();
  const logger = createLogger({ level: 'info', destination });
  logger.info({ prompt: 'private', authorization: 'Bearer x', request: { messages: ['private'] } }, 'mistake');
  assert.doesNotMatch(JSON.stringify(lines), /private|Bearer/);
});
