/**
 * The engine through its port in a process of its own, asked by lines of JSON on stdin (peers/worker.ts). Started by
 * bench/peers.ts beside peers that are measured the same way; alone:
 *
 *   node dist/bench/peers-engine.js [flags of manyfold serve]
 */
import { createInterface } from 'node:readline';
import { compose, type Composition } from '../src/cli/compose.js';
import { fetchModel } from '../src/cli/fetch-model.js';
import { processEnvironment, readTextFile } from '../src/config/environment.js';
import { loadConfig } from '../src/config/load-config.js';
import { systemClock } from '../src/core/clock.js';
import { sequenceId, type AdapterVersion } from '../src/core/ids.js';
import type { SamplingParams } from '../src/core/sampling.js';
import { createLogger } from '../src/telemetry/log.js';
import type { LoadTimes, StreamTimes } from './peers/load.js';
import type { WorkerRequest } from './peers/worker.js';

function greedy(maxTokens: number): SamplingParams {
  return {
    temperature: 0,
    topK: 0,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    frequencyPenalty: 0,
    presencePenalty: 0,
    logitBias: [],
    seed: 0,
    choice: 0,
    maxTokens,
    minTokens: 0,
    ignoreEos: true,
    stopTokenIds: [],
  };
}

const counter = { requests: 0 };

async function stream(
  { engine }: Composition,
  promptIds: readonly number[],
  outputTokens: number,
  adapter: AdapterVersion | undefined,
): Promise<StreamTimes> {
  const at: number[] = [];
  const ids: number[] = [];
  const request = {
    id: sequenceId(`peers-${counter.requests++}`),
    promptIds: [...promptIds],
    emittedIds: [],
    sampling: greedy(outputTokens),
    ...(adapter === undefined ? {} : { adapter }),
  };
  for await (const event of engine.submit(request)) {
    if (event.type === 'failed') throw new Error(event.error.message);
    if (event.type !== 'token') continue;
    at.push(systemClock.nowMs());
    ids.push(event.tokenId);
  }
  return {
    promptTokens: promptIds.length,
    tokens: at.length,
    firstMs: at[0] ?? NaN,
    lastMs: at.at(-1) ?? NaN,
    ids,
  };
}

async function run(composition: Composition, request: WorkerRequest): Promise<LoadTimes> {
  const [first] = composition.registry.list();
  if (request.adapter && first === undefined) throw new Error('started without --adapter NAME=PATH: add one');
  const adapter = request.adapter ? first?.version : undefined;
  const startMs = systemClock.nowMs();
  const streams = await Promise.all(
    request.prompts.map((prompt) => stream(composition, prompt, request.outputTokens, adapter)),
  );
  return { startMs, endMs: systemClock.nowMs(), streams };
}

function answer(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

const config = loadConfig(process.argv.slice(2), processEnvironment(), readTextFile);
const modelPath = await fetchModel(config.model, process.stderr);
const logger = createLogger(config.logging);
const composition = await compose({ config, modelPath, clock: systemClock, logger });
answer({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  try {
    answer(await run(composition, JSON.parse(line) as WorkerRequest));
  } catch (error) {
    answer({ error: error instanceof Error ? error.message : String(error) });
  }
}
await composition.close();
