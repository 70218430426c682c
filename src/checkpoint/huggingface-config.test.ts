import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { readHuggingFaceConfig } from './huggingface-config.js';
import type { HuggingFaceModel } from './huggingface-config.js';
import { parseJsonStrict } from './strict-json.js';
import type { JsonObject } from './strict-json.js';

const read = (config: object, hasHead = true): HuggingFaceModel =>
  readHuggingFaceConfig(
    parseJsonStrict(JSON.stringify(config), { maxDepth: 16, what: 'config.json' }) as JsonObject,
    hasHead,
  );

/** config.json files as they lie on the hub, with their harmless keys. */
type Config = Readonly<Record<string, unknown>>;
const HUB = JSON.parse(readFileSync('src/checkpoint/testing/hub-configs.json', 'utf8')) as Record<string, Config>;
const hub = (name: string): Config => HUB[name] ?? assert.fail(name);
const SMOLLM2 = hub('smollm2');
const MISTRAL = hub('mistral');
const QWEN25 = hub('qwen25');
const QWEN3 = hub('qwen3');
const GEMMA_270M = hub('gemma270m');
const GEMMA_4B = hub('gemma4b');

test('SmolLM2: a tied Llama with grouped heads', () => {
  const { config, biases, eosTokenIds } = read(SMOLLM2, false);
  const { layers, ropes, ...rest } = config;
  assert.deepEqual(rest, {
    family: 'llama',
    vocabSize: 49152,
    hiddenSize: 576,
    numHeads: 9,
    numKvHeads: 3,
    headDim: 64,
    ffnSize: 1536,
    normEps: 1e-5,
    activation: 'silu',
    qkNorm: false,
    postNorms: false,
    tiedHead: true,
    embedScale: 1,
    attnScale: 0.125,
    maxPositions: 8192,
  });
  assert.deepEqual(
    layers,
    Array.from({ length: 30 }, () => ({ window: 0, rope: 0 })),
  );
  assert.equal(ropes.length, 1);
  assert.deepEqual([biases.size, eosTokenIds], [0, [2]]);
});

test('the families’ own facts', () => {
  const llama = read(hub('llama32'), false);
  assert.deepEqual(
    [llama.config.headDim, llama.config.numKvHeads, llama.eosTokenIds],
    [64, 8, [128001, 128008, 128009]],
  );
  const mistral = read(MISTRAL);
  assert.deepEqual([mistral.config.family, mistral.config.tiedHead], ['mistral', false]);
  assert.ok(mistral.config.layers.every(({ window }) => window === 4096));
  const qwen2 = read(QWEN25, false);
  assert.deepEqual([...qwen2.biases], ['q', 'k', 'v']);
  assert.ok(qwen2.config.layers.every(({ window }) => window === 0));
  const qwen3 = read(QWEN3, false);
  assert.deepEqual([qwen3.config.qkNorm, qwen3.config.headDim, qwen3.biases.size], [true, 128, 0]);
  assert.equal(qwen3.config.attnScale, 1 / Math.sqrt(128));
});

test('Gemma 3: one global layer in six, its own scales, also inside a multimodal config', () => {
  const small = read(GEMMA_270M, false).config;
  assert.deepEqual(small.layers.map(({ window, rope }) => [window, rope]).slice(3, 8), [
    [512, 1],
    [512, 1],
    [0, 0],
    [512, 1],
    [512, 1],
  ]);
  assert.deepEqual(
    [small.qkNorm, small.postNorms, small.embedScale, small.attnScale],
    [true, true, Math.sqrt(640), 1 / 16],
  );
  const { config, eosTokenIds } = read(GEMMA_4B, false);
  assert.deepEqual(
    [config.vocabSize, config.numHeads, config.numKvHeads, config.headDim, config.activation],
    [262208, 8, 4, 256, 'gelu_tanh'],
  );
  assert.deepEqual(eosTokenIds, [1, 106]);
  assert.equal(config.layers.filter(({ rope }) => rope === 0).length, 5);
  assert.equal(config.ropes[0]?.invFreq[0], 0.125);
  const { layer_types: _types, ...patterned }: Config = {
    ...GEMMA_270M,
    sliding_window_pattern: 3,
    _sliding_window_pattern: 3,
  };
  assert.equal(read(patterned, false).config.layers.filter(({ window }) => window === 0).length, 6);
});

