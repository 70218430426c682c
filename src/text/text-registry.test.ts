import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import { tokenizerCases } from '../../test/support/text-goldens.js';
import { parseAdapterVersion, type AdapterVersion } from '../core/ids.js';
import type { AdapterTextFiles } from './adapter-text.js';
import { createTemplateRenderer } from './chat-template.js';
import { createTextModel } from './text-model.js';
import { TextRegistry } from './text-registry.js';

const renderer = createTemplateRenderer({ clock: { nowMs: () => 0, unixSeconds: () => 0 }, deadlineMs: 20_000 });
after(() => renderer.close());

const BASE_TEMPLATE = 'base {{ messages[0].content }}';

async function registry(): Promise<TextRegistry> {
  const gguf = tokenizerCases().find((entry) => entry.name === 'gpt-2')?.gguf;
  assert.ok(gguf !== undefined);
  const base = await createTextModel({ source: { ...gguf, chatTemplate: BASE_TEMPLATE }, renderer });
  return new TextRegistry('f'.repeat(64), base);
}

function version(digit: string): AdapterVersion {
  const parsed = parseAdapterVersion(`sha256:${digit.repeat(64)}`);
  assert.ok(parsed !== undefined);
  return parsed;
}

const messages = [{ role: 'user', content: 'hi' }];

test("an adapter's own template serves its requests, whichever file it stands in; without one the base's does", async () => {
  const texts = await registry();
  const rendered = async (files: AdapterTextFiles, digit: string): Promise<string> => {
    await texts.add(version(digit), files);
    return (await (await texts.lookup(version(digit))).renderChat(messages)).text;
  };
  const config = (chat_template: unknown): string => JSON.stringify({ chat_template });
  assert.equal(await rendered({}, '1'), 'base hi');
  assert.equal(
    await rendered({ chatTemplate: 'file {{ messages[0].content }}', tokenizerConfig: config('config') }, '2'),
    'file hi',
  );
  assert.equal(await rendered({ tokenizerConfig: config('config {{ messages[0].content }}') }, '3'), 'config hi');
  const several = [
    { name: 'tool_use', template: 'tools' },
    { name: 'default', template: 'default {{ messages[0].content }}' },
  ];
  assert.equal(await rendered({ tokenizerConfig: config(several) }, '4'), 'default hi');
  assert.equal(await rendered({ tokenizerConfig: config(BASE_TEMPLATE) }, '5'), 'base hi');
  assert.equal(await texts.lookup(version('5')), texts.base);
  assert.equal(await texts.lookup(undefined), texts.base);
  assert.equal((await texts.lookup(version('2'))).tokenizer, texts.base.tokenizer);
});

test('a version is known from add to remove, and adding it twice gives the same', async () => {
  const texts = await registry();
  await assert.rejects(texts.lookup(version('a')), { code: 'bug' });
  const [first, second] = await Promise.all([
    texts.add(version('a'), { chatTemplate: 'x' }),
    texts.add(version('a'), { chatTemplate: 'x' }),
  ]);
  assert.equal(first, second);
  texts.remove(version('a'));
  await assert.rejects(texts.lookup(version('a')), { code: 'bug' });
});

test('tokens that the base lacks, or numbers otherwise, are refused by name; the version stays unknown', async () => {
  const texts = await registry();
  const end = texts.base.tokenizer.idOf('<|im_end|>') ?? -1;
  const fits: AdapterTextFiles[] = [
    {
      tokenizerConfig: JSON.stringify({
        eos_token: '<|im_end|>',
        added_tokens_decoder: { [end]: { content: '<|im_end|>' } },
      }),
    },
    { addedTokens: JSON.stringify({ '<|im_end|>': end }) },
    {
      tokenizerJson: `{"version":"1.0","added_tokens": [{"id":${end},"content":"<|im_end|>"}],"model":{"vocab":{"[\\"": 1}}}`,
    },
    { tokenizerJson: '{"model":{}}' },
  ];
  for (const [index, files] of fits.entries()) await texts.add(version(String(index)), files);
  const wrong: [AdapterTextFiles, RegExp][] = [
    [{ tokenizerConfig: JSON.stringify({ pad_token: '<|pad|>' }) }, /"<\|pad\|>": the base has none/],
    [
      { tokenizerConfig: JSON.stringify({ added_tokens_decoder: { 9999: { content: '<a>' } } }) },
      /"<a>" \(id 9999\): the base has none/,
    ],
    [{ addedTokens: JSON.stringify({ '<|im_end|>': end + 1 }) }, new RegExp(`the base has it as ${end}`)],
    [{ tokenizerJson: '{"added_tokens":[{"id":7,"content":"]\\"[<b>"}]}' }, /<b>/],
    [
      { addedTokens: JSON.stringify(Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`<n${i}>`, 9000 + i]))) },
      /and 4 more/,
    ],
    [{ tokenizerConfig: '[]' }, /tokenizer_config\.json is not a JSON object/],
    [{ tokenizerConfig: '{' }, /tokenizer_config\.json is not a JSON object/],
    [{ tokenizerJson: '{"added_tokens": [{]}' }, /tokenizer\.json is not a JSON object/],
  ];
  for (const [files, message] of wrong) {
    await assert.rejects(texts.add(version('e'), files), { code: 'invalid_adapter', message });
    await assert.rejects(texts.lookup(version('e')), { code: 'bug' });
  }
  const tooLong = texts.add(version('e'), { chatTemplate: 'x'.repeat(200_000) });
  await assert.rejects(tooLong, { code: 'invalid_template' });
});
