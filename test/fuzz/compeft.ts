/**
 * Fuzzes the importer of packed ComPEFT adapters. Every payload must compile or be refused as 'invalid_adapter', quickly and
 * within the limit on memory; what compiles has no bit in both planes, and its entries survive being packed again. Run as
 * `node dist/test/fuzz/compeft.js --seconds 60 --seed 1`; exit code 1 means a find, printed in base64.
 */
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual, parseArgs } from 'node:util';

import type { AdapterFolder } from '../../src/adapters/adapter-folder.js';
import { encodePayload, PAYLOAD_TENSOR, readPayload, readStream } from '../../src/adapters/compeft/payload.js';
import type { EntryToPack } from '../../src/adapters/compeft/payload.js';
import type { ImportContext } from '../../src/adapters/importer.js';
import { compeftImporter } from '../../src/adapters/importers/compeft.js';
import { termSetFacts } from '../../src/adapters/native-terms.js';
import { TINY_MODEL } from '../../src/adapters/testing/peft-folder.js';
import { systemClock } from '../../src/core/clock.js';
import type { Clock } from '../../src/core/clock.js';
import { ManyfoldError } from '../../src/core/errors.js';
import type { TermSet, TermTensor } from '../../src/core/terms.js';
import { mutate, pickFrom, seededRandom } from './mutate.js';

const MAX_MS = 250;
const LIMITS = { maxRank: 16, maxBytes: 16 << 20 };
const CONTEXT: ImportContext = {
  model: TINY_MODEL,
  base: { weight: () => new Float32Array(0), bias: () => undefined },
  limits: LIMITS,
};

interface Target {
  readonly config: AdapterFolder['config'];
  readonly seed: Uint8Array;
}

function target(type: string, source: AdapterFolder['config'], entries: readonly EntryToPack[]): Target {
  const config = { peft_type: 'COMPEFT', compeft_version: 1, source_type: type, source };
  return { config, seed: encodePayload(entries) };
}

/** Every third position, every other one of them negative. */
function some(name: string, shape: readonly number[]): EntryToPack {
  const size = shape.reduce((product, dim) => product * dim, 1);
  const positions = Uint32Array.from({ length: Math.ceil(size / 3) }, (_, i) => 3 * i);
  return { name, shape, positions, negative: Uint8Array.from(positions, (_, i) => i % 2), scale: 0.5 };
}

const Q = 'model.layers.0.self_attn.q_proj';
const DOWN = 'model.layers.1.mlp.down_proj';
const TARGETS: readonly [Target, ...Target[]] = [
  target('LORA', { r: 2, lora_alpha: 4 }, [some(`${Q}.lora_A.weight`, [2, 8]), some(`${Q}.lora_B.weight`, [8, 2])]),
  target('IA3', {}, [some(`${Q}.ia3_l`, [8, 1]), some(`${DOWN}.ia3_l`, [1, 12])]),
  target('S2FT', {}, [
    { name: `${DOWN}.s2ft_columns.index`, shape: [9], positions: Uint32Array.of(0, 8) },
    some(`${DOWN}.s2ft_columns.values`, [8, 2]),
  ]),
  target('SFT', {}, [some(`${DOWN}.sft_delta`, [96])]),
];

export interface FuzzReport {
  readonly executions: number;
  /** Distinct outcomes: "compiled", and messages without their numbers and names. */
  readonly outcomes: number;
  /** What broke a rule first; undefined when nothing did. */
  readonly find: string | undefined;
}

/** Runs until the time or the number of executions is used up, or something breaks a rule. */
export async function fuzz(options: {
  clock: Clock;
  seed: number;
  seconds: number;
  maxExecutions?: number;
}): Promise<FuzzReport> {
  const { clock, seed, seconds, maxExecutions = Infinity } = options;
  const random = seededRandom(seed);
  const outcomes = new Set<string>();
  const end = clock.nowMs() + 1000 * seconds;
  let executions = 0;
  while (executions < maxExecutions && clock.nowMs() < end) {
    const { config, seed: bytes } = pickFrom(random, TARGETS);
    const input = mutate(bytes, pickFrom(random, TARGETS).seed, random);
    const { what, broken } = await judged(config, input, clock);
    executions += 1;
    outcomes.add(what);
    if (broken !== undefined) {
      const find = `${JSON.stringify(config)}: ${broken}\ninput ${Buffer.from(input).toString('base64')}`;
      return { executions, outcomes: outcomes.size, find };
    }
  }
  return { executions, outcomes: outcomes.size, find: undefined };
}

