/** SSF, trained rows of the vocabulary, BEFT and BitFit: exact terms of small cases, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import type { Term } from '../../core/terms.js';
import { toFloats } from '../tensor-values.js';
import { baseOf, dense } from '../testing/base.js';
import { bf16, f32, ImporterBench, ramp } from '../testing/importer-bench.js';
import { shaped, sixteenths } from '../testing/matrices.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const LAYER = 'model.layers.0';
const UP = `base_model.model.${LAYER}.mlp.up_proj`;
const UP_SITE = { layer: 0, site: 'up' } as const;
const GEMMA = { ...TINY_MODEL, family: 'gemma3', postNorms: true, qkNorm: true } as const;

/** W of q, k and v, and the norm before them. */
const weights = new Map(
  (
    [
      ['q', 8, 1],
      ['k', 4, 2],
      ['v', 4, 3],
    ] as const
  ).map(([site, out, seed]) => [`0 ${site}`, { cols: 8, data: Float32Array.from(sixteenths(seed, out * 8)) }]),
);
weights.set('0 attnNorm', { cols: 8, data: Float32Array.from(sixteenths(4, 8)) });
const base = baseOf(
  weights,
  new Map([
    ['0 up', Float32Array.from(ramp(12))],
    ['0 q', Float32Array.from(ramp(8))],
  ]),
);
const SSF = { peft_type: 'SSF' };

function at(terms: readonly Term[], site: string): Term {
  const [term, ...others] = terms.filter((candidate) => candidate.site.site === site);
  assert.equal(others.length, 0);
  return term ?? assert.fail(`a term at ${site}`);
}

test('SSF on a linear: γ scales product and bias, β is added', async () => {
  const [scale, shift] = [sixteenths(5, 12), sixteenths(6, 12)];
  const { terms } = await bench.compile(
    SSF,
    { [`${UP}.ssf_scale`]: f32([12], scale), [`${UP}.ssf_shift`]: bf16([12], shift) },
    { base },
  );
  const c = Float32Array.from(scale, (g, i) => (g - 1) * (ramp(12)[i] as number) + (shift[i] as number));
  assert.deepEqual(terms.terms, [{ kind: 'diag', site: UP_SITE, g: Float32Array.from(scale), c }]);
  const alone = await bench.compile(SSF, { [`${LAYER}.mlp.up_proj.ssf_shift`]: f32([12], shift) }, { base });
  assert.deepEqual(alone.terms.terms, [{ kind: 'diag', site: UP_SITE, c: Float32Array.from(shift) }]);
});

test('SSF on a norm: γ joins its weight, β reaches the linears that read it, behind their own γ', async () => {
  const [norm, beta, own] = [sixteenths(7, 8), sixteenths(8, 8), sixteenths(9, 8)];
  const { terms } = await bench.compile(
    SSF,
    {
      [`${LAYER}.input_layernorm.ssf_scale`]: f32([8], norm),
      [`${LAYER}.input_layernorm.ssf_shift`]: f32([8], beta),
      [`${LAYER}.self_attn.q_proj.ssf_scale`]: f32([8], own),
    },
    { base },
  );
  const replaced = at(terms.terms, 'attnNorm');
  assert.ok(replaced.kind === 'override');
  assert.deepEqual(
    [...replaced.values.data],
    sixteenths(4, 8).map((weight, i) => weight * (norm[i] as number)),
  );
  for (const [site, out, seed] of [
    ['q', 8, 1],
    ['k', 4, 2],
    ['v', 4, 3],
  ] as const) {
    const inner = shaped(sixteenths(seed, out * 8), out, 8).map((row) =>
      row.reduce((total, weight, j) => total + weight * (beta[j] as number), 0),
    );
    const term = at(terms.terms, site);
    assert.ok(term.kind === 'diag');
    const bias = ramp(8);
    const wanted = inner.map((value, i) =>
      site === 'q' ? ((own[i] as number) - 1) * (bias[i] as number) + value * (own[i] as number) : value,
    );
    assert.deepEqual([...(term.c ?? [])], [...Float32Array.from(wanted)]);
    assert.deepEqual(term.g, site === 'q' ? Float32Array.from(own) : undefined);
  }
});

