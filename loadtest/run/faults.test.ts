/** Servers that misbehave: every request gets exactly one outcome of the right kind; nothing throws, nothing hangs. */
import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { ManyfoldError } from '../../src/core/errors.js';
import type { Outcome, RequestRecord, RunReport } from '../report/run-report.js';
import { FAULTS } from '../testing/mock-options.js';
import type { Fault } from '../testing/mock-options.js';
import { runYaml } from '../testing/run-yaml.js';
import { startMock } from '../testing/start-mock.js';
import type { MockServer } from '../testing/start-mock.js';

const TOKENS = 6;
const LIMITS = 'limits: { connect-timeout: 2, first-token-timeout: 2, idle-timeout: 2, total-timeout: 8, drain: 10 }';

interface Wanted {
  readonly outcome: Outcome;
  readonly status: number | null;
  readonly pieces: number;
  readonly text?: RegExp;
}

const WANTED: Readonly<Record<Fault, Wanted>> = {
  'fault-cut': { outcome: 'stream_cut', status: 200, pieces: 3 },
  'fault-clean-end': { outcome: 'stream_cut', status: 200, pieces: 3, text: /without an end mark after 3 pieces/ },
  'fault-429': { outcome: 'rate_limited', status: 429, pieces: 0, text: /refused with 429/ },
  'fault-429-date': { outcome: 'rate_limited', status: 429, pieces: 0 },
  'fault-400': { outcome: 'client_error', status: 400, pieces: 0, text: /refused with 400/ },
  'fault-500': { outcome: 'server_error', status: 500, pieces: 0 },
  'fault-error-event': { outcome: 'stream_error', status: 200, pieces: 0, text: /^out of pages$/ },
  'fault-garbage': { outcome: 'stream_cut', status: 200, pieces: 0 },
  'fault-not-http': { outcome: 'bad_answer', status: null, pieces: 0 },
  'fault-html': { outcome: 'bad_answer', status: 200, pieces: 0, text: /expected text\/event-stream, got: <html>/ },
  'fault-bad-json': { outcome: 'bad_answer', status: 200, pieces: 0, text: /not an event of the protocol/ },
  'fault-empty': { outcome: 'empty_answer', status: 200, pieces: 0 },
  'fault-hang': { outcome: 'timeout_first_token', status: null, pieces: 0 },
  'fault-hang-middle': { outcome: 'timeout_idle', status: 200, pieces: 3 },
  'fault-endless-line': { outcome: 'bad_answer', status: 200, pieces: 0, text: /larger than/ },
  'fault-reset': { outcome: 'connection_lost', status: null, pieces: 0 },
  'fault-split': { outcome: 'ok', status: 200, pieces: TOKENS },
  'fault-no-usage': { outcome: 'ok', status: 200, pieces: TOKENS },
};

describe('a mock that misbehaves by adapter', () => {
  let mock: MockServer;
  let report: RunReport;

  before(async () => {
    mock = await startMock({ ttftMs: { kind: 'fixed', value: 30 }, itlMs: { kind: 'fixed', value: 10 } });
    report = await runYaml(`name: faults
target: { url: ${mock.url}, dialect: vllm }
arrivals: { kind: constant, rate: 20, requests: ${FAULTS.length * 2} }
adapters: { kind: distinct, names: [${FAULTS.join(', ')}] }
output: { tokens: ${TOKENS} }
${LIMITS}
`);
  });
  after(() => mock.stop());

  const recordsOf = (fault: Fault): RequestRecord[] => report.requests.filter(({ adapter }) => adapter === fault);

  for (const fault of FAULTS) {
    test(`${fault} is counted as ${WANTED[fault].outcome}`, () => {
      const { text, ...wanted } = WANTED[fault];
      const records = recordsOf(fault);
      assert.equal(records.length, 2);
      for (const { outcome, status, pieces, errorText, good, endAtMs } of records) {
        assert.deepEqual({ outcome, status, pieces }, wanted, errorText ?? '');
        assert.equal(good, wanted.outcome === 'ok');
        assert.ok(endAtMs !== null);
        assert.equal(errorText === null, wanted.outcome === 'ok');
        if (text !== undefined) assert.match(errorText ?? '', text);
      }
      const row = report.adapters.find(({ adapter }) => adapter === fault);
      assert.deepEqual(row?.errors, wanted.outcome === 'ok' ? {} : { [wanted.outcome]: 2 });
    });
  }

  test('retry-after is read as seconds and as a date', () => {
    for (const { retryAfterSeconds } of recordsOf('fault-429')) assert.equal(retryAfterSeconds, 7);
    for (const { retryAfterSeconds } of recordsOf('fault-429-date'))
      assert.ok((retryAfterSeconds ?? 0) > 3600 * 24 * 365);
  });

  test('control characters of the server reach no terminal', () => {
    for (const { errorText } of report.requests) assert.doesNotMatch(errorText ?? '', /[\p{Cc}]/u);
  });

  test('without usage, pieces are the tokens', () => {
    for (const { outputTokens, promptTokens } of recordsOf('fault-no-usage')) {
      assert.deepEqual([outputTokens, promptTokens], [TOKENS, null]);
    }
  });

  test('the sums are whole, and the verdict says what failed', () => {
    const { total, verdict, timeline } = report;
    const failed = Object.values(total.errors).reduce((sum, count) => sum + count, 0);
    assert.equal(total.ok + failed, FAULTS.length * 2);
    assert.equal(total.ok, 4);
    assert.equal(verdict.valid, false);
    assert.ok(verdict.findings.some(({ kind, message }) => kind === 'errors' && message.includes('rate_limited 4')));
    assert.equal(
      timeline.reduce((sum, { ok, errors }) => sum + ok + errors, 0),
      FAULTS.length * 2,
    );
  });
});

