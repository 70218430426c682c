/** IA3, VeRA, Poly, MHR and LN tuning: exact terms of small cases, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import type { LowRankTerm, Term } from '../../core/terms.js';
import { toFloats } from '../tensor-values.js';
import { baseOf, dense } from '../testing/base.js';
import { bf16, f32, ImporterBench, ramp } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const { hiddenSize, ffnSize } = TINY_MODEL;
const UP = 'base_model.model.model.layers.1.mlp.up_proj';
const DOWN = 'base_model.model.model.layers.0.mlp.down_proj';
const DOWN_SITE = { layer: 0, site: 'down' } as const;
const UP_SITE = { layer: 1, site: 'up' } as const;

const IA3 = { peft_type: 'IA3', target_modules: ['up_proj', 'down_proj'], feedforward_modules: ['down_proj'] };
const NO_BIAS = baseOf(new Map());

test('IA3: g on an output, with the bias that it scales; h on the input of a feed-forward module', async () => {
  const bias = Float32Array.from(ramp(ffnSize));
  const l = ramp(ffnSize, 0.5);
  const base = baseOf(new Map(), new Map([['1 up', bias]]));
  const { terms } = await bench.compile(
    IA3,
    { [`${UP}.ia3_l`]: f32([ffnSize, 1], l), [`${DOWN}.ia3_l`]: bf16([1, ffnSize], l) },
    { base },
  );
  const c = Float32Array.from(l, (value, i) => (value - 1) * (bias[i] ?? 0));
  assert.deepEqual(terms.terms, [
    { kind: 'diag', site: UP_SITE, g: Float32Array.from(l), c },
    { kind: 'diag', site: DOWN_SITE, h: Float32Array.from(l) },
  ]);
});

test('IA3: without a bias there is no shift; a vector on the wrong side is refused', async () => {
  const { terms } = await bench.compile(IA3, { [`${UP}.ia3_l`]: f32([ffnSize, 1], ramp(ffnSize)) }, { base: NO_BIAS });
  assert.deepEqual(Object.keys(terms.terms[0] ?? {}), ['kind', 'site', 'g']);
  const wrongSide = { [`${DOWN}.ia3_l`]: f32([hiddenSize, 1], ramp(hiddenSize)) };
  assert.match(await bench.refusal(IA3, wrongSide), /has shape \[8, 1\], expected \[1, 12\]/);
  assert.match(await bench.refusal(IA3, {}), /holds no tensors/);
  const foreign = { [`${DOWN}.ia3_m`]: f32([1], [1]) };
  assert.match(await bench.refusal(IA3, foreign), /none of this method's parameters \(ia3_l\)/);
});

const VERA = { peft_type: 'VERA', r: 2, target_modules: ['up_proj', 'down_proj'], projection_prng_key: 3 };
const [LONG_A, LONG_B] = [ramp(2 * 16), ramp(16 * 2, 0.5)];

function vera(extra: Readonly<Record<string, BenchTensor>> = {}): Record<string, BenchTensor> {
  return {
    'base_model.vera_A': f32([2, 16], LONG_A),
    'base_model.vera_B': f32([16, 2], LONG_B),
    [`${UP}.vera_lambda_b`]: f32([ffnSize], ramp(ffnSize)),
    [`${UP}.vera_lambda_d`]: f32([2], [0.5, -2]),
    ...extra,
  };
}

function lowrank(terms: readonly Term[]): LowRankTerm {
  const [term] = terms;
  return term?.kind === 'lowrank' ? term : assert.fail('a lowrank term');
}

test('VeRA: slices of the shared projections, which equal adapters name alike', async () => {
  const { terms } = await bench.compile(VERA, vera());
  const term = lowrank(terms.terms);
  assert.deepEqual(
    [term.a.shape, term.b.shape],
    [
      [2, hiddenSize],
      [ffnSize, 2],
    ],
  );
  const first = [...LONG_A.slice(0, hiddenSize), ...LONG_A.slice(16, 16 + hiddenSize)];
  assert.deepEqual([...toFloats(dense(term.a))], first);
  assert.deepEqual([...toFloats(dense(term.b))], LONG_B.slice(0, 2 * ffnSize));
  assert.deepEqual([...(term.mid ?? [])], [0.5, -2]);
  assert.deepEqual([...(term.outDiag ?? [])], ramp(ffnSize));
  const other = lowrank((await bench.compile(VERA, vera({ [`${UP}.vera_lambda_d`]: f32([2], [1, 1]) }))).terms.terms);
  assert.deepEqual([other.a.shared, other.b.shared], [term.a.shared, term.b.shared]);
  const changed = { 'base_model.vera_A': f32([2, 16], ramp(32, 0.125)) };
  const another = lowrank((await bench.compile(VERA, vera(changed))).terms.terms);
  assert.notEqual(another.a.shared, term.a.shared);
});

test('VeRA: what is refused', async () => {
  const { 'base_model.vera_A': _, 'base_model.vera_B': __, ...unsaved } = vera();
  assert.match(
    await bench.refusal({ ...VERA, save_projection: false }, unsaved),
    /save_projection is false: .* drawn again by torch.*save_projection=True/,
  );
  const narrow = vera({ 'base_model.vera_A': f32([2, 4], ramp(8)) });
  assert.match(await bench.refusal(VERA, narrow), /vera_A" has shape \[2, 4\], expected \[2, at least 8\]/);
  assert.match(
    await bench.refusal({ ...VERA, r: 3 }, vera()),
    /vera_A" has shape \[2, 16\], expected \[3, at least 8\]/,
  );
  const short = vera({ [`${UP}.vera_lambda_d`]: f32([1], [1]) });
  assert.match(await bench.refusal(VERA, short), /has shape \[1\], expected \[2\]/);
});

const SPLITS = 2;
const SKILLS = 3;
const POLY = {
  peft_type: 'POLY',
  r: 1,
  n_tasks: 2,
  n_skills: SKILLS,
  n_splits: SPLITS,
  task_id: 1,
  target_modules: ['up_proj'],
};

function poly(splits = SPLITS): Record<string, BenchTensor> {
  return {
    [`${UP}.poly_lora_A`]: f32([splits, SKILLS, hiddenSize / splits, 1], ramp(SKILLS * hiddenSize)),
    [`${UP}.poly_lora_B`]: f32([splits, SKILLS, 1, ffnSize / splits], ramp(SKILLS * ffnSize, 0.5)),
    [`${UP}.poly_router.module_logits`]: f32([2, splits * SKILLS], ramp(2 * splits * SKILLS)),
  };
}

/** Rows of A or B as the paper mixes them: each split of the channels with its own weights. */
function mixed(values: readonly number[], channels: number, splits: number): number[] {
  const logits = ramp(2 * splits * SKILLS).slice(splits * SKILLS);
  return Array.from({ length: channels }, (_, channel) => {
    const split = Math.floor(channel / (channels / splits));
    const own = logits.slice(split * SKILLS, (split + 1) * SKILLS).map((z) => 1 / (1 + Math.exp(-z)));
    const sum = own.reduce((total, weight) => total + weight, 0);
    const inner = channel % (channels / splits);
    return own.reduce(
      (total, weight, s) => total + (weight / sum) * (values[((split * SKILLS + s) * channels) / splits + inner] ?? 0),
      0,
    );
  });
}