test("SSF behind a sub-block: β joins Gemma's residual stream", async () => {
  const shift = sixteenths(10, 8);
  const tensors = { [`${LAYER}.post_attention_layernorm.ssf_shift`]: f32([8], shift) };
  const { terms } = await bench.compile(SSF, tensors, { model: GEMMA, base });
  const [term, ...others] = terms.terms;
  assert.ok(term?.kind === 'bottleneck' && others.length === 0);
  assert.deepEqual(
    [term.site, term.placement, term.activation, term.scale],
    [{ layer: 0, site: 'residualAttn' }, 'sequential', 'identity', 1],
  );
  assert.deepEqual([...(term.upBias ?? [])], shift);
  assert.ok([...toFloats(term.down), ...toFloats(term.up)].every((value) => value === 0));
});

test('SSF: what is refused', async () => {
  const vision = { 'blocks.0.attn.ssf_scale_1': f32([24], ramp(24)) };
  assert.match(
    await bench.refusal(SSF, vision),
    /ssf_scale_1" is named by a number within a block of a vision transformer/,
  );
  const embedding = { 'model.embed_tokens.ssf_scale': f32([8], ramp(8)) };
  assert.match(await bench.refusal(SSF, embedding), /is the embedding, which SSF is not served on/);
  const rotated = { [`${LAYER}.self_attn.q_norm.ssf_shift`]: f32([4], ramp(4)) };
  assert.match(await bench.refusal(SSF, rotated, { model: GEMMA }), /between its norm and the rotation by position/);
  assert.match(await bench.refusal(SSF, { [`${UP}.ssf_scale`]: f32([8], ramp(8)) }), /shape \[8\], expected \[12\]/);
  const absent = { 'model.layers.9.mlp.up_proj.ssf_scale': f32([12], ramp(12)) };
  assert.match(await bench.refusal(SSF, absent), /layers\.9.*which the base \(llama, 2 layers\) does not have/);
  assert.match(
    await bench.refusal(SSF, { [`${UP}.ssf_gate`]: f32([12], ramp(12)) }),
    /none of this method's parameters/,
  );
  assert.match(
    await bench.refusal({ ...SSF, ssf_mode: 'x' }, { [`${UP}.ssf_scale`]: f32([12], ramp(12)) }),
    /ssf_mode/,
  );
  const twice = { [`${UP}.ssf_scale`]: f32([12], ramp(12)), [`${LAYER}.mlp.up_proj.ssf_scale`]: f32([12], ramp(12)) };
  assert.match(await bench.refusal(SSF, twice), /adapt the same place/);
  const alias = { [`${UP}.ssf_scale`]: f32([12], ramp(12)), 'layers.0.mlp.up_proj.ssf_scale': f32([12], ramp(12)) };
  assert.match(await bench.refusal(SSF, alias), /adapt the same place/);
  assert.match(await bench.refusal(SSF, {}), /holds no tensors/);
  const huge = baseOf(new Map([['0 attnNorm', { cols: 8, data: new Float32Array(8).fill(1e30) }]]));
  const loud = { [`${LAYER}.input_layernorm.ssf_scale`]: f32([8], new Array<number>(8).fill(1e30)) };
  assert.match(await bench.refusal(SSF, loud, { base: huge }), /the scaled norm .* gives NaN or infinity/);
});

const TOKENS = { peft_type: 'TRAINABLE_TOKENS', token_indices: [7, 2, 19], target_modules: 'embed_tokens' };
const ROWS = 'base_model.model.model.embed_tokens.trainable_tokens_delta';
const UNTIED = { ...TINY_MODEL, tiedHead: false };

