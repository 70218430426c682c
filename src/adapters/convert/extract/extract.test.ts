import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { openWeights } from '../../../checkpoint/read-rows.js';
import { bf16ToF32, f32ToBf16 } from '../../../core/half.js';
import type { SiteRef } from '../../../core/model-config.js';
import type { DenseTensor, Term } from '../../../core/terms.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../../adapter-folder.js';
import { compileAdapter } from '../../compile-adapter.js';
import { toFloats } from '../../tensor-values.js';
import { baseOf } from '../../testing/base.js';
import { cloneModel, randomModel, randomNumbers, writeModel } from '../../testing/model-folder.js';
import type { Matrix, TestModel, TestShape } from '../../testing/model-folder.js';
import { adapterVersion } from '../../version.js';
import { modulePath } from '../model-pair.js';
import { describeExtract, extractAdapter, kindFor } from './extract.js';
import type { ExtractReport } from './extract.js';

let root = '';
let folders = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-extract-'));
});
after(() => rm(root, { recursive: true, force: true }));
const folder = (): string => path.join(root, `f${(folders += 1)}`);

const SHAPE: TestShape = { layers: 2, hidden: 24, heads: 4, kvHeads: 2, headDim: 4, ffn: 20, vocab: 30 };
const DOWN = 'model.layers.1.mlp.down_proj';
const Q = 'model.layers.0.self_attn.q_proj';
const EMBEDDING = 'model.embed_tokens';
const round = (value: number): number => bf16ToF32(f32ToBf16(value));
const matrix = (model: TestModel, key: string): Matrix => model.get(key) ?? assert.fail(key);

function add(model: TestModel, key: string, row: number, col: number, value: number): void {
  const { cols, data } = matrix(model, key);
  data[row * cols + col] = round((data[row * cols + col] as number) + value);
}

interface Extracted {
  readonly report: ExtractReport;
  /** The base with the adapter applied, by module; a tied head that is adapted stands under lm_head. */
  readonly applied: TestModel;
}

/** Extracts, then compiles the folder as the server does and applies its terms. */
async function extract(
  base: TestModel,
  tuned: TestModel,
  types: { dtype?: 'F32' | 'BF16'; rank?: number } = {},
): Promise<Extracted> {
  const dtype = types.dtype ?? 'BF16';
  const paths = { base: await writeModel(folder(), SHAPE, base, dtype), out: folder() };
  const finetuned = await writeModel(folder(), SHAPE, tuned, dtype);
  const report = await extractAdapter({ ...paths, finetuned, rank: types.rank ?? 4 });
  const weights = await openWeights(paths.base);
  await weights.close();
  const model = weights.config;
  const limits = DEFAULT_ADAPTER_LIMITS;
  const opened = await openAdapterFolder(paths.out, { limits, keepTensors: false });
  const version = await adapterVersion(opened, 'base').finally(() => opened.close());
  const moduleOf = (site: SiteRef): string => modulePath(site, model);
  const sites = [-1, 0, 1].flatMap((layer) =>
    (['embedding', 'finalNorm', 'head', 'attnNorm', 'mlpNorm', 'q', 'k', 'v', 'o', 'gate', 'up', 'down'] as const).map(
      (site) => ({ layer, site }),
    ),
  );
  const served = new Map(
    sites.flatMap((site) => {
      const found = base.get(moduleOf(site)) ?? (site.site === 'head' ? base.get(EMBEDDING) : undefined);
      return found === undefined ? [] : [[`${site.layer} ${site.site}`, found] as const];
    }),
  );
  const context = { model, base: baseOf(served), baseFingerprint: 'base', limits };
  const { terms } = await compileAdapter({ version, directory: paths.out }, context);
  const applied = cloneModel(base);
  for (const term of terms.terms) {
    const module = moduleOf(term.site);
    if (!applied.has(module))
      applied.set(module, cloneModel(new Map([['x', matrix(base, EMBEDDING)]])).get('x') ?? assert.fail());
    applyTerm(matrix(applied, module), term);
  }
  return { report, applied };
}

