/** Whole runs against a mock: the same trace in every dialect, early ends, the server's own figures. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import type { RunReport } from '../report/run-report.js';
import { parseTrace, traceText } from '../workload/trace-file.js';
import { runYaml } from '../testing/run-yaml.js';
import { startMock } from '../testing/start-mock.js';
import type { MockServer } from '../testing/start-mock.js';

const QUICK = {
  ttftMs: { kind: 'fixed', value: 5 },
  itlMs: { kind: 'fixed', value: 1 },
  adapters: ['a', 'b', 'c'],
} as const;

describe('one trace', () => {
  let mock: MockServer;
  before(async () => {
    mock = await startMock(QUICK);
  });
  after(() => mock.stop());

  const yaml = (target: string, seed: number, rest = ''): string => `name: trace
seed: ${seed}
target: { url: ${mock.url}, metrics: false, ${target} }
arrivals: { kind: poisson, rate: 100, requests: 40 }
adapters: { kind: zipf, from-server: true, base-share: 0.2 }
prompt: { tokens: { kind: uniform, min: 3, max: 12 } }
output: { tokens: { kind: uniform, min: 2, max: 5 }${rest} }
`;

  /** What the mock got of the last 40 requests, in the order of sending. */
  async function run(target: string, seed = 1, rest = '') {
    const report = await runYaml(yaml(target, seed, rest));
    const entries = (await mock.log()).slice(-40);
    assert.deepEqual(report.total.errors, {});
    return {
      report,
      path: entries[0]?.path,
      seen: entries.map(({ prompt, maxTokens }) => [prompt, maxTokens].join('|')).sort(),
      entries,
    };
  }

  test('is the same when it is run again, and another with another seed', async () => {
    const first = await run('dialect: vllm');
    const again = await run('dialect: vllm');
    const other = await run('dialect: vllm', 2);
    assert.deepEqual(again.seen, first.seen);
    assert.equal(again.report.trace.sha256, first.report.trace.sha256);
    assert.notDeepEqual(other.seen, first.seen);
    assert.notEqual(other.report.trace.sha256, first.report.trace.sha256);
  });

  const DIALECTS: readonly (readonly [string, string, string])[] = [
    ['dialect: manyfold', '/v1/chat/completions', ''],
    ['dialect: vllm, route: completions', '/v1/completions', ''],
    ['dialect: lorax, adapter-source: local', '/generate_stream', ''],
    ['dialect: lorax, route: chat', '/v1/chat/completions', ''],
    ['dialect: openai', '/v1/chat/completions', ', ignore-eos: false'],
    ['dialect: llama-server', '/v1/chat/completions', ''],
    ['dialect: llama-server, lora-ids: { c: 2, a: 0, b: 1 }', '/v1/chat/completions', ''],
  ];
  for (const [target, path, rest] of DIALECTS) {
    test(`reaches the server alike: ${target}`, async () => {
      const reference = await run('dialect: vllm');
      const { report, seen, path: got, entries } = await run(target, 1, rest);
      assert.equal(got, path);
      assert.deepEqual(seen, reference.seen);
      const byIds = target.startsWith('dialect: llama-server');
      // What the mock saw named, told back in the trace's own names.
      const names = new Map(['a', 'b', 'c'].map((name, id) => [byIds ? `lora:${id}` : name, name]));
      const adapters = entries.map(({ adapter }) => names.get(adapter) ?? 'base').sort();
      // The pool's order differs where ids are listed in another order; then only the set is comparable.
      if (!target.includes('lora-ids')) {
        assert.deepEqual(adapters, report.requests.map(({ adapter }) => adapter ?? 'base').sort());
      }
      assert.ok(new Set(adapters).size === 4);
    });
  }

  test('is refused before it begins when llama-server does not have an adapter', async () => {
    const target = 'dialect: llama-server, lora-ids: { a: 0 }';
    const names = yaml(target, 1).replace('from-server: true', 'names: [a, z]');
    await assert.rejects(runYaml(names), /llama-server has no adapter 'z'\. Known are a\./);
  });

  test('can be played back from the report', async () => {
    const { report, seen } = await run('dialect: vllm');
    const lines = parseTrace(traceText(report.trace.requests), 't');
    assert.equal(lines.length, 40);
    assert.deepEqual(report, JSON.parse(JSON.stringify(report)), 'a report is plain data');
    assert.ok(seen.length === 40);
  });
});

