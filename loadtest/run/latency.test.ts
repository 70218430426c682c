/** What the client measures against what a mock in another process did, and how load is kept when the server stalls. */
import assert from 'node:assert/strict';
import { before, describe, test } from 'node:test';
import type { Distribution, RunReport } from '../report/run-report.js';
import { evenPoint, quantileOf } from '../testing/mock-options.js';
import type { MockEntry, MockOptions } from '../testing/mock-options.js';
import { runYaml } from '../testing/run-yaml.js';
import { startMock } from '../testing/start-mock.js';

const PERCENTILES = { p50Ms: 0.5, p90Ms: 0.9, p95Ms: 0.95, p99Ms: 0.99, p999Ms: 0.999 } as const;

/** Nearest rank. */
function exact(values: readonly number[], share: number): number {
  const sorted = values.toSorted((left, right) => left - right);
  return sorted[Math.max(1, Math.ceil(share * sorted.length)) - 1] ?? NaN;
}

/** Runs a scenario against a mock of its own; the mock's log comes with the report. */
async function runAgainst(
  options: MockOptions,
  yaml: (url: string) => string,
): Promise<{ report: RunReport; log: readonly MockEntry[] }> {
  const mock = await startMock(options);
  try {
    return { report: await runYaml(yaml(mock.url)), log: await mock.log() };
  } finally {
    await mock.stop();
  }
}

describe('percentiles', () => {
  const REQUESTS = 1024;
  const TOKENS = 4;
  const mockOptions: MockOptions = {
    ttftMs: { kind: 'uniform', min: 400, max: 1600 },
    itlMs: { kind: 'exponential', floor: 150, mean: 150 },
  };
  const yaml = (url: string): string => `name: percentiles
target: { url: ${url}, dialect: vllm }
arrivals: { kind: constant, rate: 160, requests: ${REQUESTS} }
prompt: { tokens: 8 }
output: { tokens: ${TOKENS} }
`;
  let report: RunReport;
  let log: readonly MockEntry[];

  // Other work on the machine can put either process aside for longer than 2 % of a latency, which is no error of the
  // client's arithmetic; but no disturbance makes all figures agree by accident. So the best of three runs counts.
  before(async () => {
    let best = Infinity;
    for (let attempt = 0; attempt < 3 && best > 0.02; attempt++) {
      const run = await runAgainst(mockOptions, yaml);
      const worst = Math.max(...comparisons(run.report, run.log).map(({ error }) => error));
      if (worst < best) ({ report, log } = run);
      best = Math.min(best, worst);
    }
  });

  interface Comparison {
    readonly what: string;
    readonly error: number;
  }

  function compare(what: string, measured: Distribution, truth: readonly number[]): Comparison[] {
    return Object.entries(PERCENTILES).map(([name, share]) => {
      const wanted = exact(truth, share);
      const got = measured[name as keyof typeof PERCENTILES] ?? NaN;
      return {
        what: `${what} ${name}: ${got.toFixed(2)} against ${wanted.toFixed(2)} ms`,
        error: Math.abs(got / wanted - 1),
      };
    });
  }

  /** Of the whole run, against what the mock's log says that it did, and for TTFT also against what it was told to do. */
  function comparisons({ total: { latency } }: RunReport, entries: readonly MockEntry[]): Comparison[] {
    const told = entries.map((_, index) => quantileOf(mockOptions.ttftMs, evenPoint(index)));
    const ttft = entries.map(({ receivedAt, pieceAt }) => (pieceAt[0] ?? NaN) - receivedAt);
    const gaps = entries.flatMap(({ pieceAt }) => pieceAt.slice(1).map((at, index) => at - (pieceAt[index] ?? NaN)));
    const tpot = entries.map(({ pieceAt }) => ((pieceAt.at(-1) ?? NaN) - (pieceAt[0] ?? NaN)) / (TOKENS - 1));
    const e2e = entries.map(({ receivedAt, endAt }) => (endAt ?? NaN) - receivedAt);
    return [
      ...compare('TTFT as told', latency.ttftFromSent, told),
      ...compare('TTFT', latency.ttftFromSent, ttft),
      ...compare('ITL', latency.itl, gaps),
      ...compare('TPOT', latency.tpot, tpot),
      ...compare('E2E', latency.e2eFromSent, e2e),
    ];
  }

  test('every request succeeded and the run is about what was asked', () => {
    assert.equal(report.total.ok, REQUESTS);
    assert.equal(log.length, REQUESTS);
    assert.ok((report.workload.achievedShare ?? 0) >= 0.95);
  });

  test('TTFT, ITL, TPOT and E2E are within 2 % of the mock, p99.9 included', () => {
    const { latency } = report.total;
    assert.deepEqual([latency.ttft.count, latency.itl.count], [REQUESTS, REQUESTS * (TOKENS - 1)]);
    for (const { what, error } of comparisons(report, log)) {
      assert.ok(error <= 0.02, `${what}, event-loop lag p99.9 ${report.client.eventLoopLagMs.p999} ms`);
    }
  });

  test('tokens and rates are those that went over the wire', () => {
    const { total } = report;
    assert.equal(total.outputTokens, REQUESTS * TOKENS);
    assert.equal(total.promptTokens, REQUESTS * 8);
    const [first, last] = [log[0]?.receivedAt ?? 0, Math.max(...log.map(({ endAt }) => endAt ?? 0))];
    const perSecond = (REQUESTS * 1000) / (last - first);
    assert.ok(
      Math.abs(total.requestsPerSecond / perSecond - 1) < 0.02,
      `${total.requestsPerSecond} against ${perSecond}`,
    );
  });
});