test('trained rows: absolute, in ascending order of their tokens, on a tied head too', async () => {
  const values = sixteenths(11, 24);
  for (const model of [TINY_MODEL, UNTIED]) {
    const { terms } = await bench.compile(TOKENS, { [ROWS]: bf16([3, 8], values) }, { model });
    assert.deepEqual(
      terms.terms.map(({ site }) => site.site),
      model.tiedHead ? ['embedding', 'head'] : ['embedding'],
    );
    for (const term of terms.terms) {
      assert.ok(term.kind === 'override');
      assert.deepEqual([...(term.rows ?? [])], [2, 7, 19]);
      assert.equal(term.values.dtype, 'bf16');
      assert.deepEqual(
        [...toFloats(dense(term.values))],
        [...values.slice(8, 16), ...values.slice(0, 8), ...values.slice(16)],
      );
    }
  }
});

test('trained rows of the head alone, and under both names of a tied weight', async () => {
  const head = 'base_model.model.lm_head.trainable_tokens_delta';
  const values = f32([3, 8], sixteenths(11, 24));
  const alone = await bench.compile({ ...TOKENS, target_modules: ['lm_head'] }, { [head]: values }, { model: UNTIED });
  assert.deepEqual(
    alone.terms.terms.map(({ site }) => site.site),
    ['head'],
  );
  const targets = { ...TOKENS, target_modules: ['embed_tokens', 'lm_head'] };
  const both = await bench.compile(targets, { [ROWS]: values, [head]: values });
  assert.equal(both.terms.terms.length, 2);
  const other = f32([3, 8], sixteenths(12, 24));
  assert.match(
    await bench.refusal(targets, { [ROWS]: values, [head]: other }),
    /tied in the base, and it holds different rows/,
  );
});

test('trained rows: what is refused', async () => {
  const values = { [ROWS]: f32([3, 8], ramp(24)) };
  for (const tokens of [[7, 2, 7], [7, 2, 20], [7, 2, -1], [7, 2, 0.5], [7, 2, '3'], [], undefined]) {
    assert.match(
      await bench.refusal({ ...TOKENS, token_indices: tokens }, values),
      /token_indices is .*different token ids below 20/,
    );
  }
  assert.match(await bench.refusal({ ...TOKENS, token_indices: [1, 2] }, values), /shape \[3, 8\], expected \[2, 8\]/);
  const linear = { [`${UP}.trainable_tokens_delta`]: f32([3, 8], ramp(24)) };
  const targets = { ...TOKENS, target_modules: ['up_proj'] };
  assert.match(await bench.refusal(targets, linear), /has trained rows, expected the embedding or the head/);
});

test('BEFT adds to what a linear gives; BitFit replaces its bias', async () => {
  const values = sixteenths(13, 12);
  const beft = await bench.compile({ peft_type: 'BEFT' }, { [`${UP}.beft_bias`]: f32([1, 12], values) });
  assert.deepEqual(beft.terms.terms, [{ kind: 'diag', site: UP_SITE, c: Float32Array.from(values) }]);
  const bitFit = await bench.compile(
    { peft_type: 'BITFIT' },
    { [`${UP}.bias`]: f32([12], values), [`${LAYER}.self_attn.k_proj.bias`]: f32([4], [1, 2, 3, 4]) },
    { base },
  );
  const difference = Float32Array.from(values, (value, i) => value - (ramp(12)[i] as number));
  const gained = { kind: 'diag', site: { layer: 0, site: 'k' }, c: Float32Array.from([1, 2, 3, 4]) };
  assert.deepEqual(new Set(bitFit.terms.terms), new Set([{ kind: 'diag', site: UP_SITE, c: difference }, gained]));
  const whole = { [`${LAYER}.mlp.up_proj.weight`]: f32([12, 8], ramp(96)) };
  assert.match(await bench.refusal({ peft_type: 'BITFIT' }, whole), /none of this method's parameters \(bias\)/);
  const normBias = { [`${LAYER}.input_layernorm.bias`]: f32([8], ramp(8)) };
  assert.match(await bench.refusal({ peft_type: 'BITFIT' }, normBias), /which is no linear of the base/);
  assert.match(
    await bench.refusal({ peft_type: 'BEFT' }, { [`${UP}.beft_bias`]: f32([12], values) }),
    /shape \[12\], expected \[1, 12\]/,
  );
});
