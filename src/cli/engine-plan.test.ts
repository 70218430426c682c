import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DTYPES } from '../native/binding-types.js';
import { loadConfig } from '../config/load-config.js';
import type { ModelConfig } from '../core/model-config.js';
import { enginePlan, ownDtype } from './engine-plan.js';

test("--dtype auto is the file's own class, and bf16 where there are no kernels for it", () => {
  const own = Object.keys(DTYPES).map((name) => [name, ownDtype(name)]);
  assert.deepEqual(Object.fromEntries(own), {
    f32: 'bf16',
    f16: 'bf16',
    bf16: 'bf16',
    q8_0: 'int8',
    q4_0: 'q4',
    q4_1: 'q4',
    q5_0: 'bf16',
    q5_1: 'bf16',
    q4_k: 'q4',
    q5_k: 'bf16',
    q6_k: 'bf16',
  });
});

const MODEL: ModelConfig = {
  family: 'llama',
  vocabSize: 100,
  hiddenSize: 64,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 32,
  ffnSize: 128,
  normEps: 1e-5,
  activation: 'silu',
  qkNorm: false,
  postNorms: false,
  tiedHead: true,
  embedScale: 1,
  attnScale: 1,
  layers: [{ window: 0, rope: 0 }],
  ropes: [{ invFreq: new Float32Array(16), scale: 1 }],
  maxPositions: 256,
};

test('a backend that the build lacks, and what the cuda backend lacks, are refused with the mend', () => {
  const native = { version: '0', backends: ['cpu'], isas: ['scalar'], pageTokens: 16, cores: 1 };
  const both = { ...native, backends: ['cpu', 'cuda'] };
  const settings = loadConfig([], {}, () => '').engine;
  const model = { config: MODEL, fileDtype: 'q4_0' };
  assert.throws(
    () => enginePlan({ ...settings, backend: 'cuda' }, model, native),
    /not in this build, which has cpu\. .*MANYFOLD_BUILD=cuda/,
  );
  assert.throws(
    () => enginePlan({ ...settings, backend: 'cuda', dtype: 'q4' }, model, both),
    /--dtype q4 has no kernels in the cuda/,
  );
  assert.throws(
    () => enginePlan({ ...settings, backend: 'cuda', kvCacheDtype: 'int8' }, model, both),
    /--kv-cache-dtype int8/,
  );
  const plan = enginePlan({ ...settings, backend: 'cuda', dtype: 'auto' }, model, both);
  assert.deepEqual([plan.native.backend, plan.native.dtype], ['cuda', 'bf16']);
});
