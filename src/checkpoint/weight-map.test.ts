import assert from 'node:assert/strict';
import { test } from 'node:test';

import { SITES } from '../core/model-config.js';
import type { ModelFamily, SiteName } from '../core/model-config.js';
import type { WeightEntry } from '../native/binding-types.js';
import { buildDescription } from './model-description.js';
import type { ModelDescription } from './model-description.js';
import { ropeTable } from './rope.js';
import { dominantDtype, mapWeights } from './weight-map.js';
import type { TensorSource, WeightNaming } from './weight-map.js';
import { ggufBiases, ggufNaming, huggingFaceHead, huggingFaceNaming } from './weight-names.js';

function model(family: ModelFamily, biases: readonly SiteName[] = [], tiedHead = true): ModelDescription {
  return buildDescription({
    family,
    vocabSize: 10,
    hiddenSize: 8,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 6,
    ffnSize: 12,
    normEps: 1e-6,
    activation: 'silu',
    tiedHead,
    attnScalar: 6,
    layers: [{ window: 0, rope: 0 }],
    ropes: [ropeTable({ type: 'default', theta: 10_000 }, 6)],
    maxPositions: 64,
    biases: new Set(biases),
  });
}

function tensors(list: Readonly<Record<string, readonly number[]>>, dtype: string): Map<string, TensorSource> {
  const entries = Object.entries(list).map(([name, shape], i): [string, TensorSource] => [
    name,
    { name, dtype, shape, file: 0, offset: 100 * i, byteLength: 2 * shape.reduce((a, b) => a * b, 1) },
  ]);
  return new Map(entries);
}

const LLAMA_LAYER = {
  'model.layers.0.input_layernorm.weight': [8],
  'model.layers.0.self_attn.q_proj.weight': [24, 8],
  'model.layers.0.self_attn.k_proj.weight': [12, 8],
  'model.layers.0.self_attn.v_proj.weight': [12, 8],
  'model.layers.0.self_attn.o_proj.weight': [8, 24],
  'model.layers.0.post_attention_layernorm.weight': [8],
  'model.layers.0.mlp.gate_proj.weight': [12, 8],
  'model.layers.0.mlp.up_proj.weight': [12, 8],
  'model.layers.0.mlp.down_proj.weight': [8, 12],
};
const LLAMA = { 'model.embed_tokens.weight': [10, 8], ...LLAMA_LAYER, 'model.norm.weight': [8] };
const GEMMA = {
  ...LLAMA,
  'model.layers.0.self_attn.q_norm.weight': [6],
  'model.layers.0.self_attn.k_norm.weight': [6],
  'model.layers.0.pre_feedforward_layernorm.weight': [8],
  'model.layers.0.post_feedforward_layernorm.weight': [8],
};

function mapHuggingFace(
  description: ModelDescription,
  list: Readonly<Record<string, readonly number[]>>,
  dtype = 'BF16',
): WeightEntry[] {
  const found = tensors(list, dtype);
  return mapWeights(found, description, huggingFaceNaming(description.config, new Set(found.keys())));
}

/** What each entry is, as `site layer part`. */
const places = (entries: readonly WeightEntry[]): string[] => {
  const names = new Map<number, string>(Object.entries(SITES).map(([name, number]) => [number, name]));
  return entries.map(({ site, layer, part }) => `${names.get(site)} ${layer} ${part}`);
};

test('Hugging Face names of a Llama, in forward order', () => {
  const entries = mapHuggingFace(model('llama'), LLAMA);
  assert.deepEqual(places(entries), [
    'embedding -1 weight',
    'attnNorm 0 weight',
    'q 0 weight',
    'k 0 weight',
    'v 0 weight',
    'o 0 weight',
    'mlpNorm 0 weight',
    'gate 0 weight',
    'up 0 weight',
    'down 0 weight',
    'finalNorm -1 weight',
  ]);
  const q = entries[2];
  assert.deepEqual([q?.rows, q?.cols, q?.dtype, q?.permutedHeads, q?.add, q?.offset], [24, 8, 'bf16', 0, 0, 200]);
  assert.deepEqual([entries[1]?.rows, entries[1]?.cols], [1, 8]);
});

test('biases, a head of its own, and a model saved without its prefix', () => {
  const bias = { 'model.layers.0.self_attn.k_proj.bias': [12], 'lm_head.weight': [10, 8] };
  const entries = mapHuggingFace(model('llama', ['k'], false), { ...LLAMA, ...bias });
  assert.ok(places(entries).includes('k 0 bias'));
  assert.equal(places(entries).at(-1), 'head -1 weight');
  const stripped = Object.fromEntries(
    Object.entries(LLAMA).map(([name, shape]) => [name.replace(/^model\./, ''), shape]),
  );
  assert.equal(mapHuggingFace(model('llama'), stripped).length, 11);
});

test('Gemma’s names and norms, plain and inside either multimodal checkpoint, whose vision tensors are not looked at', () => {
  const plain = mapHuggingFace(model('gemma3'), GEMMA);
  assert.deepEqual(plain.filter(({ add }) => add === 1).length, 7);
  assert.deepEqual(
    places(plain.filter(({ add }) => add === 1)).map((place) => place.split(' ')[0]),
    ['attnNorm', 'qNorm', 'kNorm', 'postAttnNorm', 'mlpNorm', 'postMlpNorm', 'finalNorm'],
  );
  for (const prefix of ['model.language_model.', 'language_model.model.']) {
    const inner = Object.fromEntries(
      Object.entries(GEMMA).map(([name, shape]) => [name.replace(/^model\./, prefix), shape]),
    );
    const vision = { 'vision_tower.x.weight': [3], 'model.multi_modal_projector.y': [4] };
    assert.deepEqual(places(mapHuggingFace(model('gemma3'), { ...inner, ...vision })), places(plain));
  }
  assert.throws(
    () => mapHuggingFace(model('llama'), { ...LLAMA, 'vision_tower.x.weight': [3] }),
    /does not have: "vision_tower\.x\.weight"/,
  );
});

