/** VB-LoRA, Uni-LoRA and DeLoRA: what they add to a weight, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import { baseOf } from '../testing/base.js';
import { f32, i32, i64, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { lowRankAt, lowRankDelta } from '../testing/low-rank.js';
import { diagonal, distance, matrix, scaled, shaped, sixteenths, times, transpose } from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';

const bench = new ImporterBench();
after(() => bench.close());

// Linears of the tiny model: up [12, 8], down [8, 12].
const LAYER = 'base_model.model.model.layers.1';
const [UP, DOWN] = [`${LAYER}.mlp.up_proj`, `${LAYER}.mlp.down_proj`];
const [UP_SITE, DOWN_SITE] = [
  { layer: 1, site: 'up' },
  { layer: 1, site: 'down' },
] as const;
const random = (seed: number, rows: number, cols: number): Matrix => shaped(sixteenths(seed, rows * cols), rows, cols);
const tensor = (values: Matrix): BenchTensor => f32([values.length, values[0]?.length ?? 0], values.flat());

const VB = { peft_type: 'VBLORA', r: 2, num_vectors: 5, vector_length: 4, topk: 2, target_modules: ['up_proj'] };
const BANK = random(80, 5, 4);
/** No two alike within five. */
const logitsOf = (seed: number, count: number): number[] =>
  sixteenths(seed, count).map((value, i) => value + (i % 5) / 1000);

function vb(): Record<string, BenchTensor> {
  return {
    'base_model.vblora_vector_bank': tensor(BANK),
    [`${UP}.vblora_logits_A`]: f32([2, 2, 5], logitsOf(81, 20)),
    [`${UP}.vblora_logits_B`]: f32([3, 2, 5], logitsOf(82, 30)),
  };
}

/** The two best of each five: their places and softmax. */
function best(logits: readonly number[]): { places: number[]; weights: number[] }[] {
  const rows = shaped(Float32Array.from(logits), logits.length / 5, 5);
  return rows.map((row) => {
    const places = [0, 1, 2, 3, 4].sort((a, b) => (row[b] as number) - (row[a] as number)).slice(0, 2);
    const exps = places.map((place) => Math.exp(row[place] as number));
    const total = exps.reduce((a, b) => a + b);
    return { places, weights: exps.map((value) => value / total) };
  });
}

/** A `[2, 8]` and B `[12, 2]` of the choices, one row of pieces after the other. */
function vbDelta(a: ReturnType<typeof best>, b: ReturnType<typeof best>): Matrix {
  const piece = ({ places, weights }: { places: number[]; weights: number[] }): number[] =>
    [0, 1, 2, 3].map((j) =>
      places.reduce((total, place, k) => total + (weights[k] as number) * (BANK[place]?.[j] as number), 0),
    );
  const [left, right] = [a.map(piece), b.map(piece)];
  const rows = matrix(2, 8, (k, j) => left[k * 2 + Math.floor(j / 4)]?.[j % 4] as number);
  const columns = matrix(12, 2, (i, k) => right[Math.floor(i / 4) * 2 + k]?.[i % 4] as number);
  return times(columns, rows);
}

test('VB-LoRA: from logits and from saved choices, whatever the type of the indices', async () => {
  const [a, b] = [best(logitsOf(81, 20)), best(logitsOf(82, 30))];
  const wanted = vbDelta(a, b);
  const { terms } = await bench.compile(VB, vb());
  assert.ok(distance(lowRankDelta(lowRankAt(terms.terms, UP_SITE)), wanted) < 1e-6);
  const types = [
    (shape: number[], values: number[]): BenchTensor => ({ dtype: 'U8', shape, data: Uint8Array.from(values) }),
    (shape: number[], values: number[]): BenchTensor => ({ dtype: 'I16', shape, data: Int16Array.from(values) }),
    i32,
    i64,
  ];
  for (const indices of types) {
    const saved = {
      'base_model.vblora_vector_bank': tensor(BANK),
      [`${UP}.vblora_logits_A_topk_indices`]: indices(
        [2, 2, 2],
        a.flatMap(({ places }) => places),
      ),
      [`${UP}.vblora_logits_A_topk_weights`]: f32(
        [2, 2, 1],
        a.map(({ weights }) => weights[0] as number),
      ),
      [`${UP}.vblora_logits_B_topk_indices`]: indices(
        [3, 2, 2],
        b.flatMap(({ places }) => places),
      ),
      [`${UP}.vblora_logits_B_topk_weights`]: f32(
        [3, 2, 1],
        b.map(({ weights }) => weights[0] as number),
      ),
    };
    const folded = (await bench.compile({ ...VB, save_only_topk_weights: true }, saved)).terms.terms;
    assert.ok(distance(lowRankDelta(lowRankAt(folded, UP_SITE)), wanted) < 1e-6);
  }
});

