/** The converters of pickles: real files of torch.save, the same entries from both index orders, and what is refused. */
import assert from 'node:assert/strict';
import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, test } from 'node:test';

import { openSafetensors, ADAPTER_LIMITS } from '../../checkpoint/safetensors.js';
import { dict, int, list, pickle, tensor, text, tuple } from '../../checkpoint/testing/pickle-writer.js';
import type { Piece } from '../../checkpoint/testing/pickle-writer.js';
import { zipBytes } from '../../checkpoint/testing/zip.js';
import { f32, i32, ImporterBench, refusalOf } from '../testing/importer-bench.js';
import { convertComposableSft } from './composable-sft.js';
import { convertAdapterHub, convertPeftPickle } from './peft-pickle.js';

const GOLDENS = path.join(process.cwd(), 'test', 'goldens', 'kinds');
const bench = new ImporterBench();
after(() => bench.close());

const bytesOf = (tensor_: { data: NodeJS.ArrayBufferView }): Buffer =>
  Buffer.from(tensor_.data.buffer, tensor_.data.byteOffset, tensor_.data.byteLength);

/** Every tensor of a folder: type, shape, values. */
async function contents(folder: string): Promise<Map<string, unknown>> {
  const file = await openSafetensors(path.join(folder, 'adapter_model.safetensors'), ADAPTER_LIMITS);
  const found = new Map<string, unknown>();
  for (const { name, dtype, shape } of file.tensors.values()) {
    found.set(name, { dtype, shape, bytes: Buffer.from(await file.read(name)).toString('hex') });
  }
  await file.close();
  return new Map([...found].sort());
}

/** {values: [...], indices: [...]} by module, in ascending order of the index. */
async function sortedEntries(folder: string): Promise<Map<string, unknown>> {
  const file = await openSafetensors(path.join(folder, 'adapter_model.safetensors'), ADAPTER_LIMITS);
  const found = new Map<string, unknown>();
  for (const name of file.tensors.keys()) {
    if (name.endsWith('.indices')) continue;
    const values = new Float32Array((await file.read(name)).buffer);
    const list_ = file.tensors.has(name.replace(/values$/, 'indices')) && name.endsWith('.values');
    const indices = list_ ? new Int32Array((await file.read(name.replace(/values$/, 'indices'))).buffer) : undefined;
    const pairs = [...values].map((value, i) => [indices?.[i] ?? i, value] as const);
    found.set(
      name,
      [...pairs].sort(([a], [b]) => a - b),
    );
  }
  await file.close();
  return new Map([...found].sort());
}

for (const model of ['llama-gqa', 'gemma3', 'llama3-bias']) {
  test(`composable-sft of ${model}: the entries that its own code has`, async () => {
    const folder = path.join(GOLDENS, model, 'composable-sft');
    const out = await bench.folder();
    await convertComposableSft(path.join(folder, 'pytorch_diff.bin'), out);
    assert.deepEqual(await sortedEntries(out), await sortedEntries(folder));
  });
}

test('adapter_model.bin: the same tensors and config, from the folder or the file', async () => {
  const golden = path.join(GOLDENS, 'llama-gqa', 'sft');
  const source = await bench.folder();
  await mkdir(source);
  for (const name of ['adapter_model.bin', 'adapter_config.json']) {
    await copyFile(path.join(golden, name), path.join(source, name));
  }
  const message = await refusalOf(() => bench.compileFolder(source));
  assert.match(message, /manyfold adapters convert pickle .* --out DIR/);
  for (const from of [source, path.join(source, 'adapter_model.bin')]) {
    const out = await bench.folder();
    const { tensors } = await convertPeftPickle(from, out);
    const converted = await contents(out);
    assert.equal(converted.size, tensors);
    assert.deepEqual(converted, await contents(golden));
  }
});

const VALUES = new Uint8Array(Float32Array.from([10, 20, 30]).buffer);
const STORED = { kind: 'FloatStorage', key: '0', elements: 3 };

async function diffFile(root: Piece): Promise<string> {
  const file = await bench.folder();
  await writeFile(
    file,
    zipBytes([
      { name: 'a/data.pkl', data: pickle(root) },
      { name: 'a/data/0', data: VALUES },
    ]),
  );
  return file;
}

const Q = 'model.layers.0.self_attn.q_proj';
const diffs = (size: number[], steps: number[], more: Record<string, Piece> = {}): Piece =>
  dict({
    diffs: dict({
      [`${Q}.weight`]: dict({
        size: tuple(...size.map(int)),
        index_steps: list(...steps.map(int)),
        values: tensor(STORED, 0, [3], [1]),
        ...more,
      }),
    }),
    abs: dict({}),
  });

test('column-major steps and a row-major list of the same difference give the same terms', async () => {
  // Entries (2, 0), (1, 1) and (7, 7) of [8, 8]: column-major 2, 9, 63; row-major 16, 9, 63.
  const out = await bench.folder();
  await convertComposableSft(await diffFile(diffs([8, 8], [2, 7, 54])), out);
  const converted = await bench.compileFolder(out);
  const listed = await bench.compile(
    { peft_type: 'SFT' },
    {
      [`base_model.model.${Q}.sft_delta.values`]: f32([3], [30, 10, 20]),
      [`base_model.model.${Q}.sft_delta.indices`]: i32([3], [63, 16, 9]),
    },
  );
  assert.deepEqual(converted.terms, listed.terms);
  assert.equal(converted.terms.terms.length, 1);
});

