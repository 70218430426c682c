/**
 * Reads the goldens that tools/oracle wrote (form: tools/oracle/logits.py) and measures logits against them. Used by
 * the parity tests.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';

export const GOLDENS = path.join(process.cwd(), 'test', 'goldens');

/** max|Δ| of float32 logits, in units of the row's max|logit|. */
export const LOGIT_TOLERANCE = 1e-4;
/** Greedy tokens may differ where the oracle's best logit leads by less. */
export const MARGIN_TOLERANCE = 1e-4;

export interface GoldenCase {
  /** Name of a folder in the model's `adapters`; null for the base. Absent in the default model's goldens. */
  readonly adapter?: string | null;
  /** Seed of a recipe LoRA, in the default model's goldens only. */
  readonly seed?: number | null;
  readonly text?: string;
  readonly user?: string;
  readonly prompt: readonly number[];
  readonly greedy: readonly number[];
  readonly margins: readonly number[];
  /** Absent where the case has tokens only. */
  readonly stride?: number;
  readonly offset?: number;
}

/** One position: logits of the ids row % stride, row % stride + stride, … */
export interface GoldenRow {
  readonly maxAbs: number;
  readonly logSumExp: number;
  readonly first: number;
  readonly stride: number;
  readonly values: Float64Array;
}

export interface Goldens {
  readonly model: string;
  readonly vocab: number;
  readonly cases: readonly GoldenCase[];
  readonly bytes: Buffer;
}

interface GoldensJson {
  readonly model: string;
  readonly vocab: number;
  readonly cases: readonly GoldenCase[];
}

/** `stem` is the path without `.json`. */
export function readGoldens(stem: string): Goldens {
  const head = JSON.parse(readFileSync(`${stem}.json`, 'utf8')) as GoldensJson;
  return { ...head, bytes: readFileSync(`${stem}.bin`) };
}

/** `count` rows that lie at `offset` one after the other. */
export function readRows(
  bytes: Buffer,
  at: { offset: number; stride: number; vocab: number; count: number },
): GoldenRow[] {
  const rows: GoldenRow[] = [];
  let offset = at.offset;
  for (let row = 0; row < at.count; row++) {
    const first = row % at.stride;
    const maxAbs = bytes.readFloatLE(offset);
    const logSumExp = bytes.readFloatLE(offset + 4);
    const values = new Float64Array(Math.ceil((at.vocab - first) / at.stride));
    for (let i = 0; i < values.length; i++) values[i] = (bytes.readInt16LE(offset + 8 + 2 * i) * maxAbs) / 32767;
    rows.push({ maxAbs, logSumExp, first, stride: at.stride, values });
    offset += 8 + 2 * values.length;
  }
  return rows;
}

/** The rows of a case: every prompt position and as many generated ones as the file holds logits of (32). */
export function caseRows(goldens: Goldens, golden: GoldenCase, generated = 32): GoldenRow[] {
  assert.ok(golden.offset !== undefined && golden.stride !== undefined, 'this case has no logits');
  const count = golden.prompt.length + generated;
  return readRows(goldens.bytes, { offset: golden.offset, stride: golden.stride, vocab: goldens.vocab, count });
}

/** Largest difference of logits, of max|logit| and of logsumexp, in units of max|logit|. */
export function rowError(logits: Float32Array, golden: GoldenRow): number {
  let maxAbs = 0;
  let max = -Infinity;
  for (const value of logits) {
    if (!Number.isFinite(value)) return Infinity;
    maxAbs = Math.max(maxAbs, Math.abs(value));
    max = Math.max(max, value);
  }
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - max);
  let worst = Math.max(Math.abs(maxAbs - golden.maxAbs), Math.abs(max + Math.log(sum) - golden.logSumExp));
  golden.values.forEach((value, i) => {
    worst = Math.max(worst, Math.abs((logits[golden.first + i * golden.stride] ?? Infinity) - value));
  });
  return worst / golden.maxAbs;
}

/** Index of the largest value, the lowest one on a tie. */
export function argmax(values: Float32Array): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if ((values[i] ?? -Infinity) > (values[best] ?? -Infinity)) best = i;
  return best;
}

/**
 * Logits of prompt + greedy (teacher-forced) against a case: every row within the tolerance, every greedy token the
 * best one where the margin allows no other. Returns the largest error.
 */
export function checkForced(
  goldens: Goldens,
  golden: GoldenCase,
  logits: readonly Float32Array[],
  what: string,
): number {
  let worst = 0;
  caseRows(goldens, golden).forEach((row, i) => {
    const found = logits[i];
    assert.ok(found !== undefined, `${what}: no logits at position ${i}`);
    const error = rowError(found, row);
    worst = Math.max(worst, error);
    assert.ok(error <= LOGIT_TOLERANCE, `${what}: position ${i} is off by ${error.toExponential(2)} of max|logit|`);
  });
  for (let i = 0; i < 32; i++) {
    const found = logits[golden.prompt.length - 1 + i];
    if (found === undefined || (golden.margins[i] ?? 0) <= MARGIN_TOLERANCE) continue;
    assert.equal(argmax(found), golden.greedy[i], `${what}: greedy token ${i}`);
  }
  return worst;
}

/** Freely generated tokens against a case: the same up to the first that the oracle itself nearly had otherwise. */
export function checkGreedy(golden: GoldenCase, tokens: readonly number[], what: string): void {
  assert.equal(tokens.length, golden.greedy.length, `${what}: number of tokens`);
  for (let i = 0; i < tokens.length; i++) {
    if (tokens[i] === golden.greedy[i]) continue;
    const margin = golden.margins[i] ?? 0;
    assert.ok(
      margin <= MARGIN_TOLERANCE,
      `${what}: token ${i} is ${tokens[i]}, expected ${golden.greedy[i]}, margin ${margin}`,
    );
    return;
  }
}
