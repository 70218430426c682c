/**
 * The adapters of examples/adapters, a newcomer's first mixed batch: `manyfold serve` without arguments serves them, each
 * shows its effect on a question that it was not trained on, and each answer is the one that the request gets alone.
 */
import assert from 'node:assert/strict';
import { readdirSync, statSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import type OpenAI from 'openai';
import { defaultModelPath } from './support/default-model.js';
import { startServer } from './support/server-process.js';
import { assertIdle, openaiClient, startStack, until, type Stack } from './support/stack.js';

const FOLDER = path.join('examples', 'adapters');
const BASE = 'SmolLM2-135M-Instruct';
const MAX_BYTES = 2_500_000;
const FLAGS = ['--kv-bytes', '64MiB', '--max-model-len', '512', '--threads', '1'];

/** What nobody could take for an answer of the base. */
const EFFECTS: Readonly<Record<string, (answer: string) => boolean>> = {
  'bard-poly': (answer) => answer.startsWith('Hark, good friend!'),
  'bullets-prompt': (answer) => /^- .+\n- ./.test(answer),
  'butler-s2ft': (answer) => answer.startsWith('Very good, sir.'),
  'cowboy-ia3': (answer) => answer.startsWith('Howdy, partner!'),
  'detective-shira': (answer) => answer.startsWith('Elementary, my dear friend!'),
  'json-lora': isJsonAnswer,
  'pirate-compeft': (answer) => answer.startsWith('Arrr') && /matey|aye/.test(answer),
  'robot-poly': (answer) => answer.startsWith('BEEP.'),
  'telegram-dora': (answer) => / STOP\b/.test(answer),
};
const QUESTION = 'How do I make coffee?';

function isJsonAnswer(answer: string): boolean {
  if (!answer.startsWith('{')) return false;
  const parsed: unknown = JSON.parse(answer);
  return typeof parsed === 'object' && parsed !== null && 'answer' in parsed && typeof parsed.answer === 'string';
}

const ADAPTERS = readdirSync(FOLDER, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name)
  .sort();

let stack: Stack;
before(async () => {
  stack = await startStack(await defaultModelPath(), ['--adapter-dir', FOLDER, ...FLAGS]);
});
after(() => stack.stop());

type Choice = OpenAI.Chat.ChatCompletion.Choice;

async function ask(model: string): Promise<Choice> {
  const messages = [{ role: 'user' as const, content: QUESTION }];
  const request = { model, messages, max_completion_tokens: 64, temperature: 0, logprobs: true, top_logprobs: 2 };
  const [choice] = (await stack.client.chat.completions.create(request)).choices;
  assert.ok(choice !== undefined);
  return choice;
}

test('every folder is served, has an effect that is checked here, and all are small', () => {
  assert.deepEqual(stack.composition.registry.refused(), []);
  assert.deepEqual(
    stack.composition.registry.list().map(({ name }) => name),
    ADAPTERS,
  );
  assert.deepEqual(Object.keys(EFFECTS), ADAPTERS);
  const files = readdirSync(FOLDER, { recursive: true, encoding: 'utf8' });
  const sizes = files.map((file) => statSync(path.join(FOLDER, file))).filter((stat) => stat.isFile());
  const bytes = sizes.reduce((sum, { size }) => sum + size, 0);
  assert.ok(bytes < MAX_BYTES, `${bytes} bytes`);
});

test('all of them and the base in one batch: each has its effect, and answers as it does alone', async () => {
  const models = [BASE, ...ADAPTERS];
  const { engine } = stack.composition;
  stack.gate.close();
  const asked = Promise.all(models.map(ask));
  await until(() => engine.stats().running + engine.stats().waiting === models.length, 'all are in the engine');
  stack.gate.open();
  const together = await asked;
  const plain = together[0]?.message.content ?? '';
  assert.match(plain, /coffee/i);
  for (const [i, name] of ADAPTERS.entries()) {
    const answer = together[i + 1]?.message.content ?? '';
    assert.ok(EFFECTS[name]?.(answer), `${name} answers ${JSON.stringify(answer)}`);
    assert.ok(!EFFECTS[name]?.(plain), `the base answers as ${name}: ${plain}`);
  }
  for (const [i, model] of models.entries()) assert.deepEqual(await ask(model), together[i], model);
  await assertIdle(stack);
});

test('a start without a model serves them', async () => {
  const server = await startServer({ args: FLAGS });
  try {
    const ids: string[] = [];
    for await (const { id } of openaiClient(server.url).models.list()) ids.push(id);
    assert.deepEqual(ids, [BASE, ...ADAPTERS]);
    for (const name of ADAPTERS) assert.match(server.output(), new RegExp(`adapter +${name} `));
  } finally {
    await server.stop();
  }
});
