import assert from 'node:assert/strict';
import test from 'node:test';
import * as script from '@huggingface/tokenizers';
import { digest, goldenTexts, smolLm2, tokenizerCases, type TokenizerCase } from '../../test/support/text-goldens.js';
import type { TextSource } from '../checkpoint/checkpoint.js';
import { readGgufTokenizer } from './gguf-tokenizer.js';
import { TEXT_LIMITS } from './limits.js';
import { createTokenizer, type Tokenizer } from './tokenizer.js';

/** What is used of the second implementation, whose own declarations do not resolve from an ES module. */
interface ScriptLibrary {
  readonly Tokenizer: new (
    json: object,
    config: object,
  ) => { encode(text: string, options: object): { readonly ids: readonly number[] } };
}
const ScriptTokenizer = (script as ScriptLibrary).Tokenizer;

const texts = goldenTexts();
const all = [...texts.corpus, ...texts.random];
const cases = tokenizerCases();

function named(name: string): TokenizerCase {
  const found = cases.find((entry) => entry.name === name);
  assert.ok(found, name);
  return found;
}

/** Texts whose ids are not the expected ones. */
async function differing(tokenizer: Tokenizer, expected: readonly string[]): Promise<string[]> {
  const wrong: string[] = [];
  for (const [index, text] of all.entries()) {
    const ids = await tokenizer.encode(text, { addSpecialTokens: true });
    if (digest(ids) !== expected[index]) wrong.push(text);
  }
  return wrong;
}

for (const { name, gguf, original, originalIds } of cases) {
  if (originalIds === undefined || original === undefined) continue;
  test(`${name}: GGUF metadata and tokenizer.json both give the ids of the original tokenizer`, async () => {
    assert.deepEqual(await differing(await createTokenizer(gguf), originalIds), []);
    assert.deepEqual(await differing(await createTokenizer(original), originalIds), []);
  });
}

test('the tiny cases cover what they should', () => {
  assert.equal(cases.length, 15);
  assert.equal(cases.filter((entry) => entry.originalIds !== undefined).length, 11);
  assert.ok(all.length > 320);
});

// Where transformers itself reproduces the original from GGUF, so do we; where it does not, the reason is the text's.
const sameAsTransformers = ['gpt-2', 'unnamed', 'llama-bpe', 'tekken', 'gpt-4o', 'llama', 'gemma3', 'unigram'];
for (const name of sameAsTransformers) {
  test(`${name}: GGUF metadata gives the ids that transformers gives for the same file`, async () => {
    assert.deepEqual(await differing(await createTokenizer(named(name).gguf), named(name).ggufIds), []);
  });
}

test('smollm, refact, qwen2: ids differ from transformers for the same file only where it leaves a step out', async () => {
  for (const name of ['smollm', 'refact']) {
    const wrong = await differing(await createTokenizer(named(name).gguf), named(name).ggufIds);
    assert.ok(wrong.length > 0);
    assert.deepEqual(
      wrong.filter((text) => !/\p{N}/u.test(text)),
      [],
    );
  }
  const wrong = await differing(await createTokenizer(named('qwen2').gguf), named('qwen2').ggufIds);
  assert.ok(wrong.length > 0);
  assert.deepEqual(
    wrong.filter((text) => text === text.normalize('NFC')),
    [],
  );
});

test('SmolLM2: the ids of its own tokenizer.json, and those of transformers for the GGUF file but for digits', async () => {
  const smol = smolLm2();
  const tokenizer = await createTokenizer(smol.source);
  for (const [index, text] of texts.corpus.slice(0, texts.lines).entries()) {
    assert.deepEqual(await tokenizer.encode(text, { addSpecialTokens: true }), smol.lineIds[index], text);
  }
  assert.deepEqual(await differing(tokenizer, smol.originalIds), []);
  const digits = /\s\s\p{N}|(?![0-9])\p{N}/u;
  const wrong = await differing(tokenizer, smol.ggufIds);
  assert.deepEqual(
    wrong.filter((text) => !digits.test(text)),
    [],
  );
  assert.ok(wrong.length < 10);
});