test('a saved RoPE buffer is harmless, any other stranger is refused by name', () => {
  const buffers = { 'model.layers.0.self_attn.rotary_emb.inv_freq': [3], 'model.rotary_emb.inv_freq': [3] };
  assert.equal(mapHuggingFace(model('llama'), { ...LLAMA, ...buffers }).length, 11);
  const strangers = Object.fromEntries(['a', 'b', 'c', 'd', 'e', 'f', 'g'].map((name) => [name, [1]]));
  assert.throws(() => mapHuggingFace(model('llama'), { ...LLAMA, ...strangers }), {
    code: 'invalid_model',
    message: /tensors that this model does not have: "a", "b", "c", "d", "e" and 2 more/,
  });
  const layer = { 'model.layers.1.input_layernorm.weight': [8] };
  assert.throws(
    () => mapHuggingFace(model('llama'), { ...LLAMA, ...layer }),
    /does not have: "model\.layers\.1\.input_layernorm\.weight"/,
  );
  const bias = { 'model.layers.0.self_attn.q_proj.bias': [24] };
  assert.throws(
    () => mapHuggingFace(model('llama'), { ...LLAMA, ...bias }),
    /does not have: "model\.layers\.0\.self_attn\.q_proj\.bias"/,
  );
});

test('a missing tensor, a wrong shape and a wrong dtype are refused with what was expected', () => {
  const { 'model.norm.weight': _norm, ...cut } = LLAMA;
  assert.throws(() => mapHuggingFace(model('llama'), cut), /tensor "model\.norm\.weight" of shape \[8\] is missing/);
  const turned = { ...LLAMA, 'model.layers.0.mlp.down_proj.weight': [12, 8] };
  assert.throws(
    () => mapHuggingFace(model('llama'), turned),
    /down_proj\.weight" has shape \[12, 8\], expected \[8, 12\]/,
  );
  const wide = { ...LLAMA, 'model.norm.weight': [1, 8] };
  assert.throws(() => mapHuggingFace(model('llama'), wide), /model\.norm\.weight" has shape \[1, 8\], expected \[8\]/);
  assert.throws(
    () => mapHuggingFace(model('llama'), LLAMA, 'I8'),
    /embed_tokens\.weight" has dtype I8, expected F32, F16, BF16/,
  );
});

const GGUF_LAYER = {
  'token_embd.weight': [10, 8],
  'blk.0.attn_norm.weight': [8],
  'blk.0.attn_q.weight': [24, 8],
  'blk.0.attn_q.bias': [24],
  'blk.0.attn_k.weight': [12, 8],
  'blk.0.attn_v.weight': [12, 8],
  'blk.0.attn_output.weight': [8, 24],
  'blk.0.ffn_norm.weight': [8],
  'blk.0.ffn_gate.weight': [12, 8],
  'blk.0.ffn_up.weight': [12, 8],
  'blk.0.ffn_down.weight': [8, 12],
  'output_norm.weight': [8],
};

test('GGUF names; q and k of the Llama architecture come permuted, biases too', () => {
  const found = tensors(GGUF_LAYER, 'f16');
  const names = new Set(found.keys());
  assert.deepEqual([...ggufBiases(names)], ['q']);
  const naming = (family: ModelFamily): WeightNaming => ggufNaming(model(family).config);
  const entries = mapWeights(found, model('llama', ['q']), naming('llama'));
  const permuted = entries
    .map(({ site, part, permutedHeads }) => [site, part, permutedHeads])
    .filter(([, , heads]) => heads !== 0);
  assert.deepEqual(permuted, [
    [SITES.q, 'weight', 4],
    [SITES.q, 'bias', 4],
    [SITES.k, 'weight', 2],
  ]);
  const qwen = mapWeights(found, model('qwen2', ['q']), naming('qwen2'));
  assert.ok(qwen.every(({ permutedHeads, add }) => permutedHeads === 0 && add === 0));
  const factors = new Map([...found, ...tensors({ 'rope_freqs.weight': [3] }, 'f32')]);
  assert.equal(mapWeights(factors, model('llama', ['q']), naming('llama')).length, entries.length);
  assert.throws(
    () => mapWeights(factors, model('qwen2', ['q']), naming('qwen2')),
    /does not have: "rope_freqs\.weight"/,
  );
});

test('the dominant dtype is that of most bytes of the layers’ matrices', () => {
  const entries = mapHuggingFace(model('llama'), LLAMA);
  assert.equal(dominantDtype(entries), 'bf16');
  const mixed = entries.map((entry) =>
    entry.site === SITES.q || entry.layer < 0 ? { ...entry, dtype: 'f32' as const } : entry,
  );
  assert.equal(dominantDtype(mixed), 'bf16');
  assert.equal(dominantDtype(mixed.map((entry) => ({ ...entry, byteLength: entry.dtype === 'f32' ? 1e6 : 1 }))), 'f32');
  assert.equal(huggingFaceHead(new Set(['language_model.lm_head.weight'])), 'language_model.lm_head.weight');
});
