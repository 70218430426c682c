/**
 * What strangers' adapters may hold, beside what each importer's own test shows: wrong types and sizes in the config, dtypes,
 * indices that 32 bits or floats cannot hold, and odd but good files that must be served as they are.
 */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, test } from 'node:test';

import { SAFETENSORS_DTYPES } from '../checkpoint/safetensors.js';
import type { SafetensorsDtype } from '../checkpoint/safetensors.js';
import type { LowRankTerm } from '../core/terms.js';
import type { CompiledAdapter } from './importer.js';
import { toFloats } from './tensor-values.js';
import { dense } from './testing/base.js';
import { bf16, f32, i64, ImporterBench, ramp } from './testing/importer-bench.js';
import type { BenchTensor } from './testing/importer-bench.js';
import { lowRankDelta } from './testing/low-rank.js';
import { distance, sixteenths, transpose } from './testing/matrices.js';
import { safetensorsBytes, TINY_MODEL } from './testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const DOWN = 'base_model.model.model.layers.1.mlp.down_proj';
const LORA = { peft_type: 'LORA', r: 2, lora_alpha: 4 };
const PAIR = { [`${Q}.lora_A.weight`]: f32([2, 8], ramp(16)), [`${Q}.lora_B.weight`]: f32([8, 2], ramp(16)) };

function lowRank({ terms }: CompiledAdapter): LowRankTerm[] {
  return terms.terms.map((term) => (term.kind === 'lowrank' ? term : assert.fail(term.kind)));
}

test('a peft_type that is missing, of another type or a name that every object has', async () => {
  for (const type of [undefined, null, 3, ['LORA'], { LORA: 1 }, 'lora', '', '__proto__', 'constructor', 'toString']) {
    const message = await bench.refusal({ ...LORA, peft_type: type }, PAIR);
    assert.match(message, /^adapter_config\.json: peft_type is .*, expected one of LORA, /, JSON.stringify(type));
  }
});

test('ranks and alphas that are no numbers of their kind, or too large', async () => {
  for (const r of [-1, 1.5, '2', [2], true, 2 ** 53, 1e300, null]) {
    assert.match(await bench.refusal({ ...LORA, r }, PAIR), /^adapter_config\.json: r is /, String(r));
  }
  for (const alpha of ['NaN', '4', [4], true, 1e300]) {
    const message = await bench.refusal({ ...LORA, lora_alpha: alpha }, PAIR);
    assert.match(message, /^adapter_config\.json: lora_alpha is /, String(alpha));
  }
  const wide = {
    [`${Q}.lora_A.weight`]: f32([600, 8], ramp(4800)),
    [`${Q}.lora_B.weight`]: f32([8, 600], ramp(4800)),
  };
  assert.match(await bench.refusal({ ...LORA, r: 600 }, wide), /r is 600 .*at most 512 is allowed/);
  // A rank of a million in a small file is a lie of the header.
  const directory = await bench.folder();
  await mkdir(directory);
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify({ ...LORA, r: 1_000_000 }));
  const header = `{"${Q}.lora_A.weight":{"dtype":"F32","shape":[1000000,8],"data_offsets":[0,32000000]}}`;
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  await writeFile(path.join(directory, 'adapter_model.safetensors'), Buffer.concat([length, Buffer.from(header)]));
  await assert.rejects(bench.compileFolder(directory), /ends 32000000 bytes after the end of the file/);
});

test('a negative alpha is a scale like any other; the name of the base is only a name', async () => {
  const [term] = lowRank(await bench.compile({ ...LORA, lora_alpha: -4, base_model_name_or_path: 'other/base' }, PAIR));
  assert.equal(term?.scale, -2);
});

test('factors of every dtype that is no float of 16 or 32 bits are refused by name', async () => {
  const floats = new Set<SafetensorsDtype>(['F32', 'F16', 'BF16']);
  for (const [dtype, width] of Object.entries(SAFETENSORS_DTYPES) as [SafetensorsDtype, number][]) {
    if (floats.has(dtype)) continue;
    const a = { dtype, shape: [2, 8], data: new Uint8Array(16 * width) };
    const message = await bench.refusal(LORA, { ...PAIR, [`${Q}.lora_A.weight`]: a });
    assert.match(message, new RegExp(`lora_A\\.weight" is ${dtype}, expected F32, F16 or BF16\\. Convert`));
  }
});

test('mixed dtypes in one adapter stay as they are; subnormal and very large values too', async () => {
  const values = [1e-45, -1e-40, 3.4e38, -3.4e38, ...ramp(12)];
  const half: BenchTensor = {
    dtype: 'F16',
    shape: [2, 12],
    data: Uint16Array.from({ length: 24 }, (_, i) => 0x3c00 + i),
  };
  const [down, q] = lowRank(
    await bench.compile(LORA, {
      [`${Q}.lora_A.weight`]: f32([2, 8], values),
      [`${Q}.lora_B.weight`]: bf16([8, 2], ramp(16)),
      [`${DOWN}.lora_A.weight`]: half,
      [`${DOWN}.lora_B.weight`]: f32([8, 2], ramp(16)),
    }),
  ).sort((a, b) => (a.site.site < b.site.site ? -1 : 1));
  assert.deepEqual([q?.a.dtype, q?.b.dtype, down?.a.dtype, down?.b.dtype], ['f32', 'bf16', 'f16', 'f32']);
  assert.deepEqual(dense(q?.a).data, Float32Array.from(values));
});

