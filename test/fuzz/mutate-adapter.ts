/**
 * Mutations that know what an adapter is: config fields, tensor names, shapes, dtypes and values. They make what hostile, damaged
 * and merely careless files look like. Called by the importers' fuzz targets.
 */
import { SAFETENSORS_DTYPES } from '../../src/checkpoint/safetensors.js';
import { f32ToBf16 } from '../../src/core/half.js';
import { decodeAdapter, encodeAdapter } from './adapter-input.js';
import type { RawTensor } from './adapter-input.js';
import type { FuzzInput } from './harness.js';
import { mutate, pick, pickFrom } from './mutate.js';
import type { Random } from './mutate.js';
import { addField, OBJECT_KEYS, ownKeys, removeField, setField, STRINGS } from './mutate-config.js';
import type { Mutation } from './mutate-config.js';

const MODULE = /(?:self_attn|mlp)\.[a-z_]+_proj|[a-z_]*layernorm|embed_tokens|lm_head/;
const MODULES: readonly [string, ...string[]] = [
  'self_attn.q_proj',
  'self_attn.k_proj',
  'self_attn.v_proj',
  'self_attn.o_proj',
  'self_attn.qkv_proj',
  'mlp.gate_proj',
  'mlp.up_proj',
  'mlp.gate_up_proj',
  'mlp.down_proj',
  'mlp.router',
  'input_layernorm',
  'embed_tokens',
  'lm_head',
];

/** Other names of the same place, and names of other places. */
const RENAMES: readonly [(name: string, random: Random) => string, ...((name: string, random: Random) => string)[]] = [
  (name) =>
    name.startsWith('base_model.model.') ? name.slice('base_model.model.'.length) : `base_model.model.${name}`,
  (name) => name.replace(/\.weight$/, '.default.weight'),
  (name) => `${name}.default`,
  (name) => name.replace('.default', ''),
  (name) => name.replace('model.layers.', 'layers.'),
  (name) => name.replace('model.layers.', 'model.language_model.layers.'),
  (name, random) =>
    name.replace(/layers\.\d+/, `layers.${pickFrom(random, ['0', '1', '2', '7', '00', '-1', '1e9', '999999'])}`),
  (name, random) => name.replace(/\.\d+$/, `.${pickFrom(random, ['0', '1', '7', '00', '1000000'])}`),
  (name, random) => name.replace(MODULE, pickFrom(random, MODULES)),
  (name) => name.replace(/_A\b/, '_B'),
  (name) => name.replace(/\.(weight|bias)$/, ''),
  (name) => `${name}.weight`,
  (_, random) => pickFrom(random, OBJECT_KEYS),
  (_, random) => pickFrom(random, STRINGS),
];

const renameTensor: Mutation = (input, random) => {
  const tensor = input.tensors[pick(random, input.tensors.length)];
  if (tensor !== undefined) tensor.name = pickFrom(random, RENAMES)(tensor.name, random);
};

const duplicateTensor: Mutation = (input, random) => {
  const tensor = input.tensors[pick(random, input.tensors.length)];
  if (tensor !== undefined) input.tensors.push({ ...tensor, name: pickFrom(random, RENAMES)(tensor.name, random) });
};

const removeTensor: Mutation = (input, random) => {
  input.tensors.splice(pick(random, input.tensors.length), 1);
};

const takeTensor: Mutation = (input, random, other) => {
  const tensor = other.tensors[pick(random, other.tensors.length)];
  if (tensor !== undefined) input.tensors.push(tensor);
};

/** Whole weights and biases beside the method's own tensors, with or without the fields that speak of them. */
const saveWeight: Mutation = (input, random) => {
  const names = [
    'norm.weight',
    'layers.0.input_layernorm.weight',
    'layers.1.self_attn.q_proj.bias',
    'embed_tokens.weight',
  ];
  const name = `base_model.model.model.${names[pick(random, names.length)] ?? ''}`;
  const shape = name.includes('embed') ? [320, 64] : [64];
  const count = shape.reduce((product, size) => product * size, 1);
  const values = Array.from({ length: count }, (_, i) => (i % 5) / 4);
  input.tensors.push({ name, dtype: 'F32', shape, data: encoded('F32', values) ?? Buffer.alloc(0) });
  if (random() < 0.2) return;
  const fields = {
    modules_to_save: [name.split('.').at(-2) ?? ''],
    bias: pickFrom(random, ['none', 'all', 'lora_only']),
  };
  input.config = ownKeys(Object.entries({ ...input.config, ...fields }));
};

