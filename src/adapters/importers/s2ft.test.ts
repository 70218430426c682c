import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { safetensorsFile } from '../../checkpoint/testing/container-bytes.js';
import type { TestTensor } from '../../checkpoint/testing/container-bytes.js';
import { ManyfoldError } from '../../core/errors.js';
import type { RowColTerm } from '../../core/terms.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../adapter-folder.js';
import { compileAdapter } from '../compile-adapter.js';
import type { CompiledAdapter } from '../importer.js';
import { dense, UNREAD_BASE } from '../testing/base.js';
import { TINY_MODEL } from '../testing/peft-folder.js';
import { adapterVersion } from '../version.js';

let root = '';
let folders = 0;
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-s2ft-'));
});
after(() => rm(root, { recursive: true, force: true }));

const CONFIG = { peft_type: 'S2FT', s2ft_version: 1, base_model_name_or_path: 'tiny', task_type: 'CAUSAL_LM' };
const DOWN = 'model.layers.0.mlp.down_proj';
const UP = 'model.layers.1.mlp.up_proj';

const index = (name: string, values: readonly number[]): TestTensor => ({
  name: `${name}.index`,
  dtype: 'I32',
  shape: [values.length],
  data: new Uint8Array(Int32Array.from(values).buffer),
});
const floats = (name: string, shape: readonly number[], values?: readonly number[]): TestTensor => {
  const count = shape.reduce((product, dim) => product * dim, 1);
  const data = Float32Array.from({ length: count }, (_, i) => values?.[i] ?? i + 1);
  return { name: `${name}.values`, dtype: 'F32', shape, data: new Uint8Array(data.buffer) };
};
/** A right module: columns 1 and 5 of the down projection. */
const COLUMNS = [index(`${DOWN}.s2ft_columns`, [1, 5]), floats(`${DOWN}.s2ft_columns`, [8, 2])];

async function compile(
  tensors: readonly TestTensor[],
  config: Readonly<Record<string, unknown>> = {},
): Promise<CompiledAdapter> {
  const directory = path.join(root, `a${(folders += 1)}`);
  await mkdir(directory);
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify({ ...CONFIG, ...config }));
  await writeFile(path.join(directory, 'adapter_model.safetensors'), safetensorsFile(tensors));
  const limits = DEFAULT_ADAPTER_LIMITS;
  const folder = await openAdapterFolder(directory, { limits, keepTensors: false });
  const version = await adapterVersion(folder, 'base').finally(() => folder.close());
  return compileAdapter(
    { version, directory },
    { model: TINY_MODEL, base: UNREAD_BASE, baseFingerprint: 'base', limits },
  );
}

async function refusal(tensors: readonly TestTensor[], config?: Readonly<Record<string, unknown>>): Promise<string> {
  try {
    await compile(tensors, config);
  } catch (error) {
    assert.ok(error instanceof ManyfoldError && error.code === 'invalid_adapter', String(error));
    assert.match(error.message, /\. .+\.$/, `no mend: ${error.message}`);
    return error.message;
  }
  return assert.fail('should have been refused');
}

const rowcol = ({ terms }: CompiledAdapter): RowColTerm[] =>
  terms.terms.map((term) => (term.kind === 'rowcol' ? term : assert.fail(term.kind)));

test('columns become GATHER_IN, rows SCATTER_OUT, in the type of the file', async () => {
  const half: TestTensor = {
    name: `${UP}.s2ft_rows.values`,
    dtype: 'BF16',
    shape: [1, 8],
    data: new Uint8Array(16).fill(0x3f),
  };
  const compiled = await compile([...COLUMNS, index(`${UP}.s2ft_rows`, [11]), half]);
  const [down, up] = rowcol(compiled);
  assert.deepEqual(
    [down?.site, down?.side, [...(down?.index ?? [])], down?.scale],
    [{ layer: 0, site: 'down' }, 'in', [1, 5], 1],
  );
  assert.deepEqual([dense(down?.values).dtype, dense(down?.values).shape], ['f32', [8, 2]]);
  assert.deepEqual([...dense(down?.values).data].slice(0, 3), [1, 2, 3]);
  assert.deepEqual([up?.site, up?.side, [...(up?.index ?? [])]], [{ layer: 1, site: 'up' }, 'out', [11]]);
  assert.deepEqual(
    [dense(up?.values).dtype, dense(up?.values).shape, dense(up?.values).data[0]],
    ['bf16', [1, 8], 0x3f3f],
  );
  assert.deepEqual(compiled.notes, []);
});

test('rows and columns fit every linear of a layer, all channels too; zeros are noted', async () => {
  const linears = { q_proj: [8, 8], k_proj: [4, 8], v_proj: [4, 8], o_proj: [8, 8] } as const;
  for (const [name, [out, width]] of Object.entries(linears)) {
    const module = `model.layers.0.self_attn.${name}`;
    const all = Array.from({ length: width }, (_, i) => i);
    const [columns] = rowcol(
      await compile([index(`${module}.s2ft_columns`, all), floats(`${module}.s2ft_columns`, [out, width])]),
    );
    assert.deepEqual(columns?.index.length, width);
    const zeros = floats(`${module}.s2ft_rows`, [1, width], new Array<number>(width).fill(0));
    const compiled = await compile([index(`${module}.s2ft_rows`, [out - 1]), zeros]);
    assert.deepEqual(rowcol(compiled)[0]?.side, 'out');
    assert.match(compiled.notes.join(), /all zero in 1 of 1 modules/);
  }
});

