/** Methods without a library: Hydra, SORSA, CorDA, FLoRA, LoLDU, DSEE and SLTrain against their formulas, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import { baseOf } from '../testing/base.js';
import { f32, i64, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import {
  diagonal,
  distance,
  effective,
  entry,
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
import { ldu } from './loldu.js';
import { crosses } from './residual.js';

const bench = new ImporterBench();
after(() => bench.close());

const DOWN_PATH = 'model.layers.1.mlp.down_proj';
const DOWN = `base_model.model.${DOWN_PATH}`;
const SITE = { layer: 1, site: 'down' } as const;
const W = shaped(sixteenths(70, 96), 8, 12);
const BIAS = sixteenths(71, 8);
const weights = new Map([['1 down', { cols: 12, data: Float32Array.from(W.flat()) }]]);
const base = baseOf(weights);
const biased = baseOf(weights, new Map([['1 down', Float32Array.from(BIAS)]]));
const random = (seed: number, rows: number, cols: number): Matrix => shaped(sixteenths(seed, rows * cols), rows, cols);
const tensor = (values: Matrix): BenchTensor => f32([values.length, values[0]?.length ?? 0], values.flat());

const [DP, UPP, DS, US] = [random(72, 2, 12), random(73, 8, 2), random(74, 2, 8), random(75, 8, 2)];
const HYDRA = { peft_type: 'HYDRA', r: 2, scale: 0.5 };

test('Hydra: both branches, with and without biases, under either name', async () => {
  const branches = {
    [`${DOWN}.hydra_par.down_proj.weight`]: tensor(DP),
    [`${DOWN}.hydra_par.up_proj.weight`]: tensor(UPP),
    [`${DOWN}.hydra_seq.down_proj.weight`]: tensor(DS),
    [`${DOWN}.hydra_seq.up_proj.weight`]: tensor(US),
  };
  const wanted = sum(W, scaled(sum(times(UPP, DP), times(US, DS, W)), 0.5));
  const plain = effective((await bench.compile(HYDRA, branches, { base })).terms.terms, SITE, W);
  assert.ok(distance(plain.weight, wanted) <= 1e-12);
  assert.deepEqual(plain.shift, new Array(8).fill(0));
  const [dp, up, ds, us] = [sixteenths(76, 2), sixteenths(77, 8), sixteenths(78, 2), sixteenths(79, 8)];
  const biases = {
    [`${DOWN}.hydra_par.down_proj.bias`]: f32([2], dp),
    [`${DOWN}.hydra_par.up_proj.bias`]: f32([8], up),
    [`${DOWN}.hydra_seq.down_proj.bias`]: f32([2], ds),
    [`${DOWN}.hydra_seq.up_proj.bias`]: f32([8], us),
  };
  const theirs = Object.fromEntries(
    Object.entries({ ...branches, ...biases }).map(([name, value]) => [
      name.replace('down_proj.hydra_', 'hydra_mlp_'),
      value,
    ]),
  );
  const inner = sum(times(DS, transpose([BIAS])), transpose([ds]));
  const outer = sum(sum(times(UPP, transpose([dp])), transpose([up])), sum(times(US, inner), transpose([us])));
  const { terms } = await bench.compile(HYDRA, theirs, { base: biased });
  const found = effective(terms.terms, SITE, W);
  assert.ok(distance(found.weight, wanted) <= 1e-12);
  assert.ok(distance([found.shift], transpose(scaled(outer, 0.5))) <= 1e-12);
});

test('Hydra: one branch alone, and every refusal', async () => {
  const par = { [`${DOWN}.hydra_par.down_proj.weight`]: tensor(DP), [`${DOWN}.hydra_par.up_proj.weight`]: tensor(UPP) };
  const { terms } = await bench.compile({ peft_type: 'HYDRA', r: 2 }, par, { base });
  assert.ok(distance(effective(terms.terms, SITE, W).weight, sum(W, times(UPP, DP))) <= 1e-12);
  assert.match(await bench.refusal({ ...HYDRA, r: 3 }, par, { base }), /r is 3 for .*rank 2/);
  const half = { [`${DOWN}.hydra_par.down_proj.weight`]: tensor(DP) };
  assert.match(await bench.refusal(HYDRA, half, { base }), /has no hydra_par\.up_proj\.weight/);
  const twice = { ...par, 'base_model.model.model.layers.1.mlp.hydra_mlp_par.down_proj.weight': tensor(DP) };
  assert.match(await bench.refusal(HYDRA, twice, { base }), /adapt the same place/);
});

const SORSA = { peft_type: 'SORSA', rank: 2, alpha: 3 };
const [SA, SB, SS] = [random(80, 2, 12), random(81, 8, 2), sixteenths(82, 2)];
const REMOVED = times(random(83, 8, 2), random(84, 2, 12));
const sorsa = (residual: Matrix): Record<string, BenchTensor> => ({
  [`${DOWN}.weight`]: tensor(residual),
  [`${DOWN}.sorsa_A`]: tensor(SA),
  [`${DOWN}.sorsa_S`]: f32([2], SS),
  [`${DOWN}.sorsa_B`]: tensor(SB),
});

test('SORSA: the residual as a pair where its difference has the rank, else whole; alpha and bias', async () => {
  const trained = times(SB, diagonal(SS), SA);
  const residual = sum(W, scaled(REMOVED, -1));
  const low = await bench.compile(SORSA, sorsa(residual), { base });
  assert.deepEqual(
    low.terms.terms.map(({ kind }) => kind),
    ['lowrank', 'lowrank'],
  );
  assert.ok(distance(effective(low.terms.terms, SITE, W).weight, sum(residual, scaled(trained, 1.5))) <= 1e-6);
  const rough = sum(residual, scaled(random(85, 8, 12), 0.0625));
  const bias = { [`${DOWN}.bias`]: f32([8], sixteenths(86, 8)) };
  const whole = await bench.compile({ ...SORSA, alpha: null }, { ...sorsa(rough), ...bias }, { base: biased });
  assert.deepEqual(
    whole.terms.terms.map(({ kind }) => kind),
    ['lowrank', 'blockdiag', 'diag'],
  );
  const found = effective(whole.terms.terms, SITE, W);
  assert.ok(distance(found.weight, sum(rough, trained)) <= 1e-12);
  assert.ok(distance([found.shift], [sixteenths(86, 8).map((value, i) => value - (BIAS[i] as number))]) <= 1e-12);
  const same = await bench.compile(SORSA, sorsa(W), { base });
  assert.deepEqual(
    same.terms.terms.map(({ kind }) => kind),
    ['lowrank'],
  );
});

test('residuals: crosses give a matrix of the rank back, and nothing for one of a higher rank', async () => {
  const found = await crosses(Float32Array.from(REMOVED.flat()), { out: 8, in: 12 }, 2, 1e-9);
  assert.ok(found !== undefined);
  assert.ok(distance(times(shaped(found.columns, 8, 2), shaped(found.rows, 2, 12)), REMOVED) <= 1e-12);
  assert.equal(await crosses(Float32Array.from(REMOVED.flat()), { out: 8, in: 12 }, 1, 1e-9), undefined);
  const first = times(random(87, 8, 1), random(88, 1, 12));
  assert.equal((await crosses(Float32Array.from(first.flat()), { out: 8, in: 12 }, 4, 1e-9))?.rows.length, 12);
});

test('SORSA and CorDA: every refusal, and CorDA with its names the other way round', async () => {
  assert.match(await bench.refusal({ ...SORSA, rank: 4 }, sorsa(W), { base }), /rank is 4 for .*rank 2/);
  const incomplete = Object.fromEntries(Object.entries(sorsa(W)).filter(([name]) => !name.endsWith('.weight')));
  assert.match(await bench.refusal(SORSA, incomplete, { base }), /has no weight beside its other tensors/);
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxBytes: 650 };
  const rough = sorsa(random(89, 8, 12));
  assert.match(await bench.refusal(SORSA, rough, { base, limits }), /its terms take more than 650 bytes/);
  const corda = {
    [`${DOWN}.weight_residual`]: tensor(sum(W, scaled(REMOVED, -1))),
    [`${DOWN}.BLinear.weight`]: tensor(SA),
    [`${DOWN}.ALinear.weight`]: tensor(SB),
  };
  const { terms } = await bench.compile({ peft_type: 'CORDA', r: 2 }, corda, { base });
  const wanted = sum(sum(W, scaled(REMOVED, -1)), times(SB, SA));
  assert.ok(distance(effective(terms.terms, SITE, W).weight, wanted) <= 1e-6);
  assert.match(await bench.refusal({ peft_type: 'CORDA' }, corda, { base }), /r is missing, expected an integer/);
});

test('FLoRA: the core is folded into the side that keeps the smaller rank', async () => {
  for (const [r0, r1] of [
    [3, 2],
    [2, 3],
    [2, 2],
  ] as const) {
    const [core, inner, outer] = [random(90, r0, r1), random(91, 12, r0), random(92, 8, r1)];
    const { terms } = await bench.compile(
      { peft_type: 'FLORA', scale: 2 },
      {
        [`${DOWN}.flora_layer.param_G`]: tensor(core),
        [`${DOWN}.flora_layer.param_0`]: tensor(inner),
        [`${DOWN}.flora_layer.param_1`]: tensor(outer),
      },
    );
    const wanted = scaled(times(outer, transpose(core), transpose(inner)), 2);
    assert.ok(distance(effective(terms.terms, SITE, zeros(8, 12)).weight, wanted) <= 1e-12);
    assert.equal(terms.terms[0]?.kind === 'lowrank' && terms.terms[0].a.shape[0], 2);
  }
  const wrong = {
    [`${DOWN}.flora_layer.param_G`]: tensor(random(90, 3, 2)),
    [`${DOWN}.flora_layer.param_0`]: tensor(random(91, 8, 3)),
  };
  assert.match(await bench.refusal({ peft_type: 'FLORA', scale: 2 }, wrong), /has shape \[8, 3\], expected \[12, 3\]/);
  assert.match(await bench.refusal({ peft_type: 'FLORA' }, { ...wrong }), /scale is missing, expected a finite number/);
});

const LOLDU = { peft_type: 'LOLDU', rank: 3, lora_alpha: 6, init_loldu_weights: 'ldu' };
const PARAMETRIZATION = `${DOWN}.parametrizations.weight.0`;
const PLACE = {
  path: DOWN_PATH,
  layer: 1,
  parts: [{ site: SITE, firstRow: 0, rows: 8 }],
  out: 8,
  in: 12,
  tensors: new Map<string, never>(),
};
/** Of full rank and without ties. */
const PLAIN = matrix(8, 12, (i, j) => Math.fround(Math.sin(1 + 3 * i + 7 * j) + (i === (3 * j) % 8 ? 2 : 0)));
const baseOfPlain = (values: Matrix): ReturnType<typeof baseOf> =>
  baseOf(new Map([['1 down', { cols: 12, data: Float32Array.from(values.flat()) }]]));

