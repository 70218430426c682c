/**
 * What the TypeScript side costs: streams over HTTP of the real model, clients in another process. For each step: wall
 * time, time in native code, the gap between two steps, and the main thread's own processor time, split by module with
 * a CPU profile. Also resident memory against weights and KV pool.
 *
 *   node dist/bench/typescript-side.js [--streams 32] [--tokens 64] [--rounds 3] [-- flags of manyfold serve]
 *
 * Runs once with every core for native threads and once with one core left to the event loop.
 */
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { Session, type Profiler } from 'node:inspector/promises';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { compose, type Composition } from '../src/cli/compose.js';
import { fetchModel } from '../src/cli/fetch-model.js';
import { processEnvironment, readTextFile } from '../src/config/environment.js';
import { loadConfig } from '../src/config/load-config.js';
import { systemClock } from '../src/core/clock.js';
import { listen } from '../src/server/listen.js';
import { createLogger } from '../src/telemetry/log.js';

const MB = 1e6;
/** Between two samples of the profile, in microseconds. */
const SAMPLE_US = 200;

/** Words of a script's path, and the part of the work that the script belongs to; the first match counts. */
const PARTS: readonly (readonly [RegExp, string])[] = [
  [/engine\/(schedule|kv-ledger|page-identity)/, 'schedule and pages'],
  [/engine\/build-plan/, 'build the plan'],
  [/engine\//, 'step loop and events'],
  [/native\//, 'native boundary'],
  [/src\/text\/|service\/(choice|token-views)/, 'detokenize and stop strings'],
  [/src\/service\//, 'request flow'],
  [/src\/server\//, 'SSE and JSON'],
  [/src\/telemetry\/|prom-client/, 'telemetry'],
  [/hono/, 'Hono'],
  [/^node:/, 'Node: HTTP, streams, promises'],
];

interface Measured {
  steps: number;
  tokens: number;
  wallMs: number;
  nativeMs: number;
  gapMs: number;
  cpuMs: number;
}

const split = process.argv.indexOf('--', 2);
const { values } = parseArgs({
  options: {
    streams: { type: 'string', default: '32' },
    tokens: { type: 'string', default: '64' },
    rounds: { type: 'string', default: '3' },
    client: { type: 'string' },
  },
  args: process.argv.slice(2, split < 0 ? process.argv.length : split),
});
const streams = Number(values.streams);

/** The clients' process: every stream is read to its end. */
async function client(url: string): Promise<void> {
  const one = async (index: number): Promise<void> => {
    const response = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        prompt: Array.from({ length: 64 }, (_, i) => 300 + ((7919 * (i + 64 * index)) % 40_000)),
        max_tokens: Number(values.tokens),
        ignore_eos: true,
        temperature: 0,
        stream: true,
      }),
    });
    const text = await response.text();
    if (response.status !== 200 || !text.includes('data: [DONE]')) throw new Error(`stream ${index}: ${text}`);
  };
  await Promise.all(Array.from({ length: streams }, (_, index) => one(index)));
}

function runClients(url: string): Promise<void> {
  const own = ['--streams', String(streams), '--tokens', values.tokens, '--client', url];
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), ...own], { stdio: 'inherit' });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`the clients ended with ${code}`))));
  });
}

/** Processor time of the main thread, whose id is that of the process. */
async function mainThreadMs(): Promise<number> {
  const [nanoseconds] = (await readFile(`/proc/self/task/${process.pid}/schedstat`, 'utf8')).split(' ');
  return Number(nanoseconds) / MB;
}

/** Counts each step's time in native code, and the time between a step's result and the next step. */
function watchSteps({ native }: Composition): Pick<Measured, 'nativeMs' | 'gapMs'> {
  const sums = { nativeMs: 0, gapMs: 0 };
  const step = native.step.bind(native);
  let endedMs: number | undefined;
  native.step = async (plan) => {
    const startedMs = systemClock.nowMs();
    // A longer pause is one between rounds, not between steps.
    if (endedMs !== undefined && startedMs - endedMs < 100) sums.gapMs += startedMs - endedMs;
    const result = await step(plan);
    endedMs = systemClock.nowMs();
    sums.nativeMs += endedMs - startedMs;
    return result;
  };
  return sums;
}

async function measureRounds(
  composition: Composition,
  url: string,
  sums: Pick<Measured, 'nativeMs' | 'gapMs'>,
): Promise<Measured> {
  const before = composition.engine.stats();
  const [nativeMs, gapMs, cpuMs, startedMs] = [sums.nativeMs, sums.gapMs, await mainThreadMs(), systemClock.nowMs()];
  // The wall time of steps is that of native code and gaps: starting the clients' process is no part of it.
  for (let round = 0; round < Number(values.rounds); round++) await runClients(url);
  const after = composition.engine.stats();
  const elapsed = systemClock.nowMs() - startedMs;
  const measured = { nativeMs: sums.nativeMs - nativeMs, gapMs: sums.gapMs - gapMs };
  return {
    ...measured,
    steps: after.steps - before.steps,
    tokens: after.generationTokens - before.generationTokens,
    wallMs: Math.min(elapsed, measured.nativeMs + measured.gapMs),
    cpuMs: (await mainThreadMs()) - cpuMs,
  };
}