test('Poly and MHR: a task is one plain LoRA of factors mixed before the product', async () => {
  for (const splits of [1, SPLITS]) {
    const { terms } = await bench.compile({ ...POLY, n_splits: splits }, poly(splits));
    const term = lowrank(terms.terms);
    const [a, b] = [
      mixed(ramp(SKILLS * hiddenSize), hiddenSize, splits),
      mixed(ramp(SKILLS * ffnSize, 0.5), ffnSize, splits),
    ];
    toFloats(dense(term.a)).forEach((value, i) => assert.ok(Math.abs(value - (a[i] ?? NaN)) < 1e-6));
    toFloats(dense(term.b)).forEach((value, i) => assert.ok(Math.abs(value - (b[i] ?? NaN)) < 1e-6));
    assert.equal(term.scale, 1);
  }
});

test('Poly: what is refused', async () => {
  const { task_id: _, ...unnamed } = POLY;
  assert.match(
    await bench.refusal(unnamed, poly()),
    /task_id is missing, expected 0 to 1: the router knows 2 tasks.*Add "task_id"/,
  );
  assert.match(await bench.refusal({ ...POLY, task_id: 2 }, poly()), /task_id is 2, expected 0 to 1/);
  assert.match(await bench.refusal({ ...POLY, n_splits: 5 }, poly()), /n_splits is 5, which does not divide/);
  assert.match(await bench.refusal({ ...POLY, n_skills: 4 }, poly()), /has shape .*expected \[2, 4, 4, 1\]/);
  const { [`${UP}.poly_router.module_logits`]: __, ...routerless } = poly();
  assert.match(await bench.refusal(POLY, routerless), /has no poly_router\.module_logits/);
});

const LN = { peft_type: 'LN_TUNING', target_modules: ['input_layernorm'] };
const NORM = 'base_model.model.model.layers.0.input_layernorm.ln_tuning_layers';

test('LN tuning: the norm is replaced; anything else is refused', async () => {
  const values = ramp(hiddenSize);
  const { terms } = await bench.compile(LN, { [`${NORM}.weight`]: f32([hiddenSize], values) });
  const site = { layer: 0, site: 'attnNorm' };
  const replaced = { dtype: 'f32', shape: [1, hiddenSize], data: Float32Array.from(values) };
  assert.deepEqual(terms.terms, [{ kind: 'override', site, values: replaced }]);
  assert.match(await bench.refusal(LN, { [`${NORM}.weight`]: f32([3], [1, 2, 3]) }), /has shape \[3\], expected \[8\]/);
  assert.match(await bench.refusal(LN, { [`${NORM}.bias`]: f32([8], ramp(8)) }), /is no trained norm of the base/);
  const both = { [`${NORM}.weight`]: f32([8], ramp(8)), [`${NORM}.default.weight`]: f32([8], ramp(8)) };
  assert.match(await bench.refusal(LN, both), /are the same norm/);
  assert.match(await bench.refusal(LN, {}), /holds no tensors/);
});
