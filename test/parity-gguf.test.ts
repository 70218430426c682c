/**
 * The tiny models as GGUF files against transformers on the same dequantised weights, base and LoRAs on q and k (GGUF
 * permutes Llama's q and k rows), and against the folder of the same model; and blocks of every type against gguf-py.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import type { WeightDtype } from '../src/native/binding-types.js';
import { loadNative } from '../src/native/load-binding.js';
import { assertSameBits, forcedLogits, loadAdapterFolder, openTestEngine, testedIsas } from './support/engine.js';
import { checkForced, GOLDENS, readGoldens, type Goldens } from './support/goldens.js';
import { NO_TERMS, TestSequence } from './support/plan.js';

const MODELS = path.join(GOLDENS, 'models');

/** Raw logits of every case of the goldens, on the model at `file`. */
async function answers(file: string, folder: string, goldens: Goldens, isa: string): Promise<Float32Array[][]> {
  const engine = await openTestEngine(await openCheckpoint(file), { isa });
  const sequences: TestSequence[] = [];
  for (const golden of goldens.cases) {
    const terms =
      golden.adapter == null
        ? NO_TERMS
        : await loadAdapterFolder(engine, path.join(folder, 'adapters', golden.adapter));
    sequences.push(new TestSequence([...golden.prompt, ...golden.greedy], { terms }));
  }
  const logits = await forcedLogits(engine, sequences);
  engine.engine.dispose();
  return logits;
}

describe('GGUF files', () => {
  for (const model of readdirSync(MODELS)) {
    const folder = path.join(MODELS, model);
    if (!existsSync(path.join(folder, 'gguf'))) continue;
    for (const file of readdirSync(path.join(folder, 'gguf')).filter((name) => name.endsWith('.gguf'))) {
      for (const isa of testedIsas()) {
        test(`${model} ${file}, ${isa}`, async () => {
          const stem = path.join(folder, 'gguf', file.slice(0, -'.gguf'.length));
          const goldens = readGoldens(stem);
          const logits = await answers(path.join(folder, 'gguf', file), folder, goldens, isa);
          goldens.cases.forEach((golden, i) => {
            checkForced(
              goldens,
              golden,
              logits[i] ?? [],
              `${golden.adapter ?? 'base'}, ${golden.prompt.length} tokens`,
            );
          });
          assert.ok(goldens.cases.some(({ adapter }) => adapter == null));
        });
      }
    }
  }

  // llama3's RoPE factors stand in the file as rounded float32 values, so its angles may differ in their last bit.
  for (const { model, file, tolerance } of [
    { model: 'llama-gqa', file: 'F16', tolerance: 0 },
    { model: 'llama-yarn', file: 'F32', tolerance: 0 },
    { model: 'llama3-bias', file: 'BF16', tolerance: 5e-6 },
  ]) {
    test(`${model}: the ${file} file and the folder give the same logits`, async () => {
      const folder = path.join(MODELS, model);
      const goldens = readGoldens(path.join(folder, 'gguf', file));
      const isa = testedIsas()[0] ?? 'scalar';
      const fromFile = await answers(path.join(folder, 'gguf', `${file}.gguf`), folder, goldens, isa);
      const fromFolder = await answers(folder, folder, goldens, isa);
      fromFile.forEach((rows, i) => {
        rows.forEach((row, position) => {
          const other = fromFolder[i]?.[position] ?? new Float32Array(0);
          if (tolerance === 0) assertSameBits(row, other, `case ${i}, position ${position}`);
          else assert.ok(largestDifference(row, other) <= tolerance * largest(row), `case ${i}, position ${position}`);
        });
      });
      assert.ok(
        goldens.cases.some(({ adapter }) => adapter === 'qkvo-r8'),
        'with a LoRA on q and k',
      );
    });
  }
});

function largest(row: Float32Array): number {
  return row.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

function largestDifference(a: Float32Array, b: Float32Array): number {
  return a.reduce((most, value, i) => Math.max(most, Math.abs(value - (b[i] ?? Infinity))), 0);
}

interface BlockGolden {
  readonly type: WeightDtype;
  readonly values: number;
  readonly bytes: number;
  readonly bytesOffset: number;
  readonly valuesOffset: number;
}

describe('blocks', () => {
  const entries = JSON.parse(readFileSync(path.join(GOLDENS, 'blocks', 'blocks.json'), 'utf8')) as BlockGolden[];
  const data = readFileSync(path.join(GOLDENS, 'blocks', 'blocks.bin'));
  for (const entry of entries) {
    test(`${entry.type} is dequantised as gguf-py does it`, () => {
      const bytes = new Uint8Array(data.subarray(entry.bytesOffset, entry.bytesOffset + entry.bytes));
      const found = loadNative().dequantize(entry.type, bytes, entry.values);
      assert.equal(found.length, entry.values);
      for (let i = 0; i < entry.values; i++) {
        const expected = data.readFloatLE(entry.valuesOffset + 4 * i);
        // K-quants subtract two products; fusing them or not moves the last bit of the larger one.
        const tolerance = entry.type.endsWith('_k') ? 4e-7 * (Math.abs(expected) + largestNear(entry, data, i)) : 0;
        assert.ok(Math.abs((found[i] ?? NaN) - expected) <= tolerance, `value ${i}: ${found[i]}, expected ${expected}`);
      }
    });
  }
});

/** The largest value of the sub-block of 32 that value i stands in: its scale times its largest quant. */
function largestNear(entry: BlockGolden, data: Buffer, i: number): number {
  let largest = 0;
  const start = i - (i % 32);
  for (let k = start; k < Math.min(start + 32, entry.values); k++) {
    largest = Math.max(largest, Math.abs(data.readFloatLE(entry.valuesOffset + 4 * k)));
  }
  return largest;
}
