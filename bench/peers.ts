/**
 * Ours against llama.cpp, vLLM and OpenVINO, in alternation, with the goals that are asked for: the comparison part of
 * docs/benchmarks/cpu.md. The peers are installed by tools/peers/install.sh.
 *
 *   node dist/bench/peers.js [--passes 2] [--repeats 2] [--rows start,prefill,decode1,streams,lora,onelora]
 *     [--peers llama.cpp,vllm,openvino] [--weights bf16,int8,4-bit] [--shape smol|1b] [--streams N] [--dir .cache/peers]
 *     [--threads 2] [--write]
 *
 * A pass starts every system once, one at a time, and every second pass goes the other way round. With --write the table
 * goes into the page, and every figure into docs/benchmarks/data; else only to stdout.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { systemClock } from '../src/core/clock.js';
import { measureMachine } from './machine.js';
import { stopAll } from './peers/child.js';
import { measureDefaultStart, type DefaultStart } from './peers/default-start.js';
import { allRows, chosenRows, GROUPS, sessionsOf, type Row, type SessionPlan } from './peers/rows.js';
import { runSession, type SessionOptions, type SessionResult } from './peers/session.js';
import { nameOf, OWN_DTYPE, SHAPES, type Place } from './peers/systems.js';
import { insertBlock, markdown, type RunFacts } from './peers/table.js';

const PEERS = ['llama.cpp', 'vllm', 'openvino'] as const;
const { values } = parseArgs({
  options: {
    passes: { type: 'string', default: '2' },
    repeats: { type: 'string', default: '2' },
    rows: { type: 'string', default: GROUPS.join(',') },
    peers: { type: 'string', default: PEERS.join(',') },
    weights: { type: 'string', default: Object.keys(OWN_DTYPE).join(',') },
    shape: { type: 'string', default: 'smol' },
    /** Fewer than the goals ask for, to try whether everything works. */
    streams: { type: 'string' },
    dir: { type: 'string', default: '.cache/peers' },
    threads: { type: 'string', default: '2' },
    write: { type: 'boolean', default: false },
  },
});

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Words of a list, all of them known. */
function words(name: string, text: string, known: readonly string[]): string[] {
  const list = text.split(',').filter((word) => word !== '');
  const odd = list.find((word) => !known.includes(word));
  if (odd !== undefined || list.length === 0) {
    throw new Error(`--${name}: expected some of ${known.join(',')}, got '${odd ?? text}'`);
  }
  return list;
}

function count(name: string, text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 1)
    throw new Error(`--${name}: expected a whole number from 1, got '${text}'`);
  return value;
}

/** Values of `--dtype` that our command line knows, by its own help. */
function ownDtypes(node: string): string[] {
  const help = execFileSync(node, ['scripts/manyfold.mjs', 'serve', '--help'], { encoding: 'utf8' });
  return /--dtype ([\w|]+)/.exec(help)?.[1]?.split('|') ?? [];
}

/** A system of ours whose weights this build does not know is not started: its rows say so. */
function notBuilt({ system }: SessionPlan, dtypes: readonly string[], pass: number): SessionResult | undefined {
  if (system.product !== 'manyfold' || dtypes.includes(OWN_DTYPE[system.weights])) return undefined;
  const failure = `not built: --dtype ${OWN_DTYPE[system.weights]}`;
  return { system: nameOf(system), pass, startSeconds: null, rssMiB: null, samples: [], failure };
}

