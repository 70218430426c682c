/**
 * Corpora: inputs that are kept, one text file each in test/fuzz/corpus/TARGET. Earlier finds stay there, so that they stay mended;
 * others are there because they reach a place that random mutation reaches seldom. Called by the runner and by the replay test.
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';

import { decodeInput, encodeInput } from './harness.js';
import type { FuzzInput } from './harness.js';

export const CORPUS = path.join('test', 'fuzz', 'corpus');

export interface CorpusEntry {
  readonly file: string;
  readonly input: FuzzInput;
}

export function readCorpus(target: string): CorpusEntry[] {
  const folder = path.join(CORPUS, target);
  if (!existsSync(folder)) return [];
  return readdirSync(folder)
    .sort()
    .map((name) => readEntry(path.join(folder, name)));
}

export function readEntry(file: string): CorpusEntry {
  return { file, input: decodeInput(readFileSync(file, 'utf8')) };
}

/** Names of the targets that have a corpus. */
export function corpora(): string[] {
  return existsSync(CORPUS) ? readdirSync(CORPUS).sort() : [];
}

/** Writes an input under a name from its content, and returns the path. */
export function writeEntry(folder: string, input: FuzzInput): string {
  const text = encodeInput(input);
  const file = path.join(folder, `${createHash('sha256').update(text).digest('hex').slice(0, 12)}.json`);
  mkdirSync(folder, { recursive: true });
  writeFileSync(file, text);
  return file;
}