test('LoLDU: all steps together are the LU decomposition, pivots the largest', async () => {
  const { lower, diagonal: d, upper } = await ldu(baseOfPlain(PLAIN), PLACE, 8);
  const [l, u] = [shaped(lower, 8, 8), shaped(upper, 8, 12)];
  assert.ok(distance(times(l, diagonal([...d]), u), PLAIN) <= 1e-12);
  assert.ok(
    l.flat().every((value) => Math.abs(value) <= 1),
    'no multiplier is above 1',
  );
  u.forEach((row, k) => assert.deepEqual(row.slice(0, k + 1), [...new Array<number>(k).fill(0), 1]));
  const first = PLAIN.reduce(
    (best, row, i) => (Math.abs(row[0] as number) > Math.abs(entry(PLAIN, best, 0)) ? i : best),
    0,
  );
  assert.equal(entry(l, first, 0), 1);
});

test('LoLDU: the change of the first entries of D, with and without the trained factor', async () => {
  const z = sixteenths(93, 3);
  const { lower, diagonal: d, upper } = await ldu(baseOfPlain(PLAIN), PLACE, 3);
  for (const factor of [undefined, 2.5]) {
    const tensors: Record<string, BenchTensor> = { [`${PARAMETRIZATION}.vector_z`]: f32([3], z) };
    if (factor !== undefined) tensors[`${PARAMETRIZATION}.scaling_factor`] = f32([], [factor]);
    const { terms } = await bench.compile(LOLDU, tensors, { base: baseOfPlain(PLAIN) });
    const change = z.map((value, k) => (factor ?? 2) * value - 2 * (d[k] as number));
    const wanted = sum(PLAIN, times(shaped(lower, 8, 3), diagonal(change), shaped(upper, 3, 12)));
    assert.ok(distance(effective(terms.terms, SITE, PLAIN).weight, wanted) <= 1e-6);
  }
});

