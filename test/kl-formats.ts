/**
 * What each format of weights costs: the mean KL divergence of the default model's next-token distributions, float32
 * against bf16, bf16 with int8 keys and values, int8 and q4, over committed text of this repository in windows of 512
 * tokens. Prints the figures, ends with 1 when one is above its limit. Run by CI:
 * `node dist/test/kl-formats.js [TOKENS] [FORMAT ...]` (not part of `npm test`: it takes minutes).
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { createTokenizer } from '../src/text/tokenizer.js';
import { defaultModelPath } from './support/default-model.js';
import { openTestEngine, type TestEngine, type TestEngineOptions } from './support/engine.js';
import { buildPlan, PagePool, TestSequence } from './support/plan.js';
import { shuffledCheckpoint } from './support/shuffled-model.js';

/**
 * Limits of the mean. int8: twice what 8-bit blocks of 32 weights and inputs (Q8_0) lose on this text, 6.6e-3
 * (docs/benchmarks/cpu.md). q4: twice what the 4-bit file loses with inputs and head in Q8_0, 3.7e-3. q4-rounded: what Q4_0
 * loses on the same shuffled model.
 * bf16-kv8: bf16 weights over an int8 KV pool.
 */
const LIMITS = { bf16: 0.005, 'bf16-kv8': 0.005, int8: 0.0132, q4: 0.0074, 'q4-rounded': 0.41 } as const;
type Format = keyof typeof LIMITS;
const DEFAULT_TOKENS = 20_480;
const WINDOW = 512;
const CHUNK = 64;

/** The licence, then Markdown, then sources, each in the order of their names. */
function committedText(): string {
  const root = process.cwd();
  const below = (folder: string, end: string): string[] =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith(end))
      .sort()
      .map((name) => path.join(folder, name));
  const files = ['LICENSE', ...below('docs', '.md'), ...below('src', '.ts')];
  return files.map((name) => readFileSync(path.join(root, name), 'utf8')).join('\n');
}

/** Raw logits of the next CHUNK tokens of the window, row after row. */
async function nextLogits(test: TestEngine, sequence: TestSequence, pool: PagePool): Promise<Float32Array> {
  const plan = buildPlan([{ sequence, count: CHUNK, entries: 'raw' }], pool, test.pageTokens);
  return (await test.engine.step(plan)).rawLogits;
}

/** Σ p (log p - log q) of two rows of logits. */
function divergence(p: Float32Array, q: Float32Array): number {
  const [maxP, sumP] = sumOfExponentials(p);
  const [maxQ, sumQ] = sumOfExponentials(q);
  const shift = maxQ + Math.log(sumQ) - maxP - Math.log(sumP);
  let total = 0;
  for (let i = 0; i < p.length; i++) {
    const a = p[i] ?? 0;
    total += Math.exp(a - maxP) * (a - (q[i] ?? 0) + shift);
  }
  return total / sumP;
}

function sumOfExponentials(values: Float32Array): [max: number, sum: number] {
  let max = -Infinity;
  for (const value of values) max = Math.max(max, value);
  let sum = 0;
  for (const value of values) sum += Math.exp(value - max);
  return [max, sum];
}

/** One format, with what has been gathered of it. */
interface Case {
  readonly format: Format;
  readonly test: TestEngine;
  sum: number;
  worst: number;
  rows: number;
}

async function addWindow(reference: TestEngine, cases: readonly Case[], tokens: readonly number[]): Promise<void> {
  const vocab = reference.checkpoint.config.vocabSize;
  const engines = [reference, ...cases.map(({ test }) => test)];
  const sides = engines.map((test) => ({ test, sequence: new TestSequence(tokens), pool: new PagePool(test.kvPages) }));
  for (let done = 0; done < tokens.length; done += CHUNK) {
    const [p, ...others] = await Promise.all(sides.map(({ test, sequence, pool }) => nextLogits(test, sequence, pool)));
    for (const [i, one] of cases.entries()) addRows(one, vocab, p, others[i]);
  }
}

function addRows(one: Case, vocab: number, p: Float32Array | undefined, q: Float32Array | undefined): void {
  for (let row = 0; row < CHUNK; row++) {
    const range = [row * vocab, (row + 1) * vocab] as const;
    const kl = p !== undefined && q !== undefined ? divergence(p.subarray(...range), q.subarray(...range)) : NaN;
    one.sum += kl;
    one.worst = Math.max(one.worst, kl);
    one.rows++;
  }
}

function isFormat(name: string): name is Format {
  return name in LIMITS;
}

/** 'q4-rounded' is the model in bf16, its channels shuffled, rounded to 4 bits by the engine. */
async function openFormat(reference: TestEngine, format: Format, size: TestEngineOptions): Promise<TestEngine> {
  if (format === 'bf16-kv8') {
    return openTestEngine(reference.checkpoint, { ...size, dtype: 'bf16', kvCacheDtype: 'int8' });
  }
  if (format !== 'q4-rounded') return openTestEngine(reference.checkpoint, { ...size, dtype: format });
  const folder = mkdtempSync(path.join(tmpdir(), 'manyfold-kl-'));
  try {
    const shuffled = shuffledCheckpoint(reference, path.join(folder, 'weights'));
    return await openTestEngine(shuffled, { ...size, dtype: 'q4' });
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function report({ format, test, sum, worst, rows }: Case): void {
  const mean = sum / rows;
  const limit = LIMITS[format];
  process.stdout.write(
    `KL(float32 || ${format}) of ${path.basename(test.checkpoint.path)} over ${rows} tokens: ` +
      `mean ${mean.toExponential(3)}, largest ${worst.toExponential(3)}; ` +
      `${mean <= limit ? 'within' : 'ABOVE'} the limit of ${limit} for the mean\n`,
  );
  if (!(mean <= limit)) process.exitCode = 1;
}

async function main(): Promise<void> {
  const [count, ...names] = process.argv.slice(2);
  const wanted = Math.max(WINDOW, Number(count ?? DEFAULT_TOKENS));
  const formats = names.length > 0 ? names.filter(isFormat) : Object.keys(LIMITS).filter(isFormat);
  if (formats.length < names.length) throw new Error(`expected formats of ${Object.keys(LIMITS).join(', ')}`);
  const checkpoint = await openCheckpoint(await defaultModelPath());
  const tokenizer = await createTokenizer(checkpoint.text);
  const windows = Math.ceil(wanted / WINDOW);
  // A token is at least a byte, and seldom more than eight.
  const text = committedText().slice(0, windows * WINDOW * 8);
  const ids = await tokenizer.encode(text, { addSpecialTokens: false });
  if (ids.length < windows * WINDOW) throw new Error(`the text has ${ids.length} tokens only; name fewer`);
  const size = { kvPages: Math.ceil(WINDOW / 16), maxRows: CHUNK, threads: 0 };
  const reference = await openTestEngine(checkpoint, { ...size, dtype: 'f32' });
  const cases: Case[] = [];
  for (const format of formats) {
    cases.push({ format, test: await openFormat(reference, format, size), sum: 0, worst: 0, rows: 0 });
  }
  for (let i = 0; i < windows; i++) await addWindow(reference, cases, ids.slice(i * WINDOW, (i + 1) * WINDOW));
  for (const { engine } of [reference, ...cases.map(({ test }) => test)]) engine.dispose();
  cases.forEach(report);
}

await main();
