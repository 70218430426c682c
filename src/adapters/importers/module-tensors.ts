/**
 * What importers of shared and scaling methods need beside linear-tensors.ts: tensors of the whole model (VeRA's projections,
 * VB-LoRA's bank), parameters on modules of every kind, norms and embedding among them, and names for shared contents.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { DenseTensor, TermTensor } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { partsOf, placeOfModule, siteShape } from '../module-place.js';
import type { ModulePlace } from '../module-place.js';
import { TaggedHash } from '../tagged-hash.js';
import { floatTensor, rowsOf, wrongTensor } from '../tensor-values.js';
import type { LinearTensors } from './linear-tensors.js';

const MODEL_PREFIX = 'base_model.';
const MODULE_PREFIX = 'base_model.model.';

export interface ModelTensors {
  /** By their name without `base_model.` and the adapter's name. */
  readonly taken: ReadonlyMap<string, SafetensorsTensor>;
  /** The folder without them. */
  readonly rest: AdapterFolder;
}

/** Takes the tensors of the whole model out, those whose bare name `pattern` matches. */
export function takeModelTensors(folder: AdapterFolder, pattern: RegExp): ModelTensors {
  const taken = new Map<string, SafetensorsTensor>();
  const tensors = new Map<string, SafetensorsTensor>();
  for (const [name, tensor] of folder.tensors) {
    const bare = name.startsWith(MODEL_PREFIX) ? name.slice(MODEL_PREFIX.length) : name;
    const key = bare.replace(/\.default$/, '');
    if (!pattern.test(key)) {
      tensors.set(name, tensor);
      continue;
    }
    const other = taken.get(key);
    if (other !== undefined) throw twice(other.name, name);
    taken.set(key, tensor);
  }
  const rest = withTensors(folder, tensors, folder.config);
  return { taken, rest };
}

/** The folder as if it held these tensors and this config alone. */
export function withTensors(
  folder: AdapterFolder,
  tensors: ReadonlyMap<string, SafetensorsTensor>,
  config: JsonObject,
): AdapterFolder {
  return {
    directory: folder.directory,
    config,
    tensors,
    read: (name) => folder.read(name),
    readTexts: () => folder.readTexts(),
    close: () => folder.close(),
  };
}

/** One of them, which must be there; `why` is what it means that it is missing, with the mend. */
export function neededTensor({ taken }: ModelTensors, name: string, why: string): SafetensorsTensor {
  const tensor = taken.get(name);
  if (tensor !== undefined) return tensor;
  throw wrongTensor(`it holds no ${quoteName(MODEL_PREFIX + name)}`, why);
}

/** Out is 1 on a norm, and the vocabulary's size on the embedding. */
export interface PlacedTensors extends LinearTensors {
  readonly place: ModulePlace;
}

/** As groupLinears, for modules of every kind. Throws 'invalid_adapter' for the first key that is no such parameter. */
export function groupModules(
  folder: AdapterFolder,
  model: ModelConfig,
  parameters: readonly string[],
): PlacedTensors[] {
  const groups = new Map<string, Map<string, SafetensorsTensor>>();
  for (const tensor of folder.tensors.values()) {
    const { path, parameter } = parseKey(tensor.name, parameters);
    const group = groups.get(path) ?? new Map<string, SafetensorsTensor>();
    groups.set(path, group);
    const other = group.get(parameter);
    if (other !== undefined) throw twice(other.name, tensor.name);
    group.set(parameter, tensor);
  }
  if (groups.size === 0) {
    throw wrongTensor('it holds no tensors, so it would be the base under another name', 'Save the adapter again.');
  }
  const modules = [...groups].map(([path, tensors]) => moduleOf(path, tensors, model));
  const seen = new Map<string, string>();
  for (const { path, parts } of modules) {
    for (const { site } of parts) {
      const key = `${site.layer} ${site.site}`;
      const other = seen.get(key);
      if (other !== undefined) throw twice(other, path);
      seen.set(key, path);
    }
  }
  return modules;
}

function parseKey(name: string, parameters: readonly string[]): { path: string; parameter: string } {
  const bare = name.startsWith(MODULE_PREFIX) ? name.slice(MODULE_PREFIX.length) : name;
  const key = bare.replace(/\.default(?=\.|$)/, '');
  const parameter = parameters.find((candidate) => key.endsWith(`.${candidate}`));
  if (parameter !== undefined) return { path: key.slice(0, -parameter.length - 1), parameter };
  throw wrongTensor(
    `${quoteName(name)} is none of this method's parameters (${parameters.join(', ')})`,
    "Save the adapter again with its own library, or merge it into its base with PEFT's merge_and_unload() and serve " +
      'the result with --model.',
  );
}

function moduleOf(path: string, tensors: ReadonlyMap<string, SafetensorsTensor>, model: ModelConfig): PlacedTensors {
  const place = placeOfModule(path, model);
  if (place === undefined) {
    throw wrongTensor(
      `it adapts ${quoteName(path)}, which the base (${model.family}, ${model.layers.length} layers) does not have`,
      'Serve it on the base that it was trained for.',
    );
  }
  const parts = partsOf(place, model);
  const out = parts.reduce((sum, { rows }) => sum + rows, 0);
  const width = siteShape(model, place.sites[0] ?? 'q').in;
  return { path, layer: place.layer, place, parts, out, in: width, tensors };
}

function twice(first: string, second: string): Error {
  return wrongTensor(
    `${quoteName(first)} and ${quoteName(second)} adapt the same place`,
    'Which of them counts cannot be known; save the adapter again.',
  );
}

/** A tensor that many adapters bring, and the name of its content. */
export interface SharedTensor {
  readonly tensor: DenseTensor;
  readonly name: string;
}

export async function sharedTensor(tensor: DenseTensor): Promise<SharedTensor> {
  const hash = new TaggedHash().part('dtype', tensor.dtype).part('shape', tensor.shape.join('x'));
  const { data } = tensor;
  await hash.largePart('data', new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  return { tensor, name: hash.digest().toString('hex') };
}

/** Rows of it, named by content and place. */
export function sharedRows({ tensor, name }: SharedTensor, firstRow: number, rows: number): TermTensor {
  return { ...rowsOf(tensor, firstRow, rows), shared: `${name}:rows-${firstRow}` };
}

/** The top left corner `[rows, cols]`, a copy where it is narrower than the whole. */
export function sharedCorner(whole: SharedTensor, rows: number, cols: number): TermTensor {
  const { tensor, name } = whole;
  const width = tensor.shape[1] ?? 0;
  if (cols === width) return sharedRows(whole, 0, rows);
  const shared = `${name}:corner`;
  const shape = [rows, cols];
  if (tensor.dtype === 'f32') {
    const data = new Float32Array(rows * cols);
    for (let i = 0; i < rows; i += 1) data.set(tensor.data.subarray(i * width, i * width + cols), i * cols);
    return { ...floatTensor(shape, data), shared };
  }
  const data = new Uint16Array(rows * cols);
  for (let i = 0; i < rows; i += 1) data.set(tensor.data.subarray(i * width, i * width + cols), i * cols);
  return { dtype: tensor.dtype, shape, data, shared };
}
