/**
 * What a format of weights may change: int8 stays near float32 on every tiny model, base and adapters, and every tier
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

describe('int8 weights', () => {
  for (const { name: model } of readdirSync(MODELS, { withFileTypes: true }).filter((entry) => entry.isDirectory())) {
    test(model, async () => {
      const exact = await logitsOf(model, { dtype: 'f32', isa: 'scalar' });
      const reference = await logitsOf(model, { dtype: 'int8', isa: 'scalar' });
      const cost = relativeError(reference, exact);
      // Rows of a few dozen inputs: larger models lose less.
      assert.ok(cost < 0.1 && cost > 0, `int8 is ${cost} from float32`);
      for (const isa of loadNative().info().isas) {
        const found = relativeError(await logitsOf(model, { dtype: 'int8', isa }), reference);
        assert.ok(found < 0.02, `${isa} is ${found} from the reference`);
      }
    });
  }
});
