import assert from 'node:assert/strict';
import test from 'node:test';
import { Tokenizer as NativeTokenizer } from '@anush008/tokenizers';
import fc from 'fast-check';
import { goldenTexts, smolLm2, tokenizerCases } from '../../test/support/text-goldens.js';
import type { TextSource } from '../checkpoint/checkpoint.js';
import { readGgufTokenizer } from './gguf-tokenizer.js';
import { createTokenizer, type Tokenizer } from './tokenizer.js';

function source(name: string): Extract<TextSource, { kind: 'gguf' }> {
  const found = tokenizerCases().find((entry) => entry.name === name)?.gguf;
  assert.ok(found?.kind === 'gguf');
  return found;
}

async function both(name: string): Promise<{ tokenizer: Tokenizer; native: NativeTokenizer }> {
  const gguf = source(name);
  const { json } = readGgufTokenizer(gguf.metadata);
  return { tokenizer: await createTokenizer(gguf), native: NativeTokenizer.fromString(JSON.stringify(json)) };
}

function deltas(tokenizer: Tokenizer, ids: readonly number[], skipSpecialTokens: boolean): string[] {
  const stream = tokenizer.newDetokenizer({ skipSpecialTokens });
  return [...ids.map((id) => stream.push(id)), stream.flush()];
}

/** Whether the text is whole UTF-16: no half of a surrogate pair. */
function isWhole(text: string): boolean {
  return !/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text);
}

const anyText = fc.string({ unit: 'binary', maxLength: 40 });

for (const name of ['smollm', 'llama', 'llama-no-prefix', 'gemma3']) {
  test(`${name}: random text comes back in whole characters, however it is cut into tokens`, async () => {
    const { tokenizer, native } = await both(name);
    const check = async (text: string): Promise<void> => {
      const ids = await tokenizer.encode(text, { addSpecialTokens: true });
      const parts = deltas(tokenizer, ids, false);
      assert.ok(parts.every(isWhole), JSON.stringify(parts));
      const expected = await native.decode(ids, false);
      assert.equal(parts.join(''), expected);
      if (!text.includes('\ufffd')) assert.ok(!parts.join('').includes('\ufffd'));
      assert.equal(tokenizer.decode(ids, { skipSpecialTokens: true }), await native.decode(ids, true));
    };
    for (const text of goldenTexts().random) await check(text);
    for (const text of goldenTexts().corpus) await check(text);
    await fc.assert(fc.asyncProperty(anyText, check), { numRuns: 150 });
  });
}

test('byte-level: random ids give what the native library decodes, broken bytes included', async () => {
  const { tokenizer, native } = await both('smollm');
  const ids = fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize - 1 }), { maxLength: 60 });
  const check = async (list: number[], skip: boolean): Promise<void> => {
    const parts = deltas(tokenizer, list, skip);
    assert.ok(parts.every(isWhole));
    assert.equal(parts.join(''), await native.decode(list, skip));
    assert.equal(tokenizer.decode(list, { skipSpecialTokens: skip }), parts.join(''));
  };
  await fc.assert(fc.asyncProperty(ids, fc.boolean(), check), { numRuns: 300 });
  // Single bytes only: nearly every sequence is broken somewhere.
  const bytes = fc.array(fc.integer({ min: 3, max: 258 }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(bytes, (list) => check(list, false)),
    { numRuns: 500 },
  );
});

test('SentencePiece: random ids give their bytes as text, without the first space', async () => {
  for (const name of ['llama', 'gemma3']) {
    const { tokenizer } = await both(name);
    const ids = fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize - 1 }), { maxLength: 40 });
    fc.assert(
      fc.property(ids, fc.boolean(), (list, skip) => {
        const kept = skip ? list.filter((id) => !tokenizer.isSpecial(id)) : list;
        const text = Buffer.concat(kept.map((id) => tokenizer.tokenBytes(id))).toString('utf8');
        const parts = deltas(tokenizer, list, skip);
        assert.ok(parts.every(isWhole));
        assert.equal(parts.join(''), name === 'llama' && text.startsWith(' ') ? text.slice(1) : text);
      }),
      { numRuns: 300 },
    );
  }
});

test('Unigram: random ids give what the native library decodes', async () => {
  const { tokenizer, native } = await both('unigram');
  const ids = fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize - 1 }), { maxLength: 20 });
  const check = async (list: number[], skip: boolean): Promise<void> => {
    assert.equal(deltas(tokenizer, list, skip).join(''), await native.decode(list, skip));
  };
  await fc.assert(fc.asyncProperty(ids, fc.boolean(), check), { numRuns: 200 });
});

test('an emoji comes with its last byte, a byte order mark stays, an open character becomes U+FFFD at the end', async () => {
  const tokenizer = await createTokenizer(source('smollm'));
  const idOfByte = (letter: string): number => tokenizer.idOf(letter) ?? -1;
  const emoji = ['ð', 'Ł', 'ĺ', 'Ģ'].map(idOfByte);
  assert.deepEqual(deltas(tokenizer, emoji, true), ['', '', '', '😀', '']);
  assert.deepEqual(deltas(tokenizer, emoji.slice(0, 3), true), ['', '', '', '\ufffd']);
  assert.deepEqual(deltas(tokenizer, ['ï', '»', '¿'].map(idOfByte), true), ['', '', '\ufeff', '']);
});

test('a text that goes on keeps its leading space', async () => {
  const tokenizer = await createTokenizer(source('llama'));
  const the = tokenizer.idOf('▁the') ?? -1;
  assert.equal(tokenizer.decode([the], { skipSpecialTokens: true }), 'the');
  assert.equal(tokenizer.decode([the], { skipSpecialTokens: true, continues: true }), ' the');
});

test('SmolLM2: the work per token does not grow with the text', async () => {
  const tokenizer = await createTokenizer(smolLm2().source);
  const text = goldenTexts().corpus.join('\n');
  const ids = await tokenizer.encode(text, { addSpecialTokens: false });
  const many = Array.from({ length: 100_000 }, (_, i) => ids[i % ids.length] ?? 0);
  const started = process.hrtime.bigint();
  assert.ok(deltas(tokenizer, many, true).join('').length > 100_000);
  // About 0.1 s on a quiet machine; decoding everything again for each token would take minutes.
  assert.ok(Number(process.hrtime.bigint() - started) / 1e9 < 5);
});
