/** Soft prompts, prefixes and adaption prompts: exact rows, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { toFloats } from '../tensor-values.js';
import { baseOf, dense } from '../testing/base.js';
import { bf16, f32, ImporterBench, ramp } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const PROMPT = {
  peft_type: 'PROMPT_TUNING',
  task_type: 'CAUSAL_LM',
  num_virtual_tokens: 3,
  token_dim: 8,
  num_layers: 2,
};
const ROWS = { prompt_embeddings: bf16([3, 8], ramp(24)) };

test('prompt tuning, P-tuning and CPT: the rows as they are, on Gemma too', async () => {
  const methods = [
    { peft_type: 'PROMPT_TUNING', prompt_tuning_init: 'RANDOM' },
    { peft_type: 'P_TUNING', encoder_reparameterization_type: 'MLP', encoder_hidden_size: 4 },
    { peft_type: 'CPT', cpt_token_ids: [1, 2, 3], cpt_mask: [1, 1, 1], cpt_tokens_type_mask: [1, 2, 3] },
  ];
  const gemma = { ...TINY_MODEL, family: 'gemma3', embedScale: 5 } as const;
  for (const method of methods) {
    for (const model of [TINY_MODEL, gemma]) {
      const { terms } = await bench.compile({ ...PROMPT, ...method }, ROWS, { model });
      assert.deepEqual(terms.terms, []);
      assert.equal(terms.softPrompt?.dtype, 'bf16');
      assert.deepEqual(terms.softPrompt.shape, [3, 8]);
      assert.deepEqual([...toFloats(terms.softPrompt)], ramp(24));
    }
  }
});

const MULTITASK = {
  ...PROMPT,
  peft_type: 'MULTITASK_PROMPT_TUNING',
  num_tasks: 2,
  num_ranks: 2,
  num_virtual_tokens: 1,
};
const TASKS = {
  prompt_embeddings: f32([1, 8], [1, 1, 1, 1, 1, 1, 1, 2]),
  prefix_task_cols: f32([2, 1, 2], [9, 9, 2, 3]),
  prefix_task_rows: f32([2, 2, 8], [...ramp(16), 1, 2, 3, 4, 5, 6, 7, 8, 10, 10, 10, 10, 10, 10, 10, 10]),
};

test('multitask prompt tuning: the rows of one task', async () => {
  const { terms } = await bench.compile({ ...MULTITASK, task_id: 1 }, TASKS);
  assert.deepEqual([...toFloats(dense(terms.softPrompt))], [32, 34, 36, 38, 40, 42, 44, 92]);
  assert.match(await bench.refusal(MULTITASK, TASKS), /task_id is missing, expected 0 to 1.*Add "task_id"/);
  assert.match(await bench.refusal({ ...MULTITASK, task_id: 2 }, TASKS), /task_id is 2, expected 0 to 1/);
  assert.match(await bench.refusal({ ...MULTITASK, task_id: 1, num_ranks: 3 }, TASKS), /prefix_task_cols/);
  const huge = { ...TASKS, prefix_task_cols: f32([2, 1, 2], [1e38, 1e38, 1e38, 1e38]) };
  assert.match(await bench.refusal({ ...MULTITASK, task_id: 1 }, huge), /gives NaN or infinity/);
});

test('soft prompts that do not fit are refused', async () => {
  assert.match(await bench.refusal({ ...PROMPT, num_virtual_tokens: 4 }, ROWS), /expected \[4, 8\]/);
  const narrow = { prompt_embeddings: f32([3, 7], ramp(21)) };
  assert.match(await bench.refusal(PROMPT, narrow), /expected \[3, 8\]/);
  assert.match(await bench.refusal({ ...PROMPT, num_virtual_tokens: 128 }, ROWS), /the base has 128 positions in all/);
  assert.match(await bench.refusal({ ...PROMPT, num_transformer_submodules: 2 }, ROWS), /a decoder alone/);
  assert.match(await bench.refusal({ ...PROMPT, modules_to_save: ['lm_head'] }, ROWS), /modules_to_save/);
  assert.match(await bench.refusal({ ...PROMPT, task_type: 'SEQ_CLS' }, ROWS), /task_type/);
  assert.match(await bench.refusal(PROMPT, { ...ROWS, other: f32([1], [1]) }), /"other" is none of this method's/);
  assert.match(await bench.refusal(PROMPT, {}), /holds no "prompt_embeddings"/);
  const broken = { prompt_embeddings: f32([3, 8], ramp(24).with(3, Infinity)) };
  assert.match(await bench.refusal(PROMPT, broken), /NaN or infinity/);
});

// One KV head of 4: two tokens, [layer 0 keys, layer 0 values, layer 1 keys, layer 1 values].
const PREFIX = {
  ...{ peft_type: 'PREFIX_TUNING', num_virtual_tokens: 2, num_layers: 2, num_attention_heads: 1, token_dim: 4 },
  prefix_projection: true,
};
const KV = {
  prompt_embeddings: f32(
    [2, 16],
    Array.from({ length: 32 }, (_, i) => i),
  ),
};

test('prefix tuning and cartridges: keys and values of every layer, without a gate', async () => {
  for (const config of [PREFIX, { ...PREFIX, peft_type: 'CARTRIDGE', prefix_projection: null, num_frozen_tokens: 1 }]) {
    const { terms } = await bench.compile(config, KV);
    const found = terms.terms.map((term) => {
      assert.ok(term.kind === 'prefix' && term.site.site === 'attention' && term.gate === undefined);
      assert.deepEqual(term.k.shape, [2, 1, 4]);
      return [term.site.layer, [...toFloats(term.k)], [...toFloats(term.v)]];
    });
    assert.deepEqual(found, [
      [0, [0, 1, 2, 3, 16, 17, 18, 19], [4, 5, 6, 7, 20, 21, 22, 23]],
      [1, [8, 9, 10, 11, 24, 25, 26, 27], [12, 13, 14, 15, 28, 29, 30, 31]],
    ]);
  }
});

test('prefixes of another shape are refused', async () => {
  const heads = { ...PREFIX, num_attention_heads: 2, token_dim: 8 };
  assert.match(await bench.refusal(heads, KV), /the base has 1 heads of 4.*num_attention_heads=1 and token_dim=4/);
  assert.match(await bench.refusal({ ...PREFIX, num_layers: 3 }, KV), /num_layers is 3, the base has 2/);
  assert.match(await bench.refusal({ ...PREFIX, num_virtual_tokens: 3 }, KV), /expected \[3, 2 layers/);
  assert.match(await bench.refusal({ ...PREFIX, num_virtual_tokens: 500 }, KV), /positions in all/);
});

const ADAPTION = { peft_type: 'ADAPTION_PROMPT', adapter_len: 2, adapter_layers: 1, target_modules: 'self_attn' };
const ATTENTION = 'base_model.model.model.layers.1.self_attn';
const GATED = {
  [`${ATTENTION}.adaption_prompt`]: f32([1, 2, 8], [1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1]),
  [`${ATTENTION}.adaption_gate`]: f32([1], [0.5]),
};
const PROJECTIONS = new Map([
  ['1 k', { cols: 8, data: Float32Array.from({ length: 32 }, (_, i) => i) }],
  ['1 v', { cols: 8, data: Float32Array.from({ length: 32 }, (_, i) => -i) }],
]);

test("adaption prompt: keys and values are the base's projections, and o's bias comes a second time", async () => {
  const biases = new Map([
    ['1 k', Float32Array.from([100, 0, 0, 0])],
    ['1 o', Float32Array.from([1, 2, 3, 4, 5, 6, 7, 8])],
  ]);
  const { terms } = await bench.compile(ADAPTION, GATED, { base: baseOf(PROJECTIONS, biases) });
  const [prefix, shift] = terms.terms;
  assert.ok(prefix?.kind === 'prefix' && shift?.kind === 'diag');
  assert.deepEqual(prefix.site, { layer: 1, site: 'attention' });
  assert.equal(prefix.gate, 0.5);
  assert.deepEqual([...toFloats(prefix.k)], [100, 8, 16, 24, 109, 33, 57, 81]);
  assert.deepEqual([...toFloats(prefix.v)], [0, -8, -16, -24, -9, -33, -57, -81]);
  assert.deepEqual(shift.site, { layer: 1, site: 'o' });
  assert.deepEqual([...(shift.c ?? [])], [1, 2, 3, 4, 5, 6, 7, 8]);
  const plain = await bench.compile(ADAPTION, GATED, { base: baseOf(PROJECTIONS) });
  assert.equal(plain.terms.terms.length, 1);
});

test('adaption prompts that peft would not run, or that do not fit, are refused', async () => {
  const base = baseOf(PROJECTIONS);
  const qwen = { ...TINY_MODEL, family: 'qwen3' } as const;
  assert.match(await bench.refusal(ADAPTION, GATED, { model: qwen }), /which peft has for llama and mistral/);
  const wide = { ...TINY_MODEL, headDim: 8 };
  assert.match(await bench.refusal(ADAPTION, GATED, { model: wide }), /peft cannot run on this base/);
  assert.match(await bench.refusal({ ...ADAPTION, adapter_layers: 2 }, GATED), /has tensors for layers 1/);
  assert.match(await bench.refusal({ ...ADAPTION, adapter_len: 3 }, GATED, { base }), /expected \[1, 3, 8\]/);
  assert.match(await bench.refusal({ ...ADAPTION, target_modules: 'mlp' }, GATED), /expected "self_attn"/);
  const [name, prompt] = Object.entries(GATED)[0]!;
  assert.match(await bench.refusal(ADAPTION, { [name]: prompt }), /has no adaption_gate beside it/);
  assert.match(await bench.refusal(ADAPTION, { ...GATED, more: f32([1], [1]) }), /no adaption_prompt or adaption_gate/);
  const alias = { ...GATED, 'layers.1.self_attn.adaption_gate': f32([1], [1]) };
  assert.match(await bench.refusal(ADAPTION, alias), /adapt the same place/);
});
