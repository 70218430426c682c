/**
 * Starts `manyfold serve` as a user would, in a process of its own, and stops it by its id. For tests that cross
 * the process boundary (signals, exit codes, printed text) and for benchmarks over HTTP.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import path from 'node:path';

export interface ServerProcess {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** What it has printed so far, both streams. */
  output(): string;
  /** Sends the signal and resolves to the exit code (null when a signal ended it). */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

/** A port of the loopback that is free now. */
export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('a TCP server has an address object');
  server.close();
  await once(server, 'close');
  return address.port;
}

export interface StartOptions {
  /** Further flags of `manyfold serve`. */
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** Milliseconds to wait for /readyz. */
  readonly readyMs?: number;
}

/** Resolves when /readyz answers 200; rejects with what the process printed when it ends or takes too long. */
export async function startServer(options: StartOptions = {}): Promise<ServerProcess> {
  const port = await freePort();
  const script = path.resolve('scripts/manyfold.mjs');
  const child = spawn(process.execPath, [script, 'serve', '--port', String(port), ...(options.args ?? [])], {
    env: { ...process.env, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (output += text));
  const exit = once(child, 'exit').then(([code]) => code as number | null);
  let ended = false;
  void exit.then(() => (ended = true));
  const stop = async (signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> => {
    if (!ended) child.kill(signal);
    return exit;
  };
  const url = `http://127.0.0.1:${port}`;
  const tries = Math.ceil((options.readyMs ?? 120_000) / 100);
  for (let i = 0; i < tries && !ended; i++) {
    const ready = await fetch(`${url}/readyz`).then(
      (response) => response.status === 200,
      () => false,
    );
    if (ready) return { url, port, pid: child.pid ?? -1, output: () => output, stop };
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  await stop('SIGKILL');
  throw new Error(`the server did not become ready; it printed:\n${output}`);
}