test('ranks that differ by module, and modules that are absent from a layer', async () => {
  const terms = lowRank(
    await bench.compile(
      { ...LORA, rank_pattern: { down_proj: 1, 'layers.7.never': 5 } },
      { ...PAIR, [`${DOWN}.lora_A.weight`]: f32([1, 12], ramp(12)), [`${DOWN}.lora_B.weight`]: f32([8, 1], ramp(8)) },
    ),
  );
  const found = terms.map(({ site, a, scale }) => `${site.layer} ${site.site} ${a.shape[0]} ${scale}`);
  assert.deepEqual(found.sort(), ['0 q 2 2', '1 down 1 4']);
});

test('whether factors are transposed is said by the format, never guessed from a square shape', async () => {
  const [first, second] = [sixteenths(1, 64), sixteenths(2, 64)];
  const peft = await bench.compile(
    { ...LORA, r: 8, lora_alpha: 8 },
    { [`${Q}.lora_A.weight`]: f32([8, 8], first), [`${Q}.lora_B.weight`]: f32([8, 8], second) },
  );
  const directory = await bench.folder();
  await mkdir(directory);
  const config = { fine_tune_type: 'lora', lora_parameters: { rank: 8, scale: 1, dropout: 0 }, num_layers: 2 };
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify(config));
  const place = Q.replace('base_model.model.', '');
  const file = safetensorsBytes({
    [`${place}.lora_a`]: { dtype: 'F32', shape: [8, 8], values: first },
    [`${place}.lora_b`]: { dtype: 'F32', shape: [8, 8], values: second },
  });
  await writeFile(path.join(directory, 'adapters.safetensors'), file);
  const mlx = await bench.compileFolder(directory);
  const [a, b] = [peft, mlx].map((compiled) => lowRankDelta(lowRank(compiled)[0] ?? assert.fail('no term')));
  assert.ok(a && b && distance(a, b) > 0.1, 'the same square tensors are two differences');
  // MLX: (A B)ᵀ of what PEFT's file would hold as Aᵀ and Bᵀ.
  const flipped = (values: readonly number[]): number[] =>
    transpose(Array.from({ length: 8 }, (_, i) => values.slice(8 * i, 8 * i + 8))).flat();
  const same = await bench.compile(
    { ...LORA, r: 8, lora_alpha: 8 },
    { [`${Q}.lora_A.weight`]: f32([8, 8], flipped(first)), [`${Q}.lora_B.weight`]: f32([8, 8], flipped(second)) },
  );
  assert.ok(distance(lowRankDelta(lowRank(same)[0] ?? assert.fail('no term')), b) < 1e-6);
});

const sft = (values: BenchTensor, indices: BenchTensor): Record<string, BenchTensor> => ({
  [`${Q}.sft_delta.values`]: values,
  [`${Q}.sft_delta.indices`]: indices,
});

test('a flat index beyond 2³¹ reaches its row and column; one beyond 2⁵³ is refused', async () => {
  const model = { ...TINY_MODEL, hiddenSize: 65_536, ffnSize: 40_000 };
  const key = 'base_model.model.model.layers.0.mlp.up_proj.sft_delta';
  const tensors = {
    [`${key}.values`]: f32([3], [1, 2, 3]),
    [`${key}.indices`]: i64([3], [2_147_483_648, 2_621_439_999, 5]),
  };
  const { terms } = await bench.compile({ peft_type: 'SFT' }, tensors, { model });
  const [term] = terms.terms;
  assert.ok(term?.kind === 'sparse');
  // 2³¹ = 32768 · 65536, and the last entry is (39999, 65535).
  assert.deepEqual([...term.columns], [5, 0, 65_535]);
  assert.deepEqual([...toFloats(dense(term.values))], [3, 1, 2]);
  assert.deepEqual(
    [1, 32_768, 32_769, 39_999, 40_000].map((row) => term.rowStart[row]),
    [1, 1, 2, 2, 3],
  );
  const huge = { dtype: 'I64', shape: [1], data: BigInt64Array.of(2n ** 60n + 1n) } as const;
  assert.match(
    await bench.refusal({ peft_type: 'SFT' }, sft(f32([1], [1]), huge)),
    /holds 11529215046068\d+, expected whole/,
  );
});

test('floats as indices are taken while they tell whole numbers apart', async () => {
  const { terms } = await bench.compile({ peft_type: 'SFT' }, sft(f32([2], [1, 2]), f32([2], [63, 4])));
  assert.ok(terms.terms[0]?.kind === 'sparse');
  assert.deepEqual([...terms.terms[0].columns], [4, 7]);
  const model = { ...TINY_MODEL, hiddenSize: 8192, numHeads: 2048 };
  const lost = await bench.refusal({ peft_type: 'SFT' }, sft(f32([1], [1]), f32([1], [2 ** 24])), { model });
  assert.match(lost, /holds 16777216 as F32, which tells whole numbers apart below 16777216 only\. Save the indices/);
  const coarse = await bench.refusal({ peft_type: 'SFT' }, sft(f32([1], [1]), bf16([1], [256])), { model });
  assert.match(coarse, /holds 256 as BF16, which tells whole numbers apart below 256 only/);
});

test('more entries than the weight has are not all different', async () => {
  const indices = i64([65], [...Array.from({ length: 64 }, (_, i) => i), 0]);
  assert.match(await bench.refusal({ peft_type: 'SFT' }, sft(f32([65], ramp(65)), indices)), /row 0, column 0 twice/);
});

test('names of tensors that every object has are names like others, and are refused as such', async () => {
  for (const name of ['__proto__', 'constructor', 'hasOwnProperty', `${Q}.__proto__`, '']) {
    const message = await bench.refusal(LORA, { ...PAIR, ...Object.fromEntries([[name, f32([1], [1])]]) });
    assert.match(message, /^adapter_model\.safetensors: /, name);
  }
});
