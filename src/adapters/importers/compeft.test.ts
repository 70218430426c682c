import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import { safetensorsFile } from '../../checkpoint/testing/container-bytes.js';
import type { TestTensor } from '../../checkpoint/testing/container-bytes.js';
import { ManyfoldError } from '../../core/errors.js';
import type { LowRankTerm, RowColTerm, SparseTerm, TermTensor } from '../../core/terms.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../adapter-folder.js';
import { encodePayload } from '../compeft/payload.js';
import type { EntryToPack } from '../compeft/payload.js';
import { fromPlanes } from '../compeft/planes.js';
import type { BaseWeights, CompiledAdapter } from '../importer.js';
import { UNREAD_BASE } from '../testing/base.js';
import { TINY_MODEL } from '../testing/peft-folder.js';
import { compeftImporter } from './compeft.js';

let root = '';
let folders = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-compeft-'));
});
after(() => rm(root, { recursive: true, force: true }));

const CONFIG = { peft_type: 'COMPEFT', compeft_version: 1, base_model_name_or_path: 'tiny', task_type: 'CAUSAL_LM' };
const LORA = { source_type: 'LORA', source: { r: 2, lora_alpha: 6 } };
const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const DOWN = 'model.layers.1.mlp.down_proj';

/** Positions, those after the bar negative. */
function entry(
  name: string,
  shape: readonly number[],
  scale: number,
  positive: number[],
  negative: number[] = [],
): EntryToPack {
  const positions = [...positive, ...negative].sort((a, b) => a - b);
  const signs = positions.map((position) => (negative.includes(position) ? 1 : 0));
  return { name, shape, scale, positions: Uint32Array.from(positions), negative: Uint8Array.from(signs) };
}
const index = (name: string, size: number, members: number[]): EntryToPack => ({
  name,
  shape: [size],
  positions: Uint32Array.from(members),
});
const A = entry(`${Q}.lora_A.weight`, [2, 8], 0.5, [0, 9], [15]);
const B = entry(`${Q}.lora_B.weight`, [8, 2], 0.25, [1], [14]);

type Config = Readonly<Record<string, unknown>>;

async function compile(entries: readonly EntryToPack[], config: Config, base = UNREAD_BASE): Promise<CompiledAdapter> {
  const data = encodePayload(entries);
  return compileTensors([{ name: 'compeft', dtype: 'U8', shape: [data.length], data }], config, base);
}

async function compileTensors(
  tensors: readonly TestTensor[],
  config: Config,
  base: BaseWeights,
): Promise<CompiledAdapter> {
  const directory = path.join(root, `a${(folders += 1)}`);
  await mkdir(directory);
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify({ ...CONFIG, ...config }));
  await writeFile(path.join(directory, 'adapter_model.safetensors'), safetensorsFile(tensors));
  const limits = { ...DEFAULT_ADAPTER_LIMITS, maxRank: 4, maxBytes: 8000 };
  const folder = await openAdapterFolder(directory, { limits, keepTensors: false });
  assert.ok(compeftImporter.matches(folder.config, new Set()));
  return compeftImporter.compile(folder, { model: TINY_MODEL, base, limits }).finally(() => folder.close());
}

function ternary(tensor: TermTensor | undefined): {
  shape: readonly number[];
  scale: number;
  plus: number[];
  minus: number[];
} {
  assert.ok(tensor?.dtype === 'ternary');
  const { positions, negative } = fromPlanes(tensor);
  return {
    shape: tensor.shape,
    scale: tensor.scale,
    plus: [...positions].filter((_, i) => negative[i] === 0),
    minus: [...positions].filter((_, i) => negative[i] === 1),
  };
}