test('a second implementation of tokenizers gives the same ids', async () => {
  for (const name of ['qwen2', 'gpt-4o', 'deepseek-v3', 'llama-no-prefix', 'gemma3']) {
    const { gguf } = named(name);
    const tokenizer = await createTokenizer(gguf);
    assert.ok(gguf.kind === 'gguf');
    const second = new ScriptTokenizer(readGgufTokenizer(gguf.metadata).json, {});
    for (const text of all) {
      const ids = await tokenizer.encode(text, { addSpecialTokens: false });
      assert.deepEqual(ids, second.encode(text, { add_special_tokens: false }).ids, `${name}: ${JSON.stringify(text)}`);
    }
  }
});

test('GGUF: an unknown pre-tokenizer is refused with the known names', async () => {
  const { gguf } = named('smollm');
  assert.ok(gguf.kind === 'gguf');
  const metadata = new Map(gguf.metadata).set('tokenizer.ggml.pre', 'brand-new');
  await assert.rejects(createTokenizer({ ...gguf, metadata }), (error: Error) => {
    assert.match(error.message, /"brand-new"; known are .*gpt-2.*llama-bpe.*qwen2.*smollm.*tekken/);
    return true;
  });
});

test('GGUF: broken metadata is refused by key', async () => {
  const { gguf } = named('llama');
  assert.ok(gguf.kind === 'gguf');
  const with_ = (key: string, value: unknown): TextSource => {
    const metadata = new Map<string, never>(gguf.metadata as ReadonlyMap<string, never>).set(key, value as never);
    return { ...gguf, metadata };
  };
  const broken: [string, unknown][] = [
    ['tokenizer.ggml.model', 'bert'],
    ['tokenizer.ggml.tokens', []],
    ['tokenizer.ggml.tokens', [1, 2]],
    ['tokenizer.ggml.tokens', ['x'.repeat(4097)]],
    ['tokenizer.ggml.scores', [0.5]],
    ['tokenizer.ggml.token_type', 'three'],
    ['tokenizer.ggml.bos_token_id', 1_000_000],
    ['tokenizer.ggml.add_bos_token', 'yes'],
    ['tokenizer.ggml.merges', ['a b c']],
  ];
  for (const [key, value] of broken) {
    await assert.rejects(createTokenizer(with_(key, value)), { code: 'invalid_model', param: key }, key);
  }
});

test('GGUF: the flags for BOS, EOS and the leading space are honoured', async () => {
  const { gguf } = named('llama');
  assert.ok(gguf.kind === 'gguf');
  const ids = async (flags: Readonly<Record<string, boolean>>): Promise<(string | undefined)[]> => {
    const tokenizer = await createTokenizer({
      ...gguf,
      metadata: new Map([...gguf.metadata, ...Object.entries(flags)]),
    });
    return (await tokenizer.encode('the', { addSpecialTokens: true })).map((id) => tokenizer.piece(id));
  };
  assert.deepEqual(await ids({}), ['<s>', '▁the']);
  assert.deepEqual(await ids({ 'tokenizer.ggml.add_bos_token': false }), ['▁the']);
  assert.deepEqual(await ids({ 'tokenizer.ggml.add_eos_token': true }), ['<s>', '▁the', '</s>']);
  assert.deepEqual(await ids({ 'tokenizer.ggml.add_space_prefix': false }), ['<s>', 't', 'he']);
});

test('prompts: BOS is never doubled, chat adds nothing, completions add what the tokenizer adds', async () => {
  const tokenizer = await createTokenizer(named('llama').gguf);
  assert.equal(tokenizer.addsBos, true);
  const [bos] = [tokenizer.bosId];
  const plain = await tokenizer.encode('hi', { addSpecialTokens: false });
  assert.deepEqual(await tokenizer.encodePrompt('hi', 'chat'), plain);
  assert.deepEqual(await tokenizer.encodePrompt('hi', 'completion'), [bos, ...plain]);
  const written = await tokenizer.encode('<s>hi', { addSpecialTokens: false });
  assert.equal(written[0], bos);
  assert.deepEqual(await tokenizer.encodePrompt('<s>hi', 'chat'), written);
  assert.deepEqual(await tokenizer.encodePrompt('<s>hi', 'completion'), written);
  assert.deepEqual(await tokenizer.encodePrompt('', 'completion'), [bos]);
});

