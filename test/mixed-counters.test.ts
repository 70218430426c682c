/** A step with 16 adapters reads each base weight once and each adapter once: the backend's counters say so. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { describe, test } from 'node:test';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { linearShape } from '../src/core/model-config.js';
import type { NativeCounters } from '../src/native/binding-types.js';
import { loadAdapterFolder, openTestEngine, testedIsas, type TestEngine } from './support/engine.js';
import { GOLDENS } from './support/goldens.js';
import { counted } from './support/identity.js';
import { buildPlan, PagePool, TestSequence, type LoadedTerms } from './support/plan.js';

const LAYER_LINEARS = ['q', 'k', 'v', 'o', 'gate', 'up', 'down'] as const;

async function stepOf(engine: TestEngine, sequences: readonly TestSequence[], rows: number): Promise<NativeCounters> {
  const pool = new PagePool(engine.kvPages);
  const parts = sequences.map((sequence) => ({ sequence, count: rows, entries: 'sample-last' as const }));
  const plan = buildPlan(parts, pool, engine.pageTokens);
  return counted(engine, async () => {
    await engine.engine.step(plan);
  });
}

describe('counters', () => {
  for (const isa of testedIsas()) {
    for (const dtype of ['f32', 'bf16'] as const) {
      test(`16 adapters in one step, ${isa}, ${dtype}`, async () => {
        const folder = path.join(GOLDENS, 'models', 'llama-gqa');
        const checkpoint = await openCheckpoint(folder);
        const engine = await openTestEngine(checkpoint, { isa, dtype });
        const adapter = path.join(folder, 'adapters', 'all-r3-rslora');
        const sets: LoadedTerms[] = [];
        for (let i = 0; i < 16; i++) sets.push(await loadAdapterFolder(engine, adapter));
        const make = (count: number): TestSequence[] =>
          sets.slice(0, count).map((terms, i) => new TestSequence([5 + i, 6, 7, 8], { terms }));

        const base = await stepOf(engine, [new TestSequence([5])], 1);
        const one = await stepOf(engine, make(1), 1);
        const all = await stepOf(engine, make(16), 1);
        const chunks = await stepOf(engine, make(16), 4);

        // Each linear of each layer once, and the head.
        const linears = checkpoint.config.layers.length * LAYER_LINEARS.length + 1;
        const values = LAYER_LINEARS.reduce((sum, site) => {
          const shape = linearShape(checkpoint.config, site);
          return sum + (shape === undefined ? 0 : shape.out * shape.in);
        }, 0);
        const head = checkpoint.config.vocabSize * checkpoint.config.hiddenSize;
        const bytes = (checkpoint.config.layers.length * values + head) * (dtype === 'f32' ? 4 : 2);
        assert.equal(base.baseLinearReads, linears);
        assert.ok(base.baseBytesRead >= bytes, `${base.baseBytesRead} bytes read, at least ${bytes} of weights`);
        for (const step of [one, all, chunks]) {
          assert.equal(step.steps, 1);
          assert.equal(step.baseLinearReads, linears, 'each base linear once, however many adapters');
          assert.equal(step.baseBytesRead, base.baseBytesRead);
        }
        assert.deepEqual([base.rows, one.rows, all.rows, chunks.rows], [1, 1, 16, 64]);

        // The adapter has a term on each linear of each layer, and none on the head.
        assert.equal(base.termReads, 0);
        assert.equal(one.termReads, linears - 1);
        for (const step of [all, chunks]) {
          assert.equal(step.termReads, 16 * one.termReads, 'each site of each adapter once, however many rows');
          assert.equal(step.termBytesRead, 16 * one.termBytesRead);
        }
        assert.ok(one.termBytesRead > 0);
        engine.engine.dispose();
      });
    }
  }

  test('rows of one adapter in several sequences read it once', async () => {
    const folder = path.join(GOLDENS, 'models', 'llama-gqa');
    const engine = await openTestEngine(await openCheckpoint(folder));
    const names = readdirSync(path.join(folder, 'adapters'));
    for (const name of names) {
      const terms = await loadAdapterFolder(engine, path.join(folder, 'adapters', name));
      const one = await stepOf(engine, [new TestSequence([9, 8, 7], { terms })], 3);
      const five = await stepOf(
        engine,
        Array.from({ length: 5 }, () => new TestSequence([9, 8, 7], { terms })),
        3,
      );
      assert.equal(five.termReads, one.termReads, name);
      assert.equal(five.termBytesRead, one.termBytesRead, name);
      assert.ok(one.termReads > 0, name);
    }
    engine.engine.dispose();
  });
});
