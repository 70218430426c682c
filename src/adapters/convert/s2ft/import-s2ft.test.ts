import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import fc from 'fast-check';

import { bf16ToF32, f32ToBf16 } from '../../../core/half.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../../adapter-folder.js';
import { readFloats, readIntegers } from '../../tensor-values.js';
import { cloneModel, randomMatrix, randomModel, randomNumbers, writeModel } from '../../testing/model-folder.js';
import type { Matrix, TestModel, TestShape } from '../../testing/model-folder.js';
import type { ValueType } from './difference.js';
import { describeImport, importS2ft } from './import-s2ft.js';
import type { ImportReport } from './import-s2ft.js';

let root = '';
let folders = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-import-s2ft-'));
});
after(() => rm(root, { recursive: true, force: true }));
const folder = (): string => path.join(root, `f${(folders += 1)}`);

const SHAPE: TestShape = { layers: 3, hidden: 12, heads: 4, kvHeads: 4, headDim: 2, ffn: 10, vocab: 13 };
type Random = () => number;

const name = (layer: number, module: string): string => `model.layers.${layer}.${module}`;
const matrix = (model: TestModel, key: string): Matrix => model.get(key) ?? assert.fail(key);
const draw = (random: Random, below: number): number => Math.floor(random() * below);

function shuffled(count: number, random: Random): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i -= 1) {
    const j = draw(random, i + 1);
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}

/** Blocks of rows (or columns) in another order: block i of the result is block order[i]. */
function reorder({ rows, cols, data }: Matrix, axis: 'rows' | 'cols', order: readonly number[], block: number): Matrix {
  const from = (i: number): number => (order[Math.floor(i / block)] as number) * block + (i % block);
  const moved = data.map((_, at) => {
    const [row, col] = [Math.floor(at / cols), at % cols];
    return data[axis === 'rows' ? from(row) * cols + col : row * cols + from(col)] as number;
  });
  return { rows, cols, data: moved };
}

/** What the paper's code saves: gate, up, down in one order of channels, q, k, v, o in one order of heads. */
function permute(model: TestModel, { layers, heads, kvHeads, headDim, ffn }: TestShape, random: Random): TestModel {
  const permuted = new Map(model);
  const size = heads / kvHeads;
  for (let layer = 0; layer < layers; layer += 1) {
    const channels = shuffled(ffn, random);
    const groups = shuffled(kvHeads, random);
    const queries = groups.flatMap((group) => shuffled(size, random).map((i) => group * size + i));
    const move = (module: string, axis: 'rows' | 'cols', order: readonly number[], block: number): void => {
      permuted.set(name(layer, module), reorder(matrix(model, name(layer, module)), axis, order, block));
    };
    for (const module of ['mlp.gate_proj', 'mlp.up_proj']) move(module, 'rows', channels, 1);
    move('mlp.down_proj', 'cols', channels, 1);
    move('self_attn.q_proj', 'rows', queries, headDim);
    for (const module of ['self_attn.k_proj', 'self_attn.v_proj']) move(module, 'rows', groups, headDim);
    move('self_attn.o_proj', 'cols', queries, headDim);
  }
  return permuted;
}

const MODULES = {
  'self_attn.v_proj': 'rows',
  'self_attn.o_proj': 'cols',
  'mlp.up_proj': 'rows',
  'mlp.down_proj': 'cols',
} as const;

/** Adds to some heads' and channels' rows or columns; of some layers none. Returns what was changed. */
function train(model: TestModel, shape: TestShape, random: Random, round: boolean): Map<string, number[]> {
  const changed = new Map<string, number[]>();
  for (let layer = 0; layer < shape.layers; layer += 1) {
    for (const [module, axis] of Object.entries(MODULES)) {
      const { rows, cols, data } = matrix(model, name(layer, module));
      const block = module.startsWith('self') ? shape.headDim : 1;
      const blocks = (axis === 'rows' ? rows : cols) / block;
      const chosen = shuffled(blocks, random).slice(0, draw(random, Math.min(4, blocks + 1)));
      const channels = chosen
        .flatMap((b) => Array.from({ length: block }, (_, i) => b * block + i))
        .sort((a, b) => a - b);
      if (channels.length === 0) continue;
      changed.set(name(layer, module), channels);
      const hit = new Set(channels);
      for (let at = 0; at < data.length; at += 1) {
        if (!hit.has(axis === 'rows' ? Math.floor(at / cols) : at % cols)) continue;
        const value = (data[at] as number) + 0.25 * (random() + 0.1);
        data[at] = round ? bf16ToF32(f32ToBf16(value)) : value;
      }
    }
  }
  return changed;
}