test('VB-LoRA: a single choice has no stored weight', async () => {
  const [a, b] = [best(logitsOf(81, 20)), best(logitsOf(82, 30))].map((rows) =>
    rows.map(({ places }) => ({ places: places.slice(0, 1), weights: [1] })),
  ) as [ReturnType<typeof best>, ReturnType<typeof best>];
  const saved = {
    'base_model.vblora_vector_bank': tensor(BANK),
    [`${UP}.vblora_logits_A_topk_indices`]: i32(
      [2, 2, 1],
      a.flatMap(({ places }) => places),
    ),
    [`${UP}.vblora_logits_B_topk_indices`]: i32(
      [3, 2, 1],
      b.flatMap(({ places }) => places),
    ),
  };
  const { terms } = await bench.compile({ ...VB, topk: 1, save_only_topk_weights: true }, saved);
  assert.ok(distance(lowRankDelta(lowRankAt(terms.terms, UP_SITE)), vbDelta(a, b)) < 1e-6);
});

test('VB-LoRA: what is refused', async () => {
  const tied = { ...vb(), [`${UP}.vblora_logits_A`]: f32([2, 2, 5], new Array<number>(20).fill(0.5)) };
  assert.match(await bench.refusal(VB, tied), /equal logits at the edge of the best 2.*save_only_topk_weights=True/);
  assert.match(
    await bench.refusal({ ...VB, num_vectors: 6 }, vb()),
    /vector_bank" has shape \[5, 4\], expected \[6, 4\]/,
  );
  assert.match(await bench.refusal({ ...VB, topk: 6 }, vb()), /topk is 6 of 5 vectors/);
  assert.match(await bench.refusal({ ...VB, save_only_topk_weights: true }, vb()), /none of this method's parameters/);
  const threes = { ...vb(), 'base_model.vblora_vector_bank': tensor(random(80, 5, 3)) };
  assert.match(await bench.refusal({ ...VB, vector_length: 3 }, threes), /vector_length is 3, which does not divide/);
  const chosen = (indices: number[], weight: number): Record<string, BenchTensor> => ({
    'base_model.vblora_vector_bank': tensor(BANK),
    [`${UP}.vblora_logits_A_topk_indices`]: i32([2, 2, 2], [...indices, 0, 1, 0, 1, 0, 1]),
    [`${UP}.vblora_logits_A_topk_weights`]: f32([2, 2, 1], [weight, 0.5, 0.5, 0.5]),
    [`${UP}.vblora_logits_B_topk_indices`]: i32([3, 2, 2], [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
    [`${UP}.vblora_logits_B_topk_weights`]: f32([3, 2, 1], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
  });
  const onlyTopk = { ...VB, save_only_topk_weights: true };
  assert.match(
    await bench.refusal(onlyTopk, chosen([0, 5], 0.5)),
    /names vectors 0, 5, expected 2 different ones below 5/,
  );
  assert.match(await bench.refusal(onlyTopk, chosen([2, 2], 0.5)), /names vectors 2, 2/);
  assert.match(await bench.refusal(onlyTopk, chosen([0, 1], 1.25)), /not those of a softmax/);
  assert.match(await bench.refusal(onlyTopk, chosen([0, 1], -0.25)), /not those of a softmax/);
});

const UNI = { peft_type: 'UNILORA', r: 2, theta_d_length: 6, save_indices: true, target_modules: ['up_proj'] };
const THETA = sixteenths(83, 6);
const places = (seed: number, count: number): number[] =>
  sixteenths(seed, count).map((value) => Math.round((value + 1) * 2.5));

function uni(): Record<string, BenchTensor> {
  return {
    'base_model.unilora_theta_d': f32([6], THETA),
    [`${UP}.unilora_indices_A`]: i64([2, 8], places(84, 16)),
    [`${UP}.unilora_indices_B`]: i32([12, 2], places(85, 24)),
    [`${UP}.unilora_scales_A`]: f32([2, 8], sixteenths(86, 16)),
    [`${UP}.unilora_scales_B`]: f32([12, 2], sixteenths(87, 24)),
  };
}

test('Uni-LoRA: entries of the vector, each with its scale; without its indices it is refused', async () => {
  const pick = (index: number[], scale: number[]): number[] =>
    index.map((at, i) => (THETA[at] as number) * (scale[i] as number));
  const a = shaped(pick(places(84, 16), sixteenths(86, 16)), 2, 8);
  const b = shaped(pick(places(85, 24), sixteenths(87, 24)), 12, 2);
  const { terms } = await bench.compile(UNI, uni());
  assert.ok(distance(lowRankDelta(lowRankAt(terms.terms, UP_SITE)), times(b, a)) < 1e-6);
  assert.match(
    await bench.refusal({ ...UNI, save_indices: false }, uni()),
    /save_indices is false.*random generator.*save_indices=True/,
  );
  const { [`${UP}.unilora_indices_A`]: _, ...partial } = uni();
  assert.match(await bench.refusal(UNI, partial), /has no unilora_indices_A/);
  const far = { ...uni(), [`${UP}.unilora_indices_A`]: i64([2, 8], places(84, 16).with(3, 6)) };
  assert.match(await bench.refusal(UNI, far), /unilora_indices_A" holds 6, expected places of a vector of 6/);
  const negative = { ...uni(), [`${UP}.unilora_indices_A`]: i64([2, 8], places(84, 16).with(3, -1)) };
  assert.match(await bench.refusal(UNI, negative), /holds -1/);
  assert.match(await bench.refusal({ ...UNI, theta_d_length: 7 }, uni()), /theta_d" has shape \[6\], expected \[7\]/);
});

const DE = {
  peft_type: 'DELORA',
  r: 2,
  delora_lambda: 15,
  target_modules: ['up_proj', 'down_proj'],
  rank_pattern: { down_proj: 1 },
};
const [DA, DB] = [random(88, 2, 8), random(89, 12, 2)];

function delora(): Record<string, BenchTensor> {
  return {
    [`${UP}.delora_A`]: tensor(DA),
    [`${UP}.delora_B`]: tensor(DB),
    [`${UP}.delora_lambda`]: f32([1], [3]),
    [`${UP}.delora_w_norm`]: f32([8], sixteenths(90, 8)),
    [`${DOWN}.delora_A`]: f32([1, 12], new Array<number>(12).fill(0)),
    [`${DOWN}.delora_B`]: tensor(random(91, 8, 1)),
    [`${DOWN}.delora_lambda`]: f32([1], [3]),
    [`${DOWN}.delora_w_norm`]: f32([12], sixteenths(92, 12)),
  };
}

const norm = (values: readonly number[]): number =>
  Math.sqrt(values.reduce((total, value) => total + value * value, 0));

/** B diag(λ / (r ‖A_i‖ ‖B^i‖)) A diag(w). */
function deloraDelta(w: readonly number[]): Matrix {
  const mid = [0, 1].map((k) => 3 / (2 * norm(DA[k] ?? []) * norm(transpose(DB)[k] ?? [])));
  return times(DB, diagonal(mid), DA, diagonal(w));
}

test('DeLoRA: normalised ranks, a rank of zeros, and norms of the base where the file has none', async () => {
  const { terms } = await bench.compile(DE, delora());
  assert.ok(distance(lowRankDelta(lowRankAt(terms.terms, UP_SITE)), deloraDelta(sixteenths(90, 8))) < 1e-6);
  // The norm of A's zeros is clamped, so nothing is divided by zero.
  assert.deepEqual(new Set(lowRankDelta(lowRankAt(terms.terms, DOWN_SITE)).flat().map(Math.abs)), new Set([0]));
  const { [`${UP}.delora_w_norm`]: _, ...older } = delora();
  const weight = random(93, 12, 8);
  const base = baseOf(new Map([['1 up', { cols: 8, data: Float32Array.from(weight.flat()) }]]));
  const folded = (await bench.compile(DE, older, { base })).terms.terms;
  const wanted = deloraDelta(transpose(weight).map(norm));
  assert.ok(distance(lowRankDelta(lowRankAt(folded, UP_SITE)), wanted) < 1e-6);
});

test('DeLoRA: what is refused', async () => {
  assert.match(await bench.refusal({ ...DE, rank_pattern: {} }, delora()), /r is 2 for .*rank 1/);
  assert.match(await bench.refusal({ ...DE, bias: 'delora' }, delora()), /bias is "delora"/);
  const { [`${UP}.delora_lambda`]: _, ...partial } = delora();
  assert.match(await bench.refusal(DE, partial), /has no delora_lambda/);
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxRank: 1 };
  assert.match(await bench.refusal(DE, delora(), { limits }), /at most 1 is allowed/);
  const loud = {
    ...delora(),
    [`${UP}.delora_A`]: tensor(scaled(DA, 1e30)),
    [`${UP}.delora_w_norm`]: f32([8], new Array<number>(8).fill(1e30)),
  };
  assert.match(await bench.refusal(DE, loud), /gives NaN or infinity/);
});
