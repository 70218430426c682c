import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { clip, displayWidth, plainText, textTable, wrap } from './text-table.js';

const EVIL = '\u001b]0;title\u0007\u001b[31mred\u202etxt.exe\u200b\u2028';
const anyText = fc.string({ unit: 'binary', maxLength: 40 });

test('nothing that a terminal runs or turns around is left', () => {
  fc.assert(
    fc.property(anyText, (text) => {
      assert.doesNotMatch(plainText(text), /[\p{Cc}\p{Cs}\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/u);
    }),
    { seed: 3, numRuns: 500, examples: [[EVIL]] },
  );
  assert.equal(plainText('naïve – 日本 ✓'), 'naïve – 日本 ✓');
});

test('widths count what a terminal shows', () => {
  assert.equal(displayWidth('abc'), 3);
  assert.equal(displayWidth('日本'), 4);
  assert.equal(displayWidth('e\u0301'), 1);
  assert.equal(displayWidth('😀'), 2);
  assert.equal(clip('日本語', 4), '日…');
  assert.equal(clip('abc', 3), 'abc');
});

test('every column is as wide as its widest cell, numbers end together', () => {
  const lines = textTable(
    [
      { title: 'name', align: 'left', maxWidth: 6 },
      { title: 'n', align: 'right' },
    ],
    [
      ['a-long-name', '1'],
      ['日本', '12345'],
    ],
  );
  assert.deepEqual(lines, ['name        n', 'a-lon…      1', '日本    12345']);
});

test('wrapped lines keep to the width and lose no word', () => {
  fc.assert(
    fc.property(anyText, fc.integer({ min: 12, max: 40 }), (text, width) => {
      const lines = wrap(text, width, '  ');
      for (const line of lines) assert.ok(displayWidth(line) <= width, JSON.stringify(line));
      const bare = (some: string): string => some.replace(/ +/g, '');
      assert.equal(bare(lines.join('')), bare(plainText(text)));
    }),
    {
      seed: 9,
      numRuns: 500,
      examples: [
        ['x'.repeat(100), 20],
        ['日'.repeat(30), 13],
        ['', 12],
        [EVIL, 12],
      ],
    },
  );
});
