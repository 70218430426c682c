import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { csvField, csvRecord } from './csv.js';

/** A reader by the grammar of RFC 4180, apart from the writer. */
function parseCsv(text: string): string[][] {
  const records: string[][] = [];
  let record: string[] = [];
  let at = 0;
  while (at < text.length) {
    let field = '';
    if (text[at] === '"') {
      for (at += 1; text[at] !== '"' || text[at + 1] === '"'; at += 1) {
        if (text[at] === '"') at += 1;
        field += text[at];
      }
      at += 1;
    } else {
      while (at < text.length && text[at] !== ',' && text[at] !== '\r') field += text[at++];
    }
    record.push(field);
    if (text[at] === ',') at += 1;
    else {
      assert.equal(text.slice(at, at + 2), '\r\n');
      at += 2;
      records.push(record);
      record = [];
    }
    if (text[at - 1] === ',' && at === text.length) record.push('');
  }
  return records;
}

test('any text is read back by the grammar of RFC 4180, with an apostrophe before formulas only', () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'grapheme', maxLength: 20 }), { minLength: 2, maxLength: 6 }), (cells) => {
      const [read = []] = parseCsv(csvRecord(cells));
      assert.equal(read.length, cells.length);
      read.forEach((cell, index) => assert.equal(cell.replace(/^'/, ''), cells[index]?.replace(/^'/, '')));
    }),
    { seed: 5, numRuns: 500, examples: [[['a,b', 'say "no"', 'two\r\nlines', ' padded ']], [['=1', '', '-2']]] },
  );
});

test('no field begins like a formula', () => {
  for (const text of ['=cmd()|x', '+1', '-1', '@SUM(A1)', '\t=1', ' =1', '\r=1', '＝1', '|calc', '\u0000=1']) {
    assert.match(csvField(text), /^"?'/, JSON.stringify(text));
  }
  assert.equal(csvField('tenant-a/v2'), 'tenant-a/v2');
  assert.equal(csvField('a=b'), 'a=b');
});

test('numbers stay numbers; what is no number, and nothing, are empty', () => {
  assert.equal(csvRecord([-1.5, 0, NaN, Infinity, null, undefined, true]), '-1.5,0,,,,,true\r\n');
});
