/** How long the default model takes to start as `npm start` does, downloaded before, and what it then holds. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { freePort } from '../../test/support/server-process.js';
import { Child } from './child.js';
import { runOverHttp } from './http-load.js';
import { median } from './median.js';
import type { Place } from './systems.js';

export interface DefaultStart {
  /** From the spawn of the command to its first readiness. */
  readonly seconds: number;
  /** After one answer. */
  readonly rssMiB: number;
  readonly weightsMiB: number;
  /** The whole pool; pages of it that no request has used yet take no memory. */
  readonly kvMiB: number;
}

const READY_MS = 120_000;
const GOALS = { seconds: 2, restMiB: 150e6 / 2 ** 20 } as const;

export async function measureDefaultStart(place: Place, logs: string): Promise<DefaultStart> {
  const port = await freePort();
  const log = path.join(logs, 'manyfold-default.log');
  const args = [path.join(place.repository, 'scripts/manyfold.mjs'), 'serve', '--port', String(port)];
  const names = ['--served-model-name', 'base', '--threads', String(place.threads)];
  const child = new Child({ file: place.node, args: [...args, ...names], log }, 'server');
  try {
    const url = `http://127.0.0.1:${port}`;
    const ready = await child.ready(`${url}/readyz`, READY_MS);
    await runOverHttp(url, 'manyfold', { streams: 1, promptTokens: 64, outputTokens: 64, adapters: 'none' }, 5);
    return { seconds: ready / 1000, rssMiB: child.rssMiB(), ...parseStartTable(readFileSync(log, 'utf8')) };
  } finally {
    await child.stop();
  }
}

const UNITS: Readonly<Record<string, number>> = { B: 2 ** -20, KiB: 2 ** -10, MiB: 1, GiB: 2 ** 10, TiB: 2 ** 20 };

/** Of the table that `manyfold serve` prints when it is ready: `weights   bf16, 257 MiB`, `KV pool   46592 tokens, 1.00 GiB`. */
export function parseStartTable(text: string): { weightsMiB: number; kvMiB: number } {
  const size = (label: string): number => {
    const [, value, unit] = new RegExp(`^  ${label} .*?, ([\\d.]+) ([KMGT]?i?B)\\b`, 'm').exec(text) ?? [];
    const factor = UNITS[unit ?? ''];
    if (value === undefined || factor === undefined)
      throw new Error(`the start table has no size of '${label}':\n${text}`);
    return Number(value) * factor;
  };
  return { weightsMiB: size('weights'), kvMiB: size('KV pool') };
}

/** Lines for the page; empty when it was not measured. */
export function startText(starts: readonly DefaultStart[]): string[] {
  const [first] = starts;
  if (first === undefined) return [];
  const { weightsMiB, kvMiB } = first;
  const seconds = median(starts.map((start) => start.seconds));
  const rss = median(starts.map(({ rssMiB }) => rssMiB));
  const limit = weightsMiB + kvMiB + GOALS.restMiB;
  const mark = (isMet: boolean): string => (isMet ? 'met' : 'not met');
  return [
    '',
    `Default model, started ${starts.length} times as \`npm start\` does: ready after ${seconds.toFixed(2)} s ` +
      `(goal ≤ ${GOALS.seconds} s: ${mark(seconds <= GOALS.seconds)}); RSS after one answer ${rss.toFixed(0)} MiB, ` +
      `weights ${weightsMiB.toFixed(0)} MiB and a KV pool of ${kvMiB.toFixed(0)} MiB, of which unused pages take nothing ` +
      `(goal ≤ ${limit.toFixed(0)} MiB: ${mark(rss <= limit)}; beside the weights: ${(rss - weightsMiB).toFixed(0)} MiB).`,
  ];
}
