/**
 * Opens the native engine on a checkpoint and drives it step by step, without the scheduler. Used by the parity and
 * mixed tests.
 */
import assert from 'node:assert/strict';
import { openAdapterFolder, DEFAULT_ADAPTER_LIMITS } from '../../src/adapters/adapter-folder.js';
import { nativeBaseWeights } from '../../src/adapters/base-weights.js';
import { compileAdapter } from '../../src/adapters/compile-adapter.js';
import { termSetFacts, toNativeTerms } from '../../src/adapters/native-terms.js';
import { adapterVersion } from '../../src/adapters/version.js';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import type { TermSet } from '../../src/core/terms.js';
import type { LoadOptions, NativeEngine } from '../../src/native/binding-types.js';
import { loadNative } from '../../src/native/load-binding.js';
import { toNativeModel } from '../../src/native/native-model.js';
import { buildPlan, PagePool, type LoadedTerms, type StepPart, type TestSequence } from './plan.js';

export interface TestEngineOptions {
  readonly isa?: string;
  readonly threads?: number;
  readonly dtype?: LoadOptions['dtype'];
  readonly kvCacheDtype?: 'auto' | 'int8';
  readonly kvPages?: number;
  readonly maxRows?: number;
}

/** An engine with its pool; `pool` is replaced by tests that want another placement. */
export interface TestEngine {
  readonly engine: NativeEngine;
  readonly checkpoint: Checkpoint;
  readonly pageTokens: number;
  readonly maxRows: number;
  readonly kvPages: number;
}

export async function openTestEngine(checkpoint: Checkpoint, options: TestEngineOptions = {}): Promise<TestEngine> {
  const native = loadNative();
  const kvPages = options.kvPages ?? 256;
  const maxRows = options.maxRows ?? 256;
  const engine = await native.createEngine({
    model: toNativeModel(checkpoint.config),
    files: checkpoint.files,
    weights: checkpoint.weights,
    dtype: options.dtype ?? 'f32',
    kvCacheDtype: options.kvCacheDtype ?? 'auto',
    threads: options.threads ?? 2,
    isa: options.isa ?? 'auto',
    backend: 'cpu',
    kvPages,
    maxRows,
    maxEntries: maxRows,
  });
  return { engine, checkpoint, pageTokens: native.info().pageTokens, maxRows, kvPages };
}

/** The tiers to test: the best one of this machine, and the reference. */
export function testedIsas(): string[] {
  return [...new Set([loadNative().info().isas[0] ?? 'scalar', 'scalar'])];
}

export async function loadTermSet(engine: NativeEngine, set: TermSet): Promise<LoadedTerms> {
  const facts = termSetFacts(set);
  const handle = await engine.loadTerms(toNativeTerms(set));
  return { handle, prefixLength: facts.prefixTokens, gatedPrefix: facts.gatedPrefix };
}

/** An adapter folder through the adapters' own door. */
export async function compileFolder(test: TestEngine, directory: string): Promise<TermSet> {
  const limits = DEFAULT_ADAPTER_LIMITS;
  const baseFingerprint = test.checkpoint.fingerprint;
  const folder = await openAdapterFolder(directory, { limits, keepTensors: true });
  const version = await adapterVersion(folder, baseFingerprint).finally(() => folder.close());
  const compiled = await compileAdapter(
    { version, directory },
    { model: test.checkpoint.config, base: nativeBaseWeights(test.engine), baseFingerprint, limits },
  );
  return compiled.terms;
}

export async function loadAdapterFolder(test: TestEngine, directory: string): Promise<LoadedTerms> {
  return loadTermSet(test.engine, await compileFolder(test, directory));
}

export interface DriveOptions {
  /** Most tokens of one sequence in a step. */
  readonly chunk?: number;
  readonly pool?: PagePool;
  /** Called before each step; may drop sequences. */
  readonly beforeStep?: (step: number, pool: PagePool) => void;
  /** Called after each step with the number of its rows. */
  readonly afterStep?: (rows: number) => void;
}

/**
 * Computes all tokens of the sequences, in mixed steps, and returns the raw logits of every position. A position that is
 * computed a second time (after a drop) must give the same bits.
 */