test('switches that change the model are followed', () => {
  const window = (change: object): number[] =>
    read({ ...QWEN25, num_hidden_layers: 3, ...change }, false).config.layers.map((layer) => layer.window);
  assert.deepEqual(window({ use_sliding_window: true, max_window_layers: 1, sliding_window: 8 }), [0, 8, 8]);
  assert.deepEqual(window({ use_sliding_window: true, sliding_window: null, max_window_layers: 1 }), [0, 0, 0]);
  const types = ['sliding_attention', 'attention', 'sliding_attention'];
  assert.deepEqual(window({ use_sliding_window: true, sliding_window: 8, layer_types: types }), [8, 0, 8]);
  assert.deepEqual(
    [...read({ ...SMOLLM2, attention_bias: true, mlp_bias: true }, false).biases],
    ['q', 'k', 'v', 'o', 'gate', 'up', 'down'],
  );
  assert.deepEqual([...read({ ...QWEN3, attention_bias: true }, false).biases], ['q', 'k', 'v', 'o']);
  assert.equal(read({ ...SMOLLM2, hidden_act: 'gelu_pytorch_tanh' }, false).config.activation, 'gelu_tanh');
  const { sliding_window: _window, ...absent } = MISTRAL;
  assert.equal(read(absent).config.layers[0]?.window, 4096);
  assert.equal(read({ ...MISTRAL, sliding_window: null }).config.layers[0]?.window, 0);
  assert.equal(read({ ...SMOLLM2, num_key_value_heads: null }, false).config.numKvHeads, 9);
});

test('the head is tied when the file has none; a promised head that is missing is refused', () => {
  assert.equal(read(SMOLLM2, true).config.tiedHead, false);
  const { tie_word_embeddings: _tied, ...silent } = SMOLLM2;
  assert.equal(read(silent, false).config.tiedHead, true);
  assert.throws(() => read(MISTRAL, false), /tie_word_embeddings is false, expected lm_head\.weight among the tensors/);
});

