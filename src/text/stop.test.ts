import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { TEXT_LIMITS } from './limits.js';
import { StopMatcher } from './stop.js';

interface Outcome {
  readonly text: string;
  readonly stopped?: string;
}

function run(stops: readonly string[], parts: readonly string[], includeStop: boolean): Outcome {
  const matcher = new StopMatcher(stops, { includeStop });
  let text = '';
  for (const part of parts) {
    const { emit, stopped } = matcher.push(part);
    text += emit;
    if (stopped !== undefined) return { text, stopped };
  }
  return { text: text + matcher.flush() };
}

/** The definition: the first character at which some stop string is complete, and the longest one there. */
function naive(stops: readonly string[], text: string, includeStop: boolean): Outcome {
  for (let end = 1; end <= text.length; end += 1) {
    const matches = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length);
    const [stopped] = matches;
    if (stopped !== undefined) return { text: text.slice(0, includeStop ? end : end - stopped.length), stopped };
  }
  return { text };
}

test('equals the definition for any stop strings and any cuts', () => {
  const letters = fc.constantFrom('a', 'b', '\n');
  const stops = fc.array(fc.string({ unit: letters, minLength: 1, maxLength: 5 }), { maxLength: 4 });
  const parts = fc.array(fc.string({ unit: letters, maxLength: 4 }), { maxLength: 15 });
  fc.assert(
    fc.property(stops, parts, fc.boolean(), (list, pieces, includeStop) => {
      assert.deepEqual(run(list, pieces, includeStop), naive(list, pieces.join(''), includeStop));
    }),
    { numRuns: 5000 },
  );
});

test('holds back only what may be the beginning of a stop string', () => {
  const letters = fc.constantFrom('a', 'b', 'c');
  const stops = fc.array(fc.string({ unit: letters, minLength: 1, maxLength: 5 }), { minLength: 1, maxLength: 3 });
  fc.assert(
    fc.property(stops, fc.array(fc.string({ unit: letters, maxLength: 3 }), { maxLength: 12 }), (list, pieces) => {
      const matcher = new StopMatcher(list);
      let seen = '';
      let sent = '';
      for (const piece of pieces) {
        const { emit, stopped } = matcher.push(piece);
        if (stopped !== undefined) return;
        seen += piece;
        sent += emit;
        const held = seen.slice(sent.length);
        assert.equal(sent + held, seen);
        assert.ok(held === '' || list.some((stop) => stop.startsWith(held) && stop !== held), held);
      }
    }),
    { numRuns: 2000 },
  );
});

test('matches across pieces; the longest of those complete together wins; nothing may follow', () => {
  assert.deepEqual(run(['<end>'], ['hello <e', 'nd', '> more'], false), { text: 'hello ', stopped: '<end>' });
  assert.deepEqual(run(['<end>'], ['hello <e', 'nd', '> more'], true), { text: 'hello <end>', stopped: '<end>' });
  assert.deepEqual(run(['b', 'ab'], ['xab'], false), { text: 'x', stopped: 'ab' });
  assert.deepEqual(run(['abcd', 'bc'], ['abcd'], false), { text: 'a', stopped: 'bc' });
  const matcher = new StopMatcher(['x']);
  matcher.push('x');
  assert.throws(() => matcher.push('y'), { code: 'bug' });
});

test('limits are refused with the field', () => {
  assert.throws(() => new StopMatcher(['']), { code: 'invalid_request', param: 'stop' });
  assert.throws(() => new StopMatcher(Array.from({ length: TEXT_LIMITS.stopStrings + 1 }, (_, i) => `s${i}`)), {
    code: 'invalid_request',
  });
  assert.throws(() => new StopMatcher(['x'.repeat(TEXT_LIMITS.stopChars + 1)]), { code: 'invalid_request' });
});
