/** GraLoRA, C3A, MiSS and Bone: structured additions to a weight against their formulas, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { DEFAULT_ADAPTER_LIMITS } from '../adapter-folder.js';
import { dense } from '../testing/base.js';
import { bf16, f32, ImporterBench } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';
import {
  chainMatrix,
  distance,
  effective,
  entry,
  matrix,
  scaled,
  shaped,
  sixteenths,
  sum,
  times,
  zeros,
} from '../testing/matrices.js';
import type { Matrix } from '../testing/matrices.js';
import { denseChain, fourierChain } from './c3a.js';

const bench = new ImporterBench();
after(() => bench.close());

const UP = 'base_model.model.model.layers.1.mlp.up_proj';
const SITE = { layer: 1, site: 'up' } as const;
const GRALORA = { peft_type: 'GRALORA', r: 4, alpha: 6, gralora_k: 2, hybrid_r: 0 };
const [A, B] = [sixteenths(1, 2 * 4 * 4), sixteenths(2, 2 * 4 * 6)];
const gralora = { [`${UP}.gralora_A`]: bf16([2, 4, 4], A), [`${UP}.gralora_B`]: bf16([2, 4, 6], B) };

/** ΔW of GraLoRA before the scale: value t of run n goes to run floor(t / 2), where B's row is 2 n + t mod 2. */
const GRALORA_DELTA = matrix(12, 8, (o, i) => {
  const [run, to] = [Math.floor(i / 4), Math.floor(o / 6)];
  return [0, 1].reduce((total, t) => {
    const a = A[(run * 4 + (i % 4)) * 4 + to * 2 + t] as number;
    return total + a * (B[(to * 4 + run * 2 + t) * 6 + (o % 6)] as number);
  }, 0);
});

test('GraLoRA: two stages in the type of the file equal the sum over runs; hybrid_r adds a plain pair', async () => {
  const { terms } = await bench.compile(GRALORA, gralora);
  const [term] = terms.terms;
  assert.ok(term?.kind === 'blockdiag' && term.stages.every(({ blocks }) => blocks.dtype === 'bf16'));
  assert.ok(distance(effective(terms.terms, SITE, zeros(12, 8)).weight, scaled(GRALORA_DELTA, 1.5)) <= 1e-12);
  const [down, up] = [sixteenths(3, 16), sixteenths(4, 24)];
  const hybrid = await bench.compile(
    { ...GRALORA, hybrid_r: 2 },
    {
      ...gralora,
      [`${UP}.gralora_A_general.weight`]: bf16([2, 8], down),
      [`${UP}.gralora_B_general.weight`]: bf16([12, 2], up),
    },
  );
  const wanted = sum(GRALORA_DELTA, times(shaped(up, 12, 2), shaped(down, 2, 8)));
  assert.ok(distance(effective(hybrid.terms.terms, SITE, zeros(12, 8)).weight, wanted) <= 1e-12);
});

test('GraLoRA: every refusal', async () => {
  assert.match(await bench.refusal({ ...GRALORA, r: 5 }, gralora), /r is 5, expected a multiple of gralora_k 2/);
  assert.match(await bench.refusal({ ...GRALORA, r: 6 }, gralora), /r is 6 for .*rank 4/);
  assert.match(await bench.refusal({ ...GRALORA, gralora_k: 4 }, gralora), /gralora_k is 4 for .*2 runs/);
  const stray = { ...gralora, [`${UP}.gralora_A_general.weight`]: bf16([2, 8], sixteenths(3, 16)) };
  assert.match(await bench.refusal(GRALORA, stray), /hybrid_r is 0 for .*gralora_A_general/);
  assert.match(await bench.refusal({ ...GRALORA, hybrid_r: 2 }, gralora), /has no gralora_A_general\.weight/);
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxRank: 3 };
  assert.match(
    await bench.refusal(GRALORA, gralora, { limits }),
    /r is 4 .*at most 3 is allowed\. Raise --max-lora-rank\.$/,
  );
});

/** Block (m, n) has w[m, n, (t - j) mod b] / in at row j, column t. */
function circulants(kernel: readonly number[], rows: number, cols: number, size: number): Matrix {
  return matrix(rows * size, cols * size, (i, k) => {
    const block = (Math.floor(i / size) * cols + Math.floor(k / size)) * size;
    return (kernel[block + (((k % size) - (i % size) + size) % size)] as number) / (cols * size);
  });
}

test('C3A: the whole matrix and the Fourier form equal the circulants, for even and odd sizes', () => {
  for (const [rows, cols, size] of [
    [3, 2, 4],
    [1, 1, 8],
    [2, 3, 5],
    [4, 2, 1],
    [2, 2, 2],
    [1, 2, 3],
    [2, 1, 6],
  ] as const) {
    const kernel = sixteenths(5, rows * cols * size);
    const wanted = circulants(kernel, rows, cols, size);
    for (const chain of [denseChain, fourierChain]) {
      const stages = chain({ rows, cols, size }, Float64Array.from(kernel));
      assert.ok(distance(chainMatrix(stages, undefined, cols * size), wanted) <= 1e-12, `${chain.name} of ${size}`);
    }
  }
});