/** Milliseconds of the main thread by part, idle time left out. */
async function profiled(run: () => Promise<unknown>): Promise<Map<string, number>> {
  const session = new Session();
  session.connect();
  try {
    await session.post('Profiler.enable');
    await session.post('Profiler.setSamplingInterval', { interval: SAMPLE_US });
    await session.post('Profiler.start');
    await run();
    return byPart((await session.post('Profiler.stop')).profile);
  } finally {
    session.disconnect();
  }
}

function byPart({ nodes, samples = [], timeDeltas = [] }: Profiler.Profile): Map<string, number> {
  const parts = new Map(nodes.map(({ id, callFrame }) => [id, partOf(callFrame)] as const));
  const sums = new Map<string, number>();
  samples.forEach((id, i) => {
    const part = parts.get(id) ?? 'other';
    if (part !== 'idle') sums.set(part, (sums.get(part) ?? 0) + (timeDeltas[i] ?? 0) / 1000);
  });
  return sums;
}

function partOf({ url, functionName }: { readonly url: string; readonly functionName: string }): string {
  if (functionName === '(idle)') return 'idle';
  if (functionName === '(garbage collector)') return 'garbage collection';
  if (url === '') return 'V8 and system calls';
  return PARTS.find(([pattern]) => pattern.test(url))?.[1] ?? 'other';
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function printMemory(when: string, { engine }: Composition): void {
  const { rss } = process.memoryUsage();
  const { weightBytes, kvBytes } = engine.info;
  const figures = [rss, weightBytes, kvBytes, rss - weightBytes - kvBytes].map((bytes) => (bytes / MB).toFixed(0));
  print(`| ${when} | ${figures.join(' | ')} |`);
}

function printSteps({ steps, tokens, wallMs, nativeMs, gapMs, cpuMs }: Measured, parts: Map<string, number>): void {
  const share = (ms: number): string => `${((100 * ms) / wallMs).toFixed(1)} %`;
  print(`\n${steps} steps, ${tokens} tokens, ${((tokens * 1000) / wallMs).toFixed(0)} tokens/s while steps ran\n`);
  print('| of a step | ms | share of its wall time |');
  print('|---|---|---|');
  const rows = [
    ['wall time', wallMs],
    ['native code, and the wait for the event loop', nativeMs],
    ['between two steps: nothing computes', gapMs],
    ["main thread's processor time", cpuMs],
  ] as const;
  for (const [name, ms] of rows) print(`| ${name} | ${(ms / steps).toFixed(2)} | ${share(ms)} |`);
  const busy = [...parts.values()].reduce((sum, ms) => sum + ms, 0);
  print("\n| main thread by part (a profile of rounds of their own) | share of the thread's busy time |");
  print('|---|---|');
  for (const [part, ms] of [...parts].sort((a, b) => b[1] - a[1])) {
    print(`| ${part} | ${((100 * ms) / busy).toFixed(1)} % |`);
  }
}

async function measure(flags: readonly string[]): Promise<void> {
  const all = ['--max-num-seqs', String(streams), '--log-level', 'error', ...flags];
  const config = loadConfig(all, processEnvironment(), readTextFile);
  const modelPath = await fetchModel(config.model, process.stderr);
  const composition = await compose({ config, modelPath, clock: systemClock, logger: createLogger(config.logging) });
  const { app, service, engine } = composition;
  const server = await listen(app, service.lifecycle, { host: '127.0.0.1', port: 0 });
  try {
    const sums = watchSteps(composition);
    print(
      `\n## ${engine.info.threads} native threads of ${cpus().length} cores; ${engine.info.isa}, ${engine.info.dtype}\n`,
    );
    print('| resident, MB | RSS | weights | KV pool | RSS above both |');
    print('|---|---|---|---|---|');
    printMemory('after start', composition);
    await runClients(server.url);
    printMemory(`after ${streams} streams`, composition);
    const measured = await measureRounds(composition, server.url, sums);
    const parts = await profiled(() => measureRounds(composition, server.url, sums));
    printSteps(measured, parts);
  } finally {
    await server.drain(1000);
    await composition.close();
  }
}

if (values.client === undefined) {
  const own = split < 0 ? [] : process.argv.slice(split + 1);
  print(
    `${cpus()[0]?.model.trim() ?? 'unknown'}, ${cpus().length} cores; ${streams} streams, ${values.tokens} tokens each`,
  );
  await measure(own);
  if (cpus().length > 1 && !own.includes('--threads')) await measure([...own, '--threads', String(cpus().length - 1)]);
} else {
  await client(values.client);
}