export async function forcedLogits(
  test: TestEngine,
  sequences: readonly TestSequence[],
  options: DriveOptions = {},
): Promise<Float32Array[][]> {
  const pool = options.pool ?? new PagePool(test.kvPages);
  const logits: Float32Array[][] = sequences.map(() => []);
  for (let step = 0; ; step++) {
    options.beforeStep?.(step, pool);
    const parts = nextParts(sequences, options.chunk ?? 64, test.maxRows);
    if (parts.length === 0) break;
    const starts = parts.map(({ sequence }) => sequence.computed);
    const result = await test.engine.step(buildPlan(parts, pool, test.pageTokens));
    const vocab = test.checkpoint.config.vocabSize;
    let entry = 0;
    parts.forEach(({ sequence, count }, i) => {
      const own = logits[sequences.indexOf(sequence)];
      for (let row = 0; row < count; row++, entry++) {
        keepRow(own ?? [], (starts[i] ?? 0) + row, result.rawLogits.slice(entry * vocab, (entry + 1) * vocab));
      }
    });
    options.afterStep?.(entry);
  }
  for (const sequence of sequences) sequence.drop(pool);
  assert.equal(pool.available, pool.total, 'every page came back');
  return logits;
}

function nextParts(sequences: readonly TestSequence[], chunk: number, maxRows: number): StepPart[] {
  const parts: StepPart[] = [];
  let room = maxRows;
  for (const sequence of sequences) {
    const count = Math.min(chunk, sequence.tokens.length - sequence.computed, room);
    if (count > 0) parts.push({ sequence, count, entries: 'raw' });
    room -= count;
  }
  return parts;
}

function keepRow(rows: Float32Array[], position: number, row: Float32Array): void {
  const before = rows[position];
  if (before !== undefined) assertSameBits(row, before, `position ${position} computed again`);
  rows[position] = row;
}

/** Greedy generation of `count` tokens for all sequences together; prompts are prefilled in chunks. */
export async function generateGreedy(
  test: TestEngine,
  sequences: readonly TestSequence[],
  count: number,
  options: DriveOptions = {},
): Promise<number[][]> {
  const pool = options.pool ?? new PagePool(test.kvPages);
  const made: number[][] = sequences.map(() => []);
  for (;;) {
    const parts = generationParts(sequences, made, count, { chunk: options.chunk ?? 64, maxRows: test.maxRows });
    if (parts.length === 0) break;
    const sampled = parts.filter(({ entries }) => entries === 'sample-last');
    const result = await test.engine.step(buildPlan(parts, pool, test.pageTokens));
    sampled.forEach(({ sequence }, i) => {
      const token = result.tokens[i] ?? -1;
      assert.ok(token >= 0, 'a sampled entry gives a token');
      sequence.tokens.push(token);
      made[sequences.indexOf(sequence)]?.push(token);
    });
  }
  for (const sequence of sequences) sequence.drop(pool);
  return made;
}

function generationParts(
  sequences: readonly TestSequence[],
  made: readonly number[][],
  count: number,
  limits: { chunk: number; maxRows: number },
): StepPart[] {
  const parts: StepPart[] = [];
  let room = limits.maxRows;
  sequences.forEach((sequence, i) => {
    if ((made[i]?.length ?? count) >= count) return;
    const left = sequence.tokens.length - sequence.computed;
    const rows = Math.min(limits.chunk, left, room);
    if (rows <= 0) return;
    parts.push({ sequence, count: rows, entries: rows === left ? 'sample-last' : 'none' });
    room -= rows;
  });
  return parts;
}

/** Both rows hold the same bits. */
export function assertSameBits(found: Float32Array, expected: Float32Array, what: string): void {
  const a = Buffer.from(found.buffer, found.byteOffset, found.byteLength);
  const b = Buffer.from(expected.buffer, expected.byteOffset, expected.byteLength);
  if (a.equals(b)) return;
  const at = found.findIndex((value, i) => !Object.is(value, expected[i]));
  assert.fail(`${what}: bits differ, first at ${at}: ${found[at]} and ${expected[at]}`);
}
