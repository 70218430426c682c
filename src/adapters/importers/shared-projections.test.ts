/** VeRA, PVeRA, S2-LoRA and TinyLoRA: what they add to a weight, what they share, every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { bf16, f32, ImporterBench } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { lowRankAt, lowRankDelta } from '../testing/low-rank.js';
import { diagonal, distance, matrix, shaped, sixteenths, times } from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';

const bench = new ImporterBench();
after(() => bench.close());

// Linears of the tiny model: up [12, 8], down [8, 12], q [8, 8], qkv [16, 8].
const LAYER = 'base_model.model.model.layers.1';
const [UP, DOWN] = [`${LAYER}.mlp.up_proj`, `${LAYER}.mlp.down_proj`];
const [UP_SITE, DOWN_SITE] = [
  { layer: 1, site: 'up' },
  { layer: 1, site: 'down' },
] as const;
const random = (seed: number, rows: number, cols: number): Matrix => shaped(sixteenths(seed, rows * cols), rows, cols);
const tensor = (values: Matrix): BenchTensor => f32([values.length, values[0]?.length ?? 0], values.flat());
const corner = (values: Matrix, rows: number, cols: number): Matrix =>
  matrix(rows, cols, (i, j) => values[i]?.[j] ?? NaN);

const METHODS = [
  { type: 'VERA', name: 'vera', middle: 'vera_lambda_d', outer: 'vera_lambda_b', halves: 1 },
  { type: 'PVERA', name: 'pvera', middle: 'pvera_lambda_d', outer: 'pvera_lambda_b', halves: 2 },
  { type: 'S2LORA', name: 's2lora', middle: 's2lora_lambda', outer: undefined, halves: 1 },
] as const;
type Method = (typeof METHODS)[number];

/** Rank 3 on up and down, which read different corners of A `[3, 14]` and B `[13, 3]`. */
function adapter({ type, name, middle, outer, halves }: Method, seed: number): Parameters<ImporterBench['compile']> {
  const tensors: Record<string, BenchTensor> = {
    [`base_model.${name}_A`]: tensor(random(1, 3 * halves, 14)),
    [`base_model.${name}_B`]: tensor(random(2, 13, 3)),
  };
  for (const [path, out] of [
    [UP, 12],
    [DOWN, 8],
  ] as const) {
    tensors[`${path}.${middle}`] = f32([3 * halves], sixteenths(seed + out, 3 * halves));
    if (outer !== undefined) tensors[`${path}.${outer}`] = f32([out], sixteenths(seed + out + 1, out));
  }
  return [{ peft_type: type, r: 3, target_modules: ['up_proj', 'down_proj'] }, tensors];
}

test('shared projections equal a materialised LoRA, and requests with different λ share them', async () => {
  for (const method of METHODS) {
    const first = (await bench.compile(...adapter(method, 40))).terms.terms;
    const second = (await bench.compile(...adapter(method, 90))).terms.terms;
    for (const [site, out, width] of [
      [UP_SITE, 12, 8],
      [DOWN_SITE, 8, 12],
    ] as const) {
      for (const [terms, seed] of [
        [first, 40],
        [second, 90],
      ] as const) {
        const mid = sixteenths(seed + out, 3 * method.halves).slice(0, 3);
        const outer = method.outer === undefined ? new Array<number>(out).fill(1) : sixteenths(seed + out + 1, out);
        const a = corner(random(1, 3 * method.halves, 14), 3, width);
        const wanted = times(diagonal(outer), corner(random(2, 13, 3), out, 3), diagonal(mid), a);
        assert.ok(distance(lowRankDelta(lowRankAt(terms, site)), wanted) < 1e-12);
      }
      const [one, other] = [lowRankAt(first, site), lowRankAt(second, site)];
      assert.ok(one.a.shared !== undefined && one.b.shared !== undefined);
      assert.deepEqual([other.a.shared, other.b.shared], [one.a.shared, one.b.shared]);
      assert.notDeepEqual(other.mid, one.mid);
    }
  }
});