/** The base with the adapter's values added, as docs/formats/s2ft.md says. */
async function apply(base: TestModel, directory: string): Promise<{ model: TestModel; index: Map<string, number[]> }> {
  const model = cloneModel(base);
  const index = new Map<string, number[]>();
  const adapter = await openAdapterFolder(directory, { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: false });
  try {
    for (const tensor of adapter.tensors.values()) {
      const match = /^(.+)\.s2ft_(rows|columns)\.index$/.exec(tensor.name);
      if (match === null) continue;
      const [, module = '', part = ''] = match;
      const channels = [...(await readIntegers(adapter, tensor))];
      const values = adapter.tensors.get(`${module}.s2ft_${part}.values`) ?? assert.fail(module);
      const floats = await readFloats(adapter, values);
      const { rows, cols, data } = matrix(model, module);
      channels.forEach((channel, k) => {
        for (let i = 0; i < (part === 'rows' ? cols : rows); i += 1) {
          const at = part === 'rows' ? channel * cols + i : i * cols + channel;
          const value = floats[part === 'rows' ? k * cols + i : i * channels.length + k] as number;
          data[at] = Math.fround((data[at] as number) + value);
        }
      });
      index.set(module, channels);
    }
  } finally {
    await adapter.close();
  }
  return { model, index };
}

interface Case {
  readonly shape: TestShape;
  readonly base: TestModel;
  /** In the base's order. */
  readonly trained: TestModel;
  readonly checkpoint: TestModel;
}

async function run(
  { shape, base, checkpoint }: Case,
  types: { base?: 'F32' | 'BF16'; checkpoint?: 'F32' | 'BF16'; dtype?: ValueType } = {},
): Promise<{ out: string; report: ImportReport }> {
  const out = folder();
  const report = await importS2ft({
    base: await writeModel(folder(), shape, base, types.base),
    checkpoint: await writeModel(folder(), shape, checkpoint, types.checkpoint),
    out,
    dtype: types.dtype ?? 'auto',
  });
  return { out, report };
}

function assertModel(found: TestModel, expected: TestModel, round: boolean): void {
  for (const [key, { data }] of expected) {
    const values = matrix(found, key).data;
    assert.deepEqual(round ? values.map((value) => bf16ToF32(f32ToBf16(value))) : values, data, key);
  }
}

test('any order, ragged layers and layers without heads: the adapter gives back the checkpoint bit for bit', async () => {
  const settings = fc.record({
    seed: fc.integer(),
    kvHeads: fc.constantFrom(1, 2, 4),
    bf16: fc.boolean(),
    moved: fc.boolean(),
    appended: fc.constantFrom(0, 3),
  });
  await fc.assert(
    fc.asyncProperty(settings, async ({ seed, kvHeads, bf16, moved, appended }) => {
      const random = randomNumbers(seed);
      const shape = { ...SHAPE, kvHeads };
      const base = randomModel(shape, random);
      const trained = cloneModel(base);
      const changed = train(trained, shape, random, bf16);
      if (changed.size === 0) return;
      const checkpoint = moved ? permute(trained, shape, random) : new Map(trained);
      const embedding = matrix(checkpoint, 'model.embed_tokens');
      const more = randomMatrix(appended, shape.hidden, random).data;
      const data = Float32Array.from([...embedding.data, ...more]);
      checkpoint.set('model.embed_tokens', { ...embedding, rows: embedding.rows + appended, data });
      const { out, report } = await run({ shape, base, trained, checkpoint }, { checkpoint: bf16 ? 'BF16' : 'F32' });
      const applied = await apply(base, out);
      assert.deepEqual(new Map([...applied.index].sort()), new Map([...changed].sort()));
      // A float32 checkpoint's difference is rounded once, and the report counts where that shows.
      if (bf16) assert.equal(report.inexact, 0);
      if (report.inexact === 0) assertModel(applied.model, trained, bf16);
      assert.ok(report.largestError < 2e-7, `${report.largestError}`);
      assert.equal(report.notes.length, appended === 0 ? 0 : 1);
      const count = (layer: number, module: string): number => changed.get(name(layer, module))?.length ?? 0;
      for (const { layer, channels, heads } of report.layers) {
        assert.deepEqual(channels, {
          v: count(layer, 'self_attn.v_proj'),
          o: count(layer, 'self_attn.o_proj'),
          up: count(layer, 'mlp.up_proj'),
          down: count(layer, 'mlp.down_proj'),
        });
        assert.deepEqual(heads, { v: channels.v / shape.headDim, o: channels.o / shape.headDim });
      }
    }),
    { numRuns: 60 },
  );
});

