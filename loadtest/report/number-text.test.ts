import assert from 'node:assert/strict';
import { test } from 'node:test';
import { countText, durationText, numberText, percentText, signedPercentText, threeDigits } from './number-text.js';

test('durations have three digits and the unit that fits', () => {
  const cases: readonly (readonly [number | undefined, string])[] = [
    [0, '0 ms'],
    [0.0421, '0.0421 ms'],
    [18.34, '18.3 ms'],
    [999.4, '999 ms'],
    [999.6, '1 s'],
    [1250, '1.25 s'],
    [119_400, '119 s'],
    [120_000, '2 min'],
    [125_000, '2 min 5 s'],
    [-42, '-42 ms'],
    [undefined, '–'],
    [NaN, '–'],
  ];
  for (const [ms, text] of cases) assert.equal(durationText(ms), text);
});

test('a share that is not whole is never told as 0 % or 100 %', () => {
  const cases: readonly (readonly [number, string])[] = [
    [0, '0 %'],
    [1, '100 %'],
    [0.99999, '99.99 %'],
    [0.999, '99.9 %'],
    [0.00001, '< 0.01 %'],
    [0.5, '50 %'],
    [0.0245, '2.45 %'],
  ];
  for (const [share, text] of cases) assert.equal(percentText(share), text);
});

test('differences carry their sign', () => {
  assert.equal(signedPercentText(0.0566), '+5.66 %');
  assert.equal(signedPercentText(-0.00031), '−0.03 %');
  assert.equal(signedPercentText(-0.0000031), '0 %');
  assert.equal(signedPercentText(0), '0 %');
});

test('counts are grouped, other numbers are not drawn out', () => {
  assert.equal(countText(1_234_567), '1\u00a0234\u00a0567');
  assert.equal(countText(999), '999');
  assert.equal(numberText(1500), '1\u00a0500');
  assert.equal(numberText(19.2345), '19.2');
  assert.equal(numberText(0.00012), '1.2e-4');
  assert.equal(threeDigits(100), '100');
  assert.equal(threeDigits(2.5), '2.5');
});
