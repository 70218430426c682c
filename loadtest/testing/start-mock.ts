/** Starts the mock server in a process of its own. Called by tests and by bench/loadtest.ts. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { request } from 'undici';
import type { MockEntry, MockOptions } from './mock-options.js';

export interface MockServer {
  readonly url: string;
  readonly pid: number;
  /** What it saw and did so far. */
  log(): Promise<readonly MockEntry[]>;
  stop(): Promise<void>;
}

const PROGRAM = fileURLToPath(new URL('./mock-server.js', import.meta.url));

/** `cpu`: the core that the mock is bound to (Linux, by taskset). */
export async function startMock(options: MockOptions, { cpu }: { cpu?: number } = {}): Promise<MockServer> {
  const command = [process.execPath, PROGRAM, JSON.stringify(options)];
  const [program = '', ...words] = cpu === undefined ? command : ['taskset', '-c', String(cpu), ...command];
  const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout });
  const [line] = (await once(lines, 'line')) as [string];
  const { port } = JSON.parse(line) as { port: number };
  const url = `http://127.0.0.1:${port}`;
  return {
    url,
    pid: child.pid as number,
    log: async () => {
      const { body } = await request(`${url}/mock/log`);
      return (await body.json()) as readonly MockEntry[];
    },
    stop: async () => {
      if (child.exitCode !== null || child.signalCode !== null) return;
      const exited = once(child, 'exit');
      child.kill('SIGKILL');
      await exited;
    },
  };
}

/** What must be added to a time of this process's performance.now() to get one of the mock's clock. */
export function monotonicOffsetMs(nowMs: () => number): number {
  // The closest of several pairs: between the two reads the process may be put aside.
  let best = { width: Infinity, offset: 0 };
  for (let tries = 0; tries < 50; tries++) {
    const before = nowMs();
    const other = Number(process.hrtime.bigint()) / 1e6;
    const after = nowMs();
    if (after - before < best.width) best = { width: after - before, offset: other - (before + after) / 2 };
  }
  return best.offset;
}
