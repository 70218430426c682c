/** One system from its start to its end: warmed up, asked every load some times, its memory read. */
import { existsSync } from 'node:fs';
import path from 'node:path';
import { systemClock } from '../../src/core/clock.js';
import { freePort } from '../../test/support/server-process.js';
import { busySeconds, Child } from './child.js';
import { answersOf, runOverHttp } from './http-load.js';
import { runLlamaBench } from './llama-bench.js';
import { promptsOf, sampleOf, type Load, type LoadTimes, type Sample } from './load.js';
import { loadKey, type SessionPlan } from './rows.js';
import { nameOf, neededFiles, startOf, type Place, type SystemId } from './systems.js';
import { Worker } from './worker.js';

export interface TakenSample extends Sample {
  readonly load: string;
  /** Processor time of others during the run, in cores: how quiet the machine was. */
  readonly foreignCores: number;
}

export interface SessionResult {
  readonly system: string;
  readonly pass: number;
  /** From the spawn to the first answer that it is ready; null for llama-bench, which loads the model for each test. */
  readonly startSeconds: number | null;
  readonly rssMiB: number | null;
  readonly samples: readonly TakenSample[];
  /** Why there are no figures, or not all. */
  readonly failure: string | null;
}

/** What a running system can be asked. */
interface Running {
  readonly child: Child | undefined;
  readonly startSeconds: number | null;
  run(load: Load, seed: number): Promise<Sample>;
  /** Throws when its adapter changes nothing. */
  checkAdapter(load: Load): Promise<void>;
  stop(): Promise<void>;
}

export interface SessionOptions {
  readonly place: Place;
  readonly logs: string;
  readonly pass: number;
  readonly repeats: number;
}

/** vLLM compiles on its first start. */
const READY_MS = 400_000;
const WARM_TOKENS = 8;

export async function runSession({ system, loads }: SessionPlan, options: SessionOptions): Promise<SessionResult> {
  const { place, pass, repeats } = options;
  const name = nameOf(system);
  const result = { system: name, pass, startSeconds: null, rssMiB: null, samples: [] };
  const missing = neededFiles(system, place).find((file) => !existsSync(file));
  if (missing !== undefined) return { ...result, failure: `not installed: ${path.relative(place.peers, missing)}` };
  const samples: TakenSample[] = [];
  let running: Running | undefined;
  try {
    running = await start(system, options);
    for (const [index, load] of loads.entries()) {
      if (load.adapters !== 'none') await running.checkAdapter(load);
      const warmUp = { ...load, outputTokens: Math.min(load.outputTokens, WARM_TOKENS) };
      await running.run(warmUp, 1000 * pass + 100 * index + 99);
      for (let repeat = 0; repeat < repeats; repeat++) {
        samples.push(await watched(running, load, 1000 * pass + 100 * index + repeat));
      }
    }
    const rssMiB = running.child?.rssMiB() ?? null;
    return { ...result, startSeconds: running.startSeconds, rssMiB, samples, failure: null };
  } catch (error) {
    const failure = error instanceof Error ? error.message : String(error);
    return { ...result, startSeconds: running?.startSeconds ?? null, samples, failure };
  } finally {
    await running?.stop();
  }
}

async function watched(running: Running, load: Load, seed: number): Promise<TakenSample> {
  const own = (): number => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1e6 + (running.child?.cpuSeconds() ?? 0);
  };
  const before = { at: systemClock.nowMs(), own: own(), busy: busySeconds() };
  const sample = await running.run(load, seed);
  const seconds = (systemClock.nowMs() - before.at) / 1000;
  // llama-bench is gone when it has told its figure, so its own time cannot be told from others'.
  const foreign = running.child === undefined ? 0 : busySeconds() - before.busy - (own() - before.own);
  return { ...sample, load: loadKey(load), foreignCores: Math.max(0, foreign) / seconds };
}

async function start(system: SystemId, { place, logs }: SessionOptions): Promise<Running> {
  const log = path.join(logs, `${nameOf(system).replaceAll(/[ ,]+/g, '-')}.log`);
  switch (system.how) {
    case 'tool':
      return tool(system, place);
    case 'process':
      return inProcess(system, place, log);
    case 'http':
      return server(system, place, log);
  }
}

function tool(system: SystemId, place: Place): Running {
  const command = startOf(system, place, 0);
  return {
    child: undefined,
    startSeconds: null,
    run: (load) => runLlamaBench(command, load),
    checkAdapter: () => Promise.reject(new Error('llama-bench is not asked with adapters')),
    stop: () => Promise.resolve(),
  };
}

async function inProcess(system: SystemId, place: Place, log: string): Promise<Running> {
  const from = systemClock.nowMs();
  const worker = new Worker({ ...startOf(system, place, 0), log });
  const times = (load: Load, seed: number): Promise<LoadTimes> => {
    const { outputTokens } = load;
    return worker.run({ prompts: promptsOf(load, seed), outputTokens, adapter: load.adapters !== 'none' });
  };
  try {
    await worker.ready();
  } catch (error) {
    await worker.stop();
    throw error;
  }
  return {
    child: worker.child,
    startSeconds: (systemClock.nowMs() - from) / 1000,
    run: async (load, seed) => sampleOf(load, await times(load, seed)),
    checkAdapter: async () => {
      const short: Load = { streams: 1, promptTokens: 16, outputTokens: 16, adapters: 'one' };
      const [withIt, without] = [await times(short, 1), await times({ ...short, adapters: 'none' }, 1)];
      checkDifferent(withIt.streams[0]?.ids?.join(' '), without.streams[0]?.ids?.join(' '));
    },
    stop: () => worker.stop(),
  };
}

async function server(system: SystemId, place: Place, log: string): Promise<Running> {
  const port = await freePort();
  const command = startOf(system, place, port);
  const url = `http://127.0.0.1:${port}`;
  const child = new Child({ ...command, log }, 'server');
  try {
    const ready = await child.ready(url + (command.health ?? '/'), READY_MS);
    const { product } = system;
    return {
      child,
      startSeconds: ready / 1000,
      run: async (load, seed) => sampleOf(load, await runOverHttp(url, product, load, seed)),
      checkAdapter: async (load) => checkDifferent(...(await answersOf(url, product, load))),
      stop: () => child.stop(),
    };
  } catch (error) {
    await child.stop();
    throw error;
  }
}

function checkDifferent(one: string | undefined, other: string | undefined): void {
  if (one === undefined || one !== other) return;
  throw new Error(`with and without an adapter it says the same (${one}): the adapter is not applied`);
}
