/** OFT, BOFT and RoAd: their rotations against formulas written plainly, every flag, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { Turns } from '../fold.js';
import { baseOf } from '../testing/base.js';
import { f32, ImporterBench } from '../testing/importer-bench.js';
import {
  chainMatrix,
  distance,
  effective,
  entry,
  identity,
  inverted,
  matrix,
  scaled,
  shaped,
  sixteenths,
  sum,
  times,
  transpose,
} from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';
import { butterflyChain } from './boft.js';
import { oftRotations } from './oft.js';
import { roadColumns } from './road.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'model.layers.0.self_attn.q_proj';
const SITE = { layer: 0, site: 'q' } as const;
const key = (name: string, path = Q): string => `base_model.model.${path}.${name}`;
const WEIGHT = sixteenths(99, 64);

function skew(triangle: readonly number[], n: number): Matrix {
  const at = (i: number, j: number): number => triangle[(i * (2 * n - i - 1)) / 2 + j - i - 1] as number;
  return matrix(n, n, (i, j) => (i === j ? 0 : i < j ? at(i, j) : -at(j, i)));
}

/** (I - Q) (I + Q)⁻¹. */
function cayley(q: Matrix): Matrix {
  const one = identity(q.length);
  return times(sum(one, scaled(q, -1)), inverted(sum(one, q)));
}

function series(q: Matrix, factors: readonly number[]): Matrix {
  let power = identity(q.length);
  return factors.reduce<Matrix>((total, factor) => {
    power = times(power, q);
    return sum(total, scaled(power, factor));
  }, identity(q.length));
}

function blockDiagonal(blocks: readonly Matrix[]): Matrix {
  const n = blocks[0]?.length ?? 0;
  return matrix(n * blocks.length, n * blocks.length, (i, j) =>
    Math.floor(i / n) === Math.floor(j / n) ? entry(blocks[Math.floor(i / n)] ?? [], i % n, j % n) : 0,
  );
}

const TRIANGLE = sixteenths(11, 6);
const EXACT = { eps: undefined, terms: undefined, lastTwice: false };

async function rotation(config: Parameters<typeof oftRotations>[2], triangle = TRIANGLE): Promise<Matrix> {
  const [found] = await oftRotations(Float64Array.from(triangle), 4, config, new Turns());
  return transpose(shaped(found ?? [], 4, 4));
}

test("OFT: Cayley's rotation is orthogonal and equals its formula", async () => {
  const found = await rotation(EXACT);
  assert.ok(distance(found, cayley(skew(TRIANGLE, 4))) <= 1e-12);
  assert.ok(distance(times(found, transpose(found)), identity(4)) <= 1e-12);
});

test('OFT: the Neumann series of every length, in the form of PEFT 0.18 and of the releases before', async () => {
  const q = skew(TRIANGLE, 4);
  const now = [[], [2], [2, 2, 1], [2, 2, 1], [2, 2, 2, 1], [2, 2, 2, 2, 1]];
  const before = [[], [2], [2, 2], [2, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2, 2]];
  for (let terms = 1; terms <= 6; terms += 1) {
    const config = { eps: undefined, terms, lastTwice: false };
    assert.ok(distance(await rotation(config), series(q, now[terms - 1] ?? [])) <= 1e-12, `${terms} terms`);
    const old = await rotation({ ...config, lastTwice: true });
    assert.ok(distance(old, series(q, before[terms - 1] ?? [])) <= 1e-12, `${terms} terms before 0.18`);
  }
});

test('OFT: COFT brings Q back onto its ball, and leaves what is inside', async () => {
  const norm = Math.sqrt(2 * TRIANGLE.reduce((total, value) => total + value * value, 0));
  const small = cayley(scaled(skew(TRIANGLE, 4), 0.25 / norm));
  assert.ok(distance(await rotation({ ...EXACT, eps: 0.25 }), small) <= 1e-12);
  assert.ok(distance(await rotation({ ...EXACT, eps: 2 * norm }), cayley(skew(TRIANGLE, 4))) <= 1e-12);
  const pair = await oftRotations(
    Float64Array.from([...TRIANGLE, ...TRIANGLE]),
    4,
    { ...EXACT, eps: 0.25 },
    new Turns(),
  );
  const half = cayley(scaled(skew(TRIANGLE, 4), 0.25 / Math.SQRT2 / norm));
  assert.ok(distance(transpose(shaped(pair[1] ?? [], 4, 4)), half) <= 1e-12);
});