describe('a server that stalls for two seconds', () => {
  const STALL_MS = 2000;
  const RATE = 50;
  let report: RunReport;
  before(async () => {
    ({ report } = await runAgainst(
      {
        ttftMs: { kind: 'fixed', value: 20 },
        itlMs: { kind: 'fixed', value: 5 },
        stall: { afterMs: 2000, forMs: STALL_MS },
      },
      (url) => `name: stall
target: { url: ${url}, dialect: vllm, metrics: false }
arrivals: { kind: constant, rate: ${RATE}, duration: 9 }
output: { tokens: 3 }
`,
    ));
  });

  test('does not slow the open loop down', () => {
    const sent = report.timeline.map(({ sent }) => sent);
    for (const count of sent.slice(0, 9))
      assert.ok(Math.abs(count - RATE) <= 0.3 * RATE, `sent by second: ${sent.join(' ')}`);
    assert.ok(report.workload.sentPerSecond >= 0.95 * RATE);
    assert.ok((report.total.latency.sendDelay.p99Ms ?? Infinity) < STALL_MS / 2);
    assert.equal(report.total.ok, 9 * RATE);
  });

  test('shows in the latencies as what users would have waited', () => {
    const { ttft } = report.total.latency;
    // A request that comes at a random moment of the stall waits half of it; 2 of 9 seconds do.
    assert.ok((ttft.maxMs ?? 0) >= STALL_MS - 100, `max ${ttft.maxMs}`);
    assert.ok((ttft.p50Ms ?? 0) < 200, `p50 ${ttft.p50Ms}`);
    const slow = report.requests.filter(
      ({ firstTokenAtMs, scheduledAtMs }) => (firstTokenAtMs ?? 0) - scheduledAtMs > 500,
    );
    const expected = ((STALL_MS - 500) / 1000) * RATE;
    assert.ok(Math.abs(slow.length - expected) <= 0.25 * expected, `${slow.length} slow requests, not ${expected}`);
    const waited = slow.map(({ firstTokenAtMs, scheduledAtMs }) => (firstTokenAtMs ?? 0) - scheduledAtMs);
    const mean = waited.reduce((sum, value) => sum + value, 0) / waited.length;
    assert.ok(Math.abs(mean - 1250) < 250, `mean of the slow ones ${mean}`);
  });

  test('shows on the time line where it was', () => {
    const worst = report.timeline.reduce((left, right) =>
      (right.ttftP99Ms ?? 0) > (left.ttftP99Ms ?? 0) ? right : left,
    );
    assert.ok(worst.fromMs >= 3000 && worst.fromMs <= 5000, `slice ${worst.fromMs}`);
    assert.ok(worst.inFlightMax >= 80);
  });
});

