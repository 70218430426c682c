/**
 * The same trace against ours and against llama-server, one server after the other on this machine: 8 LoRAs of rank 16 of
 * one bf16 base after Zipf's law, at the trace's speed and at three times it. Writes a report of each run and a comparison
 * of each pair. The peer, the model and the adapters are made by `tools/peers/install.sh llama.cpp model`.
 *
 *   node dist/bench/loadtest-peer.js --peer .cache/peers --out docs/benchmarks/loadtest
 */
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { cpus, loadavg } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { request } from 'undici';
import { systemClock } from '../src/core/clock.js';

const { values } = parseArgs({
  options: {
    peer: { type: 'string', default: '.cache/peers' },
    out: { type: 'string', default: 'docs/benchmarks/loadtest' },
    threads: { type: 'string', default: String(cpus().length) },
  },
});
const ADAPTERS = Array.from({ length: 8 }, (_, index) => `l0${index}`);
const RUNS = [
  { name: 'peer', folder: 'steady' },
  { name: 'peer-fast', folder: 'fast' },
] as const;
const CLI = 'scripts/manyfold.mjs';
/** Requests that either server works on at once; as many as the trace ever has open. */
const SLOTS = 32;
const READY_MS = 60_000;

/** Both read the same file. */
const MODEL = join(values.peer, 'gguf', 'smol-bf16.gguf');

interface Contestant {
  readonly name: 'ours' | 'llama-server';
  readonly dialect: 'manyfold' | 'llama-server';
  readonly command: (port: number) => readonly string[];
}

const file = (...parts: readonly string[]): string => join(values.peer, ...parts);

const CONTESTANTS: readonly Contestant[] = [
  {
    name: 'ours',
    dialect: 'manyfold',
    command: (port) => [
      ...[process.execPath, CLI, 'serve', '--model', MODEL, '--dtype', 'bf16', '--port', String(port)],
      ...['--threads', values.threads, '--max-num-seqs', String(SLOTS)],
      ...ADAPTERS.flatMap((name) => ['--adapter', `${name}=${file('smol', 'loras', name)}`]),
    ],
  },
  {
    name: 'llama-server',
    dialect: 'llama-server',
    // -kvu: without it only neighbouring slots share a batch, even for one adapter.
    command: (port) => [
      ...[file('llama.cpp', 'bin', 'llama-server'), '-m', MODEL, '--port', String(port)],
      ...['-t', values.threads, '-tb', values.threads, '-np', String(SLOTS), '-c', String(512 * SLOTS), '-kvu'],
      ...['--cache-ram', '0', '--metrics', '--lora-init-without-apply'],
      ...['--lora', ADAPTERS.map((name) => file('gguf', `${name}.gguf`)).join(',')],
    ],
  },
];

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function isReady(url: string): Promise<boolean> {
  try {
    const { statusCode, body } = await request(`${url}/health`, { signal: AbortSignal.timeout(2000) });
    await body.dump();
    return statusCode === 200;
  } catch {
    return false; // Not listening yet.
  }
}

async function start({ name, command }: Contestant, port: number): Promise<ChildProcess> {
  const [program = '', ...words] = command(port);
  say(`$ ${[program === process.execPath ? 'node' : program, ...words].join(' ')}`);
  const child = spawn(program, words, { stdio: ['ignore', 'ignore', 'pipe'] });
  let tail = '';
  child.stderr.on('data', (chunk: Buffer) => (tail = (tail + chunk.toString()).slice(-2000)));
  const deadline = systemClock.nowMs() + READY_MS;
  while (!(await isReady(`http://127.0.0.1:${port}`))) {
    if (child.exitCode !== null || systemClock.nowMs() > deadline) {
      child.kill('SIGKILL');
      throw new Error(`${name} ended, or was not ready after ${READY_MS / 1000} s. Its last words:\n${tail}`);
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGTERM');
  const hard = setTimeout(() => child.kill('SIGKILL'), 10_000);
  await exited;
  clearTimeout(hard);
}

/** Exit code 1 says that the run is not valid, which is news and no failure of this program. */
async function manyfold(...words: readonly string[]): Promise<void> {
  say(`$ npx manyfold ${words.join(' ')}`);
  const child = spawn(process.execPath, [CLI, ...words], { stdio: ['ignore', 'inherit', 'inherit'] });
  const [code] = (await once(child, 'exit')) as [number | null];
  if (code !== 0 && code !== 1) throw new Error(`manyfold ${words[0] ?? ''} ended with ${code ?? 'a signal'}`);
}

function checkFiles(): void {
  const wanted = [file('llama.cpp', 'bin', 'llama-server'), MODEL, file('smol', 'loras'), file('gguf', 'l07.gguf')];
  const missing = wanted.filter((path) => !existsSync(path));
  if (missing.length === 0) return;
  process.stderr.write(
    `${missing.join(', ')} not found. Run tools/peers/install.sh llama.cpp model, or give --peer.\n`,
  );
  process.exit(2);
}

checkFiles();
say(`${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} threads, load average before ${loadavg()[0]?.toFixed(2)}`);
for (const contestant of CONTESTANTS) {
  // A fresh server for each run: a peer that was overrun still works on what was cancelled.
  for (const { name, folder } of RUNS) {
    const port = await freePort();
    const child = await start(contestant, port);
    try {
      const out = join(values.out, folder, contestant.name);
      const url = `http://127.0.0.1:${port}`;
      const flags = ['--url', url, '--dialect', contestant.dialect, '--out', out, '--json', '--html', '--quiet'];
      await manyfold('bench', `loadtest/scenarios/${name}.yaml`, ...flags);
      await rm(join(out, 'trace.jsonl'), { force: true }); // The scenario's, and it stands in the report.
    } finally {
      await stop(child);
    }
  }
}
for (const { folder } of RUNS) {
  const [peer, ours] = ['llama-server', 'ours'].map((name) => join(values.out, folder, name));
  await manyfold('bench', 'compare', peer ?? '', ours ?? '', '--out', join(values.out, folder), '--json', '--html');
}
say(`load average after ${loadavg()[0]?.toFixed(2)}`);
