import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LatencyHistogram } from '../record/histogram.js';
import type { Aggregate, Distribution, FindingKind, RequestRecord } from '../report/run-report.js';
import { exponential, seededRandom } from '../workload/random.js';
import type { ClientFigures } from './client-monitor.js';
import { achievedOf, shareByBacklog, shareByLatency } from './rates.js';
import { judge } from './verdict.js';
import type { Evidence } from './verdict.js';

/** Records of a schedule of so many requests a second; `latency` in ms by the time in seconds. */
function records(perSecond: number, seconds: number, latency: (at: number) => number): RequestRecord[] {
  return Array.from({ length: perSecond * seconds }, (_, index) => {
    const scheduledAtMs = (index * 1000) / perSecond;
    const endAtMs = scheduledAtMs + latency(scheduledAtMs / 1000);
    return { outcome: 'ok', scheduledAtMs, sentAtMs: scheduledAtMs, endAtMs } as RequestRecord;
  });
}

describe('the share that a server keeps up with', () => {
  test('is known of one that falls behind steadily', () => {
    for (const share of [0.3, 0.5, 0.8, 0.9]) {
      const inTurn = records(50, 20, (at) => 100 + at * 1000 * (1 / share - 1));
      const found = shareByLatency(inTurn);
      assert.ok(Math.abs(found - share) < 0.03, `${found} instead of ${share}`);
      assert.ok(Math.abs(shareByBacklog(inTurn, 20_000) - share) < 0.15, 'the backlog tells it as well');
    }
  });

  test('is known of one that works on all at once, so that all end together', () => {
    const together = records(2, 30, (at) => (60 - at) * 1000);
    assert.equal(shareByLatency(together), 1, 'latency shrinks towards the end');
    assert.ok(shareByBacklog(together, 30_000) < 0.6, `${shareByBacklog(together, 30_000)}`);
  });

  test('is 1 of one whose answers are slow, uneven, or slow for a while', () => {
    const random = seededRandom(4);
    const steady = (perSecond: number, seconds: number, latency: (at: number) => number): number => {
      const all = records(perSecond, seconds, latency);
      return Math.min(shareByLatency(all), shareByBacklog(all, seconds * 1000));
    };
    assert.equal(
      steady(10, 20, () => 4500),
      1,
      'the drain is no shortfall',
    );
    for (let trial = 0; trial < 50; trial++) {
      const share = steady(5, 30, () => 1000 + 2000 * exponential(random));
      assert.ok(share > 0.95, `trial ${trial}: ${share}`);
    }
    assert.equal(
      steady(50, 20, (at) => (at > 8 && at < 10 ? 1000 * (10 - at) : 20)),
      1,
      'a stall',
    );
    assert.equal(
      steady(5, 20, () => 15),
      1,
    );
  });

  test('counts late sends and failures', () => {
    const late = records(10, 10, () => 50).map((record) => ({ ...record, sentAtMs: record.scheduledAtMs * 1.25 }));
    const { sentShare } = achievedOf(late, 10_000);
    assert.ok(Math.abs(sentShare - 0.81) < 0.02, `${sentShare}`);
    const failing = records(10, 10, () => 50).map((record, index) =>
      index % 4 === 0 ? { ...record, outcome: 'rate_limited' as const } : record,
    );
    assert.equal(achievedOf(failing, 10_000).completedShare, 0.75);
    assert.deepEqual(achievedOf([], 10_000), { sentShare: 0, completedShare: 0 });
  });
});

function distribution(values: readonly number[]): Distribution {
  const histogram = new LatencyHistogram();
  for (const value of values) histogram.add(value);
  return histogram.summary(0);
}

const LATENCY = distribution([1]);
const TOTAL: Aggregate = {
  requests: 2000,
  ok: 2000,
  errors: {},
  good: 2000,
  promptTokens: 1,
  outputTokens: 1,
  requestsPerSecond: 1,
  outputTokensPerSecond: 1,
  totalTokensPerSecond: 1,
  goodputPerSecond: 1,
  goodShare: 1,
  spanMs: 1000,
  latency: {
    ttft: LATENCY,
    ttftFromSent: LATENCY,
    tpot: LATENCY,
    itl: LATENCY,
    e2e: LATENCY,
    e2eFromSent: LATENCY,
    sendDelay: LATENCY,
  },
};
const CLIENT: ClientFigures = {
  samples: [],
  eventLoopLagMs: { mean: 0, p50: 0, p99: 1, p999: 2, max: 3 },
  cpuShareMean: 0.2,
  cpuShareMax: 0.3,
  memoryMaxBytes: 1,
};
const GOOD: Evidence = {
  total: TOTAL,
  records: [{ outcome: 'ok', outputTokens: 10, outputTokensAsked: 10, promptTokens: 5 } as RequestRecord],
  achieved: { sentShare: 1, completedShare: 1 },
  askedPerSecond: 10,
  client: CLIENT,
  interrupted: false,
  disagreements: [],
};

describe('the verdict', () => {
  const kinds = (change: Partial<Evidence>): [boolean, FindingKind[]] => {
    const { valid, findings } = judge({ ...GOOD, ...change });
    return [valid, findings.map(({ kind }) => kind)];
  };

  test('of a good run has no finding', () => assert.deepEqual(kinds({}), [true, []]));

  test('is not valid below 95 % of the asked rate, by the client or by the server', () => {
    assert.deepEqual(kinds({ achieved: { sentShare: 0.949, completedShare: 1 } }), [false, ['achieved_rate']]);
    assert.deepEqual(kinds({ achieved: { sentShare: 1, completedShare: 0.949 } }), [false, ['achieved_rate']]);
    assert.deepEqual(kinds({ achieved: { sentShare: 0.951, completedShare: 0.951 } }), [true, []]);
    assert.deepEqual(
      kinds({ achieved: undefined, askedPerSecond: null }),
      [true, []],
      'a closed loop asks for no rate',
    );
  });

  test('says when the client was the limit: a warning, and at worst no valid run', () => {
    const busy = (cpuShareMean: number, p99: number): Partial<Evidence> => ({
      client: { ...CLIENT, cpuShareMean, eventLoopLagMs: { ...CLIENT.eventLoopLagMs, p99 } },
    });
    assert.deepEqual(kinds(busy(0.9, 1)), [true, ['client_limit']]);
    assert.deepEqual(kinds(busy(0.99, 1)), [false, ['client_limit']]);
    assert.deepEqual(kinds(busy(0.1, 20)), [true, ['client_limit']]);
    assert.deepEqual(kinds(busy(0.1, 60)), [false, ['client_limit']]);
  });

  test('says what else a reader must know', () => {
    assert.deepEqual(kinds({ interrupted: true }), [false, ['interrupted']]);
    assert.deepEqual(kinds({ total: { ...TOTAL, requests: 0, ok: 0 } }), [false, ['no_requests']]);
    assert.deepEqual(kinds({ total: { ...TOTAL, ok: 500, requests: 500 } }), [true, ['too_few']]);
    assert.deepEqual(kinds({ total: { ...TOTAL, requests: 2100, errors: { server_error: 100 } } }), [true, ['errors']]);
    const short = { outcome: 'ok', outputTokens: 3, outputTokensAsked: 10, promptTokens: 5 } as RequestRecord;
    assert.deepEqual(kinds({ records: [short] }), [true, ['unknown_tokens']]);
    assert.deepEqual(kinds({ records: [{ ...short, outputTokens: 10, promptTokens: null }] }), [
      true,
      ['unknown_tokens'],
    ]);
  });
});
