/** Writes adapter folders for tests, good ones and bad ones, byte by byte as the safetensors format has it. */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

import type { ModelConfig } from '../../core/model-config.js';

export interface TestTensor {
  readonly dtype: 'F32' | 'F16' | 'BF16' | 'F64' | 'I8';
  readonly shape: readonly number[];
  /** Values of F32 tensors; raw patterns of F16 and BF16. Absent: a fixed pattern of small values. */
  readonly values?: readonly number[];
}

const ELEMENT_BYTES = { F32: 4, F16: 2, BF16: 2, F64: 8, I8: 1 } as const;

function tensorBytes({ dtype, shape, values }: TestTensor, salt: number): Uint8Array {
  const count = shape.reduce((product, dim) => product * dim, 1);
  const value = (i: number): number =>
    values?.[i] ?? (dtype === 'F32' ? ((i * 7 + salt) % 13) / 16 : 0x3c00 + ((i + salt) % 64));
  if (dtype === 'F32') return new Uint8Array(Float32Array.from({ length: count }, (_, i) => value(i)).buffer);
  if (dtype === 'F16' || dtype === 'BF16') {
    return new Uint8Array(Uint16Array.from({ length: count }, (_, i) => value(i)).buffer);
  }
  return new Uint8Array(count * ELEMENT_BYTES[dtype]);
}

/** A safetensors file of these tensors. */
export function safetensorsBytes(tensors: Readonly<Record<string, TestTensor>>): Uint8Array {
  const header: Record<string, unknown> = {};
  const parts: Uint8Array[] = [];
  let offset = 0;
  for (const [i, [name, tensor]] of Object.entries(tensors).entries()) {
    const bytes = tensorBytes(tensor, i);
    header[name] = { dtype: tensor.dtype, shape: tensor.shape, data_offsets: [offset, offset + bytes.length] };
    parts.push(bytes);
    offset += bytes.length;
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, ...parts]);
}

export const PLAIN_CONFIG: Readonly<Record<string, unknown>> = {
  peft_type: 'LORA',
  task_type: 'CAUSAL_LM',
  base_model_name_or_path: 'tiny',
  r: 2,
  lora_alpha: 4,
  bias: 'none',
  target_modules: ['q_proj', 'v_proj'],
};

/** Shapes of {@link TINY_MODEL}: hidden 8, 2 heads of 4, 1 KV head, ffn 12, vocabulary 20, 2 layers. */
export function pair(module: string, out: number, rank: number, width: number): Record<string, TestTensor> {
  return {
    [`base_model.model.${module}.lora_A.weight`]: { dtype: 'F32', shape: [rank, width] },
    [`base_model.model.${module}.lora_B.weight`]: { dtype: 'F32', shape: [out, rank] },
  };
}

export const TINY_MODEL: ModelConfig = {
  family: 'llama',
  vocabSize: 20,
  hiddenSize: 8,
  numHeads: 2,
  numKvHeads: 1,
  headDim: 4,
  ffnSize: 12,
  normEps: 1e-5,
  activation: 'silu',
  qkNorm: false,
  postNorms: false,
  tiedHead: true,
  embedScale: 1,
  attnScale: 0.5,
  layers: [
    { window: 0, rope: 0 },
    { window: 0, rope: 0 },
  ],
  ropes: [{ invFreq: new Float32Array([1, 0.01]), scale: 1 }],
  maxPositions: 128,
};

export interface TestAdapter {
  readonly config?: Readonly<Record<string, unknown>>;
  readonly tensors?: Readonly<Record<string, TestTensor>>;
}

/** Writes a folder and returns its path. Without tensors: LoRA of rank 2 on q and v of layer 0. */
export async function writeAdapter(directory: string, adapter: TestAdapter = {}): Promise<string> {
  const tensors = adapter.tensors ?? {
    ...pair('model.layers.0.self_attn.q_proj', 8, 2, 8),
    ...pair('model.layers.0.self_attn.v_proj', 4, 2, 8),
  };
  await mkdir(directory, { recursive: true });
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify({ ...PLAIN_CONFIG, ...adapter.config }));
  await writeFile(path.join(directory, 'adapter_model.safetensors'), safetensorsBytes(tensors));
  return directory;
}