const REFUSED: readonly (readonly [object, RegExp])[] = [
  [
    { ...SMOLLM2, model_type: 'phi3' },
    /model_type is "phi3", expected one of llama, mistral, qwen2, qwen3, gemma3_text, gemma3/,
  ],
  [{ ...SMOLLM2, model_type: 'constructor' }, /model_type is "constructor"/],
  [{ ...SMOLLM2, model_type: undefined }, /model_type is null/],
  [
    { ...SMOLLM2, architectures: ['LlamaForSequenceClassification'] },
    /architectures is \["LlamaForSequenceClassification"\], expected LlamaForCausalLM/,
  ],
  [{ ...SMOLLM2, auto_map: { AutoModel: 'code.py' } }, /auto_map is .* Code from a model's repository is never run/],
  [
    { ...SMOLLM2, quantization_config: { quant_method: 'gptq' } },
    /quantization_config is .* Use the unquantized checkpoint/,
  ],
  [{ ...SMOLLM2, compression_config: { format: 'int' } }, /compression_config is/],
  [
    { ...SMOLLM2, hidden_act: 'relu' },
    /hidden_act is "relu", expected one of silu, swish, gelu_pytorch_tanh, gelu_new/,
  ],
  [{ ...SMOLLM2, hidden_act: 'toString' }, /hidden_act is "toString"/],
  [
    { ...SMOLLM2, num_local_experts: 8 },
    /key "num_local_experts" is not known for this family and may change what the model computes. It is 8/,
  ],
  [{ ...SMOLLM2, residual_multiplier: 0.22 }, /key "residual_multiplier" is not known/],
  [{ ...SMOLLM2, attn_logit_softcapping: 50 }, /key "attn_logit_softcapping" is not known/],
  [{ ...SMOLLM2, attention_sinks: true }, /key "attention_sinks" is not known/],
  [{ ...SMOLLM2, sliding_window: 128 }, /sliding_window is 128, expected nothing/],
  [{ ...SMOLLM2, rope_interleaved: true }, /rope_interleaved is true, expected false or nothing/],
  [{ ...SMOLLM2, is_encoder_decoder: true }, /is_encoder_decoder is true/],
  [{ ...SMOLLM2, layer_types: ['linear_attention'] }, /layer_types is \["linear_attention"\]/],
  [{ ...SMOLLM2, num_key_value_heads: 4 }, /num_key_value_heads is 4, expected a divisor of num_attention_heads, 9/],
  [{ ...SMOLLM2, head_dim: 63 }, /head_dim is 63, expected an even number/],
  [{ ...SMOLLM2, hidden_size: 0 }, /hidden_size is 0, expected a whole number/],
  [{ ...SMOLLM2, hidden_size: '576' }, /hidden_size is "576"/],
  [
    { ...SMOLLM2, num_hidden_layers: 2_000_000_000 },
    /num_hidden_layers is 2000000000, expected a whole number of 1 to 10000/,
  ],
  [{ ...SMOLLM2, hidden_size: 2_000_000_000 }, /head_dim is 222222222, expected an even number up to 65536/],
  [{ ...SMOLLM2, vocab_size: 2.5 }, /vocab_size is 2\.5/],
  [{ ...SMOLLM2, eos_token_id: [2, '3'] }, /eos_token_id is \[2,"3"\], expected a token id or a list/],
  [{ ...MISTRAL, mlp_bias: true }, /mlp_bias is true/],
  [{ ...MISTRAL, layer_types: Array.from({ length: 32 }, () => 'full_attention') }, /layer_types is/],
  [{ ...QWEN25, use_mrope: true }, /use_mrope is true/],
  [
    { ...QWEN25, layer_types: ['full_attention'] },
    /layer_types is \["full_attention"\], expected one entry for each of 24 layers/,
  ],
  [
    { ...QWEN25, num_hidden_layers: 1, layer_types: ['sliding_attention'] },
    /sliding_window is 32768, expected a window that use_sliding_window/,
  ],
  [
    { ...QWEN3, num_hidden_layers: 1, layer_types: ['chunked_attention'] },
    /layer_types is "chunked_attention", expected full_attention/,
  ],
  [
    { ...QWEN25, dual_chunk_attention_config: { chunk_size: 262144 } },
    /key "dual_chunk_attention_config" is not known/,
  ],
  [{ ...GEMMA_270M, final_logit_softcapping: 30 }, /final_logit_softcapping is 30, expected nothing/],
  [{ ...GEMMA_270M, attn_logit_softcapping: 50 }, /attn_logit_softcapping is 50/],
  [{ ...GEMMA_270M, use_bidirectional_attention: true }, /use_bidirectional_attention is true/],
  [{ ...GEMMA_270M, hidden_act: 'silu' }, /hidden_act is "silu", expected "gelu_pytorch_tanh" or nothing/],
  [{ ...GEMMA_270M, sliding_window: null }, /sliding_window is null, expected a window/],
  [{ ...GEMMA_4B, text_config: undefined }, /text_config is null, expected an object/],
  [{ ...GEMMA_4B, audio_config: {} }, /key "audio_config" is not known/],
];

test('any other value that would change the maths is refused by key', () => {
  for (const [config, message] of REFUSED) {
    assert.throws(() => read(config, true), { name: 'ManyfoldError', code: 'invalid_model', message });
  }
});
