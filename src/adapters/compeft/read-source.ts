/**
 * The adapters that can be compressed, as vectors of differences τ from what the training began with (ComPEFT's task
 * vectors): LoRA's factors from 0, IA3's scales from 1, and the values of S²FT and SFT, which are differences themselves.
 * Needs no base. Called by compress.ts.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { isOff, ORIGIN_FIELDS, refused, show, TARGET_FIELDS } from '../config-fields.js';
import { readFloats, readIntegers, wrongTensor } from '../tensor-values.js';
import type { EntryToPack } from './payload.js';
import type { SourceType } from './sources.js';
import type { TernaryVector } from './ternarise.js';

export interface SourceTensor {
  /** Of the entry that is packed. */
  readonly name: string;
  readonly values: Float32Array;
  readonly pack: (ternary: TernaryVector) => EntryToPack;
}

export interface CompressSource {
  readonly type: SourceType;
  /** What the terms need of the source's config. */
  readonly config: Readonly<Record<string, unknown>>;
  /** In the order of their names' bytes, which is the paper's order of the concatenated vector. */
  readonly tensors: readonly SourceTensor[];
  /** Entries that are packed as they are: the numbers of S²FT's rows and columns. */
  readonly indices: readonly EntryToPack[];
}

interface SourceKind {
  /** Fields of adapter_config.json that may be on. */
  readonly fields: readonly string[];
  readonly keep: readonly string[];
  readonly key: RegExp;
  readonly read: (
    folder: AdapterFolder,
    tensors: readonly SafetensorsTensor[],
  ) => Promise<Pick<CompressSource, 'tensors' | 'indices'>>;
}

const TRAINING = ['fan_in_fan_out', 'inference_mode', 'lora_dropout', 'task_type', 'init_ia3_weights'];
/** Ways to start a training that leave the base as it is. */
const PLAIN_INITS = ['eva', 'gaussian', 'orthogonal', 'mica'];
const LORA_FIELDS = ['alpha_pattern', 'lora_alpha', 'r', 'rank_pattern', 'use_rslora'];

const KINDS: Readonly<Record<SourceType, SourceKind>> = {
  LORA: {
    fields: [...LORA_FIELDS, 'eva_config', 'init_lora_weights', 'loftq_config', 'megatron_core', 'qalora_group_size'],
    keep: LORA_FIELDS,
    key: /\.lora_[AB](?:\.default)?\.weight$/,
    read: readLora,
  },
  IA3: { fields: ['feedforward_modules'], keep: [], key: /\.ia3_l(?:\.default)?$/, read: readIa3 },
  S2FT: { fields: ['s2ft_version'], keep: [], key: /\.s2ft_(?:rows|columns)\.(?:index|values)$/, read: readS2ft },
  SFT: {
    fields: ['density', 'dtype', 'num_deltas', 'num_tunable_weights', 'selection_algorithm', 'reselection_steps'],
    keep: [],
    key: /\.sft_delta(?:\.default)?\.(?:values|indices)$/,
    read: readSft,
  },
};

/** Throws 'invalid_adapter' for what cannot be compressed without a change of its meaning. */
export async function readSource(folder: AdapterFolder): Promise<CompressSource> {
  const type = folder.config['peft_type'];
  if (typeof type !== 'string' || !Object.hasOwn(KINDS, type)) {
    const expected = Object.keys(KINDS).join(', ');
    throw refused(
      'peft_type',
      `${show(type)}, expected one of ${expected}`,
      'Compress an adapter of one of these kinds.',
    );
  }
  const kind = KINDS[type as SourceType];
  checkFields(folder.config, kind);
  const tensors = [...folder.tensors.values()].sort((a, b) => Buffer.compare(Buffer.from(a.name), Buffer.from(b.name)));
  for (const { name } of tensors) checkKey(name, kind);
  if (tensors.length === 0) throw wrongTensor('it holds no tensors', 'There is nothing to compress.');
  const kept = Object.entries(folder.config).filter(([field, value]) => kind.keep.includes(field) && !isOff(value));
  return { type: type as SourceType, config: Object.fromEntries(kept), ...(await kind.read(folder, tensors)) };
}

function checkFields(config: JsonObject, { fields }: SourceKind): void {
  const known = new Set([...fields, ...TRAINING, ...ORIGIN_FIELDS, ...TARGET_FIELDS]);
  const isPlain = (field: string): boolean => field === 'bias' && config[field] === 'none';
  const found = Object.keys(config).find((field) => !known.has(field) && !isPlain(field) && !isOff(config[field]));
  if (found !== undefined) {
    throw refused(
      found.slice(0, 80),
      `${show(config[found])}, expected false, null or absent: only the plain form of this kind is compressed`,
      'Train it without, or serve the adapter uncompressed.',
    );
  }
  const init = config['init_lora_weights'] ?? true;
  if (typeof init === 'boolean' || PLAIN_INITS.some((name) => name === init)) return;
  throw refused(
    'init_lora_weights',
    `${show(init)}: the training began by changing the base weights, which the factors alone do not tell`,
    "Convert it first with PEFT's save_pretrained(path, path_initial_model_for_weight_conversion=INITIAL).",
  );
}

