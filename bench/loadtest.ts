/**
 * What the load generator itself adds to latencies: many streams at once against the mock in another process, whose own
 * clock (the machine's monotonic one, as ours) says when it wrote each token. With --bind client and mock get a core
 * each (taskset), for a machine on which nothing else runs; beside other work they are better left to the scheduler.
 * Figures go to docs/benchmarks/loadtest.md; nothing here fails on a slow machine.
 *
 *   node dist/bench/loadtest.js --streams 200 --seconds 30 --bind
 */
import { execFileSync } from 'node:child_process';
import { subscribe } from 'node:diagnostics_channel';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import type { Distribution, RequestRecord, RunReport } from '../loadtest/report/run-report.js';
import type { LiveState } from '../loadtest/run/live-counts.js';
import { runYaml } from '../loadtest/testing/run-yaml.js';
import { monotonicOffsetMs, startMock } from '../loadtest/testing/start-mock.js';
import type { MockEntry } from '../loadtest/testing/mock-options.js';
import { promptOf } from '../loadtest/workload/plan.js';
import type { Clock } from '../src/core/clock.js';
import { systemClock } from '../src/core/clock.js';

const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '200' },
    seconds: { type: 'string', default: '30' },
    tokens: { type: 'string', default: '100' },
    bind: { type: 'boolean', default: false },
  },
});
const SHARES = { p50: 0.5, p90: 0.9, p95: 0.95, p99: 0.99, 'p99.9': 0.999 } as const;
const KEYS = { p50: 'p50Ms', p90: 'p90Ms', p95: 'p95Ms', p99: 'p99Ms', 'p99.9': 'p999Ms' } as const;
type Share = keyof typeof SHARES;
const SHARE_VALUES = Object.values(SHARES);

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Binds this process to core 0; false where that cannot be. */
function bindToFirstCore(): boolean {
  if (process.platform !== 'linux' || cpus().length < 2) return false;
  try {
    execFileSync('taskset', ['-acp', '0', String(process.pid)], { stdio: 'ignore' });
    return true;
  } catch {
    return false; // No taskset: the two share what there is, and the page says so.
  }
}

/** Nearest rank. */
function exact(values: readonly number[], share: number): number {
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.max(1, Math.ceil(share * sorted.length)) - 1] ?? NaN;
}

interface Pair {
  readonly record: RequestRecord;
  readonly entry: MockEntry;
}

/** Prompts are made from a seed each, so they tell which request was which. */
function pairs(report: RunReport, log: readonly MockEntry[]): Pair[] {
  const byPrompt = new Map(log.map((entry) => [entry.prompt, entry]));
  const measured = report.requests.filter(({ phase }) => phase === 'measured');
  return measured.flatMap((record, index) => {
    const traced = report.trace.requests[index];
    const entry = traced === undefined ? undefined : byPrompt.get(promptOf(traced));
    return record.outcome === 'ok' && entry?.endAt != null ? [{ record, entry }] : [];
  });
}

function promptOfBody(text: string): string {
  const { messages } = JSON.parse(text) as { readonly messages?: readonly { readonly content: string }[] };
  return messages?.[0]?.content ?? '';
}

function printRow(name: string, figures: readonly number[], digits = 3): void {
  print(`| ${name} | ${figures.map((figure) => figure.toFixed(digits)).join(' | ')} |`);
}

/** Client's figure, the mock's own, and the difference in percent. */
function printAgainst(name: string, measured: Distribution, truth: readonly number[]): number {
  let worst = 0;
  for (const share of Object.keys(SHARES) as Share[]) {
    const [got, wanted] = [measured[KEYS[share]] ?? NaN, exact(truth, SHARES[share])];
    worst = Math.max(worst, Math.abs(got / wanted - 1));
    print(
      `| ${name} ${share} | ${got.toFixed(2)} | ${wanted.toFixed(2)} | ${((got / wanted - 1) * 100).toFixed(2)} % |`,
    );
  }
  return worst;
}

