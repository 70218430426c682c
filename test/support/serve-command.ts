/** Runs `manyfold` with arguments that must make it end by itself, as a user sees it. Used by the e2e tests. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';

export interface Ended {
  /** Null when it did not end by itself. */
  readonly code: number | null;
  /** Standard output and standard error as they came. */
  readonly output: string;
}

const LIMIT_MS = 60_000;

export async function runManyfold(args: readonly string[]): Promise<Ended> {
  const child = spawn(process.execPath, [path.resolve('scripts/manyfold.mjs'), ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: LIMIT_MS,
    killSignal: 'SIGKILL',
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, output };
}
