/**
 * Speed of the engine in this process, through its port, as a server runs it: prompts of 512 tokens, decode at several
 * batch sizes, base and with a different LoRA on every stream; beside the machine's own bound, measured in the same run.
 *
 *   node dist/bench/engine.js [--runs 5] [--out FILE.md] [-- flags of manyfold serve]
 *
 * The cases are interleaved and repeated; medians and the spread are printed as a Markdown table.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { cpus, tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { compose, type Composition } from '../src/cli/compose.js';
import { fetchModel } from '../src/cli/fetch-model.js';
import { loadConfig } from '../src/config/load-config.js';
import { processEnvironment, readTextFile } from '../src/config/environment.js';
import { systemClock } from '../src/core/clock.js';
import { sequenceId, type AdapterVersion } from '../src/core/ids.js';
import { linearShape, type ModelConfig, type SiteName } from '../src/core/model-config.js';
import type { SamplingParams } from '../src/core/sampling.js';
import { createLogger } from '../src/telemetry/log.js';
import { ALL_LINEARS, writeRandomLora } from '../test/support/random-lora.js';
import { measureMachine, type MachineBound } from './machine.js';

const ADAPTERS = 16;
const RANK = 16;
const PROMPT = 512;
const GENERATED = 64;
const BATCHES = [1, 4, 16, 32] as const;

interface Case {
  readonly label: string;
  /** Tokens per second of one run. */
  readonly run: () => Promise<number>;
  /** What the machine's peak and bandwidth allow, in tokens per second; undefined where adapters take part. */
  readonly bound: number | undefined;
}

const { values } = parseArgs({
  options: { runs: { type: 'string', default: '5' }, out: { type: 'string' } },
  args: process.argv.slice(2, splitAt()),
});

function splitAt(): number {
  const at = process.argv.indexOf('--', 2);
  return at < 0 ? process.argv.length : at;
}

async function main(runs: number, out: string | undefined): Promise<void> {
  const machine = await measureMachine();
  const folder = await mkdtemp(path.join(tmpdir(), 'manyfold-bench-'));
  const own = process.argv.slice(splitAt() + 1);
  const dtype = own.includes('--dtype') ? [] : ['--dtype', 'bf16'];
  const flags = ['--max-num-seqs', '32', ...dtype, '--log-level', 'error', ...own];
  const config = loadConfig(flags, processEnvironment(), readTextFile);
  const modelPath = await fetchModel(config.model, process.stderr);
  const composition = await compose({ config, modelPath, clock: systemClock, logger: createLogger(config.logging) });
  try {
    const versions = await loadAdapters(composition, folder);
    const cases = makeCases(composition, versions, weightBound(composition.engine.info.dtype, machine));
    const results = await measure(cases, runs);
    const report = markdown(composition, machine, cases, results, runs);
    process.stdout.write(report);
    if (out !== undefined) await writeFile(out, report);
  } finally {
    await composition.close();
    await rm(folder, { recursive: true, force: true });
  }
}

async function loadAdapters(composition: Composition, folder: string): Promise<AdapterVersion[]> {
  const { registry, service, checkpoint } = composition;
  const versions: AdapterVersion[] = [];
  for (let i = 0; i < ADAPTERS; i++) {
    const directory = path.join(folder, `l${i}`);
    await writeRandomLora(directory, checkpoint.config, { rank: RANK, seed: 1000 + i });
    const found = await registry.inspectAnywhere(registry.checkName(`l${i}`), directory);
    await service.manageAdapters.serve(found);
    versions.push(found.version);
  }
  return versions;
}

/** What bounds products with weights of one type. */
interface WeightBound {
  /** Bytes of a weight. */
  readonly bytes: number;
  readonly gops: number;
  readonly gbPerSecond: number;
}

function weightBound(dtype: string, { gflops, int8Gops, gbPerSecond }: MachineBound): WeightBound {
  if (dtype === 'int8') return { bytes: 1, gops: int8Gops, gbPerSecond };
  // Groups of 32: codes, scale and minimum. Embedding and head take a whole byte, which the bound leaves out.
  if (dtype === 'q4') return { bytes: 20 / 32, gops: int8Gops, gbPerSecond };
  return { bytes: dtype === 'f32' ? 4 : 2, gops: gflops, gbPerSecond };
}

function makeCases(composition: Composition, versions: readonly AdapterVersion[], machine: WeightBound): Case[] {
  const { config } = composition.checkpoint;
  const none = (): undefined => undefined;
  const first = (): AdapterVersion | undefined => versions[0];
  const distinct = (stream: number): AdapterVersion | undefined => versions[stream % versions.length];
  const cases: Case[] = [
    { label: `prefill ${PROMPT}, base`, run: () => prefill(composition, none), bound: prefillBound(config, machine) },
    { label: `prefill ${PROMPT}, one LoRA`, run: () => prefill(composition, first), bound: undefined },
  ];
  for (const batch of BATCHES) {
    const bound = decodeBound(config, machine, batch);
    cases.push({ label: `decode batch ${batch}, base`, run: () => decode(composition, batch, none), bound });
    const kinds = Math.min(batch, ADAPTERS);
    const label = `decode batch ${batch}, ${kinds} distinct LoRA${kinds > 1 ? 's' : ''}`;
    cases.push({ label, run: () => decode(composition, batch, distinct), bound: undefined });
  }
  return cases;
}

