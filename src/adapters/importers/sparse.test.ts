/** SHiRA, SFT, Super-Tuning and masks: exact entries, in any order that a file has them, and every refusal. */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { toFloats } from '../tensor-values.js';
import type { SparseTerm, Term } from '../../core/terms.js';
import { baseOf, dense } from '../testing/base.js';
import { bf16, f32, i32, i64, ImporterBench, ramp } from '../testing/importer-bench.js';
import type { BenchTensor } from '../testing/importer-bench.js';
import { TINY_MODEL } from '../testing/peft-folder.js';

const bench = new ImporterBench();
after(() => bench.close());

const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const QKV = 'base_model.model.model.layers.1.self_attn.qkv_proj';
const SHIRA = { peft_type: 'SHIRA', r: 1, mask_type: 'random', random_seed: 3, target_modules: ['q_proj', 'qkv_proj'] };
const SFT = { peft_type: 'SFT', density: 0.01 };
const SUPER = { peft_type: 'SUPERTUNING', sparsity: 0.9, select_top: true, r: null, save_precomputed_indices: true };

function sparse(term: Term | undefined): SparseTerm {
  return term?.kind === 'sparse' ? term : assert.fail(`expected a sparse term, found ${term?.kind}`);
}

/** [row, column, value] of every entry. */
function entries({ rowStart, columns, values }: SparseTerm): [number, number, number][] {
  const data = toFloats(dense(values));
  return [...rowStart.slice(0, -1)].flatMap((start, row) =>
    [...columns.subarray(start, rowStart[row + 1])].map((column, i): [number, number, number] => [
      row,
      column,
      data[start + i] ?? NaN,
    ]),
  );
}

/** The difference as a matrix, entries added one after the other. */
function scattered(terms: readonly Term[], rows: number, cols: number): number[] {
  const matrix = new Array<number>(rows * cols).fill(0);
  for (const term of terms) {
    for (const [row, column, value] of entries(sparse(term))) matrix[row * cols + column]! += value;
  }
  return matrix;
}

test('SHiRA: rows and columns in any order become rows with ascending columns, in the type of the file', async () => {
  const { terms } = await bench.compile(SHIRA, {
    [`${Q}.shira_weight`]: bf16([4], [1, 2, 3, 4]),
    [`${Q}.shira_indices`]: i32([2, 4], [7, 0, 2, 0, 5, 6, 1, 3]),
  });
  assert.equal(terms.terms.length, 1);
  const term = sparse(terms.terms[0]);
  assert.deepEqual(term.site, { layer: 0, site: 'q' });
  assert.equal(term.values.dtype, 'bf16');
  assert.equal(term.scale, 1);
  assert.deepEqual([...term.rowStart], [0, 2, 2, 3, 3, 3, 3, 3, 4]);
  assert.deepEqual(entries(term), [
    [0, 3, 4],
    [0, 6, 2],
    [2, 1, 3],
    [7, 5, 1],
  ]);
});

test('SHiRA: float32 indices of Windows, and a fused linear split by rows', async () => {
  // qkv_proj has 8 rows of q, then 4 of k, then 4 of v.
  const { terms } = await bench.compile(SHIRA, {
    [`${QKV}.shira_weight`]: f32([3], [1, 2, 3]),
    [`${QKV}.shira_indices`]: f32([2, 3], [13, 1, 15, 2, 0, 7]),
  });
  const found = terms.terms.map((term) => [term.site.site, entries(sparse(term))]);
  assert.deepEqual(found, [
    ['q', [[1, 0, 2]]],
    [
      'v',
      [
        [1, 2, 1],
        [3, 7, 3],
      ],
    ],
  ]);
});