test('indices: each number once, ascending, below the width, as I32', async () => {
  const values = floats(`${DOWN}.s2ft_columns`, [8, 2]);
  const with_ = (numbers: readonly number[]): Promise<string> =>
    refusal([index(`${DOWN}.s2ft_columns`, numbers), values]);
  assert.match(await with_([5, 5]), /down_proj\.s2ft_columns\.index" holds 5 twice, expected each number once\. Sort/);
  assert.match(await with_([5, 1]), /index" holds 1 after 5, expected ascending numbers\. Sort/);
  assert.match(
    await with_([1, 12]),
    /index" holds 12, expected numbers from 0 to 11\. The adapter was made for another base/,
  );
  assert.match(await with_([-1, 3]), /index" holds -1, expected numbers from 0 to 11/);
  const wide = Array.from({ length: 13 }, (_, i) => i);
  assert.match(
    await refusal([index(`${DOWN}.s2ft_columns`, wide), floats(`${DOWN}.s2ft_columns`, [8, 13])]),
    /index" holds 13 numbers, expected numbers from 0 to 11/,
  );
  const long: TestTensor = { name: `${DOWN}.s2ft_columns.index`, dtype: 'I64', shape: [2] };
  assert.match(await refusal([long, values]), /index" is I64, expected I32\. Save it as int32/);
});

test('shapes: one row or column for each number, of the base’s other dimension', async () => {
  const columns = index(`${DOWN}.s2ft_columns`, [1, 5]);
  for (const shape of [[2, 8], [8, 3], [8], [12, 2]]) {
    assert.match(
      await refusal([columns, floats(`${DOWN}.s2ft_columns`, shape)]),
      /values" has shape \[.*\], expected \[8, 2\], one column for each number of its index/,
    );
  }
  const rows = index(`${UP}.s2ft_rows`, [0]);
  assert.match(await refusal([rows, floats(`${UP}.s2ft_rows`, [8, 1])]), /expected \[1, 8\], one row for each number/);
  const empty = [index(`${UP}.s2ft_rows`, []), floats(`${UP}.s2ft_rows`, [0, 8])];
  assert.match(await refusal(empty), /index" has shape \[0\], expected \[k\] with k of 1 to 12/);
});

test('strange, missing and doubled tensors', async () => {
  assert.match(await refusal([]), /it holds no tensors/);
  const stray: TestTensor = { name: `${DOWN}.weight`, dtype: 'F32', shape: [1] };
  assert.match(
    await refusal([...COLUMNS, stray]),
    /"model\.layers\.0\.mlp\.down_proj\.weight" is no tensor of an S2FT adapter/,
  );
  assert.match(await refusal(COLUMNS.slice(0, 1)), /down_proj" has no s2ft_columns\.values\. The file is incomplete/);
  assert.match(await refusal(COLUMNS.slice(1)), /down_proj" has no s2ft_columns\.index/);
  const both = [...COLUMNS, index(`${DOWN}.s2ft_rows`, [0]), floats(`${DOWN}.s2ft_rows`, [1, 12])];
  assert.match(await refusal(both), /s2ft_columns\.values" and ".*s2ft_rows\.values" adapt the same linear/);
  const alias = COLUMNS.map((tensor) => ({ ...tensor, name: tensor.name.replace(/^model\./, '') }));
  assert.match(await refusal([...COLUMNS, ...alias]), /adapt the same linear\. A linear has either rows or columns/);
});

test('modules that the base has not, or that the format does not adapt', async () => {
  const modules = [
    'model.layers.2.mlp.down_proj',
    'base_model.model.model.layers.0.mlp.down_proj',
    'model.layers.0.mlp.gate_up_proj',
    'model.embed_tokens',
    'lm_head',
    'model.layers.0.input_layernorm',
  ];
  for (const module of modules) {
    const name = `${module}.s2ft_rows`;
    const message = await refusal([index(name, [0]), floats(name, [1, 8])]);
    assert.ok(
      message.includes(`it adapts "${module}", which is no linear of the base's layers (llama, 2 layers)`),
      message,
    );
  }
});

test('values that are not finite, not floats, and configs of another version', async () => {
  const name = `${UP}.s2ft_rows`;
  const nan = floats(name, [1, 8], [1, NaN]);
  assert.match(await refusal([index(name, [0]), nan]), /values" holds NaN or infinity/);
  const whole: TestTensor = { name: `${name}.values`, dtype: 'I32', shape: [1, 8] };
  assert.match(await refusal([index(name, [0]), whole]), /values" is I32, expected F32, F16 or BF16/);
  for (const version of [undefined, 2, '1']) {
    assert.match(
      await refusal(COLUMNS, { s2ft_version: version }),
      /s2ft_version is (missing|2|"1"), expected 1\. Write/,
    );
  }
  assert.match(await refusal(COLUMNS, { scale: 2 }), /"scale" is 2, a field that this server does not know/);
  assert.match(await refusal(COLUMNS, { task_type: 'SEQ_CLS' }), /task_type is "SEQ_CLS"/);
});