test('prompts beyond the byte limit are refused, those at the limit are not, and long ones leave the event loop free', async () => {
  const tokenizer = await createTokenizer(named('smollm').gguf);
  const text = 'é'.repeat(TEXT_LIMITS.promptBytes / 2);
  await assert.rejects(tokenizer.encodePrompt(`${text}x`, 'chat'), { code: 'request_too_large' });
  let turns = 0;
  const timer = setInterval(() => (turns += 1), 1);
  assert.ok((await tokenizer.encodePrompt(text, 'chat')).length > 100_000);
  clearInterval(timer);
  assert.ok(turns > 3, `${turns} turns of the event loop while tokenizing`);
});

test('tokens: pieces, bytes, text and kind', async () => {
  const letters = await createTokenizer(named('gpt-2').gguf);
  const it = letters.idOf('Ġit');
  assert.ok(it !== undefined);
  assert.equal(letters.piece(it), 'Ġit');
  assert.equal(letters.tokenText(it), ' it');
  assert.equal(Buffer.from(letters.tokenBytes(it)).toString(), ' it');
  assert.equal(letters.isSpecial(it), false);
  assert.equal(letters.isSpecial(letters.idOf('<|im_end|>') ?? -1), true);
  assert.equal(letters.isSpecial(letters.idOf('<think>') ?? -1), false);
  assert.equal(letters.tokenText(letters.idOf('<|im_end|>') ?? -1), '<|im_end|>');
  assert.equal(letters.eosId, letters.idOf('<|im_end|>'));
  const half = letters.idOf('Ã') ?? -1;
  assert.deepEqual([...letters.tokenBytes(half)], [0xc3]);
  assert.equal(letters.tokenText(half), '\ufffd');
  assert.equal(letters.piece(letters.vocabSize), undefined);
  assert.equal(letters.tokenBytes(letters.vocabSize).length, 0);
  const pieces = await createTokenizer(named('llama').gguf);
  assert.deepEqual([...pieces.tokenBytes(pieces.idOf('<0xE2>') ?? -1)], [0xe2]);
  assert.equal(pieces.tokenText(pieces.idOf('▁the') ?? -1), ' the');
});

test('tokenizer_config.json: named tokens, added_bos_token and tokens that only it lists are honoured', async () => {
  const { original } = named('gpt-2');
  assert.ok(original?.kind === 'huggingface');
  const configured = (tokenizerConfig: Readonly<Record<string, unknown>>): Promise<Tokenizer> =>
    createTokenizer({ ...original, tokenizerConfig });
  const named_ = await configured({ bos_token: { content: '<|im_start|>' }, eos_token: '<|im_end|>', pad_token: null });
  assert.deepEqual(named_.special, { bos_token: '<|im_start|>', eos_token: '<|im_end|>' });
  assert.equal(named_.addsBos, false);
  const adds = await configured({ bos_token: '<|im_start|>', add_bos_token: true });
  assert.equal(adds.addsBos, true);
  assert.deepEqual(await adds.encode('', { addSpecialTokens: true }), [adds.bosId]);
  // 'Ġit' is an ordinary token of the model; as a named token it is special.
  const special = await configured({ eos_token: 'Ġit' });
  assert.equal(special.isSpecial(special.idOf('Ġit') ?? -1), true);
  const next = named_.vocabSize;
  const extended = await configured({ added_tokens_decoder: { [next]: { content: '<new>', special: true } } });
  assert.deepEqual(await extended.encode('<new>', { addSpecialTokens: false }), [next]);
  const wrong = configured({ added_tokens_decoder: { [next + 7]: { content: '<new>', special: true } } });
  await assert.rejects(wrong, { code: 'invalid_model', message: /"<new>"/ });
});

test('tokenizer.json: what is not one is refused', async () => {
  const folder = (tokenizerJson: string): TextSource => ({
    kind: 'huggingface',
    tokenizerJson,
    tokenizerConfig: {},
    chatTemplate: undefined,
  });
  const model = { type: 'BPE', vocab: { a: 0 }, merges: [] };
  const broken = [
    '{',
    '[]',
    '{}',
    JSON.stringify({ model: { type: 'WordPiece', vocab: {} } }),
    JSON.stringify({ model: { type: 'BPE' } }),
    JSON.stringify({ model, added_tokens: [1] }),
    JSON.stringify({ model, decoder: { type: 'WordPiece', prefix: '##', cleanup: true } }),
    JSON.stringify({ model: { ...model, merges: [['x', 'y']] }, decoder: { type: 'ByteLevel' } }),
  ];
  for (const text of broken) await assert.rejects(createTokenizer(folder(text)), { code: 'invalid_model' }, text);
});
