/**
 * Writes PEFT LoRA folders of random values: for benchmarks and for tests over HTTP, where what matters is that
 * adapters differ and are as large as real ones. The values depend on the seed alone.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { linearShape, type ModelConfig, type SiteName } from '../../src/core/model-config.js';

const MODULES: Readonly<Partial<Record<SiteName, string>>> = {
  q: 'self_attn.q_proj',
  k: 'self_attn.k_proj',
  v: 'self_attn.v_proj',
  o: 'self_attn.o_proj',
  gate: 'mlp.gate_proj',
  up: 'mlp.up_proj',
  down: 'mlp.down_proj',
};

export const ALL_LINEARS = Object.keys(MODULES) as SiteName[];

export interface RandomLora {
  readonly rank: number;
  readonly seed: number;
  readonly sites?: readonly SiteName[];
  /** Standard deviation of B; A has 1/sqrt(in). 0.02 changes what a model says without breaking it. */
  readonly stdB?: number;
  readonly alpha?: number;
}

/** Makes `directory` a PEFT folder (adapter_config.json, adapter_model.safetensors, bf16). */
export async function writeRandomLora(directory: string, config: ModelConfig, lora: RandomLora): Promise<void> {
  const sites = lora.sites ?? ALL_LINEARS;
  const random = normalSource(lora.seed);
  const tensors: { name: string; shape: [number, number]; data: Uint16Array }[] = [];
  for (let layer = 0; layer < config.layers.length; layer++) {
    for (const site of sites) {
      const shape = linearShape(config, site);
      const module = MODULES[site];
      if (shape === undefined || module === undefined) throw new Error(`${site} is not a linear of a layer`);
      const prefix = `base_model.model.model.layers.${layer}.${module}`;
      const stdA = 1 / Math.sqrt(shape.in);
      tensors.push({
        name: `${prefix}.lora_A.weight`,
        shape: [lora.rank, shape.in],
        data: bf16(lora.rank * shape.in, stdA, random),
      });
      tensors.push({
        name: `${prefix}.lora_B.weight`,
        shape: [shape.out, lora.rank],
        data: bf16(shape.out * lora.rank, lora.stdB ?? 0.02, random),
      });
    }
  }
  await mkdir(directory, { recursive: true });
  await writeFile(path.join(directory, 'adapter_model.safetensors'), safetensors(tensors));
  const peft = {
    peft_type: 'LORA',
    task_type: 'CAUSAL_LM',
    r: lora.rank,
    lora_alpha: lora.alpha ?? 2 * lora.rank,
    bias: 'none',
    inference_mode: true,
    target_modules: sites.map((site) => (MODULES[site] ?? '').split('.')[1]),
  };
  await writeFile(path.join(directory, 'adapter_config.json'), JSON.stringify(peft, null, 2));
}

/** Normal values by Box and Muller over a 32-bit xorshift generator. */
function normalSource(seed: number): () => number {
  let state = (Math.imul(seed + 1, 0x9e3779b1) ^ 0x5bf03635) >>> 0 || 1;
  const uniform = (): number => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return (state + 1) / 4294967297;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

function bf16(count: number, std: number, random: () => number): Uint16Array {
  const floats = new Float32Array(count);
  for (let i = 0; i < count; i++) floats[i] = random() * std;
  const bits = new Uint32Array(floats.buffer);
  return Uint16Array.from(bits, (b) => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16);
}

function safetensors(tensors: readonly { name: string; shape: [number, number]; data: Uint16Array }[]): Buffer {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let offset = 0;
  for (const { name, shape, data } of tensors) {
    header[name] = { dtype: 'BF16', shape, data_offsets: [offset, offset + data.byteLength] };
    offset += data.byteLength;
  }
  const text = JSON.stringify(header);
  const json = Buffer.from(text + ' '.repeat((8 - (text.length % 8)) % 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const bodies = tensors.map(({ data }) => Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  return Buffer.concat([length, json, ...bodies]);
}