describe('terms', () => {
  test('LORA: two ternary factors with their scales, s = alpha / r', async () => {
    const { terms, notes } = await compile([A, B], LORA);
    assert.equal(terms.terms.length, 1);
    const term = terms.terms[0] as LowRankTerm;
    assert.deepEqual([term.kind, term.site, term.scale], ['lowrank', { layer: 0, site: 'q' }, 3]);
    assert.deepEqual(ternary(term.a), { shape: [2, 8], scale: 0.5, plus: [0, 9], minus: [15] });
    assert.deepEqual(ternary(term.b), { shape: [8, 2], scale: 0.25, plus: [1], minus: [14] });
    assert.deepEqual(notes, []);
  });

  test('LORA: rslora and patterns', async () => {
    const source = { r: 8, lora_alpha: 6, use_rslora: true, rank_pattern: { q_proj: 2 }, alpha_pattern: { q_proj: 5 } };
    const { terms } = await compile([A, B], { source_type: 'LORA', source });
    assert.equal((terms.terms[0] as LowRankTerm).scale, 5 / Math.sqrt(2));
  });

  test('LORA: a fused linear is split by the rows of B', async () => {
    const fused = 'model.layers.0.self_attn.qkv_proj';
    const entries = [
      entry(`${fused}.lora_A.weight`, [2, 8], 1, [3]),
      entry(`${fused}.lora_B.weight`, [16, 2], 1, [1, 17], [31]),
    ];
    const { terms } = await compile(entries, LORA);
    const [q, k, v] = terms.terms as LowRankTerm[];
    assert.deepEqual(
      [q, k, v].map((term) => term?.site.site),
      ['q', 'k', 'v'],
    );
    assert.deepEqual(ternary(q?.b), { shape: [8, 2], scale: 1, plus: [1], minus: [] });
    assert.deepEqual(ternary(k?.b), { shape: [4, 2], scale: 1, plus: [1], minus: [] });
    assert.deepEqual(ternary(v?.b), { shape: [4, 2], scale: 1, plus: [], minus: [7] });
  });

  test('a module of which nothing is left is dropped, and a note says so', async () => {
    const { terms, notes } = await compile([A, entry(B.name, [8, 2], 0, [])], LORA);
    assert.deepEqual(terms.terms, []);
    assert.deepEqual(notes, ['The compression left nothing of 1 of 1 modules, which stay as the base.']);
  });

  test('IA3: outputs with their bias, inputs of feed-forward modules', async () => {
    const base: BaseWeights = { ...UNREAD_BASE, bias: () => Float32Array.of(4, 4, 4, 4) };
    const entries = [
      entry('model.layers.0.self_attn.k_proj.ia3_l', [4, 1], 0.5, [0], [2]),
      entry(`${DOWN}.ia3_l`, [1, 12], 0.25, [11]),
    ];
    const { terms } = await compile(entries, { source_type: 'IA3', source: {} }, base);
    const h = new Float32Array(12).fill(1);
    h[11] = 1.25;
    assert.deepEqual(terms.terms, [
      {
        kind: 'diag',
        site: { layer: 0, site: 'k' },
        g: Float32Array.of(1.5, 1, 0.5, 1),
        c: Float32Array.of(2, 0, -2, 0),
      },
      { kind: 'diag', site: { layer: 1, site: 'down' }, h },
    ]);
  });

  test('S2FT: rows and columns with ternary values', async () => {
    const up = 'model.layers.0.mlp.up_proj';
    const entries = [
      index(`${DOWN}.s2ft_columns.index`, 8, [2, 7]),
      entry(`${DOWN}.s2ft_columns.values`, [8, 2], 0.5, [0], [15]),
      index(`${up}.s2ft_rows.index`, 4, [3]),
      entry(`${up}.s2ft_rows.values`, [1, 8], 2, [1]),
    ];
    const { terms } = await compile(entries, { source_type: 'S2FT' });
    const [rows, columns] = terms.terms as RowColTerm[];
    assert.deepEqual([rows?.side, rows?.site.site, rows?.index, rows?.scale], ['out', 'up', Uint32Array.of(3), 1]);
    assert.deepEqual(ternary(rows?.values), { shape: [1, 8], scale: 2, plus: [1], minus: [] });
    assert.deepEqual([columns?.side, columns?.site.site, columns?.index], ['in', 'down', Uint32Array.of(2, 7)]);
    assert.deepEqual(ternary(columns?.values), { shape: [8, 2], scale: 0.5, plus: [0], minus: [15] });
  });

  test('SFT: compressed rows, split at the rows of a fused linear', async () => {
    const entries = [entry('model.layers.0.self_attn.qkv_proj.sft_delta', [128], 0.5, [9, 63, 64], [127])];
    const { terms } = await compile(entries, { source_type: 'SFT' });
    const [q, k, v] = terms.terms as SparseTerm[];
    assert.deepEqual(q?.rowStart, Uint32Array.of(0, 0, 1, 1, 1, 1, 1, 1, 2));
    assert.deepEqual(q?.columns, Uint32Array.of(1, 7));
    assert.deepEqual([k?.rowStart, k?.columns], [Uint32Array.of(0, 1, 1, 1, 1), Uint32Array.of(0)]);
    assert.deepEqual([v?.rowStart, v?.columns], [Uint32Array.of(0, 0, 0, 0, 1), Uint32Array.of(7)]);
    assert.deepEqual(ternary(v?.values), { shape: [1, 1], scale: 0.5, plus: [], minus: [0] });
  });
});

