/**
 * Fuzzes the parsers of files that strangers may send: GGUF, safetensors and config.json. Every input must parse or
 * throw a ManyfoldError, quickly and in little memory. Run as
 * `node dist/test/fuzz/containers.js --seconds 60 --seed 1`; exit code 1 means a find, printed in base64.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import { parseGguf } from '../../src/checkpoint/gguf.js';
import { readGgufConfig } from '../../src/checkpoint/gguf-config.js';
import { readHuggingFaceConfig } from '../../src/checkpoint/huggingface-config.js';
import { ADAPTER_LIMITS, parseSafetensorsHeader, WEIGHT_LIMITS } from '../../src/checkpoint/safetensors.js';
import { decodeUtf8, isJsonObject, parseJsonStrict } from '../../src/checkpoint/strict-json.js';
import {
  bool,
  float32,
  ggufBytes,
  safetensorsFile,
  text,
  texts,
  uint32,
} from '../../src/checkpoint/testing/container-bytes.js';
import type { TestValue } from '../../src/checkpoint/testing/container-bytes.js';
import { systemClock } from '../../src/core/clock.js';
import type { Clock } from '../../src/core/clock.js';
import { ManyfoldError } from '../../src/core/errors.js';
import { mutate, pickFrom, seededRandom } from './mutate.js';

const MAX_MS = 250;
const MAX_GROWTH_BYTES = 512 << 20;
/** How often memory is looked at; looking costs more than a parse. */
const MEMORY_EVERY = 256;
const EXPECTED_CODES: ReadonlySet<string> = new Set(['invalid_model', 'invalid_adapter']);

interface Target {
  readonly name: string;
  readonly seeds: readonly [Uint8Array, ...Uint8Array[]];
  run(bytes: Uint8Array): void;
}

const gguf: Target = {
  name: 'gguf',
  seeds: [ggufSeed('llama'), ggufSeed('gemma3'), ggufBytes({})],
  run(bytes) {
    const { metadata } = parseGguf(bytes, bytes.length);
    readGgufConfig(metadata, { vocabSize: 2, hasHead: false, biases: new Set(), ropeFactors: undefined });
  },
};

const safetensors: Target = {
  name: 'safetensors',
  seeds: [
    safetensorsFile([
      { name: 'a', dtype: 'F32', shape: [2, 3] },
      { name: 'b', dtype: 'BF16', shape: [] },
      { name: 'c', dtype: 'U8', shape: [0] },
    ]),
    safetensorsFile([{ name: 'layers.0.lora_A.weight', dtype: 'F16', shape: [4, 8] }], { format: 'pt' }),
  ],
  run(bytes) {
    for (const limits of [WEIGHT_LIMITS, ADAPTER_LIMITS]) parseSafetensorsHeader(bytes, bytes.length, limits);
  },
};

const config: Target = {
  name: 'config',
  seeds: configSeeds(),
  run(bytes) {
    const value = parseJsonStrict(decodeUtf8(bytes, 'config.json'), { maxDepth: 32, what: 'config.json' });
    if (isJsonObject(value)) readHuggingFaceConfig(value, true);
  },
};

const TARGETS: readonly [Target, ...Target[]] = [gguf, safetensors, config];

function ggufSeed(architecture: string): Uint8Array {
  const keys: readonly (readonly [string, TestValue])[] = [
    ['block_count', uint32(2)],
    ['context_length', uint32(64)],
    ['embedding_length', uint32(8)],
    ['feed_forward_length', uint32(16)],
    ['attention.head_count', uint32(2)],
    ['attention.head_count_kv', { type: 9, of: 4, items: [1, 1] }],
    ['attention.layer_norm_rms_epsilon', float32(1e-5)],
    ['attention.sliding_window', uint32(4)],
    ['rope.freq_base', float32(10_000)],
    ['rope.scaling.type', text('linear')],
    ['rope.scaling.factor', float32(2)],
  ];
  return ggufBytes({
    metadata: [
      ['general.architecture', text(architecture)],
      ...keys.map(([key, value]) => [`${architecture}.${key}`, value] as const),
      ['tokenizer.ggml.tokens', texts(['a', 'é'])],
      ['tokenizer.ggml.add_bos_token', bool(true)],
      ['nested', { type: 9, of: 9, items: [texts(['x']), { type: 9, of: 12, items: [0.5] }] }],
    ],
    tensors: [
      { name: 'token_embd.weight', dims: [8, 2], type: 0, offset: 0 },
      { name: 'blk.0.attn_q.weight', dims: [32, 2], type: 8, offset: 64 },
    ],
    data: Buffer.alloc(160),
  });
}

