import assert from 'node:assert/strict';
import { copyFile, mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';

import { bf16ToF32, f16ToF32 } from '../core/half.js';
import { openWeights } from './read-rows.js';
import { openSafetensors, WEIGHT_LIMITS } from './safetensors.js';

const MODELS = 'test/goldens/models';
const MHA = 'test/goldens/s2ft/mha';
const DOWN = { layer: 1, site: 'down' } as const;

let root = '';
before(async () => {
  root = await mkdtemp(path.join(tmpdir(), 'manyfold-rows-'));
});
after(() => rm(root, { recursive: true, force: true }));

test('rows of bf16, f16 and float32 files are the values that lie there', async () => {
  for (const [name, dtype] of [
    ['llama-gqa', 'bf16'],
    ['mistral-window', 'f16'],
    ['llama-yarn', 'f32'],
  ] as const) {
    const weights = await openWeights(path.join(MODELS, name));
    const file = await openSafetensors(path.join(MODELS, name, 'model.safetensors'), WEIGHT_LIMITS);
    try {
      const down = weights.tensor(DOWN) ?? assert.fail('the model has down projections');
      const { buffer } = await file.read('model.layers.1.mlp.down_proj.weight');
      const all =
        dtype === 'f32'
          ? new Float32Array(buffer)
          : Float32Array.from(new Uint16Array(buffer), dtype === 'bf16' ? bf16ToF32 : f16ToF32);
      assert.deepEqual([down.dtype, down.rows * down.cols], [dtype, all.length]);
      assert.deepEqual(await down.read(0, down.rows), all);
      assert.deepEqual(await down.read(3, 2), all.slice(3 * down.cols, 5 * down.cols));
      assert.equal(weights.tensor({ layer: 0, site: 'q' }, 'bias'), undefined);
    } finally {
      await weights.close();
      await file.close();
    }
  }
});

test('shards, and biases', async () => {
  const weights = await openWeights(path.join(MODELS, 'llama3-bias'));
  try {
    const shards = new Set(weights.weights.map(({ file }) => file));
    assert.ok(shards.size > 1, 'the model has shards');
    for (const layer of [0, 1]) {
      const bias = weights.tensor({ layer, site: 'q' }, 'bias') ?? assert.fail('the model has biases');
      assert.deepEqual([bias.rows, bias.cols, (await bias.read(0, 1)).length], [1, 72, 72]);
    }
  } finally {
    await weights.close();
  }
});

test('pytorch_model.bin is read without running anything; safetensors come first where both are', async () => {
  const pickled = await openWeights(path.join(MHA, 'checkpoint'));
  try {
    const norm = pickled.tensor({ layer: 0, site: 'attnNorm' }) ?? assert.fail('a norm');
    const base = await openWeights(path.join(MHA, 'base'));
    const same = base.tensor({ layer: 0, site: 'attnNorm' }) ?? assert.fail('a norm');
    assert.deepEqual(await norm.read(0, 1), await same.read(0, 1));
    await base.close();
    const embedding = pickled.tensor({ layer: -1, site: 'embedding' }) ?? assert.fail('an embedding');
    const head = pickled.tensor({ layer: -1, site: 'head' }) ?? assert.fail('torch saves a tied head twice');
    assert.deepEqual([embedding.rows, embedding.cols], [96, 16]);
    assert.deepEqual(await head.read(90, 6), await embedding.read(90, 6));
  } finally {
    await pickled.close();
  }
  const both = path.join(root, 'both');
  await mkdir(both);
  for (const file of ['config.json', 'model.safetensors'])
    await copyFile(path.join(MHA, 'base', file), path.join(both, file));
  await writeFile(path.join(both, 'pytorch_model.bin'), 'never looked at');
  const weights = await openWeights(both);
  assert.equal(weights.config.vocabSize, 90);
  await weights.close();
});

test('a folder without weights, shards that lead elsewhere, a damaged pickle and a file that shrinks', async () => {
  const folder = path.join(root, 'bad');
  await mkdir(folder);
  await copyFile(path.join(MHA, 'checkpoint/config.json'), path.join(folder, 'config.json'));
  await assert.rejects(openWeights(folder), { code: 'invalid_model', message: /has neither model\.safetensors nor/ });
  const index = path.join(folder, 'pytorch_model.bin.index.json');
  await writeFile(index, JSON.stringify({ weight_map: { 'model.norm.weight': '../x.bin' } }));
  await assert.rejects(openWeights(folder), { code: 'invalid_model', message: /weight_map does not name \.bin files/ });
  await rm(index);
  await writeFile(path.join(folder, 'pytorch_model.bin'), 'no zip');
  await assert.rejects(openWeights(folder), /pytorch_model\.bin: .*no zip archive/);
  await truncate(path.join(folder, 'pytorch_model.bin'), 2 ** 32);
  await assert.rejects(openWeights(folder), {
    code: 'invalid_model',
    message: /has 4294967296 bytes, and pickles of 4 GiB and more are not read\. Convert it with transformers/,
  });
  await rm(path.join(folder, 'pytorch_model.bin'));
  for (const file of ['config.json', 'model.safetensors'])
    await copyFile(path.join(MHA, 'base', file), path.join(folder, file));
  const weights = await openWeights(folder);
  await truncate(path.join(folder, 'model.safetensors'), 5000);
  const norm = weights.tensor({ layer: -1, site: 'finalNorm' }) ?? assert.fail('a norm');
  await assert.rejects(norm.read(0, 1), { code: 'invalid_model', message: /became shorter while it was read/ });
  await weights.close();
});
