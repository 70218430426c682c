/** HRA, DEFT and GLoRA: folds that read the base's weight, against their formulas, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { baseOf } from '../testing/base.js';
import { f32, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import {
  distance,
  effective,
  entry,
  identity,
  matrix,
  scaled,
  shaped,
  sixteenths,
  sum,
  times,
  transpose,
  zeros,
} from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';
import { householderQ } from './deft.js';
import { reflectionFactors } from './hra.js';

const bench = new ImporterBench();
after(() => bench.close());

const UP = 'base_model.model.model.layers.1.mlp.up_proj';
const SITE = { layer: 1, site: 'up' } as const;
const W = shaped(sixteenths(50, 96), 12, 8);
const BIAS = sixteenths(51, 12);
const weights = new Map([['1 up', { cols: 8, data: Float32Array.from(W.flat()) }]]);
const base = baseOf(weights);
const biased = baseOf(weights, new Map([['1 up', Float32Array.from(BIAS)]]));
const column = (a: Matrix, k: number): Matrix => a.map((row) => [row[k] as number]);
const lengthOf = (a: Matrix): number => Math.sqrt(a.flat().reduce((total, value) => total + value * value, 0));

/** ∏ (I - 2 u uᵀ), or with Gram and Schmidt before. */
function reflected(u: Matrix, orthogonal: boolean): Matrix {
  const units: Matrix[] = [];
  for (let k = 0; k < (u[0]?.length ?? 0); k += 1) {
    let own = column(u, k);
    if (orthogonal)
      for (const unit of units) own = sum(own, scaled(unit, -(times(transpose(unit), own)[0]?.[0] ?? NaN)));
    units.push(scaled(own, 1 / lengthOf(own)));
  }
  return units.reduce(
    (total, unit) => times(total, sum(identity(u.length), scaled(times(unit, transpose(unit)), -2))),
    identity(u.length),
  );
}

test('HRA: I - U T Uᵀ equals the product of the reflections, with and without apply_GS', async () => {
  const u = shaped(sixteenths(52, 24), 8, 3);
  for (const orthogonal of [false, true]) {
    const { units, t } = reflectionFactors(Float64Array.from(u.flat()), 3, { in: 8, path: 'up' }, orthogonal);
    const rows = shaped(units, 3, 8);
    const found = sum(identity(8), scaled(times(transpose(rows), shaped(t, 3, 3), rows), -1));
    assert.ok(distance(found, reflected(u, orthogonal)) <= 1e-12);
    const config = { peft_type: 'HRA', r: 3, apply_GS: orthogonal };
    const { terms } = await bench.compile(config, { [`${UP}.hra_u`]: f32([8, 3], u.flat()) }, { base });
    assert.ok(distance(effective(terms.terms, SITE, W).weight, times(W, reflected(u, orthogonal))) <= 1e-6);
  }
});

test('HRA: every refusal', async () => {
  const config = { peft_type: 'HRA', r: 2 };
  const twins = matrix(8, 2, (i) => (i + 1) / 8).flat();
  const tensors = (values: readonly number[]): Record<string, BenchTensor> => ({
    [`${UP}.hra_u`]: f32([8, 2], values),
  });
  assert.match(await bench.refusal({ ...config, r: 3 }, tensors(twins)), /r is 3 for .*rank 2/);
  assert.match(
    await bench.refusal({ ...config, apply_GS: true }, tensors(twins), { base }),
    /column 1 of hra_u .*depends on those before/,
  );
  const half = matrix(8, 2, (i, j) => (j === 0 ? 0 : i + 1)).flat();
  assert.match(await bench.refusal(config, tensors(half), { base }), /column 0 of hra_u .*is zero, and a direction/);
  assert.equal((await bench.compile(config, tensors(twins), { base })).terms.terms.length, 1);
  assert.match(
    await bench.refusal({ ...config, apply_GS: 1 }, tensors(twins)),
    /apply_GS is 1, expected true or false/,
  );
});

