import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { element, escapeText, fragment, Markup, styleSheet } from './markup.js';

const HOSTILE = [
  '<script>alert(1)</script>',
  '"><img src=x onerror=alert(1)>',
  "' onload='x",
  '&lt;',
  '\u0000\u001b[31m\ud800',
];

function unescaped(text: string): string {
  const entities: Record<string, string> = { '&lt;': '<', '&gt;': '>', '&quot;': '"', '&#39;': "'", '&amp;': '&' };
  return text.replace(/&(lt|gt|quot|#39|amp);/g, (entity) => entities[entity] ?? entity);
}

test('text never opens a tag, closes an attribute or starts an entity, and is read back as it was', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (text) => {
      const escaped = escapeText(text);
      assert.doesNotMatch(escaped, /[<>"']/);
      assert.doesNotMatch(escaped, /&(?!(lt|gt|quot|#39|amp);)/);
      assert.equal(
        unescaped(escaped).length,
        Array.from(text, (c) => (/^[\p{Cc}\p{Cs}\ufffe\uffff]$/u.test(c) && !/[\t\n\r]/.test(c) ? '?' : c)).join('')
          .length,
      );
    }),
    { seed: 11, numRuns: 200, examples: HOSTILE.map((text): [string] => [text]) },
  );
});

test('what XML has no character for becomes U+FFFD, everything else stays', () => {
  assert.equal(escapeText('a\u0000b\u001bc\u0085d\ud800e\n'), 'a\ufffdb\ufffdc\ufffdd\ufffde\n');
  assert.equal(escapeText('日本 😀 é'), '日本 😀 é');
});

test('elements nest, leave out undefined, and take only markup as markup', () => {
  const inner = element('b', {}, '<i>');
  const made = element('p', { class: 'x', hidden: true, title: undefined, 'data-n': 3 }, inner, [' & ', 2], undefined);
  assert.equal(made.toString(), '<p class="x" hidden data-n="3"><b>&lt;i&gt;</b> &amp; 2</p>');
  assert.equal(fragment('<', element('br')).toString(), '&lt;<br>');
});

test('names that are no names, style sheets that end themselves and forged markup are refused', () => {
  assert.throws(() => element('p onload=x'), RangeError);
  assert.throws(() => element('p', { 'a b': '1' }), RangeError);
  assert.throws(() => styleSheet('a{}</style><script>'), RangeError);
  assert.throws(() => new Markup('<script>', Symbol('markup')), TypeError);
});