const OFT = { peft_type: 'OFT', r: 0, oft_block_size: 4, use_cayley_neumann: false, peft_version: '0.21.2' };
const oft = (rows = 2): Parameters<typeof bench.compile>[1] => ({
  [key('oft_R.weight')]: f32([rows, 6], sixteenths(11, 6 * rows)),
});

test('OFT: one map before the base product, the blocks transposed; one block shared by all', async () => {
  const weight = shaped(WEIGHT, 8, 8);
  const rotations = [skew(sixteenths(11, 12).slice(0, 6), 4), skew(sixteenths(11, 12).slice(6), 4)].map(cayley);
  const { terms } = await bench.compile(OFT, oft());
  assert.deepEqual(
    terms.terms.map((term) => term.kind === 'blockdiag' && term.placement),
    ['pre'],
  );
  const wanted = times(weight, transpose(blockDiagonal(rotations)));
  assert.ok(distance(effective(terms.terms, SITE, weight).weight, wanted) <= 1e-6);
  const shared = await bench.compile({ ...OFT, block_share: true }, oft(1));
  const [first] = [cayley(skew(TRIANGLE, 4))] as [Matrix];
  const same = times(weight, transpose(blockDiagonal([first, first])));
  assert.ok(distance(effective(shared.terms.terms, SITE, weight).weight, same) <= 1e-6);
});

test('OFT: sizes as PEFT adjusts them, versions, and every refusal', async () => {
  assert.equal((await bench.compile({ ...OFT, r: 2, oft_block_size: 0 }, oft())).terms.terms.length, 1);
  assert.equal((await bench.compile({ ...OFT, oft_block_size: 5 }, oft())).terms.terms.length, 1);
  const neumann = { ...OFT, use_cayley_neumann: true };
  const old = await bench.compile({ ...neumann, peft_version: '0.17.1' }, oft());
  assert.match(old.notes.join(), /trained with PEFT before 0\.18/);
  assert.deepEqual((await bench.compile(neumann, oft())).notes, []);
  assert.match(
    await bench.refusal({ ...neumann, peft_version: '0.17.2.dev0@abc' }, oft()),
    /peft_version is "0\.17\.2\.dev0@abc".*"0\.18\.0"\.$/,
  );
  assert.match(await bench.refusal({ ...neumann, peft_version: 'new' }, oft()), /peft_version is "new"/);
  assert.match(await bench.refusal({ ...neumann, num_cayley_neumann_terms: 99 }, oft()), /at most 64/);
  assert.match(await bench.refusal({ ...OFT, oft_block_size: 2 }, oft()), /oft_block_size is 2 for .*blocks of 4/);
  assert.match(await bench.refusal({ ...OFT, r: 2 }, oft()), /expected one of them to be 0/);
  assert.match(await bench.refusal({ ...OFT, block_share: true }, oft()), /of which one is shared/);
  assert.match(await bench.refusal({ peft_type: 'OFT', r: 8 }, oft()), /oft_block_size is missing.*--model\.$/);
  assert.match(await bench.refusal(OFT, { [key('oft_r')]: f32([2, 4, 4], sixteenths(1, 32)) }), /PEFT before 0\.14/);
  const embedding = { [key('oft_embedding_R.weight', 'model.embed_tokens')]: f32([2, 6], sixteenths(1, 12)) };
  assert.match(await bench.refusal(OFT, embedding), /rotates the embedding/);
  assert.match(
    await bench.refusal(OFT, { [key('oft_R.weight')]: f32([2, 5], sixteenths(1, 10)) }),
    /expected triangles/,
  );
});