describe('coordinated omission', () => {
  test('latency counts from the schedule when a limit holds requests back, and none is dropped', async () => {
    const { report } = await runAgainst(
      { ttftMs: { kind: 'fixed', value: 200 }, itlMs: { kind: 'fixed', value: 1 } },
      (url) => `name: limit
target: { url: ${url}, dialect: vllm, metrics: false }
arrivals: { kind: constant, rate: 20, requests: 40 }
output: { tokens: 1 }
limits: { max-in-flight: 2 }
`,
    );
    // Two at a time of 200 ms each: 10/s of the 20/s asked, so the last is due at 1.95 s and sent at about 3.8 s.
    const { ttft, ttftFromSent, sendDelay } = report.total.latency;
    assert.equal(report.total.ok, 40);
    assert.ok((ttft.maxMs ?? 0) > 1800, `max ${ttft.maxMs}`);
    assert.ok((ttftFromSent.maxMs ?? Infinity) < 1000, `from sent ${ttftFromSent.maxMs}`);
    assert.ok((sendDelay.maxMs ?? 0) > 1600);
    assert.equal(report.verdict.valid, false);
    assert.ok(
      report.verdict.findings.some(({ kind, message }) => kind === 'achieved_rate' && message.includes('sent in time')),
    );
  });

  test('a server that keeps up with half of the rate makes the run invalid', async () => {
    const { report } = await runAgainst(
      { ttftMs: { kind: 'fixed', value: 100 }, itlMs: { kind: 'fixed', value: 1 }, slots: 2 },
      (url) => `name: overload
target: { url: ${url}, dialect: vllm }
arrivals: { kind: constant, rate: 40, duration: 4 }
output: { tokens: 1 }
slo: { ttft-ms: 500 }
`,
    );
    const { workload, verdict, server, total } = report;
    assert.equal(total.ok, 160);
    assert.ok(workload.sentPerSecond > 38);
    assert.ok(Math.abs((workload.achievedShare ?? 0) - 0.5) < 0.1, `achieved ${workload.achievedShare}`);
    assert.ok(verdict.findings.some(({ kind, severity }) => kind === 'achieved_rate' && severity === 'invalid'));
    assert.equal(verdict.valid, false);
    assert.ok(Math.max(...(server?.samples ?? []).map(({ waiting }) => waiting ?? 0)) > 20, 'the queue of the server');
    assert.ok(total.good < 60 && total.good > 5, `${total.good} good`);
    assert.ok(Math.abs(total.goodShare - total.good / 160) < 1e-9);
  });
});

describe('the closed loop', () => {
  test('keeps its number of users busy, one request each, and lets them think', async () => {
    const { report, log } = await runAgainst(
      { ttftMs: { kind: 'fixed', value: 100 }, itlMs: { kind: 'fixed', value: 10 } },
      (url) => `name: closed
target: { url: ${url}, dialect: vllm }
arrivals: { kind: closed, concurrency: 5, duration: 3, think-time: 0.1 }
warmup: { requests: 4, concurrency: 2 }
output: { tokens: 6 }
`,
    );
    assert.equal(report.workload.loop, 'closed');
    assert.equal(report.workload.askedPerSecond, null);
    assert.equal(report.workload.warmupRequests, 4);
    assert.equal(report.requests.filter(({ phase }) => phase === 'warmup').length, 4);
    assert.equal(report.total.requests, log.length - 4);
    // 100 + 5 × 10 ms of answer and 100 ms of thought: four requests a second and user, and each user's first at 0 s.
    assert.ok(report.total.requests >= 40 && report.total.requests <= 65, `${report.total.requests} requests`);
    for (let user = 0; user < 5; user++) {
      const own = report.requests.filter((record) => record.user === user);
      for (const [index, record] of own.entries()) {
        const before = own[index - 1];
        if (before !== undefined) assert.ok((record.sentAtMs ?? 0) - (before.endAtMs ?? Infinity) >= 99);
      }
    }
    assert.ok(Math.max(...report.timeline.map(({ inFlightMax }) => inFlightMax)) <= 5);
  });
});