interface Outcome {
  readonly what: string;
  readonly broken?: string | undefined;
}

async function judged(config: Target['config'], input: Uint8Array, clock: Clock): Promise<Outcome> {
  const start = clock.nowMs();
  const outcome = await execute(config, input);
  const ms = clock.nowMs() - start;
  if (ms <= MAX_MS || outcome.broken !== undefined) return outcome;
  // Another process may have had the core; only an input that is slow again is a find.
  const again = clock.nowMs();
  await execute(config, input);
  const second = clock.nowMs() - again;
  return second <= MAX_MS ? outcome : { ...outcome, broken: `took ${second} ms, at most ${MAX_MS} are allowed` };
}

async function execute(config: Target['config'], input: Uint8Array): Promise<Outcome> {
  try {
    const { terms } = await compeftImporter.compile(folderOf(config, input), CONTEXT);
    return { what: 'compiled', broken: brokenRule(terms, input) };
  } catch (error) {
    if (error instanceof ManyfoldError && error.code === 'invalid_adapter') {
      const words = error.message.replaceAll(/"(?:[^"\\]|\\.)*"?/g, '""').replaceAll(/[0-9]+/g, '0');
      return { what: words.slice(0, 80) };
    }
    const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { what: 'broken', broken: `threw ${stack}` };
  }
}

function brokenRule(terms: TermSet, input: Uint8Array): string | undefined {
  const { bytes } = termSetFacts(terms);
  if (bytes > LIMITS.maxBytes) return `it compiled to ${bytes} bytes of terms`;
  for (const term of terms.terms) {
    const tensors: TermTensor[] = term.kind === 'lowrank' ? [term.a, term.b] : 'values' in term ? [term.values] : [];
    for (const tensor of tensors) {
      if (tensor.dtype !== 'ternary') return `a ${term.kind} term is ${tensor.dtype}`;
      const { positive, negative } = tensor;
      if (positive.some((word, i) => (word & (negative[i] ?? 0)) !== 0)) return 'a bit is set in both planes';
    }
  }
  const entries = entriesOf(input);
  const again = entriesOf(encodePayload(entries));
  return isDeepStrictEqual(again, entries) ? undefined : 'the entries change when they are packed again';
}

function entriesOf(bytes: Uint8Array): EntryToPack[] {
  const payload = readPayload(bytes);
  return [...readStream(payload)].map((positions, i) => {
    const { name = '', shape = [], scale = 0, kind } = payload.entries[i] ?? {};
    return { name, shape, ...positions, ...(kind === 'index' ? {} : { scale }) };
  });
}

function folderOf(config: Target['config'], bytes: Uint8Array): AdapterFolder {
  const { length } = bytes;
  const tensor = { name: PAYLOAD_TENSOR, dtype: 'U8', shape: [length], offset: 0, byteLength: length } as const;
  return {
    directory: '',
    config,
    tensors: new Map([[PAYLOAD_TENSOR, tensor]]),
    read: () => Promise.resolve(bytes),
    readTexts: () => Promise.reject(new Error('no importer reads texts')),
    close: () => Promise.resolve(),
  };
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { seconds: { type: 'string', default: '60' }, seed: { type: 'string', default: '1' } },
  });
  const { executions, outcomes, find } = await fuzz({
    clock: systemClock,
    seconds: Number(values.seconds),
    seed: Number(values.seed),
  });
  process.stdout.write(`${executions} executions, ${outcomes} distinct outcomes, seed ${values.seed}\n`);
  if (find === undefined) return;
  process.stdout.write(`${find}\n`);
  process.exitCode = 1;
}

if (process.argv[1] !== undefined && path.resolve(process.argv[1]) === fileURLToPath(import.meta.url)) await main();
