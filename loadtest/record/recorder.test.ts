/** Records and figures from exchanges whose times are known exactly; no clock runs. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { ExchangeResult } from '../client/exchange.js';
import type { Distribution, Slo } from '../report/run-report.js';
import { exponential, seededRandom } from '../workload/random.js';
import { aggregateAdapters, aggregateTotal, measuredOf } from './aggregate.js';
import { Recorder } from './recorder.js';
import { buildTimeline } from './timeline.js';

const NO_SLO: Slo = { ttftMs: null, tpotMs: null, itlP99Ms: null, e2eMs: null };
const STARTED_AT = 5000;

function recorderWith(slo: Partial<Slo> = {}, recordPieces = false): Recorder {
  return new Recorder({ startedAt: STARTED_AT, slo: { ...NO_SLO, ...slo }, bucketMs: 1000, recordPieces });
}

interface Given {
  readonly index: number;
  readonly scheduledAt: number;
  readonly sentAt?: number;
  /** After the send. */
  readonly ttft?: number;
  readonly gaps?: readonly number[];
  readonly adapter?: string | null;
  readonly phase?: 'warmup' | 'measured';
  readonly result?: Partial<ExchangeResult>;
}

/** An exchange with times counted from the run's begin. */
function end(recorder: Recorder, given: Given) {
  const { index, scheduledAt, sentAt = scheduledAt, ttft = 10, gaps = [], adapter = null, phase = 'measured' } = given;
  let at = STARTED_AT + sentAt + ttft;
  const pieceAt = [at, ...gaps.map((gap) => (at += gap))];
  const planned = { atMs: scheduledAt, adapter, promptTokens: 7, outputTokens: pieceAt.length };
  return recorder.ended(
    { index, phase, planned, user: null, scheduledAt: STARTED_AT + scheduledAt },
    {
      outcome: 'ok',
      sentAt: STARTED_AT + sentAt,
      headersAt: STARTED_AT + sentAt + 1,
      pieceAt,
      endAt: at + 1,
      status: 200,
      promptTokens: 8,
      outputTokens: pieceAt.length,
      finishReason: 'length',
      errorText: null,
      retryAfterSeconds: null,
      ...given.result,
    },
  );
}

test('a record has every time on the run’s axis, and pieces only when asked', () => {
  const given = { index: 0, scheduledAt: 100, sentAt: 120, ttft: 30, gaps: [5, 7] };
  const record = end(recorderWith({}, true), given);
  assert.deepEqual(
    [
      record.scheduledAtMs,
      record.sentAtMs,
      record.headersAtMs,
      record.firstTokenAtMs,
      record.lastTokenAtMs,
      record.endAtMs,
    ],
    [100, 120, 121, 150, 162, 163],
  );
  assert.deepEqual(record.pieceAtMs, [150, 155, 162]);
  // Buckets of ratio 1.04: 5 ms is in (4.99, 5.19], 7 ms in (6.83, 7.11].
  assert.deepEqual(record.itl, { meanMs: 6, p50Ms: 5, p99Ms: 7, maxMs: 7, bins: [42, 1, 50, 1] });
  assert.deepEqual([record.promptTokensAsked, record.promptTokens, record.outputTokens, record.pieces], [7, 8, 3, 3]);
  assert.equal(end(recorderWith(), given).pieceAtMs, null);
});

test('percentiles of a known distribution are within 2 %, p99.9 included; both starts of the latency differ by the delay', () => {
  const recorder = recorderWith();
  const random = seededRandom(6);
  const truth = { ttft: [] as number[], itl: [] as number[], tpot: [] as number[], e2e: [] as number[] };
  for (let index = 0; index < 5000; index++) {
    const ttft = 40 + 60 * exponential(random);
    const gaps = Array.from({ length: 10 }, () => 5 + 20 * exponential(random));
    const sum = gaps.reduce((total, gap) => total + gap, 0);
    end(recorder, { index, scheduledAt: index * 3, sentAt: index * 3 + 25, ttft, gaps });
    truth.ttft.push(ttft);
    truth.itl.push(...gaps);
    truth.tpot.push(sum / 10);
    truth.e2e.push(ttft + sum + 1);
  }
  const { latency } = aggregateTotal(recorder, measuredOf(recorder.records, 0));
  const check = (name: string, measured: Distribution, values: readonly number[], offset = 0): void => {
    const sorted = values.toSorted((left, right) => left - right);
    const shares = { p50Ms: 0.5, p90Ms: 0.9, p95Ms: 0.95, p99Ms: 0.99, p999Ms: 0.999 } as const;
    for (const [key, share] of Object.entries(shares)) {
      const exact = (sorted[Math.ceil(share * sorted.length) - 1] ?? NaN) + offset;
      const got = measured[key as keyof typeof shares] ?? NaN;
      assert.ok(Math.abs(got / exact - 1) < 0.006, `${name} ${key}: ${got} against ${exact}`);
    }
    assert.equal(measured.count, values.length);
  };
  check('TTFT from the send', latency.ttftFromSent, truth.ttft);
  check('TTFT', latency.ttft, truth.ttft, 25);
  check('ITL', latency.itl, truth.itl);
  check('TPOT', latency.tpot, truth.tpot);
  check('E2E from the send', latency.e2eFromSent, truth.e2e);
  check('E2E', latency.e2e, truth.e2e, 25);
});

