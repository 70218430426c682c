/** Fuzz targets of the parsers of model files, which strangers may have made: GGUF, safetensors and config.json. */
import { readFileSync } from 'node:fs';

import { parseGguf } from '../../src/checkpoint/gguf.js';
import { readGgufConfig } from '../../src/checkpoint/gguf-config.js';
import { readHuggingFaceConfig } from '../../src/checkpoint/huggingface-config.js';
import { ADAPTER_LIMITS, parseSafetensorsHeader, WEIGHT_LIMITS } from '../../src/checkpoint/safetensors.js';
import { decodeUtf8, isJsonObject, parseJsonStrict } from '../../src/checkpoint/strict-json.js';
import {
  bool,
  float32,
  ggufBytes,
  safetensorsFile,
  text,
  texts,
  uint32,
} from '../../src/checkpoint/testing/container-bytes.js';
import type { TestValue } from '../../src/checkpoint/testing/container-bytes.js';
import type { FuzzTarget } from './harness.js';
import { mutateFiles } from './mutate-adapter.js';

/** One file is the whole input. */
function container(name: string, seeds: readonly Uint8Array[], run: (bytes: Uint8Array) => void): FuzzTarget {
  return {
    name,
    seeds: () => seeds.map((bytes) => new Map([[name, bytes]])),
    codes: ['invalid_model', 'invalid_adapter'],
    mutate: mutateFiles,
    run: (input) => {
      run(input.get(name) ?? new Uint8Array(0));
      return 'parsed';
    },
  };
}

const gguf = container('gguf', [ggufSeed('llama'), ggufSeed('gemma3'), ggufBytes({})], (bytes) => {
  const { metadata } = parseGguf(bytes, bytes.length);
  readGgufConfig(metadata, { vocabSize: 2, hasHead: false, biases: new Set(), ropeFactors: undefined });
});

const safetensors = container(
  'safetensors',
  [
    safetensorsFile([
      { name: 'a', dtype: 'F32', shape: [2, 3] },
      { name: 'b', dtype: 'BF16', shape: [] },
      { name: 'c', dtype: 'U8', shape: [0] },
    ]),
    safetensorsFile([{ name: 'layers.0.lora_A.weight', dtype: 'F16', shape: [4, 8] }], { format: 'pt' }),
  ],
  (bytes) => {
    for (const limits of [WEIGHT_LIMITS, ADAPTER_LIMITS]) parseSafetensorsHeader(bytes, bytes.length, limits);
  },
);

const config = container('config', configSeeds(), (bytes) => {
  const value = parseJsonStrict(decodeUtf8(bytes, 'config.json'), { maxDepth: 32, what: 'config.json' });
  if (isJsonObject(value)) readHuggingFaceConfig(value, true);
});

export const CONTAINER_TARGETS: readonly FuzzTarget[] = [gguf, safetensors, config];

function ggufSeed(architecture: string): Uint8Array {
  const keys: readonly (readonly [string, TestValue])[] = [
    ['block_count', uint32(2)],
    ['context_length', uint32(64)],
    ['embedding_length', uint32(8)],
    ['feed_forward_length', uint32(16)],
    ['attention.head_count', uint32(2)],
    ['attention.head_count_kv', { type: 9, of: 4, items: [1, 1] }],
    ['attention.layer_norm_rms_epsilon', float32(1e-5)],
    ['attention.sliding_window', uint32(4)],
    ['rope.freq_base', float32(10_000)],
    ['rope.scaling.type', text('linear')],
    ['rope.scaling.factor', float32(2)],
  ];
  return ggufBytes({
    metadata: [
      ['general.architecture', text(architecture)],
      ...keys.map(([key, value]) => [`${architecture}.${key}`, value] as const),
      ['tokenizer.ggml.tokens', texts(['a', 'é'])],
      ['tokenizer.ggml.add_bos_token', bool(true)],
      ['nested', { type: 9, of: 9, items: [texts(['x']), { type: 9, of: 12, items: [0.5] }] }],
    ],
    tensors: [
      { name: 'token_embd.weight', dims: [8, 2], type: 0, offset: 0 },
      { name: 'blk.0.attn_q.weight', dims: [32, 2], type: 8, offset: 64 },
    ],
    data: Buffer.alloc(160),
  });
}

function configSeeds(): readonly Uint8Array[] {
  const hub = JSON.parse(readFileSync('src/checkpoint/testing/hub-configs.json', 'utf8')) as Record<string, unknown>;
  const seeds = Object.values(hub).map((value) => Buffer.from(JSON.stringify(value)));
  return [Buffer.from('{"model_type":"llama"}'), ...seeds];
}
