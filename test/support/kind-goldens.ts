/**
 * The goldens of adapter kinds (form: tools/oracle/kinds.py), and how a test drives a whole term set: soft prompt rows by
 * value before the tokens, and an invocation before which rows are the base's. Used by the parity test of kinds.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { rowsOf, toFloats } from '../../src/adapters/tensor-values.js';
import type { TermSet } from '../../src/core/terms.js';
import { GOLDENS } from './goldens.js';
import { TestSequence, type LoadedTerms } from './plan.js';

export interface KindGolden {
  readonly kind: string;
  readonly directory: string;
  readonly prompt: readonly number[];
  readonly stride: number;
  /** One for every token of the prompt: logits of the ids 0, stride, 2 · stride, … */
  readonly rows: readonly Float32Array[];
}

interface GoldenJson {
  readonly prompt: readonly number[];
  readonly vocab: number;
  readonly stride: number;
}

const KINDS = path.join(GOLDENS, 'kinds');

/** Names of the tiny models that have kinds. */
export function modelsWithKinds(): string[] {
  return readdirSync(KINDS);
}

export function readKindGoldens(model: string): KindGolden[] {
  return readdirSync(path.join(KINDS, model)).map((kind) => readGolden(path.join(KINDS, model, kind)));
}

/** The golden of one folder, which has golden.json and golden.bin. */
export function readGolden(directory: string): KindGolden {
  const { prompt, vocab, stride } = JSON.parse(readFileSync(path.join(directory, 'golden.json'), 'utf8')) as GoldenJson;
  const bytes = readFileSync(path.join(directory, 'golden.bin'));
  const width = Math.ceil(vocab / stride);
  assert.equal(bytes.length, 4 * width * prompt.length, `${directory}: size of golden.bin`);
  const rows = prompt.map((_, row) =>
    Float32Array.from({ length: width }, (__, i) => bytes.readFloatLE(4 * (row * width + i))),
  );
  return { kind: path.basename(directory), directory, prompt, stride, rows };
}

/** A sequence of these tokens under a term set; `softPromptRows(set)` rows stand before them. */
export function kindSequence(tokens: readonly number[], set: TermSet, terms: LoadedTerms): TestSequence {
  const { softPrompt } = set;
  const count = softPromptRows(set);
  const embeddings = Array.from({ length: count }, (_, i) =>
    softPrompt === undefined ? new Float32Array(0) : toFloats(rowsOf(softPrompt, i, 1)),
  );
  const before = embeddings.map((_, i) => -1 - i);
  return new TestSequence([...before, ...tokens], { terms, embeddings, termsFrom: invokedFrom(tokens, set) });
}

export function softPromptRows(set: TermSet): number {
  return set.softPrompt?.shape[0] ?? 0;
}

/** The first row on which the terms act: all of them, or from the last occurrence of the invocation on. */
function invokedFrom(tokens: readonly number[], { invocation, softPrompt }: TermSet): number {
  if (invocation === undefined) return 0;
  assert.equal(softPrompt, undefined, 'no kind has both a soft prompt and an invocation');
  for (let start = tokens.length - invocation.length; start >= 0; start -= 1) {
    if (invocation.every((token, i) => tokens[start + i] === token)) return start;
  }
  return tokens.length;
}

/** Largest difference from the golden row, in units of max|logit|. */
export function kindRowError(logits: Float32Array, golden: Float32Array, stride: number): number {
  if (!logits.every(Number.isFinite)) return Infinity;
  let worst = 0;
  let largest = 0;
  golden.forEach((value, i) => {
    worst = Math.max(worst, Math.abs((logits[i * stride] ?? Infinity) - value));
    largest = Math.max(largest, Math.abs(value));
  });
  return worst / largest;
}
