import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, test } from 'node:test';

import type { ModelConfig, SiteRef } from '../../core/model-config.js';
import type { Term } from '../../core/terms.js';
import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import type { BaseWeights } from '../importer.js';
import { baseOf, dense } from '../testing/base.js';
import { f32, ImporterBench, refusalOf } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { distance, effective, matrix, scaled, shaped, sixteenths, sum, times, transpose } from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';
import { safetensorsBytes, TINY_MODEL } from '../testing/peft-folder.js';
import { toFloats } from '../tensor-values.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const DOWN = 'base_model.model.model.layers.1.mlp.down_proj';
const EMBED = 'base_model.model.model.embed_tokens';
const CONFIG = { peft_type: 'LORA', r: 2, lora_alpha: 4 };
const SITE: SiteRef = { layer: 0, site: 'q' };

const weight = sixteenths(1, 64);
const downWeight = sixteenths(2, 96);
const table = sixteenths(3, 160);
const base: BaseWeights = baseOf(
  new Map([
    ['0 q', { cols: 8, data: Float32Array.from(weight) }],
    ['1 down', { cols: 12, data: Float32Array.from(downWeight) }],
    ['-1 embedding', { cols: 8, data: Float32Array.from(table) }],
    ['-1 head', { cols: 8, data: Float32Array.from(table) }],
    ['-1 finalNorm', { cols: 8, data: new Float32Array(8).fill(1) }],
  ]),
  new Map([['0 q', Float32Array.from({ length: 8 }, (_, i) => i)]]),
);
const W = shaped(weight, 8, 8);
const A = sixteenths(4, 16);
const B = sixteenths(5, 16);
const pair = (a = A, b = B): Record<string, BenchTensor> => ({
  [`${Q}.lora_A.weight`]: f32([2, 8], a),
  [`${Q}.lora_B.weight`]: f32([8, 2], b),
});
const BA = times(shaped(B, 8, 2), shaped(A, 2, 8));

async function terms(
  config: object,
  tensors: Record<string, BenchTensor>,
  model: ModelConfig = TINY_MODEL,
): Promise<readonly Term[]> {
  return (await bench.compile({ ...CONFIG, ...config }, tensors, { base, model })).terms.terms;
}

function refusal(config: object, tensors: Record<string, BenchTensor>, maxRank = 512): Promise<string> {
  return bench.refusal({ ...CONFIG, ...config }, tensors, { base, limits: { ...DEFAULT_ADAPTER_LIMITS, maxRank } });
}

const rowNorms = (m: Matrix): number[] => m.map((row) => Math.hypot(...row));

test('DoRA: rows of W + s B A keep their direction and get the length m', async () => {
  const m = sixteenths(6, 8).map((value) => value + 2);
  const found = await terms({ use_dora: true }, { ...pair(), [`${Q}.lora_magnitude_vector`]: f32([8], m) });
  const direction = sum(W, scaled(BA, 2));
  const wanted = direction.map((row, i) =>
    row.map((value) => (value * (m[i] as number)) / (rowNorms(direction)[i] ?? 0)),
  );
  assert.ok(distance(effective(found, SITE, W).weight, wanted) < 1e-6);
  assert.deepEqual(
    found.map(({ kind }) => kind),
    ['lowrank', 'diag'],
  );
});