const OPEN = `arrivals: { kind: constant, rate: 20, requests: 10 }\n${LIMITS}\n`;

function outcomes({ requests }: RunReport): Set<Outcome> {
  return new Set(requests.map(({ outcome }) => outcome));
}

describe('servers that are not there', () => {
  test('a closed port: every request is unreachable, and the run is reported', async () => {
    const report = await runYaml(`name: s\ntarget: { url: http://127.0.0.1:1 }\n${OPEN}`);
    assert.deepEqual(outcomes(report), new Set(['unreachable']));
    assert.equal(report.server, null);
    assert.equal(report.verdict.valid, false);
    assert.match(report.verdict.findings[0]?.message ?? '', /None of 10 requests succeeded \(unreachable 10\)/);
  });

  test('a closed loop does not hit a dead server without end', async () => {
    const closed = 'arrivals: { kind: closed, concurrency: 2, duration: 1 }';
    const report = await runYaml(`name: s\ntarget: { url: http://127.0.0.1:1 }\n${closed}\n`);
    assert.deepEqual(outcomes(report), new Set(['unreachable']));
    assert.ok(report.requests.length <= 2 * 11, `${report.requests.length} requests`);
  });

  test('adapters from a server that does not answer are refused before the run', async () => {
    await assert.rejects(
      runYaml(`name: s\ntarget: { url: http://127.0.0.1:1 }\nadapters: { kind: uniform, from-server: true }\n${OPEN}`),
      (error) =>
        error instanceof ManyfoldError && error.code === 'not_found' && error.message.includes('lists 0 adapters'),
    );
  });

  test('a socket that takes bytes and never answers ends by time', async () => {
    const silent = createServer((socket) => socket.on('error', () => undefined).resume());
    await new Promise<void>((resolve) => void silent.listen(0, '127.0.0.1', resolve));
    const { port } = silent.address() as AddressInfo;
    const target = `target: { url: http://127.0.0.1:${port}, model: m, metrics: false }`;
    const running = runYaml(`name: s\n${target}\n${OPEN}`);
    const report = await running;
    assert.deepEqual(outcomes(report), new Set(['timeout_first_token']));
    silent.close();
  });
});

describe('the target', () => {
  for (const url of ['http://198.51.100.7:8000', 'http://example.com', 'http://[2001:db8::1]:80', 'http://10.0.0.1']) {
    test(`beyond this machine is refused without --allow-remote: ${url}`, async () => {
      await assert.rejects(
        runYaml(`name: s\ntarget: { url: '${url}' }\n${OPEN}`),
        (error) => error instanceof ManyfoldError && error.message.includes('--allow-remote'),
      );
    });
  }

  test('metrics elsewhere are refused as well', async () => {
    const target = 'target: { metrics: http://198.51.100.7/metrics }';
    await assert.rejects(runYaml(`name: s\n${target}\n${OPEN}`), /198\.51\.100\.7 is not this machine/);
  });
});
