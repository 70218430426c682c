/** The fuzzers themselves: every target holds for some mutated inputs of a fixed seed, and reaches refusals as well as terms. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { IMPORTERS } from '../../src/adapters/importers/index.js';
import { systemClock } from '../../src/core/clock.js';
import { closeBases } from './adapter-rules.js';
import { decodeInput, encodeInput, fuzz, judge } from './harness.js';
import { IMPORTER_TARGETS } from './importers.js';
import { mutate, seededRandom } from './mutate.js';
import { inRotation } from './rotation.js';
import { TARGETS } from './targets.js';

after(closeBases);

/** Container parsers are quick, and are tried more often. */
const EXECUTIONS: Readonly<Record<string, number>> = {
  gguf: 1000,
  safetensors: 1000,
  config: 1000,
  'compeft-payload': 3000,
};
const OUTCOMES: Readonly<Record<string, number>> = { gguf: 20, safetensors: 20, config: 20, 'compeft-payload': 25 };

for (const target of TARGETS) {
  test(`${target.name}: mutated inputs are taken or refused, for different reasons`, async () => {
    const maxExecutions = EXECUTIONS[target.name] ?? 60;
    const { executions, outcomes, find } = await fuzz(target, {
      clock: systemClock,
      seed: 1,
      seconds: 60,
      maxExecutions,
    });
    assert.equal(find?.broken, undefined);
    assert.equal(executions, maxExecutions);
    assert.ok(outcomes.size >= (OUTCOMES[target.name] ?? 8), `${outcomes.size} outcomes`);
  });
}

for (const target of IMPORTER_TARGETS) {
  if (target.name === 'refused-methods') continue;
  test(`${target.name}: its seeds compile and keep every rule`, async () => {
    for (const seed of await target.seeds()) {
      const { what, broken } = await judge(target, seed);
      assert.equal(broken, undefined);
      assert.match(what, /^compiled: \w/);
    }
  });
}

test('every importer has a target, and every target an importer', () => {
  const fuzzed = IMPORTER_TARGETS.map(({ method }) => method);
  assert.deepEqual(fuzzed.sort(), IMPORTERS.map(({ method }) => method).sort());
});

test('a rule that breaks is a find with the input that broke it', async () => {
  const [target] = TARGETS;
  assert.ok(target);
  const broken = { ...target, run: () => assert.fail('a mistake') };
  const { find } = await fuzz(broken, { clock: systemClock, seed: 1, seconds: 60, maxExecutions: 5 });
  assert.match(find?.broken ?? '', /^threw .*a mistake/);
  assert.ok(find);
  assert.deepEqual(decodeInput(encodeInput(find.input)), new Map([...find.input].map(([k, v]) => [k, Buffer.from(v)])));
});

test('the same seed gives the same inputs', () => {
  const draw = (seed: number): Uint8Array[] => {
    const random = seededRandom(seed);
    return Array.from({ length: 50 }, () => mutate(Buffer.from('{"a": 12}'), Buffer.from('xyz'), random));
  };
  assert.deepEqual(draw(7), draw(7));
  assert.notDeepEqual(draw(7), draw(8));
});

test('in rotation every target has its turn within some days, and no day takes longer than it may', () => {
  const targets = Array.from({ length: 61 }, (_, i) => i);
  const turns = [1, 2, 3].map((day) => inRotation(targets, { seconds: 300, day: 20_000 + day }));
  assert.equal(new Set(turns.flat().map(({ target }) => target)).size, targets.length);
  for (const turn of turns) assert.ok(turn.reduce((sum, { seconds }) => sum + seconds, 0) <= 300.001);
  assert.deepEqual(inRotation(['a', 'b'], { seconds: 300, day: 1 }), [
    { target: 'a', seconds: 150 },
    { target: 'b', seconds: 150 },
  ]);
});