test('steps whose sum passes 2³¹ are summed in whole numbers, and the indices are int64', async () => {
  const out = await bench.folder();
  // Column-major: 65536 · 30517 + 37888, and with 600000000 more 65536 · 39672 + 45056; the last is the last entry.
  await convertComposableSft(await diffFile(diffs([65_536, 40_000], [2_000_000_000, 600_000_000, 21_439_999])), out);
  const file = await openSafetensors(path.join(out, 'adapter_model.safetensors'), ADAPTER_LIMITS);
  const name = `base_model.model.${Q}.sft_delta.indices`;
  assert.equal(file.tensors.get(name)?.dtype, 'I64');
  const found = new BigInt64Array((await file.read(name)).buffer);
  await file.close();
  const wanted = [2_000_000_000, 2_600_000_000, 2_621_439_999].map(
    (at) => (at % 65_536) * 40_000 + Math.floor(at / 65_536),
  );
  assert.deepEqual([...found].map(Number), wanted);
  assert.equal(wanted[2], 65_536 * 40_000 - 1);
});

test('composable-sft files that do not fit together are refused, and nothing is written', async () => {
  const refused = async (root: Piece): Promise<string> => {
    const file = await diffFile(root);
    const out = await bench.folder();
    const message = await refusalOf(() => convertComposableSft(file, out));
    await assert.rejects(openSafetensors(path.join(out, 'adapter_model.safetensors'), ADAPTER_LIMITS));
    return message;
  };
  assert.match(await refused(diffs([8, 8], [2, 7, 55])), /index 64 is outside of \[8, 8\]/);
  assert.match(await refused(diffs([8, 8], [2, 0, 5])), /step 1 is 0, expected a whole number above 0/);
  assert.match(await refused(diffs([8, 8], [2, -1, 5])), /step 1 is -1/);
  assert.match(await refused(diffs([8, 8], [2, 7])), /2 steps for values of shape \[3\]/);
  assert.match(await refused(diffs([2, 2, 2], [1, 1, 1])), /no vector and no matrix/);
  assert.match(await refused(diffs([8, 8], [2, 7, 54], { more: int(1) })), /no {size, index_steps, values}/);
  assert.match(await refused(dict({ body: dict({}) })), /a dictionary with "body"/);
  assert.match(await refused(dict({ diffs: dict({}), abs: dict({}) })), /without a single tensor/);
  assert.match(await refused(list()), /no dictionary/);
  assert.match(await refused(dict({ abs: dict({ 'a.weight': text('x') }) })), /abs of "a.weight" is no tensor/);
  const strange = dict({ abs: dict({ 'a.gamma': tensor(STORED, 0, [3], [1]) }) });
  assert.match(await refused(strange), /neither a weight nor a bias/);
});

test('a converter writes into an empty folder only, and wants the config beside a pickle', async () => {
  const file = await diffFile(dict({ 'a.b': tensor(STORED, 0, [3], [1]) }));
  const full = await bench.folder();
  await mkdir(full);
  await writeFile(path.join(full, 'x'), '');
  await assert.rejects(convertComposableSft(file, full), /holds files/);
  const source = await bench.folder();
  await mkdir(source);
  await copyFile(file, path.join(source, 'adapter_model.bin'));
  const missing = await refusalOf(async () => convertPeftPickle(source, await bench.folder()));
  assert.match(missing, /holds no adapter_config.json/);
  assert.match(await refusalOf(() => convertPeftPickle(path.join(source, 'none'), full)), /does not exist/);
});

test('AdapterHub: adapter.safetensors or pytorch_adapter.bin; a head beside them is not left out in silence', async () => {
  const golden = path.join(GOLDENS, 'llama-gqa', 'adapterhub-norm');
  const source = await bench.folder();
  await mkdir(source);
  await copyFile(path.join(golden, 'adapter_config.json'), path.join(source, 'adapter_config.json'));
  await copyFile(
    await diffFile(dict({ 'a.b': tensor(STORED, 0, [3], [1]) })),
    path.join(source, 'pytorch_adapter.bin'),
  );
  const fromPickle = await bench.folder();
  await convertAdapterHub(source, fromPickle);
  assert.deepEqual(
    [...(await contents(fromPickle)).values()],
    [{ dtype: 'F32', shape: [3], bytes: bytesOf(f32([3], [10, 20, 30])).toString('hex') }],
  );
  await copyFile(path.join(golden, 'adapter_model.safetensors'), path.join(source, 'adapter.safetensors'));
  const out = await bench.folder();
  await convertAdapterHub(source, out);
  assert.deepEqual(await contents(out), await contents(golden));
  await writeFile(path.join(source, 'model_head.safetensors'), '');
  const message = await refusalOf(async () => convertAdapterHub(source, await bench.folder()));
  assert.match(message, /model_head.safetensors, a head that belongs to the adapter/);
});
