import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TracedRequest } from '../report/report-trace.js';
import { readScenario } from '../scenario/read-scenario.js';
import { createDialect } from './dialect.js';

const FACTS = { model: 'base', loraIds: { pirate: 3 } };

/** What a target is sent for one adapter (`null`: the base), the prompt apart. */
function sent(target: string, adapter: string | null, output = '{ tokens: 7 }'): object {
  const yaml = `name: s\narrivals: { kind: poisson, rate: 1, duration: 1 }\ntarget: { ${target} }\noutput: ${output}\n`;
  const request: TracedRequest = { atMs: 0, adapter, promptTokens: 2, outputTokens: 7, prompt: 'Hello there' };
  return JSON.parse(
    createDialect(
      readScenario('s.yaml', () => yaml),
      FACTS,
    ).body(request),
  ) as object;
}

const CHAT = {
  messages: [{ role: 'user', content: 'Hello there' }],
  max_tokens: 7,
  temperature: 0,
  stream: true,
  stream_options: { include_usage: true },
};

test('ours and vLLM name the adapter as the model', () => {
  for (const dialect of ['manyfold', 'vllm']) {
    const fields = { ...CHAT, ignore_eos: true, min_tokens: 7 };
    assert.deepEqual(sent(`dialect: ${dialect}`, 'pirate'), { model: 'pirate', ...fields });
    assert.deepEqual(sent(`dialect: ${dialect}`, null), { model: 'base', ...fields });
  }
});

test('llama-server gets the id at full scale, and for the base one at no scale, which switches off the others too', () => {
  const fields = { model: 'base', ...CHAT, ignore_eos: true };
  assert.deepEqual(sent('dialect: llama-server', 'pirate'), { ...fields, lora: [{ id: 3, scale: 1 }] });
  assert.deepEqual(sent('dialect: llama-server', null), { ...fields, lora: [{ id: 3, scale: 0 }] });
  assert.throws(() => sent('dialect: llama-server', 'bard'), /no adapter 'bard'. Known are pirate/);
});

test('LoRAX gets adapter_id among the parameters', () => {
  const parameters = { max_new_tokens: 7, details: true, ignore_eos_token: true };
  assert.deepEqual(sent('dialect: lorax, adapter-source: local', 'pirate'), {
    inputs: 'Hello there',
    parameters: { ...parameters, adapter_id: 'pirate', adapter_source: 'local' },
  });
  assert.deepEqual(sent('dialect: lorax, adapter-source: local', null), { inputs: 'Hello there', parameters });
});

test('a plain OpenAI server gets nothing that it may refuse', () => {
  const output = '{ tokens: 7, temperature: 0.7, ignore-eos: false }';
  assert.deepEqual(sent('dialect: openai', 'pirate', output), { model: 'pirate', ...CHAT, temperature: 0.7 });
  assert.deepEqual(sent('dialect: openai', null, output), { model: 'base', ...CHAT, temperature: 0.7 });
});