describe('an early end', () => {
  test('SIGINT’s signal ends an open loop at once, and all that was scheduled is accounted for', async () => {
    const mock = await startMock({ ...QUICK, itlMs: { kind: 'fixed', value: 200 } });
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 1200);
    const report = await runYaml(
      `name: s\ntarget: { url: ${mock.url} }\narrivals: { kind: constant, rate: 20, duration: 60 }\noutput: { tokens: 10 }\n`,
      { signal: controller.signal },
    );
    await mock.stop();
    assert.ok(report.run.durationMs < 61_000);
    assert.equal(report.run.interrupted, true);
    assert.equal(report.total.requests, 1200);
    assert.ok((report.total.errors.cancelled ?? 0) > 0 && (report.total.errors.not_sent ?? 0) > 1100);
    assert.deepEqual([report.verdict.valid, report.verdict.findings[0]?.kind], [false, 'interrupted']);
  });

  test('of a closed loop', async () => {
    const mock = await startMock({ ...QUICK, itlMs: { kind: 'fixed', value: 200 } });
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 700);
    const report = await runYaml(
      `name: s\ntarget: { url: ${mock.url} }\narrivals: { kind: closed, concurrency: 3, duration: 60 }\noutput: { tokens: 10 }\n`,
      { signal: controller.signal },
    );
    await mock.stop();
    assert.equal(report.total.errors.cancelled, 3);
    assert.equal(report.run.interrupted, true);
  });

  test('of the warm-up', async () => {
    const mock = await startMock({ ...QUICK, ttftMs: { kind: 'fixed', value: 60_000 } });
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 500);
    const report = await runYaml(
      `name: s\ntarget: { url: ${mock.url} }\narrivals: { kind: constant, rate: 20, requests: 5 }\nwarmup: { requests: 9 }\n`,
      { signal: controller.signal },
    );
    await mock.stop();
    assert.deepEqual(report.total.errors, { not_sent: 5 });
    assert.ok(report.requests.filter(({ outcome }) => outcome === 'cancelled').length === 4);
    assert.ok(report.run.durationMs < 20_000);
  });

  test('the drain time is a limit', async () => {
    const mock = await startMock({ ...QUICK, ttftMs: { kind: 'fixed', value: 20_000 } });
    const report = await runYaml(
      `name: s\ntarget: { url: ${mock.url} }\narrivals: { kind: constant, rate: 20, requests: 5 }\nlimits: { drain: 0.3 }\n`,
    );
    await mock.stop();
    assert.deepEqual(report.total.errors, { cancelled: 5 });
    assert.ok(report.run.durationMs < 5000);
  });
});

describe('the server’s own word', () => {
  const yaml = (url: string): string => `name: s
target: { url: ${url}, dialect: vllm }
arrivals: { kind: constant, rate: 40, duration: 2 }
warmup: { requests: 5 }
output: { tokens: 5 }
report: { metrics-interval: 0.2 }
`;

  async function runWith(tokenLie: number): Promise<RunReport> {
    const mock = await startMock({ ...QUICK, ttftMs: { kind: 'fixed', value: 100 }, tokenLie });
    try {
      return await runYaml(yaml(mock.url));
    } finally {
      await mock.stop();
    }
  }

  /** Without times, which another process on the machine may shift. */
  function countsOf(server: RunReport['server']): unknown[] {
    const counts = server?.disagreements.filter(({ unit }) => unit !== 'ms') ?? [];
    return counts.map(({ what, client, server: theirs }) => [what, client, theirs]);
  }

  test('stands on the same time axis, and agrees when both count right', async () => {
    const { server, run } = await runWith(1);
    assert.equal(server?.flavour, 'vllm');
    assert.deepEqual(countsOf(server), []);
    assert.ok(server.samples.length >= 8, `${server.samples.length} samples`);
    for (const [index, { atMs }] of server.samples.entries()) {
      assert.ok(atMs <= run.durationMs + 1000 && (index === 0 || atMs > (server.samples[index - 1]?.atMs ?? Infinity)));
    }
    assert.ok(Math.max(...server.samples.map(({ running }) => running ?? 0)) >= 2);
    assert.equal(server.samples.at(-1)?.adaptersResident, 3);
    assert.equal(server.samples.at(-1)?.outputTokens, 85 * 5);
    assert.equal(server.samples.at(-1)?.requestsDone, 85);
    assert.equal(run.versions.server, 'mock 0.0.1');
  });

  test('is noted where it differs', async () => {
    const { server, verdict } = await runWith(1.5);
    assert.deepEqual(countsOf(server), [['output tokens', 425, 637.5]]);
    assert.ok(verdict.findings.some(({ kind, severity }) => kind === 'disagreement' && severity === 'warning'));
  });
});