test("DEFT: Householder's Q is orthonormal, spans P, and R's diagonal has the sign opposite to what it reflects", () => {
  const p = shaped(sixteenths(53, 36), 12, 3);
  const q = shaped(householderQ(Float64Array.from(p.flat()), { out: 12, path: 'up' }, 3), 12, 3);
  assert.ok(distance(times(transpose(q), q), identity(3)) <= 1e-12);
  const r = times(transpose(q), p);
  assert.ok(distance(times(q, r), p) <= 1e-12);
  assert.ok(
    distance([[entry(r, 1, 0), entry(r, 2, 0), entry(r, 2, 1)].map((value) => 1 + value)], [[1, 1, 1]]) <= 1e-12,
  );
  assert.equal(Math.sign(entry(r, 0, 0)), -Math.sign(entry(p, 0, 0)));
  // A matrix that is triangular already, by hand: the reflections only change signs, but not of the last row.
  const square = [
    [2, 1],
    [0, 3],
  ];
  assert.deepEqual(
    [...householderQ(Float64Array.from(square.flat()), { out: 2, path: 'up' }, 2)].map((v) => v + 0),
    [-1, 0, 0, 1],
  );
});

const DEFT = { peft_type: 'DEFT', r: 2, decomposition_method: 'relu', alpha: null, para: false };
const P = shaped(sixteenths(54, 24), 12, 2);
const R = shaped(sixteenths(55, 16), 2, 8);
const deft = { [`${UP}.deft_P`]: f32([12, 2], P.flat()), [`${UP}.deft_R`]: f32([2, 8], R.flat()) };

test('DEFT: relu, qr and para equal W - Q rightᵀ W + s Q R', async () => {
  const relu = P.map((row) => row.map((value) => Math.max(0, value)));
  const q = shaped(householderQ(Float64Array.from(P.flat()), { out: 12, path: 'up' }, 2), 12, 2);
  const formula = (own: Matrix, right: Matrix, s: number): Matrix =>
    sum(sum(W, scaled(times(own, transpose(right), W), -1)), scaled(times(own, R), s));
  const exact = await bench.compile({ ...DEFT, alpha: 3 }, deft, { base });
  assert.ok(distance(effective(exact.terms.terms, SITE, W).weight, formula(P, relu, 1.5)) <= 1e-12);
  const qr = await bench.compile({ ...DEFT, decomposition_method: 'qr' }, deft, { base });
  assert.ok(distance(effective(qr.terms.terms, SITE, W).weight, formula(q, q, 1)) <= 1e-6);
  const only = { [`${UP}.deft_P`]: f32([12, 2], P.flat()) };
  const para = await bench.compile({ ...DEFT, para: true }, only, { base });
  assert.ok(distance(effective(para.terms.terms, SITE, W).weight, formula(P, relu, 0)) <= 1e-12);
});

test('DEFT: every refusal', async () => {
  assert.match(await bench.refusal({ ...DEFT, para: true }, deft, { base }), /para is true for .*deft_R/);
  assert.match(await bench.refusal({ ...DEFT, r: 3 }, deft, { base }), /r is 3 for .*rank 2/);
  assert.match(
    await bench.refusal({ ...DEFT, decomposition_method: 'svd' }, deft),
    /decomposition_method is "svd", expected one of/,
  );
  const twins = { ...deft, [`${UP}.deft_P`]: f32([12, 2], matrix(12, 2, (i) => i + 1).flat()) };
  assert.match(
    await bench.refusal({ ...DEFT, decomposition_method: 'qr' }, twins, { base }),
    /column 1 of deft_P .*sign float32 can tell/,
  );
  const signless = {
    ...deft,
    [`${UP}.deft_P`]: f32([12, 2], matrix(12, 2, (i, j) => (i === 0 ? 0 : i + j * i * i)).flat()),
  };
  assert.match(await bench.refusal({ ...DEFT, decomposition_method: 'qr' }, signless, { base }), /column 0 of deft_P/);
});

const vector = { peft_type: 'GLORA', r: 2, config_A_B: 'vector', config_C: 'lora', config_D_E: 'vector' };
const [GA, GB, GD, GE] = [61, 62, 63, 64].map((seed) => sixteenths(seed, 12)) as [
  number[],
  number[],
  number[],
  number[],
];
const [CD, CU] = [sixteenths(65, 16), sixteenths(66, 2)];
const vectors = {
  [`${UP}.glora_A.X`]: f32([12, 1], GA),
  [`${UP}.glora_B.X`]: f32([12, 1], GB),
};
const biasPaths = {
  [`${UP}.glora_C.Xd`]: f32([8, 2], CD),
  [`${UP}.glora_C.Xu`]: f32([2, 1], CU),
  [`${UP}.glora_D.X`]: f32([12], GD),
  [`${UP}.glora_E.X`]: f32([12], GE),
};

