/**
 * The identity of a base: SHA-256 over its config and over samples of every tensor. Cheap enough for each start, and
 * different for any other training of the same architecture. Part of every adapter version. Called by open-checkpoint.
 */
import { createHash } from 'node:crypto';
import type { Hash } from 'node:crypto';

import type { ModelConfig } from '../core/model-config.js';
import type { WeightEntry } from '../native/binding-types.js';
import { openRegularFile, readRange } from './regular-file.js';
import type { RegularFile } from './regular-file.js';

/** Names the recipe; a change of what is hashed changes it. */
const TAG = 'manyfold base fingerprint 1';
const SAMPLES = 8;
const SAMPLE_BYTES = 512;

/** 64 hex digits. */
export async function fingerprintOf(
  config: ModelConfig,
  files: readonly string[],
  weights: readonly WeightEntry[],
): Promise<string> {
  const hash = createHash('sha256');
  hash.update(`${TAG}\n${canonical(config)}\n`);
  const open: RegularFile[] = [];
  try {
    for (const file of files) open.push(await openRegularFile(file));
    for (const weight of weights) {
      const file = open[weight.file];
      if (file !== undefined) await addTensor(hash, file, weight);
    }
  } finally {
    await Promise.all(open.map((file) => file.handle.close()));
  }
  return hash.digest('hex');
}

/** Keys in order, float arrays as lists. */
function canonical(config: ModelConfig): string {
  return JSON.stringify(config, (_, value: unknown) => {
    if (value instanceof Float32Array) return Array.from(value);
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return value;
    return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
}

async function addTensor(hash: Hash, { handle }: RegularFile, weight: WeightEntry): Promise<void> {
  const { layer, site, part, dtype, rows, cols, offset, byteLength } = weight;
  hash.update(`${layer} ${site} ${part} ${dtype} ${rows} ${cols} ${byteLength}\n`);
  if (byteLength <= SAMPLES * SAMPLE_BYTES) {
    hash.update(await readRange(handle, offset, byteLength));
    return;
  }
  // The first sample begins with the tensor, the last ends with it.
  const starts = Array.from({ length: SAMPLES }, (_, i) =>
    Math.floor(((byteLength - SAMPLE_BYTES) * i) / (SAMPLES - 1)),
  );
  const samples = await Promise.all(starts.map((start) => readRange(handle, offset + start, SAMPLE_BYTES)));
  for (const sample of samples) hash.update(sample);
}