function applyTerm({ cols, data }: Matrix, term: Term): void {
  const put = (row: number, col: number, value: number): void => {
    data[row * cols + col] = Math.fround((data[row * cols + col] as number) + value);
  };
  switch (term.kind) {
    case 'rowcol': {
      const values = toFloats(term.values as DenseTensor);
      const { index, side } = term;
      index.forEach((channel, k) => {
        const count = values.length / index.length;
        for (let i = 0; i < count; i += 1) {
          if (side === 'out') put(channel, i, values[k * count + i] as number);
          else put(i, channel, values[i * index.length + k] as number);
        }
      });
      return;
    }
    case 'sparse': {
      const values = toFloats(term.values as DenseTensor);
      for (let row = 0; row + 1 < term.rowStart.length; row += 1) {
        for (let i = term.rowStart[row] as number; i < (term.rowStart[row + 1] as number); i += 1) {
          put(row, term.columns[i] as number, values[i] as number);
        }
      }
      return;
    }
    case 'override': {
      const values = toFloats(term.values);
      (term.rows ?? Uint32Array.of(0)).forEach((row, k) =>
        data.set(values.subarray(k * cols, (k + 1) * cols), row * cols),
      );
      return;
    }
    case 'lowrank': {
      const [a, b] = [toFloats(term.a as DenseTensor), toFloats(term.b as DenseTensor)];
      const rank = term.a.shape[0] ?? 0;
      const embedding = term.site.site === 'embedding';
      data.forEach((value, at) => {
        const [row, col] = [Math.floor(at / cols), at % cols];
        let sum = 0;
        for (let k = 0; k < rank; k += 1) {
          // An embedding's A is [r, vocab] and its B [hidden, r].
          sum += embedding
            ? (a[k * (data.length / cols) + row] as number) * (b[col * rank + k] as number)
            : (b[row * rank + k] as number) * (a[k * cols + col] as number);
        }
        data[at] = value + term.scale * sum;
      });
      return;
    }
    default:
      assert.fail(`no ${term.kind} was expected`);
  }
}

function assertEqual(applied: TestModel, tuned: TestModel): void {
  for (const [key, { data }] of tuned) assert.deepEqual(matrix(applied, key).data.map(round), data, key);
}

const random = randomNumbers(77);
const base = randomModel(SHAPE, random);

test('whole columns and rows become S2FT, bit for bit', async () => {
  const tuned = cloneModel(base);
  for (let row = 0; row < 24; row += 1) for (const col of [3, 11]) add(tuned, DOWN, row, col, 0.25 + row / 64);
  for (let col = 0; col < 24; col += 1) add(tuned, Q, 5, col, 0.5);
  const { report, applied } = await extract(base, tuned);
  assertEqual(applied, tuned);
  assert.deepEqual(
    [report.kind, report.inexact, report.held.map(({ as }) => as)],
    ['S2FT', 0, ['1 rows', '2 columns']],
  );
  const lines = describeExtract(report);
  assert.match(lines[0] ?? '', /^tensor +values +rows +columns +max\|Δ\| +kept as +error +max error$/);
  assert.match(lines[2] ?? '', /^model\.layers\.1\.mlp\.down_proj\.weight +10\.0 % +24\/24 +2\/20 .* 2 columns +0 +0$/);
  assert.match(lines.join('\n'), /S2FT, \d+ bytes of tensors\. Exact: base \+ difference gives every weight/);
});

test('single values, embedding rows, norms and a tied head become SFT, bit for bit', async () => {
  const tuned = cloneModel(base);
  add(tuned, DOWN, 2, 7, 0.5);
  add(tuned, Q, 9, 0, -0.75);
  add(tuned, EMBEDDING, 29, 4, 1.5);
  add(tuned, 'model.norm', 0, 3, 0.125);
  add(tuned, 'model.layers.1.input_layernorm', 0, 0, 2);
  const { report, applied } = await extract(base, tuned);
  assertEqual(applied, tuned);
  assert.deepEqual(matrix(applied, 'lm_head').data, matrix(applied, EMBEDDING).data);
  assert.equal(report.kind, 'SFT');
  assert.deepEqual(
    report.held.map(({ name, as }) => [name, as]),
    [
      ['model.embed_tokens.weight', '1 values'],
      ['model.layers.0.self_attn.q_proj.weight', '1 values'],
      ['model.layers.1.input_layernorm.weight', 'a whole vector'],
      ['model.layers.1.mlp.down_proj.weight', '1 values'],
      ['model.norm.weight', 'a whole vector'],
    ],
  );
});

test('a head of its own that differs from its embedding', async () => {
  const untied = new Map([...base, ['lm_head', matrix(cloneModel(base), EMBEDDING)]] as const);
  const tuned = cloneModel(untied);
  add(tuned, 'lm_head', 6, 2, 0.5);
  const { report, applied } = await extract(untied, tuned);
  assertEqual(applied, tuned);
  assert.equal(report.kind, 'SFT');
});

