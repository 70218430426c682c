/**
 * A fuzz target for each importer: its goldens, and hand-made adapters where it has none, are mutated as adapters and compiled. See
 * adapter-rules.ts for what must hold.
 */
import { readFileSync } from 'node:fs';
import path from 'node:path';

import { parseGguf } from '../../src/checkpoint/gguf.js';
import { ADAPTER_LIMITS, parseSafetensorsHeader } from '../../src/checkpoint/safetensors.js';
import { decodeUtf8, isJsonObject, parseJsonStrict } from '../../src/checkpoint/strict-json.js';
import { REFUSED_METHODS } from '../../src/adapters/importers/refused-methods.js';
import { ManyfoldError } from '../../src/core/errors.js';
import {
  CONFIG,
  decodeAdapter,
  encodeAdapter,
  goldenFolder,
  goldenSeed,
  MODEL,
  modelOf,
  tensorsFileOf,
} from './adapter-input.js';
import type { AdapterInput } from './adapter-input.js';
import { checkedCompile, LIMITS } from './adapter-rules.js';
import type { MemoryFolder } from './adapter-rules.js';
import type { FuzzInput, FuzzTarget } from './harness.js';
import { mutateAdapter } from './mutate-adapter.js';

const MAX_CONFIG_DEPTH = 16;

