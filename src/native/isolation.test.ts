/** One sequence whose logits are of no use must not spoil the others of its step. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { SITES } from '../core/model-config.js';
import type { NativeEngine, NativePlan, NativeTerm } from './binding-types.js';
import { loadNative } from './load-binding.js';
import { tinyModel, tinyPlan, VOCAB, withFields } from './testing/tiny-engine.js';

/** Two sequences of one row and one sampled token each; the second may have a term set. */
function twoSequences(fields: Partial<Record<keyof NativePlan, unknown>> = {}): NativePlan {
  const two = (value: number) => Int32Array.of(value, value);
  const params = [0, 0, 1, 0, 1, 0, 0, 0];
  return withFields(tinyPlan(1), {
    rowSequence: Int32Array.of(0, 1),
    rowPosition: two(0),
    rowToken: two(5),
    rowTerms: two(-1),
    rowGate: two(-1),
    sequenceBase: two(0),
    sequenceRuns: Int32Array.of(0, 1, 2),
    runKind: Uint8Array.of(0, 0),
    runRef: Int32Array.of(0, 1),
    runTokens: two(1),
    pages: Int32Array.of(0, 1),
    entryRow: Int32Array.of(0, 1),
    entryTarget: two(-1),
    entryTopLogprobs: two(1),
    entryParams: Float32Array.of(...params, ...params),
    entrySeed: new Uint32Array(8),
    entryBias: new Int32Array(3),
    entryHistory: new Int32Array(3),
    entryMask: two(-1),
    ...fields,
  });
}

for (const isa of new Set([loadNative().info().isas[0] ?? 'scalar', 'scalar'])) {
  describe(`isolation, ${isa}`, () => {
    const { options, remove } = tinyModel();
    let engine: NativeEngine;
    before(async () => {
      engine = await loadNative().createEngine({ ...options, isa });
    });
    after(() => {
      engine.dispose();
      remove();
    });

    test('an adapter whose finite weights overflow', async () => {
      const shift: NativeTerm = {
        kind: 'diag',
        layer: -1,
        site: SITES.head,
        scale: 1,
        vectorB: new Float32Array(VOCAB).fill(3e38),
        vectorC: new Float32Array(VOCAB).fill(3e38),
      };
      const handle = await engine.loadTerms([shift]);
      const expected = await engine.step(twoSequences());
      const plan = twoSequences({ rowTerms: Int32Array.of(-1, 0), termSets: Int32Array.of(handle) });
      const result = await engine.step(plan);
      assert.deepEqual([...result.tokens], [expected.tokens[0], -2]);
      assert.equal(result.logprobs[0], expected.logprobs[0]);
      assert.ok(Number.isNaN(result.logprobs[1]));
      engine.freeTerms(handle);
    });

    test('a mask that bans every token', async () => {
      const expected = await engine.step(twoSequences());
      const result = await engine.step(twoSequences({ entryMask: Int32Array.of(0, -1), masks: new Uint32Array(2) }));
      assert.deepEqual([...result.tokens], [-2, expected.tokens[1]]);
    });
  });
}