/** P_i as PEFT makes it: runs of b 2^i, cut into chunks of b / 2, even chunks before odd ones. */
function butterfly(width: number, size: number, factor: number): Matrix {
  const order: number[] = [];
  for (let start = 0; start < width; start += size * 2 ** factor) {
    const chunks = Array.from({ length: 2 ** (factor + 1) }, (_, i) => start + (i * size) / 2);
    for (const from of [...chunks.filter((_, i) => i % 2 === 0), ...chunks.filter((_, i) => i % 2 === 1)]) {
      for (let i = 0; i < size / 2; i += 1) order.push(from + i);
    }
  }
  return matrix(width, width, (i, j) => (order[i] === j ? 1 : 0));
}

function boftMatrix(raw: readonly number[], factors: number, blocks: number, size: number): Matrix {
  let result = identity(blocks * size);
  for (let factor = 0; factor < factors; factor += 1) {
    const own = Array.from({ length: blocks }, (_, block) => {
      const from = (factor * blocks + block) * size * size;
      const data = shaped(raw.slice(from, from + size * size), size, size);
      return cayley(scaled(sum(data, scaled(transpose(data), -1)), 0.5));
    });
    const p = butterfly(blocks * size, size, factor);
    result = times(factors === 1 ? blockDiagonal(own) : times(p, blockDiagonal(own), transpose(p)), result);
  }
  return result;
}

test('BOFT: one, two and three butterfly factors equal the product of their matrices', async () => {
  for (const [factors, blocks, size] of [
    [1, 2, 4],
    [2, 4, 2],
    [3, 4, 2],
    [2, 2, 4],
  ] as const) {
    const raw = sixteenths(13, factors * blocks * size * size);
    const { stages, output } = await butterflyChain(Float64Array.from(raw), { factors, blocks, size }, new Turns());
    const found = chainMatrix(stages, output, 8);
    assert.ok(distance(found, transpose(boftMatrix(raw, factors, blocks, size))) <= 1e-12, `${factors} factors`);
  }
});

const BOFT = { peft_type: 'BOFT', boft_block_size: 4, boft_block_num: 0, boft_n_butterfly_factor: 1 };
const boft = (shape: readonly number[]): Parameters<typeof bench.compile>[1] => ({
  [key('boft_R')]: f32(
    shape,
    sixteenths(
      13,
      shape.reduce((a, b) => a * b, 1),
    ),
  ),
  [key('boft_s')]: f32([8, 1], sixteenths(14, 8)),
});

test('BOFT: the scale is g alone; one factor in the file whatever the config says; every refusal', async () => {
  const weight = shaped(WEIGHT, 8, 8);
  const { terms, notes } = await bench.compile({ ...BOFT, boft_n_butterfly_factor: 3 }, boft([1, 2, 4, 4]));
  const rotated = times(weight, transpose(boftMatrix(sixteenths(13, 32), 1, 2, 4)));
  const wanted = matrix(8, 8, (i, j) => (sixteenths(14, 8)[i] as number) * entry(rotated, i, j));
  assert.ok(distance(effective(terms.terms, SITE, weight).weight, wanted) <= 1e-6);
  assert.match(notes.join(), /boft_n_butterfly_factor is 3, but it was trained with 1/);
  const refusals: [Record<string, unknown>, readonly number[], RegExp][] = [
    [{}, [1, 4, 2, 2], /boft_block_size is 4 for .*blocks of 2/],
    [{ boft_block_size: 0, boft_block_num: 4 }, [1, 2, 4, 4], /boft_block_num is 4 for .*2 blocks/],
    [{}, [2, 2, 4, 4], /boft_n_butterfly_factor is 1 for .*2 factors/],
    [{ boft_n_butterfly_factor: 3 }, [3, 2, 4, 4], /no butterfly permutation fits/],
    [{ boft_block_size: 3 }, [1, 3, 3, 3], /3 blocks of 3, expected blocks over its 8 inputs/],
  ];
  for (const [fields, shape, message] of refusals) {
    assert.match(await bench.refusal({ ...BOFT, ...fields }, boft(shape)), message);
  }
});

