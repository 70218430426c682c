/** Whole modules and trained biases beside the tensors of tuners other than LoRA. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import type { DiagTerm, Term } from '../../core/terms.js';
import { baseOf } from '../testing/base.js';
import { f32, ImporterBench, ramp } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const ROOT = 'base_model.model.';
const [Q, UP] = ['model.layers.1.self_attn.q_proj', 'model.layers.1.mlp.up_proj'];
const { hiddenSize, ffnSize, vocabSize } = TINY_MODEL;
const OLD_BIAS = Float32Array.from(ramp(hiddenSize, 0.5));
const NORM = Float32Array.from(ramp(hiddenSize, 0.125));
const TABLE = Float32Array.from(ramp(vocabSize * hiddenSize));
const base = baseOf(
  new Map([
    ['-1 finalNorm', { cols: hiddenSize, data: NORM }],
    ['-1 embedding', { cols: hiddenSize, data: TABLE }],
    ['-1 head', { cols: hiddenSize, data: TABLE }],
  ]),
  new Map([['1 q', OLD_BIAS]]),
);

const IA3 = { peft_type: 'IA3', target_modules: ['up_proj'], feedforward_modules: [] };
const IA3_TENSORS = { [`${ROOT}${UP}.ia3_l`]: f32([ffnSize, 1], ramp(ffnSize)) };
const ROAD = { peft_type: 'ROAD', variant: 'road_1', group_size: 4, target_modules: ['q_proj'] };
const LOHA = { peft_type: 'LOHA', r: 1, alpha: 1, target_modules: null };

function loha(path: string, out: number, width: number): Record<string, BenchTensor> {
  return Object.fromEntries(
    ['hada_w1_a', 'hada_w2_a', 'hada_w1_b', 'hada_w2_b'].map((name) => {
      const shape = name.endsWith('a') ? [out, 1] : [1, width];
      return [`${ROOT}${path}.${name}`, f32(shape, ramp(shape[0] === 1 ? width : out))];
    }),
  );
}

const sites = (terms: readonly Term[]): string[] => terms.map(({ kind, site }) => `${kind} ${site.layer} ${site.site}`);

test('modules_to_save: norm and tables become OVERRIDE beside the method, and a copy of the base none', async () => {
  const tensors = {
    ...IA3_TENSORS,
    [`${ROOT}model.norm.weight`]: f32([hiddenSize], ramp(hiddenSize)),
    [`${ROOT}lm_head.modules_to_save.default.weight`]: f32([vocabSize, hiddenSize], ramp(vocabSize * hiddenSize, 0.5)),
    [`${ROOT}model.embed_tokens.original_module.weight`]: f32([vocabSize, hiddenSize], [...TABLE]),
  };
  const config = { ...IA3, modules_to_save: ['norm', 'lm_head', 'embed_tokens'] };
  const { terms, notes } = await bench.compile(config, tensors, { base });
  assert.deepEqual(sites(terms.terms), ['diag 1 up', 'override -1 head', 'override -1 finalNorm']);
  assert.match(notes.join('\n'), /Weights of model\.embed_tokens lie in the file and are those of the base/);
  const alone = await bench.compile({ ...IA3, modules_to_save: ['norm'] }, IA3_TENSORS, { base });
  assert.deepEqual(sites(alone.terms.terms), ['diag 1 up']);
  assert.match(alone.notes.join('\n'), /modules_to_save names "norm", which have no tensors/);
});

test('a trained bias is the bias that a method turns and scales: c is Q b′ − b', async () => {
  const trained = ramp(hiddenSize, 2);
  const turned = await bench.compile(
    { peft_type: 'GLORA', r: 1, config_A_B: 'none', config_C: 'none', config_D_E: 'vector', bias: 'all' },
    {
      [`${ROOT}${Q}.glora_D.X`]: f32([hiddenSize], ramp(hiddenSize)),
      [`${ROOT}${Q}.glora_E.X`]: f32([hiddenSize], ramp(hiddenSize, 3)),
      [`${ROOT}${Q}.base_layer.bias`]: f32([hiddenSize], trained),
    },
    { base },
  );
  const term = turned.terms.terms[0] as DiagTerm;
  const [d, e] = [ramp(hiddenSize), ramp(hiddenSize, 3)];
  const wanted = trained.map((b, i) => b * (1 + (d[i] ?? 0)) + (e[i] ?? 0) - (OLD_BIAS[i] ?? 0));
  assert.equal(turned.terms.terms.length, 1);
  assert.deepEqual([...(term.c ?? [])], wanted);
});

test('biases of other linears are shifts of their own', async () => {
  const tensors = { ...loha(UP, ffnSize, hiddenSize), [`${ROOT}${Q}.bias`]: f32([hiddenSize], ramp(hiddenSize)) };
  // Only tuners with the field `bias` have trained ones.
  assert.match(await bench.refusal(LOHA, tensors, { base }), /is a bias, while adapter_config\.json trains none there/);
  const hra = { [`${ROOT}${UP}.hra_u`]: f32([hiddenSize, 1], ramp(hiddenSize)) };
  const weights = new Map([['1 up', { cols: hiddenSize, data: new Float32Array(ffnSize * hiddenSize).fill(0.5) }]]);
  const { terms } = await bench.compile(
    { peft_type: 'HRA', r: 1, bias: 'all', target_modules: null },
    { ...hra, [`${ROOT}${Q}.bias`]: f32([hiddenSize], ramp(hiddenSize)) },
    { base: baseOf(weights, new Map([['1 q', OLD_BIAS]])) },
  );
  assert.deepEqual(sites(terms.terms), ['lowrank 1 up', 'diag 1 q']);
  const shift = ramp(hiddenSize).map((value, i) => value - (OLD_BIAS[i] ?? 0));
  assert.deepEqual([...((terms.terms[1] as DiagTerm).c ?? [])], shift);
});

test('refusals: unknown bias, two forms of one module, heads of other tasks, whole linears, wrong shapes', async () => {
  const hra = { peft_type: 'HRA', r: 1, target_modules: null };
  const tensors = { [`${ROOT}${UP}.hra_u`]: f32([hiddenSize, 1], ramp(hiddenSize)) };
  assert.match(await bench.refusal({ ...hra, bias: 'some' }, tensors), /bias is "some", expected "none", "all" or/);
  assert.match(await bench.refusal({ ...IA3, bias: 'all' }, IA3_TENSORS), /bias is "all", expected "none"/);
  const head = f32([vocabSize, hiddenSize], ramp(vocabSize * hiddenSize, 0.5));
  const both = { ...loha('lm_head', vocabSize, hiddenSize), [`${ROOT}lm_head.modules_to_save.weight`]: head };
  const twice = await bench.refusal({ ...LOHA, modules_to_save: ['lm_head'] }, both, { base });
  assert.match(twice, /replaces the whole head and adapts it as well/);
  const norms = {
    [`${ROOT}model.norm.ln_tuning_layers.weight`]: f32([hiddenSize], ramp(hiddenSize)),
    [`${ROOT}model.norm.weight`]: f32([hiddenSize], ramp(hiddenSize, 2)),
  };
  const ln = { peft_type: 'LN_TUNING', modules_to_save: ['norm'] };
  assert.match(await bench.refusal(ln, norms, { base }), /replaces the whole finalNorm and adapts it as well/);
  const cases: readonly (readonly [string, BenchTensor, RegExp])[] = [
    ['score.weight', f32([2, hiddenSize], ramp(2 * hiddenSize)), /is a head for another task than text generation/],
    [
      `${Q}.weight`,
      f32([hiddenSize, hiddenSize], ramp(hiddenSize * hiddenSize)),
      /replaces a whole linear of the base/,
    ],
    ['model.norm.weight', f32([3], ramp(3)), /has shape \[3\], expected \[8\]/],
    ['model.layers.7.input_layernorm.weight', f32([8], ramp(8)), /none of this method's parameters/],
  ];
  for (const [key, tensor, message] of cases) {
    const config = { ...IA3, modules_to_save: ['norm'] };
    assert.match(await bench.refusal(config, { ...IA3_TENSORS, [ROOT + key]: tensor }, { base }), message);
  }
  assert.match(
    await bench.refusal({ ...ROAD, trainable_token_indices: [1] }, { [`${ROOT}${Q}.road_theta`]: f32([4], ramp(4)) }),
    /"trainable_token_indices" is \[1\], a field that this server does not know/,
  );
});