test('equal rows in the base: channels that nothing tells apart are assigned all the same, and the sum is exact', async () => {
  for (let seed = 0; seed < 12; seed += 1) {
    const random = randomNumbers(seed);
    const shape = { ...SHAPE, kvHeads: seed % 2 === 0 ? 4 : 2 };
    const base = randomModel(shape, random);
    for (const module of ['mlp.gate_proj', 'self_attn.q_proj', 'self_attn.k_proj'])
      matrix(base, name(0, module)).data.fill(0);
    const gate = matrix(base, name(1, 'mlp.gate_proj'));
    gate.data.copyWithin(4 * gate.cols, 0, 4 * gate.cols);
    const trained = cloneModel(base);
    train(trained, shape, random, true);
    const checkpoint = permute(trained, shape, random);
    const { out } = await run({ shape, base, trained, checkpoint });
    const { model: applied, index } = await apply(base, out);
    // Channels of equal gates may be exchanged; the network is the same: gate, up and down agree as sets of triples.
    const channels = (model: TestModel, layer: number): string[] =>
      Array.from({ length: shape.ffn }, (_, i) => {
        const row = (module: string): string =>
          [...matrix(model, name(layer, module)).data.slice(i * shape.hidden, (i + 1) * shape.hidden)]
            .map((x) => bf16ToF32(f32ToBf16(x)))
            .join();
        const down = matrix(model, name(layer, 'mlp.down_proj'));
        const column = down.data.filter((_value, at) => at % shape.ffn === i);
        return `${row('mlp.gate_proj')} ${row('mlp.up_proj')} ${column.map((x) => bf16ToF32(f32ToBf16(x))).join()}`;
      }).sort();
    for (let layer = 0; layer < shape.layers; layer += 1) {
      assert.deepEqual(channels(applied, layer), channels(trained, layer), `seed ${seed}, layer ${layer}`);
    }
    assert.ok((index.get(name(0, 'mlp.down_proj')) ?? []).length <= 6);
  }
});

test('a checkpoint that is not permuted keeps its order even where rows are equal', async () => {
  const random = randomNumbers(5);
  const base = randomModel(SHAPE, random);
  matrix(base, name(0, 'mlp.gate_proj')).data.fill(0);
  const trained = cloneModel(base);
  const changed = train(trained, SHAPE, random, true);
  const { out, report } = await run({ shape: SHAPE, base, trained, checkpoint: trained });
  const applied = await apply(base, out);
  assertModel(applied.model, trained, true);
  assert.deepEqual(new Map([...applied.index].sort()), new Map([...changed].sort()));
  assert.ok(report.layers.every(({ permuted }) => !permuted.heads && !permuted.ffn));
  const lines = describeImport(report);
  assert.match(lines[0] ?? '', /^layer {2}v rows +o columns +up rows +down columns +order$/);
  assert.ok(lines.includes('Residual elsewhere: max|Δ| = 0.'));
  assert.ok(lines.includes('Exact: base + difference gives every weight of the checkpoint bit for bit.'));
});

test('the value type: bf16 where it loses nothing, float32 else or when asked, rounded and counted when bf16 is asked', async () => {
  const random = randomNumbers(9);
  const base = randomModel(SHAPE, random);
  const trained = cloneModel(base);
  const up = matrix(trained, name(0, 'mlp.up_proj'));
  up.data[0] = (up.data[0] as number) + 0.5 + 2 ** -10;
  const both = { shape: SHAPE, base, trained, checkpoint: trained };
  const dtypeOf = async (directory: string): Promise<string> => {
    const bytes = await readFile(path.join(directory, 'adapter_model.safetensors'));
    return /"(F32|BF16)"/.exec(bytes.toString('latin1'))?.[1] ?? '';
  };
  const auto = await run(both, { base: 'F32', checkpoint: 'F32' });
  assert.deepEqual([await dtypeOf(auto.out), auto.report.inexact], ['F32', 0]);
  const rounded = await run(both, { base: 'F32', checkpoint: 'F32', dtype: 'bf16' });
  assert.deepEqual([await dtypeOf(rounded.out), rounded.report.inexact], ['BF16', 1]);
  assert.match(describeImport(rounded.report).join('\n'), /Rounded: 1 weights are off by up to 9\.8e-4\./);
  up.data[0] = (matrix(base, name(0, 'mlp.up_proj')).data[0] as number) + 0.5;
  const narrow = await run(both, { base: 'F32', checkpoint: 'F32' });
  assert.deepEqual([await dtypeOf(narrow.out), narrow.report.inexact], ['BF16', 0]);
  const wide = await run(both, { base: 'F32', checkpoint: 'F32', dtype: 'f32' });
  assert.deepEqual([await dtypeOf(wide.out), wide.report.inexact], ['F32', 0]);
});