/** Q of RoAd's paper, entry by entry. */
function roadMatrix(
  variant: 1 | 2 | 4,
  group: number,
  out: number,
  theta: readonly number[],
  alpha: readonly number[],
): Matrix {
  const half = group / 2;
  return matrix(out, out, (i, j) => {
    const [run, at] = [Math.floor(i / group), i % group];
    if (Math.floor(j / group) !== run || j % half !== at % half) return 0;
    const index = (sine: boolean): number =>
      variant === 1 ? run * half + (at % half) : variant === 2 ? i : 2 * run * group + (sine ? group : 0) + at;
    const cos = (alpha[index(false)] as number) * Math.cos(theta[index(false)] as number);
    const sin = (alpha[index(true)] as number) * Math.sin(theta[index(true)] as number);
    if (i === j) return cos;
    return at < half ? -sin : sin;
  });
}

test('RoAd: all three variants turn pairs of outputs and the bias with them', async () => {
  const weight = shaped(WEIGHT, 8, 8);
  const bias = sixteenths(15, 8);
  const base = baseOf(new Map(), new Map([['0 q', Float32Array.from(bias)]]));
  for (const [variant, size] of [
    [1, 4],
    [2, 8],
    [4, 16],
  ] as const) {
    const [theta, alpha] = [sixteenths(16, size), sixteenths(17, size)];
    const wanted = roadMatrix(variant, 4, 8, theta, alpha);
    const config = { peft_type: 'ROAD', variant: `road_${variant}`, group_size: 4 };
    const tensors = { [key('road_theta')]: f32([size], theta), [key('road_alpha')]: f32([size], alpha) };
    const { terms } = await bench.compile(config, tensors, { base });
    const found = effective(terms.terms, SITE, weight);
    assert.ok(distance(found.weight, times(wanted, weight)) <= 1e-6, `road_${variant}`);
    const turned = times(wanted, transpose([bias])).flat();
    assert.ok(distance([found.shift], [turned.map((value, i) => value - (bias[i] as number))]) <= 1e-6);
    const columns = roadColumns(`road_${variant}`, 4, 8, Float64Array.from(theta), Float64Array.from(alpha));
    const cosines = matrix(1, 8, (_, i) => entry(wanted, i, i));
    assert.ok(distance([[...columns.cos]], cosines) <= 1e-12);
    const sines = matrix(1, 8, (_, i) => Math.abs(entry(wanted, i, i % 4 < 2 ? i + 2 : i - 2)));
    assert.ok(distance([[...columns.sin].map(Math.abs)], sines) <= 1e-12);
  }
});

test('RoAd: no shift without a bias, fused sites, and every refusal', async () => {
  const none = baseOf(new Map());
  const config = { peft_type: 'ROAD', variant: 'road_2', group_size: 4 };
  const fused = (name: string): string => key(name, 'model.layers.0.self_attn.qkv_proj');
  const tensors = {
    [fused('road_theta')]: f32([16], sixteenths(1, 16)),
    [fused('road_alpha')]: f32([16], sixteenths(2, 16)),
  };
  const { terms } = await bench.compile(config, tensors, { base: none });
  assert.deepEqual(
    terms.terms.map(({ kind, site }) => [kind, site.site]),
    [
      ['blockdiag', 'q'],
      ['blockdiag', 'k'],
      ['blockdiag', 'v'],
    ],
  );
  assert.match(
    await bench.refusal({ ...config, group_size: 8 }, tensors, { base: none }),
    /has 4 outputs, expected a multiple of group_size 8/,
  );
  assert.match(await bench.refusal({ ...config, group_size: 3 }, tensors, { base: none }), /which is even/);
  assert.match(
    await bench.refusal({ ...config, variant: 'road_1' }, tensors, { base: none }),
    /has shape \[16\], expected \[8\]/,
  );
  assert.match(
    await bench.refusal({ ...config, variant: 'road_3' }, tensors, { base: none }),
    /variant is "road_3", expected one of/,
  );
});
