import assert from 'node:assert/strict';
import { test } from 'node:test';

import fc from 'fast-check';

import { ManyfoldError } from '../core/errors.js';
import { decodeUtf8, isJsonObject, parseJsonStrict, quoteName } from './strict-json.js';

const OPTIONS = { maxDepth: 32, what: 'config.json' };

test('every JSON value reads as JSON.parse reads it', () => {
  const spaces = fc.constantFrom(undefined, 1, '\t');
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), spaces, (value, space) => {
      const json = JSON.stringify(value, null, space);
      // Objects here have no prototype, so both sides are compared as text.
      assert.equal(JSON.stringify(parseJsonStrict(json, OPTIONS)), JSON.stringify(JSON.parse(json)));
    }),
  );
});

test('strings of any characters come back, escaped in either way', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (value) => {
      const escaped = `"${Array.from({ length: value.length }, (_, i) => `\\u${value.charCodeAt(i).toString(16).padStart(4, '0')}`).join('')}"`;
      assert.equal(parseJsonStrict(escaped, OPTIONS), value);
      assert.equal(parseJsonStrict(JSON.stringify(value), OPTIONS), value);
    }),
  );
});

test('keys of the prototype are only keys', () => {
  const value = parseJsonStrict('{"__proto__": {"x": 1}, "constructor": 2, "toString": 3}', OPTIONS);
  assert.ok(isJsonObject(value));
  assert.deepEqual(Object.keys(value), ['__proto__', 'constructor', 'toString']);
  assert.equal(value['hasOwnProperty'], undefined);
});

const REFUSED: readonly (readonly [string, RegExp])[] = [
  ['{"a": 1, "b": 2, "a": 3}', /config\.json: found the key "a" twice in one object at line 1, column 18/],
  ['{"a": {"x": 1, "\\u0078": 2}}', /found the key "x" twice/],
  ['\ufeff{}', /byte-order mark/],
  ['{"a": NaN}', /expected a JSON value/],
  ['[Infinity]', /expected a JSON value/],
  ['[1e999]', /number too large to hold: 1e999/],
  ['[01]', /expected '\]'/],
  ['[1,]', /expected a JSON value/],
  ['{"a": 1,}', /expected a key in quotes/],
  ['{"a" 1}', /expected ':'/],
  ['{} {}', /found more text after the value/],
  ['"a\nb"', /control character in a string/],
  ['"\\x41"', /escape that JSON does not have/],
  ['"\\u12g4"', /escape that JSON does not have/],
  ['"\\ud800"', /half of a surrogate pair/],
  ['"open', /without its closing quote/],
  ['"open\\n', /without its closing quote/],
  ['', /expected a JSON value/],
  ['['.repeat(33), /nested deeper than 32/],
];

test('what two parsers could read differently is refused with its place', () => {
  for (const [json, message] of REFUSED) {
    assert.throws(() => parseJsonStrict(json, OPTIONS), { name: 'ManyfoldError', code: 'invalid_model', message });
  }
});

test('the code of a refusal is the caller’s, and any text gives a value or a ManyfoldError', () => {
  assert.throws(() => parseJsonStrict('[', { ...OPTIONS, code: 'invalid_adapter' }), { code: 'invalid_adapter' });
  const token = fc.constantFrom('{', '}', '[', ']', ':', ',', '"', '\\', 'a', '1', '-', '.', 'e', 'true', ' ', '\n');
  fc.assert(
    fc.property(fc.array(token, { maxLength: 20 }), (tokens) => {
      const json = tokens.join('');
      try {
        assert.equal(JSON.stringify(parseJsonStrict(json, OPTIONS)), JSON.stringify(JSON.parse(json)));
      } catch (error) {
        assert.ok(error instanceof ManyfoldError, String(error));
      }
    }),
    { numRuns: 500 },
  );
});

test('bytes that are not UTF-8 are refused, names are made safe to print', () => {
  assert.throws(() => decodeUtf8(Uint8Array.of(0x7b, 0xff), 'config.json'), /config\.json: expected UTF-8 text/);
  assert.equal(decodeUtf8(Buffer.from('é'), 'x'), 'é');
  assert.equal(quoteName('a\nb'), '"a\\nb"');
  assert.equal(quoteName('x'.repeat(100)).length, 83);
});
