/**
 * Bit identity at the size of a real model, where every linear is cut into several tiles and shared by threads: rows of
 * the default model in bf16, base and two LoRAs, alone and mixed.
 */
import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { defaultModelPath } from './support/default-model.js';
import { forcedLogits, loadTermSet, openTestEngine } from './support/engine.js';
import { GOLDENS, readGoldens } from './support/goldens.js';
import { alone, assertSame, counted, type Prepared } from './support/identity.js';
import { NO_TERMS, PagePool, TestSequence, type LoadedTerms } from './support/plan.js';
import { recipeLora } from './support/recipe-lora.js';

/** Lengths on both sides of a page (16), a tile of attention (64) and two of them. */
const LENGTHS = [5, 16, 17, 40, 65, 130];

async function prepare(threads: number): Promise<Prepared> {
  const checkpoint = await openCheckpoint(await defaultModelPath());
  const engine = await openTestEngine(checkpoint, { dtype: 'bf16', threads, kvPages: 64, maxRows: 384 });
  const sets: LoadedTerms[] = [NO_TERMS];
  for (const seed of [11, 12]) {
    const set = recipeLora(checkpoint.config, seed, { rank: 16, alpha: 32, stdB: 0.02 });
    sets.push(await loadTermSet(engine.engine, set));
  }
  const text = readGoldens(path.join(GOLDENS, 'smollm2', 'goldens')).cases.flatMap(({ prompt, greedy }) => [
    ...prompt,
    ...greedy,
  ]);
  const make = (): TestSequence[] =>
    LENGTHS.map((length, i) => {
      const terms = sets[i % sets.length] ?? NO_TERMS;
      return new TestSequence(text.slice(100 * i, 100 * i + length), { terms });
    });
  return { test: engine, make };
}

test('SmolLM2 in bf16: neighbours, chunking, placement and threads leave every bit as it is', async () => {
  const one = await prepare(1);
  const expected = await alone(one);
  const counters = await counted(one.test, async () => {
    assertSame(await forcedLogits(one.test, one.make(), { chunk: 64 }), expected, 'one batch');
  });
  assert.equal(counters.steps, 3);
  assert.ok(counters.termReads > 0 && counters.multiRowTiles > 0);
  one.test.engine.dispose();

  const two = await prepare(2);
  assert.equal(two.test.engine.info().threads, 2);
  const shuffled = new PagePool(two.test.kvPages, 99);
  assertSame(
    await forcedLogits(two.test, two.make(), { chunk: 7, pool: shuffled }),
    expected,
    'chunks of 7, two threads',
  );
  const decode = await counted(two.test, async () => {
    const sequences = two.make().slice(0, 4);
    assertSame(await forcedLogits(two.test, sequences, { chunk: 1 }), expected.slice(0, 4), 'row by row');
  });
  assert.ok(decode.singleRowTiles > 0, 'at its end one sequence stands alone');
  two.test.engine.dispose();
});
