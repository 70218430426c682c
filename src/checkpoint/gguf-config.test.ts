import assert from 'node:assert/strict';
import { test } from 'node:test';

import type { SiteName } from '../core/model-config.js';
import type { GgufValue } from './checkpoint.js';
import { readGgufConfig } from './gguf-config.js';
import type { GgufTensorFacts } from './gguf-config.js';
import type { ModelDescription } from './model-description.js';

const TENSORS: GgufTensorFacts = {
  vocabSize: 100,
  hasHead: false,
  biases: new Set<SiteName>(),
  ropeFactors: undefined,
};
type Keys = Readonly<Record<string, GgufValue | undefined>>;

/** A file of the architecture; keys without a dot at the start get its prefix, undefined takes a key away. */
function read(architecture: string, change: Keys = {}, tensors: Partial<GgufTensorFacts> = {}): ModelDescription {
  const keys: Keys = {
    block_count: 7,
    context_length: 4096,
    embedding_length: 64,
    feed_forward_length: 96,
    'attention.head_count': 4,
    'attention.head_count_kv': 2,
    'attention.layer_norm_rms_epsilon': 1e-5,
    'rope.freq_base': 10_000,
    ...change,
  };
  const metadata = new Map<string, GgufValue>([['general.architecture', architecture]]);
  for (const [key, value] of Object.entries(keys)) {
    if (value === undefined) continue;
    metadata.set(key.startsWith('.') ? key.slice(1) : `${architecture}.${key}`, value);
  }
  return readGgufConfig(metadata, { ...TENSORS, ...tensors });
}

test('Llama: sizes, a tied head, plain attention', () => {
  const { ropes, layers, ...rest } = read('llama', { vocab_size: 100, 'rope.dimension_count': 16 }).config;
  assert.deepEqual(rest, {
    family: 'llama',
    vocabSize: 100,
    hiddenSize: 64,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 16,
    ffnSize: 96,
    normEps: 1e-5,
    activation: 'silu',
    qkNorm: false,
    postNorms: false,
    tiedHead: true,
    embedScale: 1,
    attnScale: 0.25,
    maxPositions: 4096,
  });
  assert.equal(layers.length, 7);
  assert.deepEqual([ropes[0]?.invFreq[2], ropes[0]?.scale], [Math.fround(0.1), 1]);
  assert.equal(read('llama', {}, { hasHead: true }).config.tiedHead, false);
  assert.equal(read('llama', { 'attention.sliding_window': 5 }).config.layers[3]?.window, 5);
});

test('Qwen 3 and Gemma 3 have their norms, Gemma its two RoPEs and its pattern', () => {
  assert.equal(read('qwen3', { 'attention.key_length': 24, 'attention.value_length': 24 }).config.qkNorm, true);
  const gemma = {
    'attention.sliding_window': 9,
    'rope.freq_base': 1e6,
    'rope.scaling.type': 'linear',
    'rope.scaling.factor': 8,
  };
  const { config } = read('gemma3', gemma);
  assert.deepEqual(
    [config.qkNorm, config.postNorms, config.activation, config.embedScale],
    [true, true, 'gelu_tanh', 8],
  );
  assert.deepEqual(
    config.layers.map(({ window, rope }) => `${window}/${rope}`),
    ['9/1', '9/1', '9/1', '9/1', '9/1', '0/0', '9/1'],
  );
  assert.deepEqual([config.ropes[0]?.invFreq[0], config.ropes[1]?.invFreq[0]], [0.125, 1]);
  assert.equal(config.ropes[1]?.invFreq[2], Math.fround(0.1));
  assert.equal(read('gemma3', { ...gemma, 'rope.freq_base_swa': 100 }).config.ropes[1]?.invFreq[4], Math.fround(0.1));
  assert.equal(read('gemma3', { ...gemma, 'attention.sliding_window_pattern': 2 }).config.layers[1]?.window, 0);
  const flags = [true, false, true, true, true, true, false];
  const flagged = read('gemma3', { ...gemma, 'attention.sliding_window_pattern': flags }).config;
  assert.deepEqual(
    flagged.layers.map(({ window }) => window > 0),
    flags,
  );
  // The 27B divides by hidden size / heads, not by head_dim.
  const large = { ...gemma, block_count: 62, 'attention.key_length': 32, 'attention.value_length': 32 };
  assert.equal(read('gemma3', large).config.attnScale, 0.25);
});

test('RoPE: linear by the old key, YaRN, llama3 by factors', () => {
  assert.equal(read('llama', { 'rope.scale_linear': 4 }).config.ropes[0]?.invFreq[0], 0.25);
  assert.equal(read('llama', { 'rope.scaling.type': 'none', 'rope.scaling.factor': 4 }).config.ropes[0]?.invFreq[0], 1);
  const yarn = { 'rope.scaling.type': 'yarn', 'rope.scaling.factor': 8, 'rope.scaling.original_context_length': 512 };
  const scale = 0.1 * Math.log(8) + 1;
  assert.equal(read('llama', yarn).config.ropes[0]?.scale, Math.fround(scale));
  const halved = read('llama', { ...yarn, 'rope.scaling.attn_factor': 0.5 }).config.ropes[0]?.scale;
  assert.equal(halved, Math.fround(scale) / 2);
  const factors = Float32Array.of(1, 1, 2, 4, 8, 8, 8, 8);
  assert.equal(read('llama', {}, { ropeFactors: factors }).config.ropes[0]?.invFreq[4], Math.fround(0.01) / 8);
});