const swapNames: Mutation = (input, random) => {
  const [a, b] = [0, 1].map(() => input.tensors[pick(random, input.tensors.length)]);
  if (a !== undefined && b !== undefined) [a.name, b.name] = [b.name, a.name];
};

const DIMS: readonly [number, ...number[]] = [0, 1, 2, 3, 1024, 65536, 2 ** 31, 2 ** 32, 2 ** 52, -1, 1.5];
const MAX_DATA_BYTES = 1 << 18;

/** The data grow or shrink with the shape where that is little, so that the header stays true. */
function reshape(tensor: RawTensor, shape: number[], random: Random): void {
  tensor.shape = shape;
  const bytes = byteLength(tensor);
  if (!Number.isSafeInteger(bytes) || bytes < 0 || bytes > MAX_DATA_BYTES || random() < 0.05) return;
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes && tensor.data.length > 0; at += tensor.data.length) tensor.data.copy(data, at);
  tensor.data = data;
}

function byteLength({ dtype, shape }: RawTensor): number {
  const width = (SAFETENSORS_DTYPES as Readonly<Record<string, number>>)[dtype] ?? 4;
  return shape.reduce((product, dim) => product * dim, width);
}

const setShape: Mutation = (input, random) => {
  const tensor = input.tensors[pick(random, input.tensors.length)];
  if (tensor === undefined) return;
  const shape = [...tensor.shape];
  const at = pick(random, shape.length);
  const dim = shape[at] ?? 1;
  switch (pick(random, 6)) {
    case 0:
      shape[at] = pickFrom(random, DIMS);
      break;
    case 1:
      shape[at] = dim + pickFrom(random, [1, -1]);
      break;
    case 2:
      shape[at] = dim * 2;
      break;
    case 3:
      shape.reverse();
      break;
    case 4:
      shape.splice(at, random() < 0.5 ? 1 : 0, ...(random() < 0.5 ? [1] : []));
      break;
    default:
      shape.splice(at, 1, dim / 2, 2);
  }
  reshape(tensor, shape, random);
};

/** All tensors of one dimension's size, together: another rank, another width. */
const setRank: Mutation = (input, random) => {
  const sizes = [...new Set(input.tensors.flatMap(({ shape }) => shape))];
  const from = sizes[pick(random, sizes.length)];
  const to = random() < 0.5 ? pickFrom(random, DIMS) : (from ?? 1) * 2;
  for (const tensor of input.tensors) {
    if (tensor.shape.includes(from ?? NaN))
      reshape(
        tensor,
        tensor.shape.map((dim) => (dim === from ? to : dim)),
        random,
      );
  }
};

const DTYPES: readonly [string, ...string[]] = ['F4', 'F8_E4M3FN', 'C64', '', ...Object.keys(SAFETENSORS_DTYPES)];

const setDtype: Mutation = (input, random) => {
  const dtype = pickFrom(random, DTYPES);
  const tensor = input.tensors[pick(random, input.tensors.length)];
  for (const one of random() < 0.3 ? input.tensors : [tensor]) {
    if (one === undefined) continue;
    const values = valuesOf(one);
    one.dtype = dtype;
    if (values === undefined || encoded(dtype, values) === undefined) reshape(one, one.shape, random);
    else one.data = encoded(dtype, values) ?? one.data;
  }
};

/** Of the dtypes in which factors and indices come. */
function valuesOf({ dtype, data }: RawTensor): number[] | undefined {
  const count = (width: number): number[] =>
    Array.from({ length: Math.floor(data.length / width) }, (_, i) => i * width);
  if (dtype === 'F32') return count(4).map((at) => data.readFloatLE(at));
  if (dtype === 'I32') return count(4).map((at) => data.readInt32LE(at));
  if (dtype === 'I64') return count(8).map((at) => Number(data.readBigInt64LE(at)));
  return undefined;
}

