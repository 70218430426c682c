/**
 * What a format of weights may change: int8 and q4 stay near float32 on every tiny model, base and adapters, and every tier
 * gives what the reference gives but for roundings that fall the other way.
 */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { loadNative } from '../src/native/load-binding.js';
import { forcedLogits, loadAdapterFolder, openTestEngine, type TestEngineOptions } from './support/engine.js';
import { GOLDENS, readGoldens } from './support/goldens.js';
import { NO_TERMS, TestSequence, type LoadedTerms } from './support/plan.js';

const MODELS = path.join(GOLDENS, 'models');

/** Logits of the base and of every adapter of the model, all rows one after the other. */
async function logitsOf(model: string, options: TestEngineOptions): Promise<Float32Array[]> {
  const folder = path.join(MODELS, model);
  const engine = await openTestEngine(await openCheckpoint(folder), options);
  const sets: LoadedTerms[] = [NO_TERMS];
  for (const name of readdirSync(path.join(folder, 'adapters'))) {
    sets.push(await loadAdapterFolder(engine, path.join(folder, 'adapters', name)));
  }
  const { cases } = readGoldens(path.join(folder, 'goldens'));
  const sequences = sets.map((terms, i) => {
    const { prompt, greedy } = cases[i % cases.length] ?? { prompt: [1], greedy: [] };
    return new TestSequence([...prompt, ...greedy], { terms });
  });
  const logits = await forcedLogits(engine, sequences);
  engine.engine.dispose();
  return logits.flat();
}

function relativeError(found: readonly Float32Array[], expected: readonly Float32Array[]): number {
  let error = 0;
  let norm = 0;
  for (const [row, values] of expected.entries()) {
    for (const [i, value] of values.entries()) {
      error += ((found[row]?.[i] ?? NaN) - value) ** 2;
      norm += value ** 2;
    }
  }
  return Math.sqrt(error / norm);
}

describe('int8 keys and values', () => {
  for (const { name: model } of readdirSync(MODELS, { withFileTypes: true }).filter((entry) => entry.isDirectory())) {
    test(model, async () => {
      const kvCacheDtype = 'int8';
      const exact = await logitsOf(model, { dtype: 'f32', isa: 'scalar' });
      const reference = await logitsOf(model, { dtype: 'f32', isa: 'scalar', kvCacheDtype });
      const cost = relativeError(reference, exact);
      assert.ok(cost < 0.05 && cost > 0, `int8 keys and values are ${cost} from float32`);
      for (const isa of loadNative().info().isas) {
        const found = relativeError(await logitsOf(model, { dtype: 'f32', isa, kvCacheDtype }), reference);
        assert.ok(found < 0.01, `${isa} is ${found} from the reference`);
      }
    });
  }
});

/** Most that a format may change, by tiny model: rows of a few dozen inputs, larger models lose less. */
const COSTS = { int8: 0.1, q4: 0.5 } as const;

for (const dtype of ['int8', 'q4'] as const) {
  describe(`${dtype} weights`, () => {
    for (const { name: model } of readdirSync(MODELS, { withFileTypes: true }).filter((entry) => entry.isDirectory())) {
      test(model, async () => {
        const exact = await logitsOf(model, { dtype: 'f32', isa: 'scalar' });
        const reference = await logitsOf(model, { dtype, isa: 'scalar' });
        const cost = relativeError(reference, exact);
        assert.ok(cost < COSTS[dtype] && cost > 0, `${dtype} is ${cost} from float32`);
        for (const isa of loadNative().info().isas) {
          const found = relativeError(await logitsOf(model, { dtype, isa }), reference);
          assert.ok(found < 0.02, `${isa} is ${found} from the reference`);
        }
      });
    }
  });
}

/** 4-bit files of the tiny models. */
const FILES = [
  ['llama-gqa', 'Q4_0'],
  ['llama-gqa', 'Q4_1'],
  ['llama-linear', 'Q4_0'],
] as const;

describe('q4 weights of a 4-bit file', () => {
  for (const [model, type] of FILES) {
    test(`${model} ${type} is served exactly as the file has it`, async () => {
      const checkpoint = await openCheckpoint(path.join(MODELS, model, 'gguf', `${type}.gguf`));
      const packed = checkpoint.weights.filter(({ dtype }) => dtype === type.toLowerCase());
      assert.ok(packed.length > 0);
      const exact = await openTestEngine(checkpoint, { dtype: 'f32', isa: 'scalar' });
      for (const isa of loadNative().info().isas) {
        const found = await openTestEngine(checkpoint, { dtype: 'q4', isa });
        for (const { layer, site, part, rows } of packed) {
          // 8 d - 8 d is 0 where (8 - 8) d may be -0.
          const [a, b] = [found, exact].map(({ engine }) =>
            engine.readWeight(layer, site, part, 0, rows).map((value) => value + 0),
          );
          assert.deepEqual(a, b, `${isa}, layer ${layer}, site ${site}`);
        }
        found.engine.dispose();
      }
      exact.engine.dispose();
    });
  }
});