/** Of the mock's distributions: the rate at which so many streams are in flight once the first have ended. */
const STREAM_SECONDS = 0.25 + Number(values.tokens) * 0.05;
const rate = Number(values.streams) / STREAM_SECONDS;
const isBound = values.bind && bindToFirstCore();
const mock = await startMock(
  { ttftMs: { kind: 'uniform', min: 100, max: 400 }, itlMs: { kind: 'uniform', min: 30, max: 70 } },
  isBound ? { cpu: 1 } : {},
);
const offset = monotonicOffsetMs(() => systemClock.nowMs());
/** The clock's value at time 0 of the report: what an elapsed time is told with, less that. */
let startedAt = NaN;
let lastNow = NaN;
const clock: Clock = {
  ...systemClock,
  nowMs: () => (lastNow = systemClock.nowMs()),
};
const onState = ({ elapsedMs }: LiveState): void => {
  startedAt = lastNow - elapsedMs;
};
/** When the kernel had all bytes of a request, by its body. */
const handedOverAt = new Map<string, number>();
subscribe('undici:request:bodySent', (message) => {
  const { body } = (message as { readonly request: { readonly body: unknown } }).request;
  if (typeof body === 'string') handedOverAt.set(body, systemClock.nowMs());
  else if (body instanceof Uint8Array) handedOverAt.set(Buffer.from(body).toString('utf8'), systemClock.nowMs());
});
const report = await runYaml(
  `name: own-share
target: { url: ${mock.url}, dialect: vllm }
arrivals: { kind: poisson, rate: ${rate.toFixed(3)}, duration: ${Number(values.seconds) + STREAM_SECONDS} }
warmup: { requests: 50, concurrency: 50 }
prompt: { tokens: 20 }
output: { tokens: ${values.tokens} }
report: { record-pieces: true }
`,
  { clock, onState },
);
const log = await mock.log();
await mock.stop();

const matched = pairs(report, log);
const { total, client } = report;
const handedOver = new Map([...handedOverAt].map(([body, at]) => [promptOfBody(body), at]));
/** A time of the report on the mock's clock. */
const onMockClock = (atMs: number | null | undefined): number => (atMs ?? NaN) + startedAt + offset;
const pieceDelay = matched.flatMap(({ record, entry }) =>
  (record.pieceAtMs ?? []).map((at, index) => onMockClock(at) - (entry.pieceAt[index] ?? NaN)),
);
const mockTtft = matched.map(({ entry }) => (entry.pieceAt[0] ?? NaN) - entry.receivedAt);
const mockE2e = matched.map(({ entry }) => (entry.endAt ?? NaN) - entry.receivedAt);
const mockItl = matched.flatMap(({ entry }) =>
  entry.pieceAt.slice(1).map((at, index) => at - (entry.pieceAt[index] ?? NaN)),
);
const ownTtft = matched.map(
  ({ record }, index) => (record.firstTokenAtMs ?? NaN) - (record.sentAtMs ?? NaN) - (mockTtft[index] ?? NaN),
);
const ownE2e = matched.map(
  ({ record }, index) => (record.endAtMs ?? NaN) - (record.sentAtMs ?? NaN) - (mockE2e[index] ?? NaN),
);

const toKernel = matched.map(
  ({ record, entry }) => (handedOver.get(entry.prompt) ?? NaN) - ((record.sentAtMs ?? NaN) + startedAt),
);
const fromKernel = matched.map(({ record, entry }) => onMockClock(record.firstTokenAtMs) - (entry.pieceAt[0] ?? NaN));
const clientTtft = toKernel.map((before, index) => before + (fromKernel[index] ?? NaN));
const sendDelay = matched.map(({ record }) => (record.sentAtMs ?? NaN) - record.scheduledAtMs);
const inFlight = Math.max(...report.timeline.map(({ inFlightMax }) => inFlightMax));

print(
  `up to ${inFlight} streams at once, ${matched.length} requests, ${pieceDelay.length} tokens, ${total.outputTokensPerSecond.toFixed(0)} tokens/s`,
);
print(
  `${report.run.machine.cpuModel}, ${cpus().length} cores; client and mock ${isBound ? 'on a core each' : 'share the cores'}`,
);
print(
  `client: ${(client.cpuShareMean * 100).toFixed(0)} % of a core, event-loop lag p99 ${client.eventLoopLagMs.p99} ms\n`,
);
print('| ms that the client and loopback add | p50 | p90 | p95 | p99 | p99.9 |');
print('|---|---|---|---|---|---|');
for (const [name, figures] of [
  ['before the send', sendDelay],
  ['TTFT: until the kernel has the request', toKernel],
  ['TTFT: from the mock’s first write', fromKernel],
  ['TTFT: both, the client’s own share', clientTtft],
  ['TTFT with the mock’s own reading', ownTtft],
  ['E2E with the mock’s own reading', ownE2e],
  ['each token, from the mock’s write', pieceDelay],
] as const) {
  printRow(
    name,
    SHARE_VALUES.map((share) => exact(figures, share)),
  );
}
print('\n| figure | client, ms | mock, ms | difference |');
print('|---|---|---|---|');
const worst = Math.max(
  printAgainst('TTFT', total.latency.ttftFromSent, mockTtft),
  printAgainst('ITL', total.latency.itl, mockItl),
  printAgainst('E2E', total.latency.e2eFromSent, mockE2e),
);
print(
  `\nLargest difference ${(worst * 100).toFixed(2)} % (goal: 2 %); own share p99: TTFT ${exact(clientTtft, 0.99).toFixed(3)} ms, a token ${exact(pieceDelay, 0.99).toFixed(3)} ms (goal: 1 ms)`,
);
