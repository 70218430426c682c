import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, test } from 'node:test';

import type { ModelConfig, SiteRef } from '../../core/model-config.js';
import type { CompiledAdapter } from '../importer.js';
import { baseOf, dense } from '../testing/base.js';
import { ImporterBench, refusalOf } from '../testing/importer-bench.js';
import { distance, effective, scaled, shaped, sixteenths, sum, times, transpose } from '../testing/matrices.js';
import { safetensorsBytes, TINY_MODEL } from '../testing/peft-folder.js';
import type { TestTensor } from '../testing/peft-folder.js';
import { toFloats } from '../tensor-values.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'model.layers.0.self_attn.q_proj';
const EMBED = 'model.embed_tokens';
const SITE: SiteRef = { layer: 0, site: 'q' };
const weight = sixteenths(1, 64);
const table = sixteenths(2, 160);
const base = baseOf(
  new Map([
    ['0 q', { cols: 8, data: Float32Array.from(weight) }],
    ['-1 embedding', { cols: 8, data: Float32Array.from(table) }],
  ]),
);
const W = shaped(weight, 8, 8);
const A = sixteenths(3, 16);
const B = sixteenths(4, 16);
const f32 = (shape: number[], values: number[]): TestTensor => ({ dtype: 'F32', shape, values });
const LINEAR = { [`${Q}.lora_a`]: f32([8, 2], A), [`${Q}.lora_b`]: f32([2, 8], B) };
const TABLE = { [`${EMBED}.lora_a`]: f32([20, 2], sixteenths(5, 40)), [`${EMBED}.lora_b`]: f32([2, 8], B) };

async function compile(
  tensors: Record<string, TestTensor>,
  config: object = {},
  model: ModelConfig = TINY_MODEL,
): Promise<CompiledAdapter> {
  const directory = await bench.folder();
  await mkdir(directory, { recursive: true });
  const whole = {
    fine_tune_type: 'lora',
    lora_parameters: { rank: 2, scale: 3, dropout: 0 },
    num_layers: 8,
    ...config,
  };
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify(whole));
  await writeFile(path.join(directory, 'adapters.safetensors'), safetensorsBytes(tensors));
  return bench.compileFolder(directory, { base, model });
}

test('factors are transposed, and the scale is taken as it stands', async () => {
  const { terms } = (await compile(LINEAR)).terms;
  const delta = transpose(times(shaped(A, 8, 2), shaped(B, 2, 8)));
  assert.ok(distance(effective(terms, SITE, W).weight, sum(W, scaled(delta, 3))) < 1e-6);
});

test('DoRA has m beside the factors', async () => {
  const m = sixteenths(6, 8).map((value) => value + 2);
  const { terms } = (await compile({ ...LINEAR, [`${Q}.m`]: f32([8], m) }, { fine_tune_type: 'dora' })).terms;
  const adapted = sum(W, scaled(transpose(times(shaped(A, 8, 2), shaped(B, 2, 8))), 3));
  const wanted = adapted.map((row, i) => row.map((value) => (value * (m[i] as number)) / Math.hypot(...row)));
  assert.ok(distance(effective(terms, SITE, W).weight, wanted) < 1e-6);
});

test('an embedding adapts the tied head as well', async () => {
  const { terms } = (await compile(TABLE)).terms;
  assert.deepEqual(
    terms.map((term) => (term.kind === 'lowrank' ? [term.site.site, term.a.shape, term.b.shape] : [])),
    [
      ['embedding', [2, 20], [8, 2]],
      ['head', [2, 8], [20, 2]],
    ],
  );
  const [first, second] = terms;
  assert.ok(first?.kind === 'lowrank' && second?.kind === 'lowrank');
  assert.deepEqual([...toFloats(dense(second.a))], B);
  assert.deepEqual([...toFloats(dense(second.b))], sixteenths(5, 40));
  assert.equal((await compile(TABLE, {}, { ...TINY_MODEL, tiedHead: false })).terms.terms.length, 1);
});

test('DoRA of an embedding scales the rows of tokens', async () => {
  const m = sixteenths(7, 20).map((value) => value + 2);
  const { terms } = (await compile({ ...TABLE, [`${EMBED}.m`]: f32([20], m) }, { fine_tune_type: 'dora' })).terms;
  const [first, second] = terms;
  assert.ok(first?.kind === 'override' && second?.kind === 'override' && second.site.site === 'head');
  const adapted = sum(shaped(table, 20, 8), scaled(times(shaped(sixteenths(5, 40), 20, 2), shaped(B, 2, 8)), 3));
  const wanted = adapted.map((row, i) => row.map((value) => (value * (m[i] as number)) / Math.hypot(...row)));
  assert.ok(distance(shaped(toFloats(first.values), 20, 8), wanted) < 1e-6);
});

test('what does not fit is refused, and the file is named', async () => {
  const rank = { lora_parameters: { rank: 3, scale: 3 } };
  const cases: [Record<string, TestTensor>, object, RegExp][] = [
    [LINEAR, { fine_tune_type: 'full' }, /fine_tune_type is "full": its file holds whole weights.*mlx_lm\.fuse/],
    [LINEAR, { fine_tune_type: 'other' }, /fine_tune_type is "other", expected one of "lora", "dora"/],
    [LINEAR, { fine_tune_type: 'dora' }, /lora_a" has no m beside it, which DoRA needs/],
    [{ ...LINEAR, [`${Q}.m`]: f32([8], B.slice(0, 8)) }, {}, /has DoRA's m, while fine_tune_type is "lora"/],
    [LINEAR, rank, /rank is 3, the tensors of .* have rank 2/],
    [LINEAR, { lora_parameters: { rank: 2 } }, /scale is missing, expected a finite number/],
    [LINEAR, { lora_parameters: { rank: 2, scale: 0 } }, /scale is 0, with which the adapter is the base/],
    [LINEAR, { use_future: true }, /"use_future" is true, a field that this server does not know/],
    [{ ...LINEAR, [`${Q}.weight`]: f32([8, 8], weight) }, {}, /adapters\.safetensors: .*is no tensor of a LoRA/],
    [{ ...LINEAR, [`${Q}.lora_a`]: f32([2, 8], A) }, {}, /adapters\.safetensors: .*has shape/],
    [
      { ...TABLE, 'lm_head.lora_a': f32([8, 2], A), 'lm_head.lora_b': f32([2, 20], sixteenths(5, 40)) },
      {},
      /which are one module/,
    ],
    [{}, {}, /adapters\.safetensors: it holds no tensors/],
  ];
  for (const [tensors, config, expected] of cases) {
    assert.match(await refusalOf(() => compile(tensors, config)), expected);
  }
});
