import assert from 'node:assert/strict';
import { test } from 'node:test';

import { readGgufGeneration, unionEosIds } from './generation-defaults.js';

test('GGUF metadata gives recommended sampling and every id that ends', () => {
  const metadata = new Map<string, number | string>([
    ['general.sampling.temp', 0.7],
    ['general.sampling.top_k', 40],
    ['general.sampling.penalty_repeat', 1.1],
    ['tokenizer.ggml.eos_token_id', 7],
    ['tokenizer.ggml.eot_token_id', 3],
    ['tokenizer.ggml.eom_token_id', 7],
  ]);
  const { defaults, eosTokenIds } = readGgufGeneration(metadata);
  assert.deepEqual(defaults, { temperature: 0.7, topK: 40, repetitionPenalty: 1.1 });
  assert.deepEqual(unionEosIds([eosTokenIds, [1]], 8), [1, 3, 7]);
  assert.throws(() => unionEosIds([eosTokenIds], 7), /eos_token_id is 7, expected 0 to 6/);
  metadata.set('tokenizer.ggml.eos_token_id', 'x');
  assert.throws(() => readGgufGeneration(metadata), /tokenizer\.ggml\.eos_token_id is x, expected a number/);
});