function configSeeds(): readonly [Uint8Array, ...Uint8Array[]] {
  const hub = JSON.parse(readFileSync('src/checkpoint/testing/hub-configs.json', 'utf8')) as Record<string, unknown>;
  const seeds = Object.values(hub).map((value) => Buffer.from(JSON.stringify(value)));
  return [Buffer.from('{"model_type":"llama"}'), ...seeds];
}

export interface FuzzReport {
  readonly executions: number;
  /** Distinct outcomes: each target's "parsed", and messages without their numbers and names. */
  readonly outcomes: number;
  /** What broke a rule first; undefined when nothing did. */
  readonly find: string | undefined;
}

/** Runs until the time or the number of executions is used up, or something breaks a rule. */
export function fuzz(options: { clock: Clock; seed: number; seconds: number; maxExecutions?: number }): FuzzReport {
  const { clock, seed, seconds, maxExecutions = Infinity } = options;
  const random = seededRandom(seed);
  const outcomes = new Set<string>();
  const end = clock.nowMs() + 1000 * seconds;
  const firstBytes = process.memoryUsage.rss();
  let executions = 0;
  while (executions < maxExecutions && clock.nowMs() < end) {
    const target = pickFrom(random, TARGETS);
    const input = mutate(pickFrom(random, target.seeds), pickFrom(random, target.seeds), random);
    const outcome = execute(target, input, clock);
    executions += 1;
    const growth = executions % MEMORY_EVERY === 0 ? process.memoryUsage.rss() - firstBytes : 0;
    const broken = outcome.broken ?? (growth > MAX_GROWTH_BYTES ? `memory grew by ${growth} bytes` : undefined);
    outcomes.add(`${target.name}: ${outcome.what}`);
    if (broken !== undefined) {
      const find = `${target.name}: ${broken}\ninput ${Buffer.from(input).toString('base64')}`;
      return { executions, outcomes: outcomes.size, find };
    }
  }
  return { executions, outcomes: outcomes.size, find: undefined };
}

interface Outcome {
  readonly what: string;
  readonly broken?: string;
}

function execute(target: Target, input: Uint8Array, clock: Clock): Outcome {
  const [outcome, ms] = timed(target, input, clock);
  if (ms <= MAX_MS || outcome.broken !== undefined) return outcome;
  // Another process may have had the core; only an input that is slow again is a find.
  const again = Math.min(timed(target, input, clock)[1], timed(target, input, clock)[1]);
  return again <= MAX_MS
    ? outcome
    : { ...outcome, broken: `took ${Math.round(again)} ms, at most ${MAX_MS} are allowed` };
}

function timed(target: Target, input: Uint8Array, clock: Clock): [Outcome, number] {
  const start = clock.nowMs();
  let outcome: Outcome = { what: 'parsed' };
  try {
    target.run(input);
  } catch (error) {
    outcome = judge(error);
  }
  return [outcome, clock.nowMs() - start];
}

function judge(error: unknown): Outcome {
  if (error instanceof ManyfoldError && EXPECTED_CODES.has(error.code)) {
    return {
      what: error.message
        .replaceAll(/"(?:[^"\\]|\\.)*"?/g, '""')
        .replaceAll(/[0-9]+/g, '0')
        .slice(0, 60),
    };
  }
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { what: 'broken', broken: `threw ${stack}` };
}

function main(): void {
  const { values } = parseArgs({
    options: { seconds: { type: 'string', default: '60' }, seed: { type: 'string', default: '1' } },
  });
  const { executions, outcomes, find } = fuzz({
    clock: systemClock,
    seconds: Number(values.seconds),
    seed: Number(values.seed),
  });
  process.stdout.write(`${executions} executions, ${outcomes} distinct outcomes, seed ${values.seed}\n`);
  if (find === undefined) return;
  process.stdout.write(`${find}\n`);
  process.exitCode = 1;
}

if (process.argv[1] !== undefined && path.resolve(process.argv[1]) === fileURLToPath(import.meta.url)) main();
