import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import type { ModelConfig } from '../../core/model-config.js';
import type { Term } from '../../core/terms.js';
import { baseOf } from '../testing/base.js';
import { f32, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { sixteenths } from '../testing/matrices.js';
import { TINY_MODEL } from '../testing/peft-folder.js';
import { toFloats } from '../tensor-values.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const EMBED = 'base_model.model.model.embed_tokens';
const CONFIG = { peft_type: 'LORA', r: 2, lora_alpha: 4 };

const weight = sixteenths(1, 64);
const table = sixteenths(3, 160);
const A = sixteenths(4, 16);
const base = baseOf(
  new Map([
    ['0 q', { cols: 8, data: Float32Array.from(weight) }],
    ['-1 embedding', { cols: 8, data: Float32Array.from(table) }],
    ['-1 head', { cols: 8, data: Float32Array.from(table) }],
    ['-1 finalNorm', { cols: 8, data: new Float32Array(8).fill(1) }],
  ]),
);
const pair = (): Record<string, BenchTensor> => ({
  [`${Q}.lora_A.weight`]: f32([2, 8], A),
  [`${Q}.lora_B.weight`]: f32([8, 2], sixteenths(5, 16)),
});

async function terms(
  config: object,
  tensors: Record<string, BenchTensor>,
  model: ModelConfig = TINY_MODEL,
): Promise<readonly Term[]> {
  return (await bench.compile({ ...CONFIG, ...config }, tensors, { base, model })).terms.terms;
}

function refusal(config: object, tensors: Record<string, BenchTensor>): Promise<string> {
  return bench.refusal({ ...CONFIG, ...config }, tensors, { base });
}

test('modules_to_save: norms, embedding, head; a copy equal to the base is left out', async () => {
  const rows = sixteenths(12, 160);
  const norm = sixteenths(13, 8);
  const tensors = {
    ...pair(),
    'base_model.model.model.norm.weight': f32([8], norm),
    [`${EMBED}.modules_to_save.default.weight`]: f32([20, 8], rows),
    [`${EMBED}.original_module.weight`]: f32([20, 8], table),
  };
  const compiled = await bench.compile({ ...CONFIG, modules_to_save: ['norm', 'embed_tokens'] }, tensors, { base });
  assert.deepEqual(
    compiled.terms.terms.map(({ kind, site }) => [kind, site.site]),
    [
      ['lowrank', 'q'],
      ['override', 'embedding'],
      ['override', 'finalNorm'],
    ],
  );
  assert.match(compiled.notes.join(), /Weights of model\.embed_tokens lie in the file and are those of the base/);
  const gemma = { ...TINY_MODEL, family: 'gemma3' as const };
  const [, first] = await terms(
    { modules_to_save: ['norm'] },
    { ...pair(), 'base_model.model.model.norm.weight': f32([8], norm) },
    gemma,
  );
  assert.ok(first?.kind === 'override');
  assert.deepEqual(
    [...toFloats(first.values)],
    norm.map((value) => value + 1),
  );
});

test('a table outside of modules_to_save is the parameter itself, so a tied head follows', async () => {
  const rows = sixteenths(12, 160);
  const sites = async (config: object, tensors: Record<string, BenchTensor>): Promise<string[]> =>
    (await terms(config, { ...pair(), ...tensors })).flatMap(({ kind, site }) =>
      kind === 'override' ? [site.site] : [],
    );
  const key = { [`${EMBED}.weight`]: f32([20, 8], rows) };
  assert.deepEqual(await sites({}, key), ['embedding', 'head']);
  assert.deepEqual(await sites({ modules_to_save: ['embed_tokens'] }, key), ['embedding']);
  assert.deepEqual(await sites({ modules_to_save: ['embed_tokens'], ensure_weight_tying: true }, key), [
    'embedding',
    'head',
  ]);
  const both = { ...key, 'base_model.model.lm_head.weight': f32([20, 8], table) };
  assert.deepEqual(await sites({}, both), ['embedding']);
});

test('whole linears, score heads, other vocabularies and unknown modules are refused', async () => {
  const cases: [Record<string, BenchTensor>, RegExp][] = [
    [
      { [`${Q}.weight`]: f32([8, 8], weight) },
      /q_proj\.weight" replaces a whole linear .*Train the linear with a low-rank/,
    ],
    [{ [`${Q}.base_layer.weight`]: f32([8, 8], sixteenths(20, 64)) }, /base_layer\.weight" replaces a whole linear/],
    [
      { 'base_model.model.score.weight': f32([2, 8], sixteenths(1, 16)) },
      /is a head for another task than text generation/,
    ],
    [
      { 'base_model.model.vision.weight': f32([2, 8], sixteenths(1, 16)) },
      /belongs to a module that the base .* does not have/,
    ],
    [
      { [`${EMBED}.weight`]: f32([24, 8], sixteenths(1, 192)) },
      /expected \[20, 8\] \(an adapter cannot change the size of the vocabulary\)/,
    ],
    [{ 'base_model.model.model.norm.weight': f32([4], [1, 1, 1, 1]) }, /shape \[4\], expected \[8\]/],
    [{ [`${Q}.lora_C`]: f32([1], [1]) }, /is no tensor of a LoRA that this server knows\. Merge/],
    [{ [`${Q}.lora_A.other.weight`]: f32([2, 8], A) }, /is not named as PEFT names LoRA factors/],
    [
      { [`${Q}.lora_velora_embed`]: f32([1], [1]) },
      /is state of a training method that adapter_config\.json does not name/,
    ],
  ];
  for (const [extra, expected] of cases) assert.match(await refusal({}, { ...pair(), ...extra }), expected);
  const same = await terms({}, { ...pair(), [`${Q}.base_layer.weight`]: f32([8, 8], weight) });
  assert.equal(same.length, 1);
});

test('trained tokens are absolute rows in ascending order, of the tied head too', async () => {
  const rows = sixteenths(14, 16);
  const key = { [`${EMBED}.token_adapter.trainable_tokens_delta`]: f32([2, 8], rows) };
  const found = (await terms({ trainable_token_indices: [7, 3] }, { ...pair(), ...key })).slice(1);
  assert.deepEqual(
    found.map((term) => (term.kind === 'override' ? [term.site.site, ...(term.rows ?? [])] : [])),
    [
      ['embedding', 3, 7],
      ['head', 3, 7],
    ],
  );
  const [first] = found;
  assert.ok(first?.kind === 'override');
  assert.deepEqual([...toFloats(first.values)], [...rows.slice(8), ...rows.slice(0, 8)]);
  const untied = await terms(
    { trainable_token_indices: { embed_tokens: [7, 3] } },
    { ...pair(), ...key },
    { ...TINY_MODEL, tiedHead: false },
  );
  assert.equal(untied.length, 2);
  const head = { 'base_model.model.lm_head.token_adapter.trainable_tokens_delta': f32([1, 8], rows.slice(0, 8)) };
  const own = await terms(
    { trainable_token_indices: { embed_tokens: [7, 3], lm_head: [1] } },
    { ...pair(), ...key, ...head },
  );
  assert.deepEqual(
    own.slice(1).map(({ site }) => site.site),
    ['head', 'embedding'],
  );

  const cases: [unknown, RegExp][] = [
    [[7], /trainable_token_indices is \[7\] for .* expected 2 different token ids/],
    [[7, 7], /expected 2 different token ids/],
    [[7, 20], /expected token ids below 20/],
    [{ other: [1, 2] }, /trainable_token_indices is \[\] for/],
  ];
  for (const [ids, expected] of cases)
    assert.match(await refusal({ trainable_token_indices: ids }, { ...pair(), ...key }), expected);
  assert.match(await refusal({ trainable_token_indices: [1] }, pair()), /has no trainable_tokens_delta in the file/);
});

test('one module under two names, or a whole table beside rows of tokens, adapts the same place', async () => {
  const norm = f32([8], sixteenths(13, 8));
  const aliases = { 'base_model.model.model.norm.weight': norm, 'base_model.model.norm.weight': norm };
  const twice = await refusal({ modules_to_save: ['norm'] }, { ...pair(), ...aliases });
  assert.match(twice, /"base_model.model.model.norm.weight" and "base_model.model.norm.weight" adapt the same place/);
  const table_ = f32([20, 8], sixteenths(12, 160));
  const rows = {
    [`${EMBED}.weight`]: table_,
    [`${EMBED}.token_adapter.trainable_tokens_delta`]: f32([1, 8], A.slice(8)),
  };
  const both = await refusal(
    { modules_to_save: ['embed_tokens'], trainable_token_indices: [3] },
    { ...pair(), ...rows },
  );
  assert.match(both, /adapt the same place/);
});
