/**
 * The whole server in this process: composed and listening as `manyfold serve` does it, with the engine in reach, so
 * that tests ask over HTTP and then count what is left inside. Used by the e2e tests.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import OpenAI from 'openai';
import { compose, type Composition } from '../../src/cli/compose.js';
import { loadConfig } from '../../src/config/load-config.js';
import { systemClock } from '../../src/core/clock.js';
import { listen, type RunningServer } from '../../src/server/listen.js';
import { createLogger } from '../../src/telemetry/log.js';
import { StepGate } from './step-gate.js';

export interface Stack {
  readonly url: string;
  readonly composition: Composition;
  readonly server: RunningServer;
  readonly client: OpenAI;
  readonly gate: StepGate;
  /** Log lines of level warn and above. */
  readonly warnings: readonly string[];
  /** Ends what runs, closes the server, frees the engine. Idempotent. */
  stop(): Promise<void>;
}

/** `args` are those of `manyfold serve`. */
export async function startStack(modelPath: string, args: readonly string[] = []): Promise<Stack> {
  const config = loadConfig([modelPath, ...args], {}, (path) => readFileSync(path, 'utf8'));
  const warnings: string[] = [];
  const logger = createLogger({ level: 'warn', destination: { write: (line) => void warnings.push(line) } });
  const composition = await compose({ config, modelPath, clock: systemClock, logger });
  const gate = new StepGate(composition.native);
  const { host } = config.server;
  const server = await listen(composition.app, composition.service.lifecycle, { host, port: 0 });
  let stopped: Promise<void> | undefined;
  const stop = async (): Promise<void> => {
    gate.open();
    await server.drain(0);
    await composition.close();
  };
  return {
    url: server.url,
    composition,
    server,
    client: openaiClient(server.url),
    gate,
    warnings,
    stop: () => (stopped ??= stop()),
  };
}

/** The official client. No connection outlives its answer, so that what is open at the end is a leak. */
export function openaiClient(url: string, apiKey = 'unused'): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, defaultHeaders: { connection: 'close' } });
}

/** Lets the event loop turn until the condition holds; fails after some ten seconds. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (let i = 0; !condition(); i++) {
    if (i === 5000) assert.fail(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** Waits until nothing runs, then counts: every page, lease and term set is where it belongs. */
export async function assertIdle({ composition: { engine, native, registry, service } }: Stack): Promise<void> {
  await until(() => service.lifecycle.active === 0, 'no request is held');
  await until(() => engine.stats().running === 0 && engine.stats().waiting === 0, 'no sequence runs or waits');
  const { freePages, kvUsage, residentAdapters } = engine.stats();
  assert.equal(freePages, engine.info.kvPages, 'every KV page is free');
  assert.equal(kvUsage, 0);
  for (const { version, leases } of residentAdapters) assert.equal(leases, 0, `leases of ${version}`);
  const listed = [...new Set(registry.list().map(({ version }) => version))].sort();
  assert.deepEqual(residentAdapters.map(({ version }) => version).sort(), listed, 'resident is what is listed');
  assert.equal(native.info().termSets, listed.length, 'the backend holds the term sets of what is listed');
}

/** The value of a metric; `label` picks one of several series, written as /metrics writes it. */
export async function metric({ url }: Stack, name: string, label = ''): Promise<number> {
  const text = await (await fetch(`${url}/metrics`, { headers: { connection: 'close' } })).text();
  const line = text.split('\n').find((candidate) => candidate.startsWith(`${name}{`) && candidate.includes(label));
  assert.ok(line !== undefined, `/metrics has ${name} ${label}`);
  return Number(line.slice(line.lastIndexOf(' ') + 1));
}