/** Names of targets, with the importer's method and its seeds in test/goldens/kinds. */
const GOLDENS: Readonly<Record<string, { readonly method: string; readonly kinds: readonly string[] }>> = {
  lora: {
    method: 'LORA',
    kinds: [
      'llama-gqa/lora',
      'llama-gqa/alora',
      'gemma3/bdlora',
      'llama-gqa/dora',
      'gemma3/dora-rslora-embedding',
      'llama-gqa/kasa',
      'llama-gqa/lora-bias',
      'gemma3/modules-to-save',
      'llama-gqa/olora',
      'llama-gqa/pissa',
      'llama-gqa/qalora',
      'llama-gqa/trainable-tokens',
      'llama3-bias/bias-all',
    ],
  },
  adalora: { method: 'ADALORA', kinds: ['llama-gqa/adalora', 'gemma3/adalora'] },
  'mlx-lora': { method: 'MLX-LM LoRA', kinds: ['llama-gqa/mlx-lora', 'gemma3/mlx-lora'] },
  s2ft: { method: 'S2FT', kinds: ['llama-gqa/s2ft'] },
  compeft: {
    method: 'COMPEFT',
    kinds: ['llama-gqa/compeft-ia3', 'llama-gqa/compeft-lora', 'llama-gqa/compeft-s2ft', 'llama-gqa/compeft-sft'],
  },
  ia3: { method: 'IA3', kinds: ['llama-gqa/ia3', 'gemma3/ia3', 'llama3-bias/ia3'] },
  poly: { method: 'POLY', kinds: ['llama-gqa/poly', 'llama-gqa/mhr'] },
  'ln-tuning': { method: 'LN_TUNING', kinds: ['llama-gqa/ln-tuning', 'gemma3/ln-tuning'] },
  boft: { method: 'BOFT', kinds: ['llama-gqa/boft', 'llama-gqa/boft-butterfly', 'llama3-bias/boft'] },
  c3a: { method: 'C3A', kinds: ['llama-gqa/c3a'] },
  deft: { method: 'DEFT', kinds: ['llama-gqa/deft-para', 'llama-gqa/deft-qr', 'llama3-bias/deft-relu'] },
  glora: { method: 'GLORA', kinds: ['llama-gqa/glora-vector', 'llama3-bias/glora-constant'] },
  gralora: { method: 'GRALORA', kinds: ['llama-gqa/gralora', 'gemma3/gralora-hybrid'] },
  hra: { method: 'HRA', kinds: ['llama-gqa/hra', 'llama-gqa/hra-gs'] },
  loha: { method: 'LOHA', kinds: ['llama-gqa/loha'] },
  lokr: { method: 'LOKR', kinds: ['llama-gqa/lokr-full', 'llama-gqa/lokr-pairs'] },
  oft: { method: 'OFT', kinds: ['llama-gqa/oft', 'gemma3/oft-exact', 'llama-gqa/oft-coft', 'llama-gqa/oft-shared'] },
  road: { method: 'ROAD', kinds: ['llama-gqa/road-1', 'llama3-bias/road-2', 'llama-gqa/road-4'] },
  bone: { method: 'BONE', kinds: ['llama-gqa/bone'] },
  miss: { method: 'MISS', kinds: ['llama-gqa/miss', 'llama-gqa/miss-mini'] },
  flora: { method: 'FLORA', kinds: ['llama-gqa/flora'] },
  hydra: { method: 'HYDRA', kinds: ['llama-gqa/hydra'] },
  loldu: { method: 'LOLDU', kinds: ['llama-gqa/loldu'] },
  corda: { method: 'CORDA', kinds: ['llama-gqa/corda'] },
  sorsa: { method: 'SORSA', kinds: ['llama-gqa/sorsa', 'gemma3/sorsa-bf16'] },
  dsee: { method: 'DSEE', kinds: ['llama-gqa/dsee'] },
  sltrain: { method: 'SLTRAIN', kinds: ['llama-gqa/sltrain'] },
  shira: { method: 'SHIRA', kinds: ['llama-gqa/shira'] },
  sft: { method: 'SFT', kinds: ['llama-gqa/sft', 'llama-gqa/composable-sft'] },
  supertuning: { method: 'SUPERTUNING', kinds: ['llama-gqa/supertuning'] },
  'prompt-tuning': { method: 'PROMPT_TUNING', kinds: ['llama-gqa/prompt-tuning'] },
  'p-tuning': { method: 'P_TUNING', kinds: ['llama-gqa/p-tuning'] },
  cpt: { method: 'CPT', kinds: ['llama-gqa/cpt'] },
  'multitask-prompt': { method: 'MULTITASK_PROMPT_TUNING', kinds: ['llama-gqa/multitask-prompt'] },
  'prefix-tuning': { method: 'PREFIX_TUNING', kinds: ['llama-gqa/prefix-tuning', 'gemma3/prefix-tuning'] },
  cartridge: { method: 'CARTRIDGE', kinds: ['llama-gqa/cartridge'] },
  'adaption-prompt': { method: 'ADAPTION_PROMPT', kinds: ['llama-gqa/adaption-prompt'] },
  adapterhub: {
    method: 'AdapterHub bottleneck',
    kinds: ['llama-gqa/adapterhub-compacter', 'llama-gqa/adapterhub-double', 'llama-gqa/adapterhub-norm'],
  },
  ssf: { method: 'SSF', kinds: ['llama3-bias/ssf', 'gemma3/ssf'] },
  vera: { method: 'VERA', kinds: ['llama-gqa/vera'] },
  pvera: { method: 'PVERA', kinds: ['llama-gqa/pvera'] },
  s2lora: { method: 'S2LORA', kinds: ['llama-gqa/s2lora'] },
  monarch: { method: 'MONARCH', kinds: ['llama3-bias/monarch'] },
  mhr: { method: 'MHR', kinds: ['llama-gqa/mhr-mttl', 'llama-gqa/poly-mttl-after'] },
  'trainable-tokens': { method: 'TRAINABLE_TOKENS', kinds: ['llama-gqa/token-rows', 'llama3-bias/token-rows'] },
  beft: { method: 'BEFT', kinds: ['llama3-bias/beft'] },
  bitfit: { method: 'BITFIT', kinds: ['llama3-bias/bitfit', 'gemma3/bitfit'] },
  tinylora: { method: 'TINYLORA', kinds: ['llama-gqa/tinylora'] },
  vblora: { method: 'VBLORA', kinds: ['llama-gqa/vblora', 'llama-gqa/vblora-topk'] },
  unilora: { method: 'UNILORA', kinds: ['llama-gqa/unilora'] },
  delora: { method: 'DELORA', kinds: ['llama-gqa/delora'] },
};

const Q = 'base_model.model.model.layers.0.self_attn.q_proj';
const vector = (name: string, values: readonly number[]): AdapterInput['tensors'][number] => ({
  name,
  dtype: 'I32',
  shape: [values.length],
  data: Buffer.from(Int32Array.from(values).buffer),
});

function handMade(...adapters: readonly AdapterInput[]): FuzzInput[] {
  const like = new Map([[MODEL, Buffer.from('llama-gqa')]]);
  return adapters.map((adapter) => encodeAdapter(adapter, like));
}