/** Embeddings and norms have no ternary form in the IR. */
function checkKey(name: string, { key }: SourceKind): void {
  if (key.test(name) && !/\.(?:embed_tokens|\w*norm)\./.test(name)) return;
  throw wrongTensor(
    `${quoteName(name)} is no tensor of a linear of this kind, and only those are compressed`,
    'Serve the adapter uncompressed, or train it without that module.',
  );
}

/** The pair's other tensor, or 'invalid_adapter'. */
function partner(folder: AdapterFolder, name: string, from: RegExp, to: string): SafetensorsTensor {
  const other = folder.tensors.get(name.replace(from, to));
  if (other !== undefined && other.name !== name) return other;
  throw wrongTensor(
    `${quoteName(name)} has no partner beside it`,
    'The file is incomplete; download or save it again.',
  );
}

type Read = Pick<CompressSource, 'tensors' | 'indices'>;

function shaped(tensor: SafetensorsTensor, values: Float32Array): SourceTensor {
  const { name, shape } = tensor;
  if (shape.length !== 2)
    throw wrongTensor(`${quoteName(name)} has shape [${shape.join(', ')}], expected a matrix`, 'Save it again.');
  return { name, values, pack: (ternary) => ({ name, shape, ...ternary }) };
}

async function readLora(folder: AdapterFolder, tensors: readonly SafetensorsTensor[]): Promise<Read> {
  const read: SourceTensor[] = [];
  for (const tensor of tensors) {
    const isA = tensor.name.includes('.lora_A.');
    const other = partner(folder, tensor.name, /\.lora_[AB]\./, isA ? '.lora_B.' : '.lora_A.');
    const [rank, otherRank] = isA ? [tensor.shape[0], other.shape[1]] : [tensor.shape[1], other.shape[0]];
    if (rank !== otherRank) {
      throw wrongTensor(
        `${quoteName(tensor.name)} has rank ${rank}, its partner ${otherRank}`,
        'Save the adapter again.',
      );
    }
    read.push(shaped(tensor, await readFloats(folder, tensor)));
  }
  return { tensors: read, indices: [] };
}

async function readIa3(folder: AdapterFolder, tensors: readonly SafetensorsTensor[]): Promise<Read> {
  const read: SourceTensor[] = [];
  for (const tensor of tensors)
    read.push(
      shaped(
        tensor,
        (await readFloats(folder, tensor)).map((l) => l - 1),
      ),
    );
  return { tensors: read, indices: [] };
}

async function readS2ft(folder: AdapterFolder, tensors: readonly SafetensorsTensor[]): Promise<Read> {
  const read: SourceTensor[] = [];
  const indices: EntryToPack[] = [];
  for (const tensor of tensors) {
    const { name } = tensor;
    const isIndex = name.endsWith('.index');
    partner(folder, name, /\.\w+$/, isIndex ? '.values' : '.index');
    if (!isIndex) {
      read.push(shaped(tensor, await readFloats(folder, tensor)));
      continue;
    }
    const positions = ascending(name, await readIntegers(folder, tensor));
    indices.push({ name, shape: [(positions.at(-1) ?? 0) + 1], positions });
  }
  return { tensors: read, indices };
}

/** One flat vector a module: the shape ends at the last entry, so that it can be written without the base. */
async function readSft(folder: AdapterFolder, tensors: readonly SafetensorsTensor[]): Promise<Read> {
  const read: SourceTensor[] = [];
  for (const tensor of tensors) {
    const isIndex = tensor.name.endsWith('.indices');
    const other = partner(folder, tensor.name, /\.\w+$/, isIndex ? '.values' : '.indices');
    if (isIndex) continue;
    const given = await readIntegers(folder, other);
    const values = await readFloats(folder, tensor);
    if (given.length !== values.length || values.length === 0) {
      throw wrongTensor(
        `${quoteName(tensor.name)} has ${values.length} values for ${given.length} indices`,
        'The file is damaged; save it again.',
      );
    }
    const order = Uint32Array.from(given.keys()).sort((a, b) => (given[a] as number) - (given[b] as number));
    const flat = ascending(
      other.name,
      Float64Array.from(order, (i) => given[i] as number),
    );
    const name = tensor.name.replace(/(\.default)?\.values$/, '');
    const shape = [(flat.at(-1) ?? 0) + 1];
    const pack = ({ positions, negative, scale }: TernaryVector): EntryToPack => ({
      name,
      shape,
      positions: positions.map((i) => flat[i] as number),
      negative,
      scale,
    });
    read.push({ name, values: Float32Array.from(order, (i) => values[i] as number), pack });
  }
  return { tensors: read, indices: [] };
}

/** Positions as the stream takes them. */
function ascending(name: string, values: Float64Array): Uint32Array {
  const wrong = values.findIndex(
    (value, i) => value < 0 || value >= 2 ** 32 - 1 || (i > 0 && value <= (values[i - 1] as number)),
  );
  if (wrong < 0) return Uint32Array.from(values);
  throw wrongTensor(
    `${quoteName(name)} holds ${values[wrong]} as number ${wrong}, expected unique numbers of 0 to 2^32 - 2 in ascending order`,
    'Save the adapter again.',
  );
}
