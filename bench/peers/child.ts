/** A process under measurement: started, watched through /proc, ended by its id. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { processEnvironment } from '../../src/config/environment.js';
import { systemClock } from '../../src/core/clock.js';

export interface Command {
  readonly file: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Where what it prints goes; its stdout too unless it is a worker's. */
  readonly log: string;
}

const STOP_MS = 20_000;
const running = new Set<Child>();

/** When the bench itself is ended: no server may outlive it. */
export async function stopAll(): Promise<void> {
  await Promise.all([...running].map((child) => child.stop()));
}

export class Child {
  readonly process: ChildProcess;
  readonly #log: string;
  #exit: { code: number | null } | undefined;

  constructor({ file, args, env, log }: Command, stdio: 'worker' | 'server') {
    mkdirSync(path.dirname(log), { recursive: true });
    const out = openSync(log, 'w');
    const pipe = stdio === 'worker';
    this.#log = log;
    this.process = spawn(file, args, {
      cwd: path.dirname(log), // Python looks for modules here: nothing lies here but logs.
      env: { ...processEnvironment(), ...env },
      stdio: [pipe ? 'pipe' : 'ignore', pipe ? 'pipe' : out, out],
    });
    closeSync(out);
    running.add(this);
    const end = (code: number | null): void => {
      this.#exit = { code };
      running.delete(this);
    };
    this.process.on('exit', end);
    this.process.on('error', () => end(null));
  }

  /** Throws with the end of its log when it is no longer there. */
  check(): void {
    if (this.#exit === undefined) return;
    const tail = readFileSync(this.#log, 'utf8').trimEnd().split('\n').slice(-5).join('\n');
    throw new Error(`the process ended with ${this.#exit.code}; ${this.#log} ends:\n${tail}`);
  }

  /** Milliseconds until GET `url` answers 200. */
  async ready(url: string, limitMs: number): Promise<number> {
    const started = systemClock.nowMs();
    while (systemClock.nowMs() - started < limitMs) {
      this.check();
      const isReady = await fetch(url).then(
        (response) => response.ok,
        () => false,
      );
      if (isReady) return systemClock.nowMs() - started;
      await sleep(20);
    }
    throw new Error(`not ready after ${limitMs} ms; see ${this.#log}`);
  }

  /** Resolves when it has ended, or after `limitMs`. */
  async ended(limitMs: number): Promise<void> {
    if (this.#exit === undefined) await Promise.race([once(this.process, 'exit'), sleep(limitMs)]);
  }

  async stop(): Promise<void> {
    if (this.#exit !== undefined) return;
    const gone = once(this.process, 'exit');
    const tree = processTree(this.process.pid ?? -1);
    this.process.kill('SIGTERM');
    const timer = setTimeout(() => this.process.kill('SIGKILL'), STOP_MS);
    await gone;
    clearTimeout(timer);
    // A server's own children end with it; one that has lost its parent would disturb every later figure.
    await sleep(500);
    for (const pid of tree.slice(1)) if (isSameChild(pid)) process.kill(pid, 'SIGKILL');
  }

  /** MiB of the process and its children; pages that several share count in each. */
  rssMiB(): number {
    const pids = processTree(this.process.pid ?? -1);
    const kib = pids.map((pid) => Number(/VmRSS:\s+(\d+)/.exec(readProc(pid, 'status'))?.[1] ?? 0));
    return kib.reduce((sum, value) => sum + value, 0) / 1024;
  }

  /** Processor seconds so far, with its children. */
  cpuSeconds(): number {
    return processTree(this.process.pid ?? -1).reduce((sum, pid) => sum + cpuOf(pid), 0);
  }
}

/** All processors' busy seconds since the machine started. */
export function busySeconds(): number {
  const line = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0] ?? '';
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = line.split(/\s+/).slice(1).map(Number);
  return (user + nice + system + irq + softirq) / TICKS;
}

/** Linux's USER_HZ, a constant of its interface. */
const TICKS = 100;

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return ''; // It has ended since.
  }
}

/** Fields of /proc/PID/stat from the state on: the name before may hold anything. */
function statOf(pid: number): string[] {
  const text = readProc(pid, 'stat');
  return text.slice(text.lastIndexOf(')') + 2).split(' ');
}

function cpuOf(pid: number): number {
  const fields = statOf(pid);
  return (Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) / TICKS || 0;
}

function processTree(root: number): number[] {
  const parents = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => [Number(name), Number(statOf(Number(name))[1])] as const);
  const tree = [root];
  for (const pid of tree) tree.push(...parents.filter(([, parent]) => parent === pid).map(([child]) => child));
  return tree;
}

/** Its parent has gone, so init or a reaper holds it; a new process of the same id would have a parent of its own. */
function isSameChild(pid: number): boolean {
  return statOf(pid)[1] === '1';
}
