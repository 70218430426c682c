/**
 * What bf16 costs: the mean KL divergence of the default model's next-token distributions, float32 against bf16, over
 * committed text of this repository in windows of 512 tokens. Prints the figure, ends with 1 when it is above the limit.
 * Run by CI: `node dist/test/kl-bf16.js [TOKENS]` (not part of `npm test`: it takes minutes).
 */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { createTokenizer } from '../src/text/tokenizer.js';
import { defaultModelPath } from './support/default-model.js';
import { openTestEngine, type TestEngine } from './support/engine.js';
import { buildPlan, PagePool, TestSequence } from './support/plan.js';

const LIMIT = 0.005;
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

interface Total {
  sum: number;
  worst: number;
  rows: number;
}

async function addWindow(
  pair: readonly [TestEngine, TestEngine],
  tokens: readonly number[],
  total: Total,
): Promise<void> {
  const vocab = pair[0].checkpoint.config.vocabSize;
  const sides = pair.map((test) => ({ test, sequence: new TestSequence(tokens), pool: new PagePool(test.kvPages) }));
  for (let done = 0; done < tokens.length; done += CHUNK) {
    const [p, q] = await Promise.all(sides.map(({ test, sequence, pool }) => nextLogits(test, sequence, pool)));
    for (let row = 0; row < CHUNK; row++) {
      const range = [row * vocab, (row + 1) * vocab] as const;
      const kl = p !== undefined && q !== undefined ? divergence(p.subarray(...range), q.subarray(...range)) : NaN;
      total.sum += kl;
      total.worst = Math.max(total.worst, kl);
      total.rows++;
    }
  }
}

async function main(): Promise<void> {
  const wanted = Math.max(WINDOW, Number(process.argv[2] ?? DEFAULT_TOKENS));
  const checkpoint = await openCheckpoint(await defaultModelPath());
  const tokenizer = await createTokenizer(checkpoint.text);
  const windows = Math.ceil(wanted / WINDOW);
  // A token is at least a byte, and seldom more than eight.
  const text = committedText().slice(0, windows * WINDOW * 8);
  const ids = await tokenizer.encode(text, { addSpecialTokens: false });
  if (ids.length < windows * WINDOW) throw new Error(`the text has ${ids.length} tokens only; name fewer`);
  const size = { kvPages: Math.ceil(WINDOW / 16), maxRows: CHUNK, threads: 0 };
  const pair = [
    await openTestEngine(checkpoint, { ...size, dtype: 'f32' }),
    await openTestEngine(checkpoint, { ...size, dtype: 'bf16' }),
  ] as const;
  const total: Total = { sum: 0, worst: 0, rows: 0 };
  for (let i = 0; i < windows; i++) await addWindow(pair, ids.slice(i * WINDOW, (i + 1) * WINDOW), total);
  for (const { engine } of pair) engine.dispose();
  const mean = total.sum / total.rows;
  const verdict = mean <= LIMIT ? 'within' : 'ABOVE';
  process.stdout.write(
    `KL(float32 || bf16) of ${path.basename(checkpoint.path)} over ${total.rows} tokens: mean ${mean.toExponential(3)}, ` +
      `largest ${total.worst.toExponential(3)}; ${verdict} the limit of ${LIMIT} for the mean\n`,
  );
  if (!(mean <= LIMIT)) process.exitCode = 1;
}

await main();