async function runPasses(rows: readonly Row[], passes: number, options: Omit<SessionOptions, 'pass'>) {
  const dtypes = ownDtypes(options.place.node);
  const sessions = sessionsOf(rows);
  const results: SessionResult[] = [];
  for (let pass = 0; pass < passes; pass++) {
    for (const plan of pass % 2 === 0 ? sessions : [...sessions].reverse()) {
      const from = systemClock.nowMs();
      const result = notBuilt(plan, dtypes, pass) ?? (await runSession(plan, { ...options, pass }));
      const seconds = ((systemClock.nowMs() - from) / 1000).toFixed(0);
      const figures = result.samples.map(({ load, tokensPerSecond }) => `${load}: ${tokensPerSecond.toFixed(1)}`);
      say(`pass ${pass + 1}, ${result.system}, ${seconds} s: ${[...figures, result.failure ?? ''].join('; ')}`);
      results.push(result);
    }
  }
  return results;
}

function versionsOf(peers: string): Record<string, string> {
  const stamp = (name: string): string => {
    const file = path.join(peers, name, 'stamp');
    return existsSync(file) ? readFileSync(file, 'utf8').trim() : 'not installed';
  };
  return Object.fromEntries(PEERS.map((name) => [name, stamp(name)]));
}

function commit(): string {
  const git = (...args: string[]): string => execFileSync('git', args, { encoding: 'utf8' }).trim();
  const isClean = git('status', '--porcelain', '--untracked-files=no') === '';
  return git('rev-parse', '--short', 'HEAD') + (isClean ? '' : ' with changes');
}

/** The first start of all reads files from the disk and is not counted. */
async function measureStarts(place: Place, logs: string, passes: number): Promise<DefaultStart[]> {
  const starts: DefaultStart[] = [];
  for (let i = 0; i <= passes; i++) starts.push(await measureDefaultStart(place, logs));
  say(`default model: ready after ${starts.map(({ seconds }) => seconds.toFixed(2)).join(', ')} s`);
  return starts.slice(1);
}

async function write(shape: string, block: string, raw: object): Promise<void> {
  const name = `peers-${shape}`;
  const page = 'docs/benchmarks/cpu.md';
  await writeFile(page, insertBlock(await readFile(page, 'utf8'), name, block));
  await mkdir('docs/benchmarks/data', { recursive: true });
  await writeFile(`docs/benchmarks/data/${name}.json`, `${JSON.stringify(raw, null, 1)}\n`);
}

async function main(): Promise<void> {
  const shapeName = words('shape', values.shape, Object.keys(SHAPES))[0] as keyof typeof SHAPES;
  const full = SHAPES[shapeName];
  const shape = { ...full, streams: values.streams === undefined ? full.streams : count('streams', values.streams) };
  const selection = {
    groups: words('rows', values.rows, GROUPS),
    products: words('peers', values.peers, PEERS),
    weights: words('weights', values.weights, Object.keys(OWN_DTYPE)),
  };
  const [passes, repeats, threads] = [
    count('passes', values.passes),
    count('repeats', values.repeats),
    count('threads', values.threads),
  ];
  const peers = path.resolve(values.dir);
  const place: Place = { peers, repository: process.cwd(), node: process.execPath, shape, threads };
  const rows = chosenRows(allRows(shape.streams), selection);
  const from = systemClock.nowMs();
  const machine = await measureMachine();
  say(`peak ${machine.gflops} GFLOP/s, int8 ${machine.int8Gops} GOP/s, read ${machine.gbPerSecond} GB/s`);
  const logs = path.join(peers, 'logs');
  const starts = selection.groups.includes('start') ? await measureStarts(place, logs, passes) : [];
  const results = await runPasses(rows, passes, { place, logs, repeats });
  const cpu = cpus()[0]?.model.trim() ?? 'unknown';
  const facts: RunFacts = {
    ...{ model: shape.title, cpu, commit: commit(), threads, passes, repeats, machine },
    versions: versionsOf(peers),
  };
  const block = markdown(rows, results, starts, facts);
  process.stdout.write(`${block}\n`);
  if (values.write) await write(shapeName, block, { facts, starts, results });
  say(`${((systemClock.nowMs() - from) / 60_000).toFixed(1)} minutes`);
}

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.once(signal, () => void stopAll().finally(() => process.exit(code)));
}
await main();
