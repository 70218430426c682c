/** The model's description in the flat form that the native module takes. Called by whoever makes an engine. */
import type { ModelConfig } from '../core/model-config.js';
import type { NativeModelConfig } from './binding-types.js';

export function toNativeModel(config: ModelConfig): NativeModelConfig {
  return {
    vocabSize: config.vocabSize,
    hiddenSize: config.hiddenSize,
    numHeads: config.numHeads,
    numKvHeads: config.numKvHeads,
    headDim: config.headDim,
    ffnSize: config.ffnSize,
    normEps: config.normEps,
    activation: config.activation === 'silu' ? 0 : 1,
    qkNorm: config.qkNorm,
    postNorms: config.postNorms,
    tiedHead: config.tiedHead,
    embedScale: config.embedScale,
    attnScale: config.attnScale,
    layerWindow: Int32Array.from(config.layers, (layer) => layer.window),
    layerRope: Int32Array.from(config.layers, (layer) => layer.rope),
    ropeInvFreq: config.ropes.map((rope) => rope.invFreq),
    ropeScale: Float32Array.from(config.ropes, (rope) => rope.scale),
  };
}