test('DoRA on a row whose norm is zero is refused, and so is a magnitude without use_dora or the reverse', async () => {
  const zero = baseOf(new Map([['0 q', { cols: 8, data: new Float32Array(64) }]]));
  const tensors = {
    ...pair(A, new Array<number>(16).fill(0)),
    [`${Q}.lora_magnitude_vector`]: f32([8], [1, 1, 1, 1, 1, 1, 1, 1]),
  };
  const message = await bench.refusal({ ...CONFIG, use_dora: true }, tensors, { base: zero });
  assert.match(message, /DoRA's scale of model\.layers\.0\.self_attn\.q_proj gives NaN or infinity/);
  assert.match(
    await refusal({}, tensors),
    /has a lora_magnitude_vector, while use_dora is off .*save them again together/,
  );
  assert.match(
    await refusal({ use_dora: true }, pair()),
    /has no lora_magnitude_vector beside it, which use_dora asks for/,
  );
});

test('DoRA on the embedding is the whole table, scaled by hidden dimension', async () => {
  const [a, b] = [sixteenths(7, 40), sixteenths(8, 16)];
  const m = sixteenths(9, 8).map((value) => value + 3);
  const tensors = {
    [`${EMBED}.lora_embedding_A`]: f32([2, 20], a),
    [`${EMBED}.lora_embedding_B`]: f32([8, 2], b),
    [`${EMBED}.lora_magnitude_vector`]: f32([8], m),
  };
  const [term] = await terms({ use_dora: true, use_rslora: true }, tensors);
  assert.ok(term?.kind === 'override' && term.rows?.length === 20 && term.site.site === 'embedding');
  const scale = 4 / Math.sqrt(2);
  const adapted = sum(shaped(table, 20, 8), scaled(transpose(times(shaped(b, 8, 2), shaped(a, 2, 20))), scale));
  const norms = rowNorms(transpose(adapted));
  const wanted = adapted.map((row) => row.map((value, j) => (value * (m[j] as number)) / (norms[j] ?? 0)));
  assert.ok(distance(shaped(toFloats(term.values), 20, 8), wanted) < 1e-6);
  const message = await bench.refusal({ ...CONFIG, use_dora: true }, tensors, {
    base,
    limits: { maxRank: 8, maxBytes: 600 },
  });
  assert.match(message, /DoRA on "model\.embed_tokens" changes every row of the embedding, 640 bytes, at most 600/);
});

test('lora_bias and trained biases become one shift: s·β + (b′ − b)', async () => {
  const [beta, bias] = [sixteenths(10, 8), sixteenths(11, 8)];
  const found = await terms(
    { lora_bias: true, bias: 'lora_only' },
    { ...pair(), [`${Q}.lora_B.bias`]: f32([8], beta), [`${Q}.base_layer.bias`]: f32([8], bias) },
  );
  const { shift } = effective(found, SITE, W);
  assert.deepEqual(
    [...shift],
    beta.map((value, i) => 2 * value + (bias[i] as number) - i),
  );
  assert.equal(found.filter(({ kind }) => kind === 'diag').length, 1);
  const alone = { ...pair(), [`${Q}.bias`]: f32([8], bias) };
  assert.match(await refusal({}, alone), /"base_model.*q_proj\.bias" is a bias, while .* trains none there/);
  assert.match(await refusal({ bias: 'most' }, alone), /bias is "most", expected one of "none", "all", "lora_only"/);
  assert.match(await refusal({ lora_bias: true }, pair()), /has no lora_B\.bias beside it/);
});

test('PiSSA, OLoRA and KaSA take their part of the served weight out', async () => {
  const D = shaped(downWeight, 8, 12);
  const tensors = {
    [`${DOWN}.lora_A.weight`]: f32([2, 12], sixteenths(15, 24)),
    [`${DOWN}.lora_B.weight`]: f32([8, 2], B),
  };
  const trained = scaled(times(shaped(B, 8, 2), shaped(sixteenths(15, 24), 2, 12)), 2);
  const site: SiteRef = { layer: 1, site: 'down' };
  const taken = async (init: string): Promise<Matrix> => {
    const found = await terms({ init_lora_weights: init }, tensors);
    return sum(sum(D, trained), scaled(effective(found, site, D).weight, -1));
  };
  const largest = await taken('pissa');
  // The best approximation of rank 2: what is left has no part along it, on either side.
  const left = sum(D, scaled(largest, -1));
  const zero = (m: Matrix): boolean => m.flat().every((value) => Math.abs(value) < 1e-5);
  assert.ok(zero(times(left, transpose(largest))) && zero(times(transpose(left), largest)));
  const energy = (m: Matrix): number => m.flat().reduce((total, value) => total + value * value, 0);
  assert.ok(energy(largest) > (2 / 8) * energy(D) && energy(left) < energy(D));
  // s times the projection onto the first two columns.
  const columns = scaled(await taken('olora'), 1 / 2);
  const rest = sum(D, scaled(columns, -1));
  assert.ok(rest.every((row) => Math.abs(row[0] ?? 1) < 1e-5 && Math.abs(row[1] ?? 1) < 1e-5));
  assert.ok(zero(times(transpose(rest), columns)));
});

test('KaSA: a diagonal between A and B, and a base without its smallest parts', async () => {
  const tensors = { ...pair(), [`${Q}.lora_diag`]: f32([2], [3, -1]) };
  const [term] = await terms({ kasa_config: { beta: 0.1 } }, tensors);
  assert.ok(term?.kind === 'lowrank');
  assert.deepEqual([...(term.mid ?? [])], [3, -1, 1, 1]);
  const [a, b] = [shaped(toFloats(dense(term.a)), 4, 8), shaped(toFloats(dense(term.b)), 8, 4)];
  const dropped = times(
    matrix(8, 2, (i, j) => -(b[i]?.[2 + j] ?? 0)),
    a.slice(2),
  );
  const left = sum(W, scaled(dropped, -1));
  assert.ok(
    times(left, transpose(dropped))
      .flat()
      .every((value) => Math.abs(value) < 1e-5),
  );
  assert.match(await refusal({}, tensors), /has a lora_diag, while kasa_config is off/);
});

test('what the training took out must be defined, small enough and within the rank cap', async () => {
  const equal = baseOf(
    new Map([['0 q', { cols: 8, data: Float32Array.from({ length: 64 }, (_, i) => (i % 9 === 0 ? 1 : 0)) }]]),
  );
  const message = await bench.refusal({ ...CONFIG, init_lora_weights: 'pissa' }, pair(), { base: equal });
  assert.match(
    message,
    /init_lora_weights is on for .* singular values are equal at rank 2.*path_initial_model_for_weight_conversion/,
  );
  assert.match(
    await refusal({ init_lora_weights: 'pissa' }, pair(), 3),
    /it has rank 4, at most 3 is allowed\. Raise --max-lora-rank/,
  );
  for (const init of ['pissa_niter_4', 'corda', 'lora_ga']) {
    assert.match(
      await refusal({ init_lora_weights: init }, pair()),
      /no initial adapter lies beside it\. Convert it with PEFT/,
    );
  }
  const wide = { ...TINY_MODEL, hiddenSize: 36_000, numHeads: 9000, ffnSize: 36_000 };
  const big = {
    [`${Q}.lora_A.weight`]: f32([1, 36_000], sixteenths(1, 36_000)),
    [`${Q}.lora_B.weight`]: f32([36_000, 1], sixteenths(2, 36_000)),
  };
  const slow = await bench.refusal({ ...CONFIG, r: 1, init_lora_weights: 'pissa' }, big, { base, model: wide });
  assert.match(
    slow,
    /1 weights such as .* of \[36000, 36000\], whose singular vectors would take too long.*Convert it/,
  );
  assert.match(
    await refusal({ init_lora_weights: 'unheard_of' }, pair()),
    /a way to begin that this server does not know/,
  );
});

test('an initial adapter beside the trained one is taken out of the base, and is part of the version', async () => {
  const directory = await bench.folder();
  const initial = path.join(directory, 'corda_init');
  await mkdir(initial, { recursive: true });
  const [a, b] = [sixteenths(16, 16), sixteenths(17, 16)];
  const file = (first: number[], second: number[]): Uint8Array =>
    safetensorsBytes({
      [`${Q}.lora_A.weight`]: { dtype: 'F32', shape: [2, 8], values: first },
      [`${Q}.lora_B.weight`]: { dtype: 'F32', shape: [8, 2], values: second },
    });
  await writeFile(
    path.join(directory, 'adapter_config.json'),
    JSON.stringify({ ...CONFIG, init_lora_weights: 'corda' }),
  );
  await writeFile(path.join(directory, 'adapter_model.safetensors'), file(A, B));
  await writeFile(path.join(initial, 'adapter_model.safetensors'), file(a, b));
  const compiled = await bench.compileFolder(directory, { base });
  const before = scaled(times(shaped(b, 8, 2), shaped(a, 2, 8)), -2);
  const wanted = sum(sum(W, scaled(BA, 2)), before);
  assert.ok(distance(effective(compiled.terms.terms, SITE, W).weight, wanted) < 1e-6);
  const half = { [`${Q}.lora_B.weight`]: { dtype: 'F32', shape: [8, 2], values: b } } as const;
  await writeFile(path.join(initial, 'adapter_model.safetensors'), safetensorsBytes(half));
  const alone = await refusalOf(() => bench.compileFolder(directory, { base }));
  assert.match(alone, /no initial adapter lies beside it|"corda_init\/.*lora_B\.weight" has no counterpart/);
  const extra = { dtype: 'F32', shape: [1] } as const;
  await writeFile(path.join(initial, 'adapter_model.safetensors'), safetensorsBytes({ [`${Q}.other`]: extra }));
  const unknown = await refusalOf(() => bench.compileFolder(directory, { base }));
  assert.match(
    unknown,
    /"corda_init\/.*q_proj\.other" has no counterpart in the trained adapter|no initial adapter lies/,
  );
  const named = safetensorsBytes({ [`corda_init/${Q}.other`]: extra });
  await writeFile(path.join(directory, 'adapter_model.safetensors'), named);
  const same = await refusalOf(() => bench.compileFolder(directory, { base }));
  assert.match(same, /two files hold a tensor "corda_init\/.*q_proj\.other"/);
  await mkdir(path.join(directory, 'initial_adapter'));
  await writeFile(path.join(directory, 'initial_adapter', 'adapter_model.safetensors'), file(a, b));
  const two = await refusalOf(() => bench.compileFolder(directory, { base }));
  assert.match(two, /holds initial_adapter and corda_init, expected one initial adapter/);
});

test('tensors of an initial adapter are not left out where nothing asks for them', async () => {
  const stray = { [`initial_adapter/${Q}.lora_B.weight`]: f32([8, 2], sixteenths(17, 16)) };
  for (const init of [true, 'pissa']) {
    const message = await refusal({ init_lora_weights: init }, { ...pair(), ...stray });
    assert.match(message, /"initial_adapter\/.*lora_B\.weight" has no counterpart in the trained adapter/);
  }
});

test('QA-LoRA: A stands for sums over groups; BD-LoRA: factors in diagonal blocks', async () => {
  const short = sixteenths(18, 8);
  const [grouped] = await terms(
    { use_qalora: true, qalora_group_size: 2 },
    { ...pair(), [`${Q}.lora_A.weight`]: f32([2, 4], short) },
  );
  assert.ok(grouped?.kind === 'lowrank');
  // Mean of 2 times 4 pooled inputs: 4 / 2.
  const wanted = Array.from({ length: 16 }, (_, i) => 2 * (short[Math.floor(i / 2)] as number));
  assert.deepEqual([...toFloats(dense(grouped.a))], wanted);
  assert.match(await refusal({ use_qalora: true, qalora_group_size: 3 }, pair()), /cannot be cut into groups of 3/);

  const blocks = (field: string): object => ({ use_bdlora: { nblocks: 2, match_strict: true, [field]: ['q_proj'] } });
  const [inA] = await terms(blocks('target_modules_bd_a'), { ...pair(), [`${Q}.lora_A.weight`]: f32([2, 4], short) });
  assert.ok(inA?.kind === 'lowrank');
  assert.deepEqual([...toFloats(dense(inA.a))], [...short.slice(0, 4), 0, 0, 0, 0, 0, 0, 0, 0, ...short.slice(4)]);
  const [inB] = await terms(blocks('target_modules_bd_b'), { ...pair(), [`${Q}.lora_B.weight`]: f32([8, 1], short) });
  assert.ok(inB?.kind === 'lowrank');
  assert.deepEqual(
    [...toFloats(dense(inB.b))],
    short.flatMap((value, i) => (i < 4 ? [value, 0] : [0, value])),
  );
  assert.match(
    await refusal({ use_bdlora: { nblocks: 2, sparse: true } }, pair()),
    /use_bdlora is .*expected an object with nblocks/,
  );
  const both = { use_bdlora: { nblocks: 2, target_modules_bd_a: ['q_'], target_modules_bd_b: ['proj'] } };
  assert.match(await refusal(both, pair()), /use_bdlora is blocks for both A and B/);
});

test('aLoRA: the invocation goes to the term set', async () => {
  const compiled = await bench.compile({ ...CONFIG, alora_invocation_tokens: [5, 6] }, pair());
  assert.deepEqual(compiled.terms.invocation, [5, 6]);
  assert.match(await refusal({ alora_invocation_tokens: [20] }, pair()), /expected token ids below 20/);
});

test('state of MonteCLoRA and VeLoRA is known and has no part in inference', async () => {
  const tensors = {
    ...pair(),
    [`${Q}.lora_velora_embed`]: f32([1], [1]),
    [`${Q}.lora_monteclora_sampler.std_prior`]: f32([2], [1, 1]),
  };
  assert.equal((await terms({ velora_config: { rank: 1 } }, tensors)).length, 1);
});

test('combinations that PEFT does not define are refused', async () => {
  const pairs: [object, RegExp][] = [
    [{ lora_bias: true, use_dora: true }, /lora_bias is on together with use_dora/],
    [{ use_qalora: true, qalora_group_size: 2, use_dora: true }, /use_qalora is on together with use_dora/],
    [{ kasa_config: { beta: 1 }, init_lora_weights: 'pissa' }, /kasa_config is on together with init_lora_weights/],
  ];
  for (const [config, expected] of pairs) assert.match(await refusal(config, pair()), expected);
  const factors = {
    [`${EMBED}.lora_embedding_A`]: f32([2, 20], sixteenths(7, 40)),
    [`${EMBED}.lora_embedding_B`]: f32([8, 2], B),
  };
  const replaced = { ...factors, [`${EMBED}.token_adapter.trainable_tokens_delta`]: f32([1, 8], A.slice(0, 8)) };
  assert.match(
    await refusal({ trainable_token_indices: [3] }, replaced),
    /replaces values of "model\.embed_tokens", which has LoRA factors/,
  );
});