test('C3A: the smaller form is taken, the pattern of block sizes counts, and every refusal', async () => {
  const config = { peft_type: 'C3A', block_size: 4 };
  const model = { ...TINY_MODEL, hiddenSize: 32, ffnSize: 32 };
  const tensors = (size: number, rows: number, cols: number): Parameters<typeof bench.compile>[1] => ({
    [`${UP}.c3a_kernel`]: f32([rows, cols, size], sixteenths(6, rows * cols * size)),
  });
  for (const [size, stages] of [
    [32, 1],
    [8, 3],
  ] as const) {
    const patterned = { ...config, block_size: 9, block_size_pattern: { up_proj: size } };
    const { terms } = await bench.compile(patterned, tensors(size, 32 / size, 32 / size), { model });
    const wanted = circulants(sixteenths(6, 1024 / size), 32 / size, 32 / size, size);
    assert.ok(distance(effective(terms.terms, SITE, zeros(32, 32)).weight, wanted) <= 1e-6);
    const [term] = terms.terms;
    assert.equal(term?.kind === 'blockdiag' && term.stages.length, stages, `blocks of ${size}`);
  }
  assert.match(
    await bench.refusal({ ...config, block_size: 2 }, tensors(4, 3, 2)),
    /block_size is 2 for .*blocks of 4/,
  );
  const odd = { [`${UP}.c3a_kernel`]: f32([3, 3, 4], sixteenths(1, 36)) };
  assert.match(await bench.refusal(config, odd), /has shape \[3, 3, 4\], expected \[3, 2, 4\]/);
});

const MISS = { peft_type: 'MISS', r: 3, init_weights: true };

test('MiSS and Bone: the block for every run of inputs, also where r does not divide them', async () => {
  const block = sixteenths(7, 36);
  const wanted = matrix(12, 8, (o, i) => block[(i % 3) * 12 + o] as number);
  for (const [type, name] of [
    ['MISS', 'miss_block'],
    ['BONE', 'bone_block'],
  ] as const) {
    const { terms } = await bench.compile({ ...MISS, peft_type: type }, { [`${UP}.${name}`]: bf16([3, 12], block) });
    assert.ok(distance(effective(terms.terms, SITE, zeros(12, 8)).weight, wanted) <= 1e-12);
    const [term] = terms.terms;
    assert.ok(term?.kind === 'lowrank');
    assert.deepEqual([term.a.shared, dense(term.a).dtype, dense(term.b).dtype], ['miss-tile-3-8', 'bf16', 'bf16']);
  }
});

test('MiSS: the mini form repeats the block along the outputs; fused sites; every refusal', async () => {
  const mini = { ...MISS, r: 2, init_weights: 'mini', mini_r: 4 };
  const block = sixteenths(8, 8);
  const { terms } = await bench.compile(mini, { [`${UP}.miss_block`]: f32([2, 4], block) });
  const wanted = matrix(12, 8, (o, i) => block[(i % 2) * 4 + (o % 4)] as number);
  assert.ok(distance(effective(terms.terms, SITE, zeros(12, 8)).weight, wanted) <= 1e-12);
  const fused = 'base_model.model.model.layers.0.mlp.gate_up_proj.miss_block';
  const both = await bench.compile(MISS, { [fused]: f32([3, 24], sixteenths(9, 72)) });
  const rows = (['gate', 'up'] as const).flatMap((site) => [
    ...effective(both.terms.terms, { layer: 0, site }, zeros(12, 8)).weight,
  ]);
  assert.ok(
    distance(
      rows,
      matrix(24, 8, (o, i) => sixteenths(9, 72)[(i % 3) * 24 + o] as number),
    ) <= 1e-12,
  );
  const good = { [`${UP}.miss_block`]: bf16([3, 12], sixteenths(7, 36)) };
  assert.match(
    await bench.refusal({ ...MISS, init_weights: 'bat' }, good),
    /init_weights is "bat".*train it with init_weights=True\.$/,
  );
  assert.match(await bench.refusal({ ...MISS, init_weights: 'new' }, good), /init_weights is "new"/);
  assert.match(await bench.refusal({ ...MISS, r: 2 }, good), /r is 2 for .*rank 3/);
  assert.match(
    await bench.refusal({ ...mini, mini_r: 5 }, { [`${UP}.miss_block`]: f32([2, 5], sixteenths(1, 10)) }),
    /mini_r is 5 .*12 outputs/,
  );
  const wide = { [`${UP}.miss_block`]: f32([9, 12], sixteenths(1, 108)) };
  assert.match(await bench.refusal({ ...MISS, r: 9 }, wide), /8 inputs, and r is at most that/);
});

test('all: values keep their place where one entry alone is set', async () => {
  const block = new Array<number>(36).fill(0);
  block[1 * 12 + 5] = 1;
  const { terms } = await bench.compile(MISS, { [`${UP}.miss_block`]: f32([3, 12], block) });
  const { weight } = effective(terms.terms, SITE, zeros(12, 8));
  assert.deepEqual(
    [1, 4, 7].map((i) => entry(weight, 5, i)),
    [1, 1, 1],
  );
  assert.equal(weight.flat().filter((value) => value !== 0).length, 3);
});
