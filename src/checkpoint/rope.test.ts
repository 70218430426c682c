import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import type { RopeTable } from '../core/model-config.js';
import { readHuggingFaceConfig } from './huggingface-config.js';
import { parseJsonStrict } from './strict-json.js';
import type { JsonObject } from './strict-json.js';

interface Golden {
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly invFreq: readonly number[];
  readonly scale: number;
}

/** Tables that transformers 5.23.0 makes (LlamaRotaryEmbedding, Gemma3RotaryEmbedding) for heads of 16. */
const GOLDENS = JSON.parse(readFileSync('src/checkpoint/testing/rope-tables.json', 'utf8')) as readonly Golden[];
const golden = (name: string): Golden => GOLDENS.find((entry) => entry.name === name) ?? assert.fail(name);

function ropesOf(config: object): readonly RopeTable[] {
  const base = { hidden_size: 128, num_attention_heads: 8, head_dim: 16, num_hidden_layers: 7 };
  const json = JSON.stringify({ model_type: 'llama', max_position_embeddings: 4096, ...base, ...config });
  return readHuggingFaceConfig(parseJsonStrict(json, { maxDepth: 8, what: 'config.json' }) as JsonObject, true).config
    .ropes;
}

/** Within two units in the last place of float32. */
function assertClose(found: Float32Array | undefined, expected: readonly number[]): void {
  assert.equal(found?.length, expected.length);
  for (const [i, value] of expected.entries()) {
    assert.ok(Math.abs((found?.[i] ?? 0) / value - 1) < 2.5e-7, `pair ${i}: ${found?.[i]}, expected ${value}`);
  }
}

for (const { name, config, invFreq, scale } of GOLDENS) {
  test(`RoPE table as in transformers: ${name}`, () => {
    const [table] = ropesOf(config);
    assertClose(table?.invFreq, invFreq);
    assert.equal(table?.scale, Math.fround(scale));
  });
}

test('Gemma 3 has a global and a local table, from the old and from the new form', () => {
  const old = { rope_theta: 1000000, rope_local_base_freq: 10000, rope_scaling: { rope_type: 'linear', factor: 8 } };
  const current = {
    rope_parameters: {
      full_attention: { rope_type: 'linear', factor: 8, rope_theta: 1000000 },
      sliding_attention: { rope_type: 'default', rope_theta: 10000 },
    },
  };
  for (const form of [old, current, { rope_scaling: old.rope_scaling }]) {
    const [full, sliding] = ropesOf({ model_type: 'gemma3_text', ...form });
    assertClose(full?.invFreq, golden('gemma full').invFreq);
    assertClose(sliding?.invFreq, golden('default').invFreq);
  }
});

const REFUSED: readonly (readonly [object, RegExp])[] = [
  [
    { rope_scaling: { type: 'dynamic', factor: 2 } },
    /config\.json rope_scaling: rope_type is "dynamic", expected default, linear, llama3 or yarn/,
  ],
  [{ rope_scaling: { rope_type: 'longrope', short_factor: [1], long_factor: [1] } }, /rope_type is "longrope"/],
  [
    { rope_scaling: { type: 'linear', rope_type: 'yarn', factor: 2 } },
    /type is "linear", expected the same as rope_type, "yarn"/,
  ],
  [{ rope_scaling: { type: 'linear' } }, /factor is null, expected a number above 0/],
  [{ rope_scaling: { type: 'linear', factor: 0 } }, /factor is 0, expected a number above 0/],
  [{ rope_scaling: { rope_type: 'default', mrope_section: [1] } }, /key "mrope_section" is not known/],
  [
    { rope_scaling: { rope_type: 'llama3', factor: 8, low_freq_factor: 4, high_freq_factor: 4 } },
    /high_freq_factor is 4, expected above 4/,
  ],
  [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor is 0\.5, expected 1 or nothing/],
  [
    { rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.25 } },
    /rope_parameters: partial_rotary_factor is 0\.25/,
  ],
  [{ rope_theta: -1 }, /rope_theta is -1, expected a number above 0/],
  [{ rope_theta: '10000' }, /rope_theta is "10000"/],
  [
    { rope_scaling: { type: 'linear', factor: 2 }, rope_parameters: { rope_type: 'default' } },
    /rope_scaling and rope_parameters say different things/,
  ],
  [
    { rope_parameters: { full_attention: { rope_type: 'default' } } },
    /rope_parameters: key "full_attention" is not known/,
  ],
  [{ model_type: 'gemma3_text', rope_parameters: { rope_theta: 5 } }, /rope_parameters: key "rope_theta" is not known/],
  [
    { model_type: 'gemma3_text', rope_scaling: { type: 'linear', factor: 8 } },
    /RoPE of full_attention: type is "linear"/,
  ],
  [
    {
      model_type: 'gemma3_text',
      rope_parameters: { full_attention: { rope_type: 'yarn', factor: 2, truncate: false } },
    },
    /truncate is false/,
  ],
];

test('a RoPE that is not supported is refused by key', () => {
  for (const [config, message] of REFUSED) assert.throws(() => ropesOf(config), { code: 'invalid_model', message });
});

test('old and new form that say the same are one', () => {
  const section = { rope_type: 'linear', factor: 4, rope_theta: 10000 };
  const [table] = ropesOf({ rope_scaling: { type: 'linear', factor: 4 }, rope_parameters: section });
  assert.equal(table?.invFreq[0], 0.25);
});