describe('refusals', () => {
  const huge = entry(`${Q}.lora_B.weight`, [8, 2], 3e38, [1]);
  const values = entry(`${DOWN}.s2ft_columns.values`, [8, 2], 1, [0]);
  const cases: readonly (readonly [string, readonly EntryToPack[], Config, RegExp])[] = [
    ['another version', [A, B], { ...LORA, compeft_version: 2 }, /compeft_version is 2, expected 1/],
    [
      'an unknown field',
      [A, B],
      { ...LORA, use_dora: true },
      /"use_dora" is true, a field that this server does not know/,
    ],
    ['an unknown source', [A, B], { source_type: 'OFT' }, /source_type is "OFT", expected one of LORA, IA3, S2FT, SFT/],
    ['a source that is no object', [A, B], { ...LORA, source: [] }, /source is \[\], expected an object/],
    [
      'an unknown field of the source',
      [A, B],
      { ...LORA, source: { ...LORA.source, use_dora: true } },
      /source.use_dora is true/,
    ],
    ['a field of another source', [A], { source_type: 'IA3', source: { r: 2 } }, /source.r is 2, a field that/],
    ['no rank', [A, B], { ...LORA, source: { lora_alpha: 1 } }, /source.r is missing/],
    ['alpha 0', [A, B], { ...LORA, source: { r: 2, lora_alpha: 0 } }, /source.lora_alpha is 0/],
    ['another rank', [A, B], { ...LORA, source: { r: 3, lora_alpha: 1 } }, /source.r is 3 for .*q_proj".*have 2/],
    ['no entries', [], LORA, /packs no tensors/],
    ['a factor alone', [A], LORA, /has no lora_B.weight beside/],
    [
      'a foreign entry',
      [A, B, entry('x.weight', [2, 2], 1, [0])],
      LORA,
      /"x.weight" is none of this method's parameters/,
    ],
    ['an index among factors', [index(A.name, 4, [1]), B], LORA, /has shape \[4\]/],
    [
      'a module that is not there',
      [entry('model.layers.7.mlp.up_proj.sft_delta', [4], 1, [0])],
      { source_type: 'SFT' },
      /no linear of the base/,
    ],
    ['another width', [entry(A.name, [2, 9], 1, [0]), B], LORA, /shape \[2, 9\], expected \[\?, 8\]/],
    [
      'a rank above the limit',
      [entry(A.name, [5, 8], 1, [0]), entry(B.name, [8, 5], 1, [0])],
      LORA,
      /r is 5 .*at most 4/,
    ],
    ['a scale beyond float32', [entry(A.name, [2, 8], 3e38, [0]), huge], LORA, /the scale of .* gives NaN or infinity/],
    ['IA3 of another shape', [entry(`${DOWN}.ia3_l`, [12, 1], 1, [0])], { source_type: 'IA3' }, /expected \[8, 1\]/],
    ['S2FT values alone', [values], { source_type: 'S2FT' }, /has no s2ft_columns.index/],
    [
      'an S2FT channel that is not there',
      [index(`${DOWN}.s2ft_columns.index`, 13, [2, 12]), values],
      { source_type: 'S2FT' },
      /expected some below 12/,
    ],
    [
      'an SFT position that is not there',
      [entry(`${DOWN}.sft_delta`, [97], 1, [96])],
      { source_type: 'SFT' },
      /reaches to value 97.*\[8, 12\]/,
    ],
  ];
  for (const [name, entries, config, message] of cases) {
    test(name, async () => {
      await assert.rejects(
        compile(entries, config),
        (error) => error instanceof ManyfoldError && error.code === 'invalid_adapter' && message.test(error.message),
      );
    });
  }

  test('S2FT with rows and columns of one linear, or of a fused one', async () => {
    const rows = [index(`${DOWN}.s2ft_rows.index`, 1, [0]), entry(`${DOWN}.s2ft_rows.values`, [1, 12], 1, [0])];
    const both = [...rows, index(`${DOWN}.s2ft_columns.index`, 2, [0, 1]), values];
    await assert.rejects(
      compile(both, { source_type: 'S2FT' }),
      /has s2ft_rows and s2ft_columns, expected one of them/,
    );
  });

  test('an adapter that unpacks to more than the limit', async () => {
    const every = Array.from({ length: 96 }, (_, position) => position);
    const modules = [0, 1].flatMap((layer) =>
      ['gate', 'up', 'down'].map((name) => `model.layers.${layer}.mlp.${name}_proj`),
    );
    const entries = [...modules.map((module) => entry(`${module}.sft_delta`, [96], 1, every))];
    assert.equal((await compile(entries, { source_type: 'SFT' })).terms.terms.length, 6);
    const head = Array.from({ length: 160 }, (_, position) => position);
    const more = [...entries, entry('lm_head.sft_delta', [160], 1, head)];
    const attention = ['q', 'k', 'v', 'o'].map((name) => `model.layers.0.self_attn.${name}_proj.sft_delta`);
    more.push(...attention.map((name) => entry(name, [32], 1, every.slice(0, 32))));
    await assert.rejects(compile(more, { source_type: 'SFT' }), /it unpacks to 8640 bytes, at most 8000 are allowed/);
  });

  test('another tensor, or another dtype', async () => {
    const data = new Uint8Array(4);
    const config = { ...LORA };
    await assert.rejects(
      compileTensors([{ name: 'x', dtype: 'U8', shape: [4] }], config, UNREAD_BASE),
      /holds "x" \(U8\), expected one tensor "compeft"/,
    );
    await assert.rejects(
      compileTensors([{ name: 'compeft', dtype: 'F32', shape: [1], data }], config, UNREAD_BASE),
      /"compeft" \(F32\)/,
    );
    await assert.rejects(compileTensors([], config, UNREAD_BASE), /holds nothing, expected/);
  });
});
