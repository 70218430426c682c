import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ModelConfig } from '../core/model-config.js';
import { toNativeModel } from './native-model.js';

const config: ModelConfig = {
  family: 'gemma3',
  vocabSize: 10,
  hiddenSize: 8,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 4,
  ffnSize: 6,
  normEps: 1e-6,
  activation: 'gelu_tanh',
  qkNorm: true,
  postNorms: true,
  tiedHead: true,
  embedScale: 2,
  attnScale: 0.5,
  layers: [
    { window: 5, rope: 0 },
    { window: 0, rope: 1 },
  ],
  ropes: [
    { invFreq: Float32Array.of(1, 0.5), scale: 1 },
    { invFreq: Float32Array.of(1, 0.25), scale: 1.5 },
  ],
  maxPositions: 100,
};

test('every field of a model config reaches its native place', () => {
  assert.deepEqual(toNativeModel(config), {
    vocabSize: 10,
    hiddenSize: 8,
    numHeads: 2,
    numKvHeads: 1,
    headDim: 4,
    ffnSize: 6,
    normEps: 1e-6,
    activation: 1,
    qkNorm: true,
    postNorms: true,
    tiedHead: true,
    embedScale: 2,
    attnScale: 0.5,
    layerWindow: Int32Array.of(5, 0),
    layerRope: Int32Array.of(0, 1),
    ropeInvFreq: [Float32Array.of(1, 0.5), Float32Array.of(1, 0.25)],
    ropeScale: Float32Array.of(1, 1.5),
  });
  assert.equal(toNativeModel({ ...config, activation: 'silu' }).activation, 0);
});