const HAND_MADE: Readonly<Record<string, { readonly method: string; readonly seeds: () => FuzzInput[] }>> = {
  'sparse-mask': {
    method: 'SPARSE_MASK',
    seeds: () =>
      handMade({ config: { peft_type: 'SPARSE_MASK' }, tensors: [vector(`${Q}.mask_indices`, [0, 65, 4095])] }),
  },
  'gguf-lora': { method: 'GGUF LoRA', seeds: ggufSeeds },
  'refused-methods': {
    method: 'known methods that are refused with their reason',
    seeds: () =>
      handMade(
        ...REFUSED_METHODS.map(({ type }) => ({ config: { peft_type: type }, tensors: [vector(`${Q}.x`, [1])] })),
      ),
  },
};

/** A LoRA whose training began with factors taken from the base; they lie in a folder of their own. */
function pissaSeed(): FuzzInput {
  const seed = goldenSeed('llama-gqa/lora');
  const { config, tensors } = decodeAdapter(seed) ?? { config: {}, tensors: [] };
  const initial = tensors.map((tensor) => ({ ...tensor, name: `initial_adapter/${tensor.name}` }));
  return encodeAdapter({ config: { ...config, init_lora_weights: 'pissa' }, tensors: [...tensors, ...initial] }, seed);
}

/** A GGUF adapter's metadata and tensors as the importer gets them; gguf-adapter fuzzes the file around them. */
function ggufSeeds(): FuzzInput[] {
  return ['llama-gqa/gguf-lora', 'gemma3/gguf-lora'].map((kind) => {
    const file = readFileSync(path.join(goldenFolder(kind), 'adapter.gguf'));
    const { metadata, tensors } = parseGguf(file, file.length);
    const config = Object.fromEntries([...metadata].map(([key, value]) => [key, value as string | number]));
    const parts = [...tensors].map(([name, { dtype, shape, offset, byteLength }]) => ({
      ...{ name, dtype: dtype.toUpperCase(), shape: [...shape] },
      data: Buffer.from(file.subarray(offset, offset + byteLength)),
    }));
    return encodeAdapter({ config, tensors: parts }, new Map([[MODEL, Buffer.from(kind.split('/')[0] ?? '')]]));
  });
}

export interface ImporterTarget extends FuzzTarget {
  /** The importer that the seeds are for. */
  readonly method: string;
}

export const IMPORTER_TARGETS: readonly ImporterTarget[] = [
  ...Object.entries(GOLDENS).map(([name, { method, kinds }]) =>
    target(name, method, () => [...kinds.map(goldenSeed), ...(name === 'lora' ? [pissaSeed()] : [])]),
  ),
  ...Object.entries(HAND_MADE).map(([name, { method, seeds }]) => target(name, method, seeds)),
];

function target(name: string, method: string, makeSeeds: () => readonly FuzzInput[]): ImporterTarget {
  let made: readonly FuzzInput[] | undefined;
  return {
    name,
    method,
    seeds: () => (made ??= makeSeeds()),
    codes: ['invalid_adapter'],
    mutate: mutateAdapter,
    run: (input) => checkedCompile(memoryFolder(input), modelOf(input)),
  };
}

/** The files through the parsers that the adapter container uses. */
export function memoryFolder(input: FuzzInput): MemoryFolder {
  const file = tensorsFileOf(input);
  const text = decodeUtf8(input.get(CONFIG) ?? new Uint8Array(0), CONFIG, 'invalid_adapter');
  const config = parseJsonStrict(text, { maxDepth: MAX_CONFIG_DEPTH, what: CONFIG, code: 'invalid_adapter' });
  if (!isJsonObject(config))
    throw new ManyfoldError('invalid_adapter', `${CONFIG}: expected an object. Save it again.`);
  const data = input.get(file) ?? new Uint8Array(0);
  const { tensors } = parseSafetensorsHeader(data, data.length, ADAPTER_LIMITS, file);
  const total = [...tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0);
  if (total > LIMITS.maxBytes) throw new ManyfoldError('invalid_adapter', `${file} is too large. Serve a smaller one.`);
  const bytes = (name: string): Uint8Array => {
    const { offset, byteLength } = tensors.get(name) ?? { offset: 0, byteLength: 0 };
    return new Uint8Array(data.subarray(offset, offset + byteLength));
  };
  return { config, tensors, bytes };
}