test('LoLDU: a pivot that cannot be told is refused, and so is every other tensor', async () => {
  const tensors = { [`${PARAMETRIZATION}.vector_z`]: f32([3], [1, 2, 3]) };
  const tied = PLAIN.map((row, i) =>
    i === 0 ? row.map(() => 4) : row.map((value, j) => (j === 0 ? 0 : j === 1 ? 1 : value)),
  );
  assert.match(
    await bench.refusal(LOLDU, tensors, { base: baseOfPlain(tied) }),
    /in step 1 of its LU decomposition two candidates .*--model\.$/,
  );
  const empty = PLAIN.map((row) => row.map((value, j) => (j === 0 ? 0 : value)));
  assert.match(
    await bench.refusal(LOLDU, tensors, { base: baseOfPlain(empty) }),
    /in step 0 of its LU decomposition a pivot is zero/,
  );
  assert.match(
    await bench.refusal({ ...LOLDU, rank: 4 }, tensors, { base: baseOfPlain(PLAIN) }),
    /rank is 4 for .*rank 3/,
  );
  assert.match(await bench.refusal({ ...LOLDU, init_loldu_weights: 'lora' }, tensors), /init_loldu_weights is "lora"/);
  const derived = { ...tensors, [`${PARAMETRIZATION}.P`]: tensor(random(94, 8, 8)) };
  assert.match(
    await bench.refusal(LOLDU, derived),
    /only what was trained is taken\. Save vector_z and scaling_factor alone/,
  );
});

