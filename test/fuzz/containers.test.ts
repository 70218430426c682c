import assert from 'node:assert/strict';
import { test } from 'node:test';

import { systemClock } from '../../src/core/clock.js';
import { fuzz } from './containers.js';
import { mutate, seededRandom } from './mutate.js';

test('a few thousand mutated containers parse or are refused, and reach many different refusals', () => {
  const report = fuzz({ clock: systemClock, seed: 1, seconds: 30, maxExecutions: 3000 });
  assert.equal(report.find, undefined);
  assert.equal(report.executions, 3000);
  assert.ok(report.outcomes > 60, `${report.outcomes} outcomes`);
});

test('the same seed gives the same inputs', () => {
  const draw = (seed: number): Uint8Array[] => {
    const random = seededRandom(seed);
    return Array.from({ length: 50 }, () => mutate(Buffer.from('{"a": 12}'), Buffer.from('xyz'), random));
  };
  assert.deepEqual(draw(7), draw(7));
  assert.notDeepEqual(draw(7), draw(8));
});
