import assert from 'node:assert/strict';
import test, { after } from 'node:test';
import { smolLm2, templateGoldens, tokenizerCases } from '../../test/support/text-goldens.js';
import type { TextSource } from '../checkpoint/checkpoint.js';
import { createTemplateRenderer } from './chat-template.js';
import { TEXT_LIMITS } from './limits.js';
import { createTextModel, type TextModel } from './text-model.js';

const goldens = templateGoldens();
const localSeconds = new Date(goldens.localTime).getTime() / 1000;
const clock = { nowMs: () => 0, unixSeconds: () => localSeconds };
// The deadline has its own test; here a busy machine must not matter.
const renderer = createTemplateRenderer({ clock, deadlineMs: 20_000 });
after(() => renderer.close());

/** A tokenizer whose special tokens are those of the goldens, with the template. */
async function modelWith(chatTemplate: string | undefined): Promise<TextModel> {
  const original = tokenizerCases().find((entry) => entry.name === 'gpt-2')?.original;
  assert.ok(original?.kind === 'huggingface');
  const source: TextSource = { ...original, tokenizerConfig: goldens.special, chatTemplate };
  return createTextModel({ source, renderer });
}

for (const [name, template] of Object.entries(goldens.templates)) {
  test(`template ${name} renders as transformers renders it`, async () => {
    const model = await modelWith(template);
    let rendered = 0;
    for (const entry of goldens.cases.filter((one) => one.template === name)) {
      const conversation = goldens.conversations[entry.conversation];
      assert.ok(conversation !== undefined);
      const chat = model.renderChat(conversation.messages, conversation);
      if (entry.text === null) {
        await assert.rejects(chat, { code: 'invalid_template' });
      } else {
        assert.equal((await chat).text, entry.text, `conversation ${entry.conversation}`);
        rendered += 1;
      }
    }
    assert.ok(rendered >= 5);
  });
}

test('SmolLM2 renders as transformers does, ends turns with <|im_end|>, and tokenizes the rendering', async () => {
  const smol = smolLm2();
  const model = await createTextModel({ source: smol.source, renderer });
  assert.deepEqual(
    model.endOfTurnIds.map((id) => model.tokenizer.piece(id)),
    ['<|im_end|>'],
  );
  for (const conversation of smol.conversations) {
    const { addGenerationPrompt, messages, text } = conversation;
    const chat = await model.renderChat(messages, { addGenerationPrompt });
    assert.equal(chat.text, text);
    assert.deepEqual(chat.ids, await model.tokenizer.encode(text, { addSpecialTokens: false }));
  }
});

test('templates of the families end turns with their own token', async () => {
  const endOf = async (template: string): Promise<(string | undefined)[]> => {
    const model = await modelWith(template);
    return model.endOfTurnIds.map((id) => model.tokenizer.piece(id));
  };
  assert.deepEqual(await endOf(goldens.templates['chatml'] ?? ''), ['<|im_end|>']);
  assert.deepEqual(await endOf(goldens.templates['qwen3'] ?? ''), ['<|im_end|>']);
  // <|eot_id|> is no token of this vocabulary, and what is not special ends no turn.
  assert.deepEqual(await endOf(goldens.templates['llama3'] ?? ''), []);
  assert.deepEqual(await endOf('{% for m in messages %}{{ m.content }} \n<|im_end|>{% endfor %}'), ['<|im_end|>']);
  assert.deepEqual(await endOf('{% for m in messages %}{{ m.content }} bye <|im_end|>{% endfor %}'), []);
  assert.deepEqual(await endOf('{% for m in messages %}{{ m.role }}{% endfor %}'), []);
  assert.deepEqual(await endOf("{{ raise_exception('never') }}"), []);
  assert.deepEqual(await endOf('{% if %}'), []);
});

test('without a template there is no chat; --chat-template stands before the model own one', async () => {
  const model = await modelWith(undefined);
  assert.equal(model.chatTemplate, undefined);
  await assert.rejects(model.renderChat([{ role: 'user', content: 'x' }]), {
    code: 'invalid_template',
    message: /--chat-template/,
  });
  const original = tokenizerCases().find((entry) => entry.name === 'gpt-2')?.gguf;
  assert.ok(original !== undefined);
  const source = { ...original, chatTemplate: 'own' };
  const overridden = await createTextModel({ source, renderer, chatTemplate: 'given {{ messages[0].content }}' });
  assert.equal((await overridden.renderChat([{ role: 'user', content: 'x' }])).text, 'given x');
  const tooLong = createTextModel({ source, renderer, chatTemplate: 'x'.repeat(131_073) });
  await assert.rejects(tooLong, { code: 'invalid_template', message: /131073 bytes/ });
});