async function measure(cases: readonly Case[], runs: number): Promise<number[][]> {
  const results: number[][] = cases.map(() => []);
  for (let run = -1; run < runs; run++) {
    for (const [i, { run: once }] of cases.entries()) {
      const value = await once();
      if (run >= 0) results[i]?.push(value);
    }
  }
  return results;
}

const counter = { requests: 0 };

/** Prompt tokens per second until the first token comes. */
async function prefill(
  composition: Composition,
  adapterOf: (stream: number) => AdapterVersion | undefined,
): Promise<number> {
  const started = systemClock.nowMs();
  await stream(composition, PROMPT, 1, adapterOf(0), () => undefined);
  return (PROMPT * 1000) / (systemClock.nowMs() - started);
}

/** Tokens per second of all streams together, from when each has its first token to when the first one ends. */
async function decode(
  composition: Composition,
  batch: number,
  adapterOf: (stream: number) => AdapterVersion | undefined,
): Promise<number> {
  const stamps: number[][] = Array.from({ length: batch }, () => []);
  await Promise.all(
    stamps.map((times, i) => stream(composition, 16, GENERATED, adapterOf(i), () => times.push(systemClock.nowMs()))),
  );
  const from = Math.max(...stamps.map((times) => times[0] ?? Infinity));
  const to = Math.min(...stamps.map((times) => times.at(-1) ?? -Infinity));
  const tokens = stamps.flat().filter((time) => time > from && time <= to).length;
  return (tokens * 1000) / (to - from);
}

async function stream(
  { engine }: Composition,
  promptTokens: number,
  maxTokens: number,
  adapter: AdapterVersion | undefined,
  onToken: () => void,
): Promise<void> {
  const id = sequenceId(`bench-${counter.requests++}`);
  const promptIds = Array.from(
    { length: promptTokens },
    (_, i) => (300 + 7919 * (i + counter.requests)) % engine.info.vocabSize,
  );
  const request = {
    id,
    promptIds,
    emittedIds: [],
    sampling: greedy(maxTokens),
    ...(adapter === undefined ? {} : { adapter }),
  };
  for await (const event of engine.submit(request)) {
    if (event.type === 'token') onToken();
    if (event.type === 'failed') throw new Error(event.error.message);
  }
}

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

function layerParameters(config: ModelConfig): number {
  const one = (site: SiteName): number => {
    const shape = linearShape(config, site);
    return shape === undefined ? 0 : shape.in * shape.out;
  };
  return config.layers.length * ALL_LINEARS.reduce((sum, site) => sum + one(site), 0);
}

/** A step reads every weight once and multiplies it with each row: the slower of the two is the bound. */
function decodeBound(config: ModelConfig, machine: WeightBound, batch: number): number {
  const parameters = layerParameters(config) + config.vocabSize * config.hiddenSize;
  const seconds = Math.max(
    (machine.bytes * parameters) / (machine.gbPerSecond * 1e9),
    (2 * parameters * batch) / (machine.gops * 1e9),
  );
  return batch / seconds;
}

/** Linears of all layers and causal attention; the head is needed for one row only. */
function prefillBound(config: ModelConfig, machine: WeightBound): number {
  const attention = 2 * config.layers.length * config.numHeads * config.headDim * PROMPT;
  return (machine.gops * 1e9) / (2 * layerParameters(config) + attention);
}

function markdown(
  { engine, checkpoint }: Composition,
  machine: MachineBound,
  cases: readonly Case[],
  results: readonly (readonly number[])[],
  runs: number,
): string {
  const { info } = engine;
  const head = [
    `Machine: ${cpus()[0]?.model.trim() ?? 'unknown'}, ${cpus().length} cores; ${info.isa}, ${info.threads} threads, ${info.dtype} weights.`,
    `Measured in the same run: peak ${machine.gflops.toFixed(0)} GFLOP/s, int8 ${machine.int8Gops.toFixed(0)} GOP/s, read bandwidth ${machine.gbPerSecond.toFixed(1)} GB/s (${machine.threads} threads).`,
    `Model: ${path.basename(checkpoint.path)}; LoRAs rank ${RANK} on all seven linears; ${runs} runs, median [min..max].`,
    '',
    '| case | tokens/s | share of the bound |',
    '|---|---|---|',
  ];
  const rows = cases.map(({ label, bound }, i) => {
    const sorted = [...(results[i] ?? [])].sort((a, b) => a - b);
    const median = sorted[Math.floor(sorted.length / 2)] ?? NaN;
    const spread = `${median.toFixed(0)} [${(sorted[0] ?? NaN).toFixed(0)}..${(sorted.at(-1) ?? NaN).toFixed(0)}]`;
    return `| ${label} | ${spread} | ${bound === undefined ? '' : `${((100 * median) / bound).toFixed(0)} %`} |`;
  });
  return [...head, ...rows, '', ...ratios(cases, results), ''].join('\n');
}

/** What adapters cost: medians with LoRAs over medians without, case by case. */
function ratios(cases: readonly Case[], results: readonly (readonly number[])[]): string[] {
  const median = (i: number): number =>
    [...(results[i] ?? [])].sort((a, b) => a - b)[Math.floor((results[i]?.length ?? 0) / 2)] ?? NaN;
  return cases.flatMap(({ label, bound }, i) =>
    bound === undefined && i > 0 ? [`- ${label}: ${(median(i) / median(i - 1)).toFixed(2)} of the base`] : [],
  );
}

await main(Number(values.runs), values.out);
