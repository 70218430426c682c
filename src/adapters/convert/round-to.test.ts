import assert from 'node:assert/strict';
import { test } from 'node:test';

import { bf16ToF32, f16ToF32 } from '../../core/half.js';
import { roundTo } from './round-to.js';

const middle = (a: number, b: number): number => (a + b) / 2;

test('every f16 and bf16 is itself, and what lies between two goes to the nearer, a tie to the even one', () => {
  for (const [type, widen, last] of [
    ['f16', f16ToF32, 0x7bff],
    ['bf16', bf16ToF32, 0x7f7f],
  ] as const) {
    for (let bits = 0; bits < last; bits += 7) {
      const [value, next] = [widen(bits), widen(bits + 1)];
      assert.equal(roundTo(type, value), value);
      assert.equal(roundTo(type, -value), -value);
      assert.equal(roundTo(type, Math.fround(middle(value, middle(value, next)))), value, `${type} ${bits}`);
      if (Math.fround(middle(value, next)) !== middle(value, next)) continue;
      assert.equal(roundTo(type, middle(value, next)), bits % 2 === 0 ? value : next, `${type} tie at ${bits}`);
    }
  }
});

test('beyond the largest value comes infinity', () => {
  assert.deepEqual(
    [65_504, 65_519, 65_520, -1e9].map((value) => roundTo('f16', value)),
    [65_504, 65_504, Infinity, -Infinity],
  );
  assert.ok(Number.isNaN(roundTo('f16', NaN)));
  assert.equal(roundTo('f32', 0.1), Math.fround(0.1));
});
