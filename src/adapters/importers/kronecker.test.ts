/** LoHa and LoKr: products of small factors, equal to the formula entry by entry, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import { bf16, f32, ImporterBench } from '../testing/importer-bench.js';
import { distance, effective, entry, matrix, scaled, shaped, sixteenths, times, zeros } from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';

const bench = new ImporterBench();
after(() => bench.close());

const UP = 'model.layers.1.mlp.up_proj';
const QKV = 'model.layers.0.self_attn.qkv_proj';
const SITE = { layer: 1, site: 'up' } as const;
const key = (path: string, name: string): string => `base_model.model.${path}.${name}`;
const LOHA = { peft_type: 'LOHA', r: 2, alpha: 3, target_modules: ['up_proj'], module_dropout: 0.1 };
const LOKR = { peft_type: 'LOKR', r: 2, alpha: 3, target_modules: ['up_proj'], decompose_factor: 4 };

function kron(a: Matrix, b: Matrix): Matrix {
  const [p, q] = [b.length, b[0]?.length ?? 0];
  return matrix(
    a.length * p,
    (a[0]?.length ?? 0) * q,
    (i, j) => entry(a, Math.floor(i / p), Math.floor(j / q)) * entry(b, i % p, j % q),
  );
}

function lohaTensors(r = 2): Parameters<typeof bench.compile>[1] {
  return {
    [key(UP, 'hada_w1_a')]: f32([12, r], sixteenths(1, 12 * r)),
    [key(UP, 'hada_w1_b')]: f32([r, 8], sixteenths(2, r * 8)),
    [key(UP, 'hada_w2_a')]: bf16([12, r], sixteenths(3, 12 * r)),
    [key(UP, 'hada_w2_b')]: bf16([r, 8], sixteenths(4, r * 8)),
  };
}

test('LoHa: one LOWRANK of rank r² equals the product of the two products', async () => {
  const { terms } = await bench.compile(LOHA, lohaTensors());
  const [first, second] = [
    times(shaped(sixteenths(1, 24), 12, 2), shaped(sixteenths(2, 16), 2, 8)),
    times(shaped(sixteenths(3, 24), 12, 2), shaped(sixteenths(4, 16), 2, 8)),
  ];
  const wanted = matrix(12, 8, (i, j) => 1.5 * entry(first, i, j) * entry(second, i, j));
  assert.deepEqual(
    terms.terms.map(({ kind, site }) => [kind, site]),
    [['lowrank', SITE]],
  );
  assert.ok(distance(effective(terms.terms, SITE, zeros(12, 8)).weight, wanted) <= 1e-12);
});

test('LoHa: patterns of rank and alpha, and every refusal', async () => {
  const patterned = { ...LOHA, r: 9, alpha: 9, rank_pattern: { up_proj: 2 }, alpha_pattern: { 'mlp.up_proj': 3 } };
  const { terms } = await bench.compile(patterned, lohaTensors());
  assert.equal(terms.terms[0]?.kind === 'lowrank' && terms.terms[0].scale, 1.5);
  assert.match(
    await bench.refusal({ ...LOHA, r: 3 }, lohaTensors()),
    /r is 3 for .*its tensors have rank 2.*together\.$/,
  );
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxRank: 3 };
  assert.match(
    await bench.refusal(LOHA, lohaTensors(), { limits }),
    /r² = 4; at most 3 is allowed\. Raise --max-lora-rank\.$/,
  );
  const conv = { ...lohaTensors(), [key(UP, 'hada_t1')]: f32([2, 2, 1, 1], [1, 2, 3, 4]) };
  assert.match(await bench.refusal(LOHA, conv), /Tucker core of a convolution.*train LoHa on linears\.$/);
  assert.match(
    await bench.refusal({ ...LOHA, use_effective_conv2d: true }, lohaTensors()),
    /convolutions are not served/,
  );
  const { [key(UP, 'hada_w2_b')]: removed, ...missing } = lohaTensors();
  assert.ok(removed !== undefined);
  assert.match(
    await bench.refusal(LOHA, missing),
    /has no hada_w2_b beside its other tensors\. The file is incomplete/,
  );
  assert.match(
    await bench.refusal(LOHA, { ...lohaTensors(), other: f32([1], [1]) }),
    /"other" is none of this method's/,
  );
  const huge = { ...lohaTensors(), [key(UP, 'hada_w1_b')]: f32([2, 8], new Array<number>(16).fill(3e38)) };
  const twice = { ...huge, [key(UP, 'hada_w2_b')]: f32([2, 8], new Array<number>(16).fill(3e38)) };
  assert.match(await bench.refusal(LOHA, twice), /LoHa's product for .* gives NaN or infinity/);
  assert.match(
    await bench.refusal({ ...LOHA, bias: 'all' }, lohaTensors()),
    /bias is "all", expected "none".*--model\.$/,
  );
  assert.match(
    await bench.refusal({ ...LOHA, target_modules: ['q_proj'] }, lohaTensors()),
    /target_modules is without/,
  );
  const alias = Object.fromEntries(
    Object.entries(lohaTensors()).map(([name, t]) => [name.replace('model.model.', 'model.'), t]),
  );
  assert.match(await bench.refusal(LOHA, { ...lohaTensors(), ...alias }), /adapt the same place/);
  const norm = { [key('model.layers.0.input_layernorm', 'hada_w1_a')]: f32([8, 1], sixteenths(1, 8)) };
  assert.match(await bench.refusal(LOHA, norm), /which is no linear of the base/);
});

test('LoKr: full factors in either order, and pairs kept or folded, equal the Kronecker product', async () => {
  for (const [o1, i1] of [
    [4, 4],
    [2, 1],
    [6, 2],
    [1, 8],
    [12, 1],
  ] as const) {
    const [o2, i2] = [12 / o1, 8 / i1];
    const { terms } = await bench.compile(LOKR, {
      [key(UP, 'lokr_w1')]: bf16([o1, i1], sixteenths(5, o1 * i1)),
      [key(UP, 'lokr_w2')]: bf16([o2, i2], sixteenths(6, o2 * i2)),
    });
    const wanted = scaled(kron(shaped(sixteenths(5, o1 * i1), o1, i1), shaped(sixteenths(6, o2 * i2), o2, i2)), 1.5);
    assert.ok(distance(effective(terms.terms, SITE, zeros(12, 8)).weight, wanted) <= 1e-12, `w1 [${o1}, ${i1}]`);
    const [term] = terms.terms;
    assert.ok(
      term?.kind === 'blockdiag' && term.stages.every(({ blocks }) => blocks.dtype === 'bf16'),
      'the type of the file',
    );
  }
});

test('LoKr: a pair stays two stages where that is smaller, else it is folded', async () => {
  const fused = { ...LOKR, target_modules: ['qkv_proj'] };
  for (const rank of [1, 3]) {
    const { terms } = await bench.compile(
      { ...fused, r: rank, alpha: rank * 1.5 },
      {
        [key(QKV, 'lokr_w1_a')]: f32([4, rank], sixteenths(7, 4 * rank)),
        [key(QKV, 'lokr_w1_b')]: f32([rank, 2], sixteenths(8, 2 * rank)),
        [key(QKV, 'lokr_w2_a')]: f32([4, rank], sixteenths(9, 4 * rank)),
        [key(QKV, 'lokr_w2_b')]: f32([rank, 4], sixteenths(10, 4 * rank)),
      },
    );
    const w1 = times(shaped(sixteenths(7, 4 * rank), 4, rank), shaped(sixteenths(8, 2 * rank), rank, 2));
    const w2 = times(shaped(sixteenths(9, 4 * rank), 4, rank), shaped(sixteenths(10, 4 * rank), rank, 4));
    const wanted = scaled(kron(w1, w2), 1.5);
    const sites = ['q', 'k', 'v'] as const;
    const found = sites.flatMap((site, i) => [
      ...effective(terms.terms, { layer: 0, site }, zeros(i === 0 ? 8 : 4, 8)).weight,
    ]);
    assert.ok(distance(found, wanted) <= 1e-12, `rank ${rank}`);
    const [term] = terms.terms;
    assert.equal(term?.kind === 'blockdiag' && term.stages.length, rank === 1 ? 4 : 2);
  }
});

test('LoKr: every refusal', async () => {
  const [w1, w2] = [f32([4, 4], sixteenths(1, 16)), f32([3, 2], sixteenths(2, 6))];
  const good = { [key(UP, 'lokr_w1')]: w1, [key(UP, 'lokr_w2')]: w2 };
  assert.match(
    await bench.refusal(LOKR, { ...good, [key(UP, 'lokr_w2')]: f32([2, 2], [1, 2, 3, 4]) }),
    /Kronecker product is \[8, 8\], expected \[12, 8\]/,
  );
  const both = {
    ...good,
    [key(UP, 'lokr_w1_a')]: f32([4, 2], sixteenths(3, 8)),
    [key(UP, 'lokr_w1_b')]: f32([2, 4], sixteenths(3, 8)),
  };
  assert.match(await bench.refusal(LOKR, both), /has both lokr_w1 and lokr_w1_a, lokr_w1_b/);
  assert.match(
    await bench.refusal({ ...LOKR, r: 5 }, { ...without(both, key(UP, 'lokr_w1')) }),
    /its tensors have rank 2/,
  );
  assert.match(await bench.refusal(LOKR, { ...good, [key(UP, 'lokr_t2')]: w2 }), /Tucker core of a convolution/);
  assert.match(await bench.refusal({ ...LOKR, use_effective_conv2d: true }, good), /convolutions are not served/);
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxBytes: 120 };
  assert.match(await bench.refusal(LOKR, good, { limits }), /its terms take more than 120 bytes .*--model\.$/);
  assert.match(await bench.refusal(LOKR, { [key(UP, 'lokr_w1')]: w1 }), /has no lokr_w2/);
  assert.match(
    await bench.refusal({ ...LOKR, use_magic: 1 }, good),
    /"use_magic" is 1, a field that this server does not know/,
  );
});

function without<T>(tensors: Readonly<Record<string, T>>, name: string): Record<string, T> {
  return Object.fromEntries(Object.entries(tensors).filter(([other]) => other !== name));
}