test('a float32 base of a bf16 training is taken as rounded, and the report says so', async () => {
  const random = randomNumbers(11);
  const base = randomModel(SHAPE, random);
  for (const { data } of base.values()) for (let i = 0; i < data.length; i += 1) data[i] = (data[i] as number) * 1.0001;
  const trained = cloneModel(base);
  for (const { data } of trained.values())
    for (let i = 0; i < data.length; i += 1) data[i] = bf16ToF32(f32ToBf16(data[i] as number));
  const rounded = cloneModel(trained);
  train(trained, SHAPE, random, true);
  const checkpoint = permute(trained, SHAPE, random);
  const { out, report } = await run({ shape: SHAPE, base, trained, checkpoint }, { base: 'F32' });
  assert.match(report.notes.join(), /The base is f32, the fine-tune bf16: .*serve it with --dtype bf16/);
  assertModel((await apply(rounded, out)).model, trained, true);
});

test('what S2FT does not train is named, and extract proposed', async () => {
  const random = randomNumbers(3);
  const base = randomModel(SHAPE, random);
  const refusal = async (edit: (model: TestModel) => void, shape = SHAPE): Promise<string> => {
    const trained = cloneModel(base);
    train(trained, SHAPE, randomNumbers(4), true);
    edit(trained);
    const checkpoint = permute(trained, SHAPE, random);
    return run({ shape, base, trained, checkpoint }).then(
      () => assert.fail('should have been refused'),
      (error: unknown) => String(error),
    );
  };
  const nudge = (model: TestModel, key: string): void => {
    const { data } = matrix(model, key);
    data[0] = (data[0] as number) + 1;
  };
  const cases = {
    'model.embed_tokens': /model\.embed_tokens\.weight \(1 values, max\|Δ\| 1\.0e\+0\)/,
    'model.norm': /model\.norm\.weight \(1 values/,
    'model.layers.1.input_layernorm': /model\.layers\.1\.input_layernorm\.weight \(1 values/,
    'model.layers.2.mlp.gate_proj': /model\.layers\.2\.mlp\.gate_proj \(1 of 10 rows are no rows of the base\)/,
    'model.layers.0.self_attn.q_proj':
      /layers\.0\.self_attn\.q_proj and .*k_proj \(1 of 4 KV heads are none of the base\)/,
    'model.layers.0.self_attn.k_proj': /k_proj \(1 of 4 KV heads are none of the base\)/,
  };
  for (const [key, message] of Object.entries(cases)) {
    const text = await refusal((model) => nudge(model, key));
    assert.match(text, message);
    assert.match(
      text,
      /is no S2FT checkpoint of this base.*run manyfold adapters extract --base .* --finetuned .* --out /,
    );
  }
  const all = await refusal((model) => [...model.keys()].forEach((key) => nudge(model, key)));
  assert.match(all, / and \d+ more; S2FT trains/);
  const nan = await refusal((model) => matrix(model, name(0, 'mlp.up_proj')).data.fill(NaN));
  assert.match(nan, /NaN or infinity/);
});

test('the same weights, another model, a GGUF file and a full folder are refused', async () => {
  const random = randomNumbers(21);
  const base = randomModel(SHAPE, random);
  await assert.rejects(run({ shape: SHAPE, base, trained: base, checkpoint: permute(base, SHAPE, random) }), {
    code: 'invalid_model',
    message: /holds the same weights as the base/,
  });
  const other = { ...SHAPE, ffn: 6 };
  const [ours, theirs] = [
    await writeModel(folder(), SHAPE, base),
    await writeModel(folder(), other, randomModel(other, random)),
  ];
  await assert.rejects(importS2ft({ base: ours, checkpoint: theirs, out: folder(), dtype: 'auto' }), {
    code: 'invalid_model',
    message: /another model than the base: ffnSize is 6, expected 10\. Give the base/,
  });
  const gguf = 'test/goldens/models/llama-gqa/gguf/F16.gguf';
  await assert.rejects(importS2ft({ base: gguf, checkpoint: theirs, out: folder(), dtype: 'auto' }), {
    message: /is no Hugging Face folder .*A GGUF file cannot take its place.*Give the folder/,
  });
  await writeFile(path.join(theirs, 'x'), '');
  await assert.rejects(importS2ft({ base: ours, checkpoint: ours, out: theirs, dtype: 'auto' }), {
    code: 'invalid_config',
    message: /holds files, expected a folder that is empty/,
  });
});