test('fifty VeRA adapters over one projection name it once for each corner', async () => {
  const names = new Set<string>();
  for (let i = 0; i < 50; i += 1) {
    const { terms } = await bench.compile(...adapter(METHODS[0], 100 + 3 * i));
    for (const term of terms.terms) {
      assert.ok(term.kind === 'lowrank');
      for (const { shared, shape } of [term.a, term.b])
        names.add(`${shared ?? assert.fail('a name')} ${shape.join('x')}`);
    }
  }
  assert.equal(names.size, 4);
});

test('names tell apart A, B, values, shapes, types and the rows of a fused linear', async () => {
  const [config, tensors] = adapter(METHODS[0], 40);
  const nameOf = async (changed: Record<string, BenchTensor>): Promise<string> => {
    const { terms } = await bench.compile(config, { ...tensors, ...changed });
    return lowRankAt(terms.terms, UP_SITE).a.shared ?? assert.fail('a name');
  };
  const values = random(1, 3, 14);
  const found = await Promise.all([
    nameOf({}),
    nameOf({ 'base_model.vera_A': tensor(random(3, 3, 14)) }),
    nameOf({ 'base_model.vera_A': tensor(corner(values, 3, 13)) }),
    nameOf({ 'base_model.vera_A': bf16([3, 14], values.flat()) }),
  ]);
  assert.equal(new Set(found).size, 4);
  const fused = `${LAYER}.self_attn.qkv_proj`;
  const { terms } = await bench.compile(
    { ...config, r: 1, target_modules: ['qkv_proj'] },
    {
      'base_model.vera_A': tensor(random(1, 1, 8)),
      'base_model.vera_B': tensor(random(2, 16, 1)),
      [`${fused}.vera_lambda_d`]: f32([1], [2]),
      [`${fused}.vera_lambda_b`]: f32([16], sixteenths(4, 16)),
    },
  );
  const [, k, v] = terms.terms.map((term) => (term.kind === 'lowrank' ? term : assert.fail('lowrank')));
  assert.ok(k !== undefined && v !== undefined);
  assert.deepEqual(
    [k.b.shape, v.b.shape, k.a.shared === v.a.shared, k.b.shared === v.b.shared],
    [[4, 1], [4, 1], true, false],
  );
  const wanted = times(diagonal(sixteenths(4, 16).slice(12)), random(2, 16, 1).slice(12), [[2]], random(1, 1, 8));
  assert.ok(distance(lowRankDelta(v), wanted) < 1e-12);
});

test('projections that are not in the file, sampling, and shapes that do not fit are refused', async () => {
  for (const method of METHODS) {
    const [config, tensors] = adapter(method, 40);
    const { [`base_model.${method.name}_A`]: _, ...without } = tensors;
    assert.match(await bench.refusal(config, without), /holds no "base_model.\w+_A".*save_projection=True/);
    const small = { ...tensors, [`base_model.${method.name}_B`]: tensor(random(2, 11, 3)) };
    assert.match(await bench.refusal(config, small), /has shape \[11, 3\], expected \[at least 12, 3\]/);
    assert.match(await bench.refusal({ ...config, r: 2 }, tensors), /expected \[\d, at least 12\]/);
    assert.match(await bench.refusal({ ...config, r: 9999 }, tensors), /r is 9999.*--max-lora-rank/);
    if (method.outer !== undefined) {
      const { [`${UP}.${method.middle}`]: __, ...partial } = tensors;
      assert.match(await bench.refusal(config, partial), new RegExp(`has no ${method.middle} beside`));
    }
    const { peft_type, r } = config;
    assert.match(await bench.refusal({ peft_type, r, use_new_thing: true }, tensors), /use_new_thing/);
    const twice = { ...tensors, [`base_model.${method.name}_A.default`]: tensor(random(1, 3 * method.halves, 14)) };
    assert.match(await bench.refusal(config, twice), /adapt the same place/);
  }
  for (const method of METHODS.slice(0, 2)) {
    const [config, tensors] = adapter(method, 40);
    assert.match(
      await bench.refusal({ ...config, save_projection: false }, tensors),
      /save_projection is false.*torch/,
    );
  }
  const [config, tensors] = adapter(METHODS[1], 40);
  assert.match(
    await bench.refusal({ ...config, sample_at_inference: true }, tensors),
    /sample_at_inference is true.*noise/,
  );
  const [s2, shared] = adapter(METHODS[2], 40);
  const scaledTerm = lowRankAt((await bench.compile({ ...s2, scale: 0.5 }, shared)).terms.terms, UP_SITE);
  assert.equal(scaledTerm.scale, 0.5);
});

