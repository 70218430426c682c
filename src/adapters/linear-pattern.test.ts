import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';

import { LinearPattern } from './linear-pattern.js';

function compiled(source: string): LinearPattern {
  const pattern = LinearPattern.compile(source);
  assert.ok(pattern !== undefined, `${source} should be in the subset`);
  return pattern;
}

test('patterns of real adapter configs match the modules that they mean', () => {
  const mlp = compiled('.*\\.layers\\.[01]\\.mlp\\.(gate|up)_proj');
  assert.ok(mlp.matchesWhole('model.layers.1.mlp.up_proj'));
  assert.ok(!mlp.matchesWhole('model.layers.2.mlp.up_proj'));
  const unsloth = compiled(
    '(?:.*?(?:vision|image|language|text).*?(?:self_attn|attention|attn|mlp|ffn).*?(?:k_proj|v_proj|q_proj|up_proj).*?)' +
      '|(?:\\bmodel\\.layers\\.[\\d]{1,}\\.(?:self_attn|mlp)\\.(?:(?:k_proj|v_proj|q_proj|up_proj)))',
  );
  assert.ok(unsloth.matchesWhole('model.layers.12.self_attn.q_proj'));
  assert.ok(unsloth.matchesWhole('model.language_model.layers.3.mlp.up_proj'));
  assert.ok(!unsloth.matchesWhole('model.layers.12.self_attn.o_proj'));
});

test('what cannot be matched in linear time, or is too large, is told apart', () => {
  const refused = [
    '(a',
    'a)',
    '[a',
    'a**',
    '*a',
    '(?=a)',
    '(?<!a)b',
    '(a)\\1',
    '(?i)a',
    'a{2,1}',
    'a{',
    '^*',
    '\\x41',
    'a++',
    '[z-a]',
  ];
  for (const source of refused) assert.equal(LinearPattern.compile(source), undefined, source);
  assert.equal(LinearPattern.compile('(a{1000}){1000}'), undefined);
  assert.equal(LinearPattern.compile('((){9999}){9999}'), undefined);
  assert.equal(LinearPattern.compile('('.repeat(2000) + ')'.repeat(2000)), undefined);
});

test('patterns that make a backtracking engine hang are answered at once', () => {
  const evil = compiled('(a|a|(a*)*)*b');
  assert.ok(!evil.matchesWhole('a'.repeat(1000)));
  assert.ok(evil.matchesWhole(`${'a'.repeat(1000)}b`));
});

test('the subset agrees with RegExp', () => {
  const atom = fc.constantFrom(
    'a',
    'b',
    '.',
    '\\.',
    '[ab]',
    '[^a]',
    '\\w',
    '\\d',
    '[a-c.]',
    '\\b',
    '^',
    '$',
    '(?:a|.b)',
    '(a|)',
  );
  const quantified = fc
    .tuple(atom, fc.constantFrom('', '', '*', '+', '?', '{2}', '{1,2}', '{0,}', '*?'))
    .filter(([item, count]) => count === '' || !['\\b', '^', '$'].includes(item))
    .map(([item, count]) => item + count);
  const source = fc.array(quantified, { minLength: 1, maxLength: 5 }).map((parts) => parts.join(''));
  const text = fc.string({ unit: fc.constantFrom('a', 'b', 'c', '.', '1'), maxLength: 8 });
  fc.assert(
    fc.property(fc.tuple(source, source, text), ([left, right, word]) => {
      const whole = `${left}|${right}`;
      const ours = compiled(whole);
      assert.equal(ours.matchesWhole(word), new RegExp(`^(?:${whole})$`, 's').test(word), `${whole} on ${word}`);
      assert.equal(
        ours.matchesStart(word),
        new RegExp(`^(?:${whole})`, 's').test(word),
        `${whole} at the start of ${word}`,
      );
    }),
    { numRuns: 500 },
  );
});