describe('figures of a set', () => {
  const recorder = recorderWith({ ttftMs: 50, tpotMs: 10 });
  end(recorder, { index: 0, scheduledAt: 0, adapter: 'w', phase: 'warmup', ttft: 9999 });
  end(recorder, { index: 1, scheduledAt: 1000, adapter: 'a', ttft: 20, gaps: [5, 5] });
  // Sent 40 ms late, so the user waited 60 ms: over the limit, though the server took 20.
  end(recorder, { index: 2, scheduledAt: 1100, sentAt: 1140, adapter: 'a', ttft: 20, gaps: [5, 5] });
  end(recorder, { index: 3, scheduledAt: 1200, adapter: 'b', ttft: 20, gaps: [30, 30] });
  end(recorder, { index: 4, scheduledAt: 1300, adapter: 'b', result: { outcome: 'stream_cut', outputTokens: 1 } });
  recorder.notSent({
    index: 5,
    phase: 'measured',
    planned: { atMs: 0, adapter: null, promptTokens: 1, outputTokens: 1 },
    user: null,
    scheduledAt: STARTED_AT + 1400,
  });
  const measured = measuredOf(recorder.records, 1000);
  const total = aggregateTotal(recorder, measured);

  test('leaves warm-up out, counts failures by kind, and goodput by what users saw', () => {
    assert.deepEqual([total.requests, total.ok, total.good], [5, 3, 1]);
    assert.deepEqual(total.errors, { stream_cut: 1, not_sent: 1 });
    assert.equal(total.outputTokens, 10);
    assert.equal(total.promptTokens, 32);
    assert.equal(total.spanMs, 311);
    assert.ok(Math.abs(total.requestsPerSecond - 3000 / 311) < 1e-9);
    assert.ok(Math.abs(total.goodputPerSecond - 1000 / 311) < 1e-9);
    assert.equal(total.latency.ttft.count, 3);
    assert.equal(total.latency.sendDelay.count, 4);
    assert.equal(total.latency.ttft.maxMs, 60);
  });

  test('by adapter: most requests first, each its own, together the whole', () => {
    const adapters = aggregateAdapters(recorder, measured);
    assert.deepEqual(
      adapters.map(({ adapter, requests, ok }) => [adapter, requests, ok]),
      [
        ['a', 2, 2],
        ['b', 2, 1],
        [null, 1, 0],
      ],
    );
    assert.equal(
      adapters.reduce((sum, { requestShare }) => sum + requestShare, 0),
      1,
    );
    assert.equal(
      adapters.reduce((sum, { latency }) => sum + latency.itl.count, 0),
      total.latency.itl.count,
    );
    assert.equal(adapters[1]?.latency.itl.minMs, 30);
  });

  test('on the time line every request is in one slice of each kind', () => {
    const buckets = buildTimeline(recorder.records, recorder.pieceBuckets, 1000, 11_000);
    assert.equal(buckets.length, 11);
    const sum = (key: 'scheduled' | 'sent' | 'ok' | 'errors' | 'pieces'): number =>
      buckets.reduce((counted, bucket) => counted + bucket[key], 0);
    assert.deepEqual([sum('scheduled'), sum('sent'), sum('ok'), sum('errors'), sum('pieces')], [6, 5, 4, 1, 11]);
    assert.deepEqual([buckets[0]?.inFlightMax, buckets[5]?.inFlightMax], [1, 1], 'the warm-up request, all along');
    assert.equal(buckets[1]?.ttftP99Ms, 60);
    assert.equal(buckets[5]?.ttftP50Ms, null);
    for (const [index, { fromMs, toMs }] of buckets.entries())
      assert.deepEqual([fromMs, toMs], [index * 1000, index * 1000 + 1000]);
  });
});

test('tokens in one piece give no TPOT; without usage pieces are counted', () => {
  const recorder = recorderWith();
  end(recorder, { index: 0, scheduledAt: 0, result: { outputTokens: 20 } });
  const second = end(recorder, {
    index: 1,
    scheduledAt: 0,
    gaps: [1],
    result: { outputTokens: null, promptTokens: null },
  });
  assert.deepEqual([second.outputTokens, second.promptTokens], [2, null]);
  const { latency, promptTokens } = aggregateTotal(recorder, measuredOf(recorder.records, 0));
  assert.equal(latency.tpot.count, 1);
  assert.equal(promptTokens, 15, 'asked where the server does not say');
});

test('nothing measured gives figures of nothing', () => {
  const recorder = recorderWith();
  const total = aggregateTotal(recorder, measuredOf(recorder.records, 0));
  assert.deepEqual(
    [total.requests, total.requestsPerSecond, total.goodShare, total.latency.ttft.p50Ms],
    [0, 0, 0, null],
  );
  assert.equal(buildTimeline([], [], 1000, 0).length, 1);
});
