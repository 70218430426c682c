/**
 * A model with its channels in another order, in bf16: those of the residual stream, of every head's values and of the
 * feed-forward layers, in all matrices that know them. It computes what the model computes, but its weights are in no
 * groups of 32 any more, so that rounding them to such groups is as hard as it is for weights that never were in any. Used
 * by kl-formats, whose default model's file is a 4-bit one.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, writeSync } from 'node:fs';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.js';
import { f32ToBf16 } from '../../src/core/half.js';
import { SITES, type ModelConfig } from '../../src/core/model-config.js';
import type { WeightEntry } from '../../src/native/binding-types.js';
import type { TestEngine } from './engine.js';

/** Numbers 0 .. count - 1 in an order that depends on the seed alone (Fisher and Yates). */
function order(count: number, seed: number): number[] {
  const numbers = Array.from({ length: count }, (_, i) => i);
  let state = seed + 1;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [numbers[i], numbers[j]] = [numbers[j] ?? 0, numbers[i] ?? 0];
  }
  return numbers;
}

/** Which old row and column each new one is; undefined: as they were. */
interface Orders {
  readonly rows?: readonly number[];
  readonly cols?: readonly number[];
}

function ordersOf({ layer, site }: WeightEntry, config: ModelConfig): Orders {
  const hidden = order(config.hiddenSize, 0);
  const ffn = order(config.ffnSize, 1 + layer);
  const { headDim, numHeads, numKvHeads } = config;
  const ofKvHead = (kvHead: number, head: number): number[] =>
    order(headDim, 1000 + layer * numKvHeads + kvHead).map((i) => head * headDim + i);
  switch (site) {
    case SITES.v:
      return { rows: Array.from({ length: numKvHeads }, (_, head) => ofKvHead(head, head)).flat(), cols: hidden };
    case SITES.o: {
      const group = numHeads / numKvHeads;
      const heads = Array.from({ length: numHeads }, (_, head) => ofKvHead(Math.floor(head / group), head));
      return { rows: hidden, cols: heads.flat() };
    }
    case SITES.gate:
    case SITES.up:
      return { rows: ffn, cols: hidden };
    case SITES.down:
      return { rows: hidden, cols: ffn };
    case SITES.qNorm:
    case SITES.kNorm:
      return {};
    default:
      return { cols: hidden };
  }
}

/** Writes the weights that `test` serves, in the new order, to `file`; the same checkpoint with that file. */
export function shuffledCheckpoint({ engine, checkpoint }: TestEngine, file: string): Checkpoint {
  const output = openSync(file, 'w');
  let offset = 0;
  const weights = checkpoint.weights.map((entry): WeightEntry => {
    assert.equal(entry.part, 'weight', 'biases are not shuffled');
    const { rows, cols, layer, site } = entry;
    const from = engine.readWeight(layer, site, 'weight', 0, rows);
    const orders = ordersOf(entry, checkpoint.config);
    const values = new Uint16Array(rows * cols);
    for (let row = 0; row < rows; row++) {
      const first = (orders.rows?.[row] ?? row) * cols;
      for (let col = 0; col < cols; col++) {
        values[row * cols + col] = f32ToBf16(from[first + (orders.cols?.[col] ?? col)] ?? NaN);
      }
    }
    writeSync(output, values);
    const moved = { file: 0, offset, byteLength: values.byteLength, dtype: 'bf16', permutedHeads: 0, add: 0 } as const;
    offset += values.byteLength;
    return { ...entry, ...moved };
  });
  closeSync(output);
  return { ...checkpoint, files: [file], weights, fileDtype: 'bf16' };
}