test('a merged LoRA becomes a LoRA of its rank again, ragged ranks and embedding too', async () => {
  const tuned = cloneModel(base);
  const merge = (key: string, rank: number): void => {
    const { rows, cols, data } = matrix(tuned, key);
    const [b, a] = [rows * rank, rank * cols].map((count) =>
      Float64Array.from({ length: count }, () => random() - 0.5),
    );
    data.forEach((value, at) => {
      let sum = 0;
      for (let k = 0; k < rank; k += 1)
        sum += (b?.[Math.floor(at / cols) * rank + k] ?? NaN) * (a?.[k * cols + (at % cols)] ?? NaN);
      data[at] = value + sum;
    });
  };
  merge(DOWN, 3);
  merge(Q, 4);
  merge(EMBEDDING, 2);
  const { report, applied } = await extract(base, tuned, { dtype: 'F32' });
  assert.equal(report.kind, 'LORA');
  assert.match(report.held.map(({ as }) => as).join(), /^rank [23],rank 4,rank [34]$/);
  for (const [key, { data }] of tuned) {
    const worst = matrix(applied, key).data.reduce(
      (most, value, i) => Math.max(most, Math.abs(value - (data[i] as number))),
      0,
    );
    assert.ok(worst < 1e-5, `${key}: ${worst}`);
  }
  assert.deepEqual(matrix(applied, 'lm_head').data.length, matrix(applied, EMBEDDING).data.length);
  assert.match(describeExtract(report).join('\n'), /LORA, \d+ bytes of tensors\. Exact up to rounding/);
});

test('a dense fine-tune becomes the best LoRA, norms as they are, and the error is the one that the applied adapter has', async () => {
  const tuned = cloneModel(base);
  for (const { data } of tuned.values()) data.forEach((value, i) => (data[i] = value + 0.1 * (random() - 0.5)));
  const { report, applied } = await extract(base, tuned, { dtype: 'F32', rank: 6 });
  assert.equal(report.kind, 'LORA');
  for (const { name, as, relativeError, largestError } of report.held) {
    const key = name.replace(/\.weight$/, '');
    const [ours, theirs, old] = [applied, tuned, base].map((model) => matrix(model, key).data);
    let [rest, total, worst] = [0, 0, 0];
    theirs?.forEach((value, i) => {
      const off = value - (ours?.[i] ?? NaN);
      rest += off ** 2;
      total += (value - (old?.[i] ?? NaN)) ** 2;
      worst = Math.max(worst, Math.abs(off));
    });
    assert.ok(Math.abs(Math.sqrt(rest / total) - relativeError) < 1e-3, `${name} ${as}`);
    assert.ok(Math.abs(worst - largestError) < 1e-5, name);
    assert.ok(as === 'a whole vector' ? relativeError === 0 : relativeError > 0.2 && relativeError < 1, name);
  }
  assert.match(describeExtract(report).join('\n'), /An approximation: .* Raise --rank, or serve the fine-tune itself/);
});

test('the folder names the base, and one difference gives one file', async () => {
  const tuned = cloneModel(base);
  add(tuned, Q, 9, 0, -0.75);
  const paths = { base: await writeModel(folder(), SHAPE, base), finetuned: await writeModel(folder(), SHAPE, tuned) };
  const outs = [folder(), folder()];
  for (const out of outs) await extractAdapter({ ...paths, out, rank: 4 });
  const read = (out: string | undefined, file: string): Promise<string> =>
    readFile(path.join(out ?? '', file), 'latin1');
  for (const file of ['adapter_config.json', 'adapter_model.safetensors']) {
    assert.equal(await read(outs[0], file), await read(outs[1], file));
  }
  assert.equal(
    (JSON.parse(await read(outs[0], 'adapter_config.json')) as Record<string, unknown>)['base_model_name_or_path'],
    path.basename(paths.base),
  );
});

test('which kind is the cheapest', () => {
  const change = (site: SiteRef['site'], differing: number, changedRows: number, changedCols: number) =>
    ({
      ref: { layer: 0, site },
      part: 'weight',
      scan: { rows: 100, cols: 100, differing, changedRows, changedCols, largest: 1 },
    }) as const;
  assert.equal(kindFor([change('down', 500, 100, 5)]), 'S2FT');
  assert.equal(kindFor([change('down', 100, 100, 80)]), 'SFT');
  assert.equal(kindFor([change('down', 10_000, 100, 100)]), 'LORA');
  assert.equal(kindFor([change('down', 500, 100, 5), change('embedding', 100, 1, 100)]), 'SFT');
  assert.equal(kindFor([change('attnNorm', 3, 1, 3)]), 'SFT');
  assert.equal(kindFor([change('up', 4900, 49, 100)]), 'S2FT');
  assert.equal(kindFor([change('up', 6000, 60, 100)]), 'LORA');
});

test('the same weights and infinite ones are refused', async () => {
  await assert.rejects(extract(base, base), { code: 'invalid_model', message: /holds the same weights as the base/ });
  const tuned = cloneModel(base);
  matrix(tuned, DOWN).data[3] = Infinity;
  await assert.rejects(extract(base, tuned), { code: 'invalid_model', message: /NaN or infinity/ });
});
