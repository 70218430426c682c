import assert from 'node:assert/strict';
import test from 'node:test';
import { pythonStrftime, pythonStrip } from './python-text.js';

test('strips what Python strips', () => {
  assert.equal(pythonStrip(' \n\u00a0\u2003x\x1c\x85 ', 'strip'), 'x');
  assert.equal(pythonStrip('\ufeff x \u200b', 'strip'), '\ufeff x \u200b');
  assert.equal(pythonStrip(' x ', 'lstrip'), 'x ');
  assert.equal(pythonStrip(' x ', 'rstrip'), ' x');
  assert.equal(pythonStrip('\n x \n', 'strip', '\n'), ' x ');
  assert.equal(pythonStrip('😀a😃b😀', 'strip', '😀b'), 'a😃');
  assert.equal(pythonStrip('   ', 'strip'), '');
});

test('writes dates as Python does', () => {
  const date = new Date(2024, 1, 5, 0, 7, 9);
  assert.equal(
    pythonStrftime(date, '%Y-%m-%d %y %e %B %b %A %a %H %I %p %M %S %% %q'),
    '2024-02-05 24  5 February Feb Monday Mon 00 12 AM 07 09 % %q',
  );
  assert.equal(pythonStrftime(new Date(2024, 6, 26, 15), '%d %b %Y, %I %p'), '26 Jul 2024, 03 PM');
});
