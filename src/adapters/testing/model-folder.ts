/** Small random Llama checkpoints in memory and on disk, for tests of the tools that compare whole models. */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

import { safetensorsFile } from '../../checkpoint/testing/container-bytes.js';
import type { TestTensor } from '../../checkpoint/testing/container-bytes.js';
import { bf16ToF32, f32ToBf16 } from '../../core/half.js';

export interface Matrix {
  readonly rows: number;
  readonly cols: number;
  /** Row-major. */
  readonly data: Float32Array;
}
/** Names of Hugging Face without `.weight`; norms have one row. */
export type TestModel = Map<string, Matrix>;

export interface TestShape {
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly ffn: number;
  readonly vocab: number;
}

/** Numbers of 0 to 1, the same for one seed on every machine (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Values that bf16 holds. */
export function randomMatrix(rows: number, cols: number, random: () => number): Matrix {
  const data = Float32Array.from({ length: rows * cols }, () => bf16ToF32(f32ToBf16(2 * random() - 1)));
  return { rows, cols, data };
}

export function randomModel(shape: TestShape, random: () => number): TestModel {
  const { layers, hidden, heads, kvHeads, headDim, ffn, vocab } = shape;
  const model: TestModel = new Map([['model.embed_tokens', randomMatrix(vocab, hidden, random)]]);
  for (let layer = 0; layer < layers; layer += 1) {
    const add = (name: string, rows: number, cols: number): void => {
      model.set(`model.layers.${layer}.${name}`, randomMatrix(rows, cols, random));
    };
    add('input_layernorm', 1, hidden);
    add('self_attn.q_proj', heads * headDim, hidden);
    add('self_attn.k_proj', kvHeads * headDim, hidden);
    add('self_attn.v_proj', kvHeads * headDim, hidden);
    add('self_attn.o_proj', hidden, heads * headDim);
    add('post_attention_layernorm', 1, hidden);
    add('mlp.gate_proj', ffn, hidden);
    add('mlp.up_proj', ffn, hidden);
    add('mlp.down_proj', hidden, ffn);
  }
  model.set('model.norm', randomMatrix(1, hidden, random));
  return model;
}

export function cloneModel(model: TestModel): TestModel {
  return new Map([...model].map(([name, matrix]) => [name, { ...matrix, data: matrix.data.slice() }]));
}

/** Writes config.json and model.safetensors; F32 keeps the values, BF16 rounds them. */
export async function writeModel(
  directory: string,
  shape: TestShape,
  model: TestModel,
  dtype: 'F32' | 'BF16' = 'BF16',
): Promise<string> {
  await mkdir(directory, { recursive: true });
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    vocab_size: model.get('model.embed_tokens')?.rows,
    hidden_size: shape.hidden,
    intermediate_size: shape.ffn,
    num_hidden_layers: shape.layers,
    num_attention_heads: shape.heads,
    num_key_value_heads: shape.kvHeads,
    head_dim: shape.headDim,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: !model.has('lm_head'),
  };
  await writeFile(path.join(directory, 'config.json'), JSON.stringify(config));
  const tensors = [...model].map(([name, { rows, cols, data }]): TestTensor => {
    const values = dtype === 'F32' ? data : Uint16Array.from(data, f32ToBf16);
    const norm = name.includes('norm');
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    return { name: `${name}.weight`, dtype, shape: norm ? [cols] : [rows, cols], data: bytes };
  });
  await writeFile(path.join(directory, 'model.safetensors'), safetensorsFile(tensors));
  return directory;
}