test('per-layer numbers that are all the same are one number', () => {
  assert.equal(read('llama', { 'attention.head_count_kv': Int32Array.of(2, 2) }).config.numKvHeads, 2);
  assert.equal(read('llama', { feed_forward_length: [96, 96] }).config.ffnSize, 96);
});

const REFUSED: readonly (readonly [string, Keys, RegExp])[] = [
  ['phi3', {}, /"general\.architecture" is "phi3", expected one of llama, qwen2, qwen3, gemma3/],
  ['llama', { '.general.type': 'adapter' }, /"general\.type" is "adapter", expected model/],
  ['llama', { '.split.count': 3 }, /"split\.count" is 3, expected 1\. Join the parts with llama-gguf-split --merge/],
  ['llama', { block_count: undefined }, /"llama\.block_count" is missing, expected a whole number/],
  ['llama', { block_count: 20_000 }, /block_count" is 20000, expected a whole number of 1 to 10000/],
  ['llama', { embedding_length: 2 ** 30 }, /key_length" is 268435456, expected an even number up to 65536/],
  ['llama', { block_count: 0 }, /"llama\.block_count" is 0/],
  ['llama', { context_length: 'long' }, /"llama\.context_length" is "long"/],
  ['llama', { 'attention.head_count_kv': 3 }, /head_count_kv" is 3, expected a divisor of 4/],
  [
    'llama',
    { 'attention.head_count_kv': Int32Array.of(2, 4) },
    /head_count_kv" is an array of 2 values, expected a whole number/,
  ],
  ['llama', { 'attention.value_length': 8 }, /value_length" is 8, expected 16, as many as attention\.key_length/],
  ['llama', { 'rope.dimension_count': 8 }, /rope\.dimension_count" is 8, expected 16/],
  ['llama', { 'attention.key_length': 15 }, /key_length" is 15, expected an even number/],
  ['llama', { 'attention.layer_norm_rms_epsilon': undefined }, /layer_norm_rms_epsilon" is missing/],
  ['llama', { 'attention.layer_norm_rms_epsilon': NaN }, /layer_norm_rms_epsilon" is NaN/],
  ['llama', { vocab_size: 99 }, /vocab_size" is 99, expected 100, the embedding's rows/],
  ['llama', { expert_count: 8 }, /expert_count" is 8, expected 0 or nothing/],
  ['llama', { logit_scale: 16 }, /"llama\.logit_scale" is 16, expected no such key: it is not known/],
  ['llama', { 'attention.scale': 0.5 }, /"llama\.attention\.scale" is 0\.5, expected no such key/],
  ['llama', { 'rope.scaling.type': 'longrope' }, /rope\.scaling\.type" is "longrope", expected none, linear or yarn/],
  ['llama', { 'rope.scaling.yarn_log_multiplier': 0.1 }, /yarn_log_multiplier" is 0\.1, expected 0 or nothing/],
  ['qwen2', { 'attention.sliding_window': 4 }, /sliding_window" is 4, expected no window/],
  ['gemma3', {}, /gemma3\.attention\.sliding_window" is missing, expected the window of local layers/],
  [
    'gemma3',
    { 'attention.sliding_window': 4, 'rope.scaling.type': 'yarn' },
    /rope\.scaling\.type" is "yarn", expected none or linear/,
  ],
  ['gemma3', { 'attention.sliding_window': 4, final_logit_softcapping: 30 }, /final_logit_softcapping" is 30/],
  [
    'gemma3',
    { 'attention.sliding_window': 4, 'attention.sliding_window_pattern': [true] },
    /sliding_window_pattern" is an array of 1 values/,
  ],
];

test('any other value that would change the maths is refused by key', () => {
  for (const [architecture, change, message] of REFUSED) {
    assert.throws(() => read(architecture, change), { name: 'ManyfoldError', code: 'invalid_model', message });
  }
  for (const factors of [Float32Array.of(1, 2), new Float32Array(8), new Float32Array(8).fill(NaN)]) {
    assert.throws(
      () => read('llama', {}, { ropeFactors: factors }),
      /rope_freqs\.weight" is "[28] values", expected 8 finite/,
    );
  }
});

test('keys of other prefixes never change the maths', () => {
  const other = {
    '.quantize.imatrix.file': 'x',
    '.general.name': 'n',
    '.somebody.quantize_version': 2,
    '.llamas.logit_scale': 9,
  };
  assert.equal(read('llama', other).config.hiddenSize, 64);
});