test('content parts are joined by line breaks, null is empty, other parts are refused by place', async () => {
  const model = await modelWith('{% for m in messages %}[{{ m.content }}]{% endfor %}');
  const parts = [
    { type: 'text', text: 'a' },
    { type: 'text', text: 'b' },
  ];
  const chat = await model.renderChat([
    { role: 'user', content: parts },
    { role: 'assistant', content: null },
    { role: 'user' },
  ]);
  assert.equal(chat.text, '[a\nb][][]');
  const image = [
    { type: 'text', text: 'a' },
    { type: 'image_url', image_url: { url: 'x' } },
  ];
  await assert.rejects(model.renderChat([{ role: 'user', content: image }]), {
    code: 'invalid_request',
    param: 'messages[0].content[1]',
    message: /"image_url"/,
  });
  await assert.rejects(model.renderChat([]), { code: 'invalid_request', param: 'messages' });
  const many = Array.from({ length: TEXT_LIMITS.messages + 1 }, () => ({ role: 'user', content: 'x' }));
  await assert.rejects(model.renderChat(many), { code: 'invalid_request', param: 'messages' });
});

test('arguments of tool calls reach the template as objects, reasoning under each of its names', async () => {
  const model = await modelWith(
    '{% for m in messages %}{{ m.tool_calls[0].function.arguments.city if m.tool_calls }}|{{ m.thinking }}|{{ m.reasoning_content }};{% endfor %}',
  );
  const call = (args: string): object => ({ type: 'function', function: { name: 'f', arguments: args } });
  const chat = await model.renderChat([
    { role: 'assistant', tool_calls: [call('{"city": "Łódź"}')], reasoning: 'why' },
    { role: 'assistant', content: '', tool_calls: [call('')] },
  ]);
  assert.equal(chat.text, 'Łódź|why|why;||;');
  await assert.rejects(model.renderChat([{ role: 'assistant', tool_calls: [call('{')] }]), {
    code: 'invalid_request',
    param: 'messages[0].tool_calls[0].function.arguments',
  });
});

test('chat_template_kwargs reach the template; names that the server sets and values that are not plain are refused', async () => {
  const model = await modelWith('{{ mode }} {{ deep.x[0] }} {{ messages | length }} {{ true }}');
  const messages = [{ role: 'user', content: 'x' }];
  assert.equal(
    (await model.renderChat(messages, { kwargs: { mode: 'fast', deep: { x: [1] } } })).text,
    'fast 1 1 True',
  );
  let nested: unknown = 1;
  for (let i = 0; i < 9; i += 1) nested = [nested];
  const refused: unknown[] = [
    { messages: [] },
    { add_generation_prompt: true },
    { bos_token: '<x>' },
    { raise_exception: 1 },
    { chat_template: 'x' },
    { true: false },
    { 'a-b': 1 },
    { _private: 1 },
    { __proto__: null, constructor: () => 1 },
    { f: () => 1 },
    { n: Number.NaN },
    { d: new Date(0) },
    { deep: nested },
    { big: 'x'.repeat(20_000) },
    Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`k${i}`, i])),
    [],
    'x',
  ];
  for (const kwargs of refused) {
    await assert.rejects(model.renderChat(messages, { kwargs }), {
      code: 'invalid_request',
      message: /chat_template_kwargs/,
    });
  }
});

test('a turn is continued or begun, not both', async () => {
  const model = await modelWith(goldens.templates['chatml']);
  const messages = [{ role: 'assistant', content: 'Well, ' }];
  const both = model.renderChat(messages, { continueFinalMessage: true, addGenerationPrompt: true });
  await assert.rejects(both, { code: 'invalid_request', param: 'continue_final_message' });
  assert.equal((await model.renderChat(messages, { continueFinalMessage: true })).text, '<|im_start|>assistant\nWell,');
  const dropping = await modelWith('{{ messages[0].role }}');
  await assert.rejects(dropping.renderChat(messages, { continueFinalMessage: true }), { code: 'invalid_request' });
});

test('a detokenizer that follows a prompt keeps the leading space', async () => {
  const llama = tokenizerCases().find((entry) => entry.name === 'llama')?.gguf;
  assert.ok(llama !== undefined);
  const model = await createTextModel({ source: llama, renderer });
  const the = model.tokenizer.idOf('▁the') ?? -1;
  const bos = model.tokenizer.bosId ?? -1;
  const first = (promptIds: number[]): string => model.newDetokenizer({ skipSpecialTokens: true, promptIds }).push(the);
  assert.equal(first([]), 'the');
  assert.equal(first([bos]), 'the');
  assert.equal(first([bos, the]), ' the');
  assert.deepEqual(model.newStopMatcher(['x'], { includeStop: true }).push('axb'), { emit: 'ax', stopped: 'x' });
});