test('GLoRA: columns, with the change of the bias where the base has one', async () => {
  const wanted = matrix(12, 8, (i, j) => entry(W, i, j) * (1 + (GA[i] as number)) + (GB[i] as number));
  const plain = await bench.compile(
    vector,
    { ...vectors, [`${UP}.glora_C.zeros`]: f32([8, 1], zeros(8, 1).flat()) },
    { base },
  );
  const found = effective(plain.terms.terms, SITE, W);
  assert.ok(distance(found.weight, wanted) <= 1e-12);
  assert.deepEqual(found.shift, new Array(12).fill(0));
  const { terms } = await bench.compile(vector, { ...vectors, ...biasPaths }, { base: biased });
  const wc = times(W, shaped(CD, 8, 2), shaped(CU, 2, 1)).flat();
  const shift = BIAS.map((b, i) => b * (GD[i] as number) + (GE[i] as number) + (wc[i] as number));
  const both = effective(terms.terms, SITE, W);
  assert.ok(distance(both.weight, wanted) <= 1e-12);
  assert.ok(distance([both.shift], [shift]) <= 1e-12);
});

test('GLoRA: numbers, a pair for B beside an untrained A, and nothing at all', async () => {
  const constant = { ...vector, config_A_B: 'constant', config_C: 'vector', config_D_E: 'constant' };
  const one = (value: number): BenchTensor => f32([1], [value]);
  const numbers = await bench.compile(
    constant,
    {
      [`${UP}.glora_A.X`]: one(0.5),
      [`${UP}.glora_B.X`]: one(0.25),
      [`${UP}.glora_C.X`]: f32([8, 1], CD.slice(0, 8)),
      [`${UP}.glora_D.X`]: one(-0.5),
      [`${UP}.glora_E.X`]: one(2),
    },
    { base: biased },
  );
  const found = effective(numbers.terms.terms, SITE, W);
  assert.ok(
    distance(
      found.weight,
      W.map((row) => row.map((value) => 1.5 * value + 0.25)),
    ) <= 1e-12,
  );
  const wc = times(W, shaped(CD.slice(0, 8), 8, 1)).flat();
  assert.ok(distance([found.shift], [BIAS.map((b, i) => -0.5 * b + 2 + (wc[i] as number))]) <= 1e-12);
  const pair = { ...vector, config_A_B: 'lora', config_C: 'none', config_D_E: 'none' };
  const [down, up] = [sixteenths(67, 24), sixteenths(68, 16)];
  const tensors = {
    [`${UP}.glora_A.Xd`]: f32([12, 2], zeros(12, 2).flat()),
    [`${UP}.glora_A.Xu`]: f32([2, 8], up),
    [`${UP}.glora_B.Xd`]: f32([12, 2], down),
    [`${UP}.glora_B.Xu`]: f32([2, 8], up),
  };
  const { terms } = await bench.compile(pair, tensors, { base });
  const wanted = sum(W, times(shaped(down, 12, 2), shaped(up, 2, 8)));
  assert.ok(distance(effective(terms.terms, SITE, W).weight, wanted) <= 1e-12);
  const trained = { ...tensors, [`${UP}.glora_A.Xd`]: f32([12, 2], down) };
  assert.match(
    await bench.refusal(pair, trained, { base }),
    /config_A_B is "lora" with a trained A .*config_A_B="vector"\.$/,
  );
});

test('GLoRA: every refusal', async () => {
  assert.match(
    await bench.refusal(vector, { ...vectors, ...biasPaths }, { base }),
    /glora_C\.Xd \(and the base has no bias there/,
  );
  assert.match(await bench.refusal({ ...vector, config_A_B: 'none' }, vectors, { base }), /tensors have glora_A\.X/);
  const placeholder = { ...vectors, [`${UP}.glora_C.zeros`]: f32([8, 1], CD.slice(0, 8)) };
  assert.match(await bench.refusal(vector, placeholder, { base }), /glora_C\.zeros" holds values, expected zeros/);
  assert.match(await bench.refusal({ ...vector, config_C: 'matrix' }, vectors, { base }), /config_C is "matrix"/);
  assert.match(await bench.refusal(vector, vectors, { base: biased }), /has no glora_C\.Xd/);
});