function encoded(dtype: string, values: readonly number[]): Buffer | undefined {
  const bytesOf = (array: NodeJS.TypedArray): Buffer => Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  const whole = values.map((value) => (Number.isFinite(value) ? Math.trunc(value) : 0));
  if (dtype === 'F32') return bytesOf(Float32Array.from(values));
  if (dtype === 'F64') return bytesOf(Float64Array.from(values));
  if (dtype === 'BF16') return bytesOf(Uint16Array.from(values, f32ToBf16));
  // Other values than before, all of them finite: 1 to 2.
  if (dtype === 'F16') return bytesOf(Uint16Array.from(values, (_, i) => 0x3c00 + (i % 64)));
  if (dtype === 'I32') return bytesOf(Int32Array.from(whole));
  if (dtype === 'I64') return bytesOf(BigInt64Array.from(whole, BigInt));
  if (dtype === 'U8') return bytesOf(Uint8Array.from(whole));
  return undefined;
}

const FLOATS: readonly [number, ...number[]] = [
  NaN,
  Infinity,
  -Infinity,
  1e-40,
  -1e-45,
  3.4e38,
  -3.4e38,
  1e20,
  0,
  -0,
  1,
  1e-20,
];
const INDICES: readonly [number, ...number[]] = [
  -1,
  0,
  1,
  63,
  64,
  65,
  4095,
  4096,
  2 ** 31 - 1,
  -(2 ** 31),
  2 ** 53 - 1,
];

const setValues: Mutation = (input, random) => {
  const tensor = input.tensors[pick(random, input.tensors.length)];
  const values = tensor === undefined ? undefined : valuesOf(tensor);
  if (tensor === undefined || values === undefined) return;
  const value = pickFrom(random, tensor.dtype === 'F32' ? FLOATS : INDICES);
  const at = pick(random, values.length);
  if (random() < 0.3) values.fill(value);
  else if (random() < 0.2) values.reverse();
  else if (random() < 0.2) values[at] = values[pick(random, values.length)] ?? 0;
  else values[at] = value;
  tensor.data = encoded(tensor.dtype, tensor.dtype === 'I32' ? values.map((one) => one | 0) : values) ?? tensor.data;
};

const scaleValues: Mutation = (input, random) => {
  const factor = pickFrom(random, [0, -1, 1e-30, 1e18, 1e30]);
  const tensor = input.tensors[pick(random, input.tensors.length)];
  const values = tensor === undefined ? undefined : valuesOf(tensor);
  if (tensor?.dtype === 'F32' && values !== undefined) {
    tensor.data =
      encoded(
        'F32',
        values.map((value) => value * factor),
      ) ?? tensor.data;
  }
};

const flipBits: Mutation = (input, random) => {
  const tensor = input.tensors[pick(random, input.tensors.length)];
  if (tensor !== undefined && tensor.data.length > 0) {
    const at = pick(random, tensor.data.length);
    tensor.data = Buffer.from(tensor.data);
    tensor.data[at] = pick(random, 256);
  }
};

const MUTATIONS: readonly [Mutation, ...Mutation[]] = [
  setField,
  setField,
  setField,
  removeField,
  addField,
  renameTensor,
  renameTensor,
  duplicateTensor,
  removeTensor,
  takeTensor,
  saveWeight,
  swapNames,
  setShape,
  setShape,
  setRank,
  setDtype,
  setValues,
  setValues,
  scaleValues,
  flipBits,
];
const MAX_MUTATIONS = 3;

/** One to three mutations of what the files say; now and then of their bytes. */
export function mutateAdapter(seed: FuzzInput, other: FuzzInput, random: Random): FuzzInput {
  const [input, source] = [decodeAdapter(seed), decodeAdapter(other)];
  if (input === undefined || source === undefined) return mutateFiles(seed, other, random);
  for (let left = 1 + pick(random, MAX_MUTATIONS); left > 0; left -= 1) {
    pickFrom(random, MUTATIONS)(input, random, source);
  }
  const files = encodeAdapter(input, seed);
  return random() < 0.05 ? mutateFiles(files, other, random) : files;
}

/** The bytes of one of the files that both inputs have. */
export function mutateFiles(seed: FuzzInput, other: FuzzInput, random: Random): FuzzInput {
  const names = [...seed.keys()].filter((name) => name !== 'model');
  const name = names[pick(random, names.length)] ?? '';
  const bytes = seed.get(name) ?? new Uint8Array(0);
  return new Map([...seed, [name, mutate(bytes, other.get(name) ?? bytes, random)]]);
}
