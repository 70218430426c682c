/**
 * A small random model written to a temporary file, and plans for it, so that the boundary's tests need neither a
 * checkpoint nor a scheduler.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SITES, type SiteName } from '../../core/model-config.js';
import type { LoadOptions, NativeModelConfig, NativePlan, WeightEntry } from '../binding-types.js';

export interface TinySize {
  readonly layers: number;
  readonly hidden: number;
  readonly ffn: number;
}

/** A step of one row takes well under a millisecond. */
export const SMALL: TinySize = { layers: 2, hidden: 16, ffn: 24 };
/** A step of 256 rows takes some tenths of a second in the reference: long enough to do something meanwhile. */
export const SLOW: TinySize = { layers: 4, hidden: 64, ffn: 512 };

export const VOCAB = 40;
export const MAX_ROWS = 256;
export const MAX_ENTRIES = 8;
export const KV_PAGES = 64;
const PAGE_TOKENS = 16;

function modelOf(size: TinySize): NativeModelConfig {
  return {
    vocabSize: VOCAB,
    hiddenSize: size.hidden,
    numHeads: 2,
    numKvHeads: 1,
    headDim: 8,
    ffnSize: size.ffn,
    normEps: 1e-5,
    activation: 0,
    qkNorm: false,
    postNorms: false,
    tiedHead: true,
    embedScale: 1,
    attnScale: 1 / Math.sqrt(8),
    layerWindow: new Int32Array(size.layers),
    layerRope: new Int32Array(size.layers),
    ropeInvFreq: [Float32Array.of(1, 0.1, 0.01, 0.001)],
    ropeScale: Float32Array.of(1),
  };
}

/** `[site, rows, cols]` of every weight. */
function shapesOf(size: TinySize): [number, SiteName, number, number][] {
  const { hidden, ffn } = size;
  const layers = Array.from({ length: size.layers }, (_, layer): [number, SiteName, number, number][] => [
    [layer, 'attnNorm', 1, hidden],
    [layer, 'q', 16, hidden],
    [layer, 'k', 8, hidden],
    [layer, 'v', 8, hidden],
    [layer, 'o', hidden, 16],
    [layer, 'mlpNorm', 1, hidden],
    [layer, 'gate', ffn, hidden],
    [layer, 'up', ffn, hidden],
    [layer, 'down', hidden, ffn],
  ]);
  return [[-1, 'embedding', VOCAB, hidden], ...layers.flat(), [-1, 'finalNorm', 1, hidden]];
}

/** Values between -1 and 1 from a linear congruence: the same in every run. */
export function noise(count: number, seed = 1): Float32Array {
  let state = seed;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

/** Weight file and options; `remove` deletes the file, which may be done once the engine is made. */
export function tinyModel(size: TinySize = SMALL): { options: LoadOptions; remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), 'manyfold-native-'));
  const path = join(folder, 'weights.bin');
  const weights: WeightEntry[] = [];
  const chunks: Uint8Array[] = [];
  let offset = 0;
  for (const [layer, site, rows, cols] of shapesOf(size)) {
    const values = noise(rows * cols, offset + 7);
    const byteLength = values.byteLength;
    const place = { layer, site: SITES[site], part: 'weight', permutedHeads: 0, add: 0 } as const;
    weights.push({ file: 0, offset, byteLength, dtype: 'f32', rows, cols, ...place });
    chunks.push(new Uint8Array(values.buffer));
    offset += byteLength;
  }
  writeFileSync(path, Buffer.concat(chunks));
  const options: LoadOptions = {
    model: modelOf(size),
    files: [path],
    weights,
    dtype: 'f32',
    threads: 1,
    isa: 'scalar',
    backend: 'cpu',
    kvPages: KV_PAGES,
    maxRows: MAX_ROWS,
    maxEntries: MAX_ENTRIES,
  };
  return { options, remove: () => rmSync(folder, { recursive: true }) };
}

/** One sequence of the base, prefilled in one step, whose last row samples greedily. */
export function tinyPlan(rows = 3): NativePlan {
  return {
    rowSequence: new Int32Array(rows),
    rowPosition: Int32Array.from({ length: rows }, (_, i) => i),
    rowToken: Int32Array.from({ length: rows }, (_, i) => (i * 7) % VOCAB),
    rowTerms: new Int32Array(rows).fill(-1),
    rowGate: new Int32Array(rows).fill(-1),
    rankGates: new Float32Array(0),
    gateWidth: 0,
    embeddings: new Float32Array(0),
    sequenceBase: Int32Array.of(0),
    sequenceRuns: Int32Array.of(0, 1),
    runKind: Uint8Array.of(0),
    runRef: Int32Array.of(0),
    runTokens: Int32Array.of(rows),
    pages: Int32Array.from({ length: Math.ceil(rows / PAGE_TOKENS) }, (_, i) => i),
    termSets: new Int32Array(0),
    entryRow: Int32Array.of(rows - 1),
    entryTarget: Int32Array.of(-1),
    entryTopLogprobs: Int32Array.of(2),
    entryParams: Float32Array.of(0, 0, 1, 0, 1, 0, 0, 0),
    entrySeed: new Uint32Array(4),
    entryBias: Int32Array.of(0, 0),
    biasIds: new Int32Array(0),
    biasValues: new Float32Array(0),
    entryHistory: Int32Array.of(0, 0),
    historyIds: new Int32Array(0),
    historyCounts: new Int32Array(0),
    entryMask: Int32Array.of(-1),
    masks: new Uint32Array(0),
  };
}

/** The value with some fields replaced by whatever the test likes, right or wrong. */
export function withFields<T extends object>(value: T, fields: Record<string, unknown>): T {
  return Object.assign({ ...value }, fields);
}