const [A, B] = [random(95, 2, 12), random(96, 8, 2)];
const both = {
  [`${DOWN}.lora_A`]: tensor(A),
  [`${DOWN}.lora_B`]: tensor(B),
  [`${DOWN}.sparse_index`]: i64([3], [95, 0, 40]),
  [`${DOWN}.sparse_value`]: f32([3], [1, 2, 3]),
};
const SPARSE = matrix(
  8,
  12,
  (i, j) =>
    new Map([
      [95, 1],
      [0, 2],
      [40, 3],
    ]).get(i * 12 + j) ?? 0,
);

test('DSEE adds its two parts, SLTrain puts them in the place of the weight; the trained factor', async () => {
  const dsee = await bench.compile({ peft_type: 'DSEE', r: 2, lora_alpha: 3 }, both);
  const added = sum(W, scaled(sum(times(B, A), SPARSE), 1.5));
  assert.ok(distance(effective(dsee.terms.terms, SITE, W).weight, added) <= 1e-12);
  const sltrain = { peft_type: 'SLTRAIN', r: 2, lora_alpha: 3 };
  const replaced = await bench.compile(sltrain, both);
  const wanted = sum(scaled(times(B, A), 1.5), SPARSE);
  assert.ok(distance(effective(replaced.terms.terms, SITE, W).weight, wanted) <= 1e-12);
  const trained = await bench.compile(sltrain, { ...both, [`${DOWN}.scaling`]: f32([1], [0.5]) });
  const gated = sum(scaled(times(B, A), Math.tanh(0.5)), SPARSE);
  assert.ok(distance(effective(trained.terms.terms, SITE, W).weight, gated) <= 1e-12);
});

test('DSEE and SLTrain: every refusal', async () => {
  const config = { peft_type: 'DSEE', r: 2, lora_alpha: 3 };
  assert.match(await bench.refusal({ ...config, r: 1 }, both), /r is 1 for .*rank 2/);
  assert.match(
    await bench.refusal(config, { ...both, [`${DOWN}.scaling`]: f32([1], [1]) }),
    /is none of this method's parameters/,
  );
  assert.match(
    await bench.refusal(config, { ...both, [`${DOWN}.sparse_index`]: i64([3], [0, 0, 1]) }),
    /row 0, column 0 twice/,
  );
  assert.match(
    await bench.refusal(config, { ...both, [`${DOWN}.sparse_index`]: i64([3], [0, 1, 96]) }),
    /holds index 96, expected 0 to 95/,
  );
  assert.match(
    await bench.refusal(config, { ...both, [`${DOWN}.sparse_value`]: f32([2], [0, 1]) }),
    /has shape \[2\], expected \[3\]/,
  );
});