test('indices of every integer dtype; NaN, halves and booleans are none', async () => {
  const values = [7, 0, 2, 0, 5, 6, 1, 3];
  const dtypes = {
    I8: Int8Array.from(values),
    U8: Uint8Array.from(values),
    I16: Int16Array.from(values),
    U16: Uint16Array.from(values),
    I32: Int32Array.from(values),
    U32: Uint32Array.from(values),
    I64: BigInt64Array.from(values, BigInt),
    U64: BigUint64Array.from(values, BigInt),
  } as const;
  const tensors = (indices: BenchTensor): Record<string, BenchTensor> => ({
    [`${Q}.shira_weight`]: f32([4], [1, 2, 3, 4]),
    [`${Q}.shira_indices`]: indices,
  });
  for (const [dtype, data] of Object.entries(dtypes)) {
    const indices = { dtype: dtype as keyof typeof dtypes, shape: [2, 4], data };
    const { terms } = await bench.compile(SHIRA, tensors(indices));
    assert.deepEqual([...sparse(terms.terms[0]).columns], [3, 6, 1, 5], dtype);
  }
  const bool = { dtype: 'BOOL', shape: [2, 4], data: new Uint8Array(8) } as const;
  assert.match(await bench.refusal(SHIRA, tensors(bool)), /shira_indices" is BOOL, expected whole numbers such as I32/);
  const negative = { dtype: 'I8', shape: [2, 4], data: Int8Array.from([-1, 0, 0, 0, 0, 0, 0, 0]) } as const;
  assert.match(await bench.refusal(SHIRA, tensors(negative)), /holds index -1, expected 0 to 7/);
});

test('SFT: flat row-major indices, int32 or int64, sorted or not, give the same rows', async () => {
  const flat = [0, 9, 63, 17, 8];
  const values = [1, 2, 3, 4, 5];
  const order = [4, 2, 0, 3, 1];
  const compiled = async (
    list: (shape: number[], values: number[]) => ReturnType<typeof i32>,
    picks: number[],
  ): Promise<SparseTerm> => {
    const { terms } = await bench.compile(SFT, {
      [`${Q}.sft_delta.values`]: f32(
        [5],
        picks.map((i) => values[i]!),
      ),
      [`${Q}.sft_delta.indices`]: list(
        [5],
        picks.map((i) => flat[i]!),
      ),
    });
    return sparse(terms.terms[0]);
  };
  const first = await compiled(i32, [0, 1, 2, 3, 4]);
  assert.deepEqual(entries(first), [
    [0, 0, 1],
    [1, 0, 5],
    [1, 1, 2],
    [2, 1, 4],
    [7, 7, 3],
  ]);
  assert.deepEqual(await compiled(i64, order), first);
});

test('language and task SFT together equal scatter-add, one after the other', async () => {
  const one = async (flat: number[], values: number[]): Promise<readonly Term[]> => {
    const tensors = {
      [`${Q}.sft_delta.values`]: f32([flat.length], values),
      [`${Q}.sft_delta.indices`]: i32([flat.length], flat),
    };
    return (await bench.compile(SFT, tensors)).terms.terms;
  };
  const language = { flat: [3, 60, 12], values: [0.5, -2, 1] };
  const task = { flat: [12, 3, 40], values: [4, 0.25, -1] };
  const wanted = new Array<number>(64).fill(0);
  for (const { flat, values } of [language, task]) flat.forEach((index, i) => (wanted[index]! += values[i]!));
  const terms = [...(await one(language.flat, language.values)), ...(await one(task.flat, task.values))];
  assert.deepEqual(scattered(terms, 8, 8), wanted);
});

const NORM = 'base_model.model.model.layers.0.input_layernorm';
const EMBED = 'base_model.model.model.embed_tokens';

test('SFT of the converter: embedding rows, norms, biases and whole tensors', async () => {
  const embedding = Float32Array.from({ length: 160 }, (_, i) => i);
  const base = baseOf(
    new Map([
      ['-1 embedding', { cols: 8, data: embedding }],
      ['0 attnNorm', { cols: 8, data: Float32Array.from({ length: 8 }, () => 1) }],
    ]),
    new Map([['1 v', Float32Array.from([1, 1, 1, 1])]]),
  );
  const tensors = {
    [`${EMBED}.sft_delta.values`]: f32([2], [0.5, 2]),
    [`${EMBED}.sft_delta.indices`]: i32([2], [35, 16]),
    [`${NORM}.sft_delta.values`]: f32([1], [0.25]),
    [`${NORM}.sft_delta.indices`]: i32([1], [3]),
    [`${Q}.sft_bias_delta.values`]: f32([1], [7]),
    [`${Q}.sft_bias_delta.indices`]: i32([1], [5]),
    'base_model.model.model.layers.1.self_attn.v_proj.bias': f32([4], [1, 2, 3, 4]),
    'base_model.model.model.norm.weight': f32([8], ramp(8)),
  };
  const { terms } = await bench.compile({ peft_type: 'SFT', format: 'composable-sft' }, tensors, { base });
  const found = new Map(terms.terms.map((term) => [`${term.site.layer} ${term.site.site} ${term.kind}`, term]));
  assert.deepEqual([...found.keys()].sort(), [
    '-1 embedding override',
    '-1 finalNorm override',
    '-1 head override',
    '0 attnNorm override',
    '0 q diag',
    '1 v diag',
  ]);
  const rows = found.get('-1 embedding override');
  assert.ok(rows?.kind === 'override');
  assert.deepEqual([...(rows.rows ?? [])], [2, 4]);
  assert.deepEqual([...toFloats(rows.values)], [18, 17, 18, 19, 20, 21, 22, 23, 32, 33, 34, 35.5, 36, 37, 38, 39]);
  const norm = found.get('0 attnNorm override');
  assert.ok(norm?.kind === 'override');
  assert.deepEqual([...toFloats(norm.values)], [1, 1, 1, 1.25, 1, 1, 1, 1]);
  const shift = found.get('1 v diag');
  assert.deepEqual(shift?.kind === 'diag' && [...(shift.c ?? [])], [0, 1, 2, 3]);
  const delta = found.get('0 q diag');
  assert.deepEqual(delta?.kind === 'diag' && [...(delta.c ?? [])], [0, 0, 0, 0, 0, 7, 0, 0]);
});

test("a norm of Gemma's file is w, the term is 1 + w; what peft saved leaves a tied head alone", async () => {
  const tensors = {
    'base_model.model.model.norm.weight': f32([8], ramp(8)),
    [`${EMBED}.weight`]: f32([20, 8], ramp(160)),
  };
  const { terms } = await bench.compile(SFT, tensors, { model: { ...TINY_MODEL, family: 'gemma3' } });
  const [norm, embedding] = [...terms.terms].sort((a, b) => (a.site.site > b.site.site ? -1 : 1));
  assert.ok(norm?.kind === 'override' && embedding?.kind === 'override');
  assert.deepEqual(
    [...toFloats(norm.values)],
    ramp(8).map((value) => value + 1),
  );
  assert.equal(embedding.site.site, 'embedding');
  assert.equal(terms.terms.length, 2);
});

test('Super-Tuning: entries alone, or with a LoRA of scale alpha / r beside them', async () => {
  const tensors = {
    [`${Q}.supertuning_values`]: f32([2], [1, 2]),
    [`${Q}.supertuning_indices`]: i32([2], [33, 4]),
  };
  const alone = await bench.compile(SUPER, tensors);
  assert.deepEqual(entries(sparse(alone.terms.terms[0])), [
    [0, 4, 2],
    [4, 1, 1],
  ]);
  const both = await bench.compile(
    { ...SUPER, r: 2, lora_alpha: 6 },
    {
      ...tensors,
      [`${Q}.supertuning_lora_A.weight`]: f32([2, 8], ramp(16)),
      [`${Q}.supertuning_lora_B.weight`]: f32([8, 2], ramp(16)),
    },
  );
  const [lowRank, second] = both.terms.terms;
  assert.ok(lowRank?.kind === 'lowrank' && second?.kind === 'sparse');
  assert.equal(lowRank.scale, 3);
});

test('a mask takes the masked entries of the base away', async () => {
  const data = Float32Array.from({ length: 64 }, (_, i) => i + 1);
  const base = baseOf(new Map([['0 q', { cols: 8, data }]]));
  const { terms } = await bench.compile(
    { peft_type: 'SPARSE_MASK' },
    { [`${Q}.mask_indices`]: i32([3], [62, 5, 8]) },
    { base },
  );
  assert.deepEqual(entries(sparse(terms.terms[0])), [
    [0, 5, -6],
    [1, 0, -9],
    [7, 6, -63],
  ]);
});

test('wrong entries are refused: out of range, twice, not whole, not as many as values, NaN', async () => {
  const sft = (indices: ReturnType<typeof i32>, values = f32([2], [1, 2])): Promise<string> =>
    bench.refusal(SFT, { [`${Q}.sft_delta.values`]: values, [`${Q}.sft_delta.indices`]: indices });
  assert.match(await sft(i32([2], [3, 64])), /holds index 64, expected 0 to 63/);
  assert.match(await sft(i32([2], [3, -1])), /holds index -1/);
  assert.match(await sft(i32([2], [9, 9])), /name row 1, column 1 twice/);
  assert.match(await sft(f32([2], [1.5, 2])), /holds 1.5, expected whole numbers/);
  assert.match(await sft(i32([3], [1, 2, 3])), /expected \[2\], one for each value/);
  assert.match(await sft(i32([2], [1, 2]), f32([2], [NaN, 1])), /NaN or infinity/);
  assert.match(await bench.refusal(SFT, { [`${Q}.sft_delta.values`]: f32([1], [1]) }), /has no indices beside it/);
  const pairs = { [`${Q}.shira_weight`]: f32([1], [1]), [`${Q}.shira_indices`]: i32([2, 1], [8, 0]) };
  assert.match(await bench.refusal(SHIRA, pairs), /holds index 8, expected 0 to 7/);
});

test('keys and configs that cannot be served are refused', async () => {
  const good = { [`${Q}.sft_delta.values`]: f32([1], [1]), [`${Q}.sft_delta.indices`]: i32([1], [1]) };
  assert.match(await bench.refusal(SFT, { ...good, 'base_model.model.score': f32([1], [1]) }), /is no tensor of SFT/);
  assert.match(
    await bench.refusal(SFT, { ...good, [`${Q}.weight`]: f32([8, 8], ramp(64)) }),
    /replaces the whole weight/,
  );
  assert.match(await bench.refusal({ ...SFT, use_magic: true }, good), /use_magic/);
  assert.match(await bench.refusal({ ...SFT, format: 'other' }, good), /expected "composable-sft" or null/);
  const head = { 'base_model.model.lm_head.weight': f32([20, 8], ramp(160)) };
  assert.match(await bench.refusal({ peft_type: 'SFT', format: 'composable-sft' }, head), /shares with its embedding/);
  const far = { 'base_model.model.model.layers.7.mlp.up_proj.sft_delta.values': f32([1], [1]) };
  assert.match(await bench.refusal(SFT, far), /does not have/);
  const twice = { ...good, [`${Q.replace('model.layers', 'layers')}.sft_delta.values`]: f32([1], [1]) };
  assert.match(await bench.refusal(SFT, twice), /change the same tensor/);
  assert.match(await bench.refusal(SFT, {}), /holds no tensors/);
});

test('Super-Tuning without its indices, or with factors that the config does not know, is refused', async () => {
  const values = { [`${Q}.supertuning_values`]: f32([1], [1]) };
  assert.match(await bench.refusal(SUPER, values), /save_precomputed_indices=True/);
  const factors = {
    ...values,
    [`${Q}.supertuning_indices`]: i32([1], [1]),
    [`${Q}.supertuning_lora_A.weight`]: f32([2, 8], ramp(16)),
  };
  assert.match(await bench.refusal(SUPER, factors), /has LoRA factors, and r is null/);
  assert.match(await bench.refusal({ ...SUPER, r: 2 }, factors), /supertuning_lora_B/);
  assert.match(await bench.refusal({ ...SUPER, r: 9999 }, factors), /at most 512 is allowed/);
});