const TINY = { peft_type: 'TINYLORA', r: 2, u: 3, target_modules: ['up_proj', 'down_proj', 'q_proj'] };
const Q = `${LAYER}.self_attn.q_proj`;

function tiny(groups: number): Record<string, BenchTensor> {
  const tensors: Record<string, BenchTensor> = {};
  // In another order than the model's.
  for (const [path, out, width] of [
    [DOWN, 8, 12],
    [Q, 8, 8],
    [UP, 12, 8],
  ] as const) {
    tensors[`${path}.tinylora_A`] = tensor(random(width, 2, width));
    tensors[`${path}.tinylora_B`] = tensor(random(out + 50, out, 2));
    tensors[`${path}.tinylora_P`] = f32([3, 2, 2], sixteenths(7, 12));
  }
  for (let i = 0; i < groups; i += 1) tensors[`base_model.tinylora_v.${i}`] = f32([3], sixteenths(60 + i, 3));
  return tensors;
}

test('TinyLoRA: the middle matrix of each group, counted in the order of the model', async () => {
  for (const [tying, groups, expected] of [
    [0, 3, [0, 1, 2]],
    [0.5, 2, [0, 1, 1]],
    [1, 1, [0, 0, 0]],
  ] as const) {
    const { terms } = await bench.compile({ ...TINY, weight_tying: tying }, tiny(groups));
    for (const [i, [site, out, width]] of (
      [
        ['q', 8, 8],
        ['up', 12, 8],
        ['down', 8, 12],
      ] as const
    ).entries()) {
      const v = sixteenths(60 + (expected[i] as number), 3);
      const p = sixteenths(7, 12);
      const middle = matrix(2, 2, (a, b) =>
        v.reduce((total, value, k) => total + value * (p[k * 4 + a * 2 + b] as number), 0),
      );
      const wanted = times(random(out + 50, out, 2), middle, random(width, 2, width));
      const term = lowRankAt(terms.terms, { layer: 1, site });
      assert.ok(distance(lowRankDelta(term), wanted) < 1e-6);
      assert.ok(term.a.shared !== undefined && term.b.shared !== undefined);
    }
  }
});

test('TinyLoRA: what is refused', async () => {
  assert.match(await bench.refusal({ ...TINY, save_projection: false }, tiny(3)), /save_projection is false.*torch/);
  assert.match(await bench.refusal(TINY, tiny(2)), /holds no "base_model.tinylora_v.2"/);
  assert.match(await bench.refusal(TINY, tiny(4)), /tinylora_v.3" belongs to none of its 3 linears/);
  assert.match(
    await bench.refusal({ ...TINY, weight_tying: 2 }, tiny(3)),
    /weight_tying is 2, expected a number from 0 to 1/,
  );
  assert.match(await bench.refusal({ ...TINY, r: 3 }, tiny(3)), /r is 3 for .*rank 2/);
  assert.match(
    await bench.refusal({ ...TINY, u: 4 }, tiny(3)),
    /tinylora_P" has shape \[3, 2, 2\], expected \[4, 2, 2\]/,
  );
  const loud = Object.fromEntries(
    Object.entries(tiny(3)).map(([name, { shape }]) => {
      return [name, f32(shape, new Array<number>(shape.reduce((a, b) => a * b)).fill(1e38))];
    }),
  );
  assert.match(await bench.refusal(TINY, loud), /middle matrix of .* gives NaN or infinity/);
});
