/** An adapter folder's own chat template serves its requests alone; an adapter that adds tokens is refused. */
import assert from 'node:assert/strict';
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { post, postFailure, postJson } from './support/api.js';
import { GOLDENS } from './support/goldens.js';
import { assertIdle, startStack, type Stack } from './support/stack.js';

const FOLDER = path.join(GOLDENS, 'models', 'llama-gqa');
const TEMPLATE =
  "{% for m in messages %}[{{ m['role'] }}{{ suffix | default('') }}] {{ m['content'] }} {% endfor %}" +
  '{% if add_generation_prompt %}[answer]{% endif %}';
const OTHER = TEMPLATE.replace('[answer]', '[reply]');

let stack: Stack;
let adapters: string;
before(async () => {
  adapters = await mkdtemp(path.join(tmpdir(), 'manyfold-e2e-'));
  const copy = (name: string): Promise<void> =>
    cp(path.join(FOLDER, 'adapters', 'qkvo-r8'), path.join(adapters, name), { recursive: true });
  await Promise.all(['plain', 'file', 'config', 'adds', 'broken'].map(copy));
  await writeFile(path.join(adapters, 'file', 'chat_template.jinja'), TEMPLATE);
  // What transformers wrote before it had a file of its own.
  await writeFile(path.join(adapters, 'config', 'tokenizer_config.json'), JSON.stringify({ chat_template: OTHER }));
  await writeFile(path.join(adapters, 'adds', 'added_tokens.json'), '{"<|tool|>": 320, "<|im_end|>": 2}');
  await writeFile(path.join(adapters, 'broken', 'chat_template.jinja'), '{% for m in messages %}');
  stack = await startStack(FOLDER, ['--dtype', 'f32', '--adapter-dir', adapters, '--enable-runtime-lora']);
});
after(async () => {
  await stack.stop();
  await rm(adapters, { recursive: true });
});

/** What a conversation looks like to the model. */
async function rendered(model: string, more: object = {}): Promise<string> {
  const messages = [{ role: 'user', content: 'Where is it?' }];
  const { tokens } = await postJson<{ tokens: number[] }>(stack.url, '/tokenize', { model, messages, ...more });
  return (await postJson<{ prompt: string }>(stack.url, '/detokenize', { model, tokens })).prompt;
}

const CHATML = '<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n';

test('each template serves the adapter that brings it, and no other', async () => {
  assert.equal(await rendered('file'), '[user] Where is it? [answer]');
  assert.equal(await rendered('config'), '[user] Where is it? [reply]');
  assert.equal(await rendered('plain'), CHATML);
  assert.equal(await rendered('llama-gqa'), CHATML);
  assert.equal(await rendered('file', { chat_template_kwargs: { suffix: '!' } }), '[user!] Where is it? [answer]');
});

test('chat requests are rendered by it', async () => {
  for (const model of ['file', 'config', 'plain', 'llama-gqa']) {
    const body = {
      model,
      messages: [{ role: 'user', content: 'Where is it?' }],
      max_tokens: 1,
      return_token_ids: true,
    };
    const { prompt_token_ids: tokens } = await postJson<{ prompt_token_ids: number[] }>(
      stack.url,
      '/v1/chat/completions',
      body,
    );
    const { prompt } = await postJson<{ prompt: string }>(stack.url, '/detokenize', { model, tokens });
    assert.equal(prompt, await rendered(model), model);
  }
});

test('the same weights with another template are another version', async () => {
  const { registry } = stack.composition;
  const versions = ['file', 'config', 'plain'].map((name) => registry.resolve(name)?.version);
  assert.equal(new Set(versions).size, 3);
  const chat = async (model: string): Promise<string | null | undefined> => {
    const messages = [{ role: 'user' as const, content: 'Where is it?' }];
    const answer = await stack.client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12 });
    return answer.choices[0]?.message.content;
  };
  const [own, plain] = await Promise.all([chat('file'), chat('plain')]);
  assert.notEqual(own, plain, 'another prompt, another answer');
});

test('a template that does not parse fails chats alone, and says why', async () => {
  const messages = [{ role: 'user', content: 'Where is it?' }];
  const failure = await postFailure(stack.url, '/v1/chat/completions', { model: 'broken', messages }, 400);
  assert.match(failure.message, /template/);
  const completion = await post(stack.url, '/v1/completions', { model: 'broken', prompt: 'x', max_tokens: 1 });
  assert.equal(completion.status, 200, await completion.text());
});

test('an adapter that adds tokens is refused with the reason', async () => {
  const refused = new Map(stack.composition.registry.refused().map(({ name, error }) => [name, error]));
  assert.deepEqual([...refused.keys()], ['adds']);
  assert.equal(refused.get('adds')?.code, 'invalid_adapter');
  assert.match(refused.get('adds')?.message ?? '', /<\|tool\|>.*320.*the base has none/);
  const asked = await postFailure(stack.url, '/v1/completions', { model: 'adds', prompt: 'x' }, 400);
  assert.match(asked.message, /<\|tool\|>/, 'who asks for it is told the same');
  const again = await postFailure(stack.url, '/v1/load_lora_adapter', { lora_name: 'adds', lora_path: 'adds' }, 400);
  assert.match(again.message, /<\|tool\|>/);
  await rm(path.join(adapters, 'adds', 'added_tokens.json'));
  const mended = await post(stack.url, '/v1/load_lora_adapter', { lora_name: 'adds', lora_path: 'adds' });
  assert.equal(mended.status, 200, await mended.text());
  assert.equal(await rendered('adds'), CHATML);
  await assertIdle(stack);
});
