/**
 * A and B of one module as terms take them: read, unfolded from the layouts of QA-LoRA, BD-LoRA, MLX and llama.cpp, and
 * joined by what the training had taken out of the base weight. Called by the LoRA importers.
 *
 * - QA-LoRA (Xu et al. 2024) gives A the means of g inputs each, times in / g: A'[r, i] = A[r, ⌊i / g⌋] · (in / g) / g.
 * - BD-LoRA stores a factor as its diagonal blocks, [rows, cols / n].
 * - PiSSA, OLoRA, CorDA, LoRA-GA train on W - C: with C = L R the terms are [sB | -L] [A; R].
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import { bug } from '../../core/errors.js';
import type { DenseTensor, LowRankTerm } from '../../core/terms.js';
import { INITIAL_FOLDERS } from '../adapter-container.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { refused } from '../config-fields.js';
import { rounded, toDoubles } from '../fold.js';
import type { BaseWeights } from '../importer.js';
import { checkShape, readFloats, readTensor, rowsOf, toFloats, wrongTensor } from '../tensor-values.js';
import { partOfBase } from './base-part.js';
import type { PartFactors, PartRequest } from './base-part.js';
import { CONVERT_INITIAL } from './lora-config.js';
import type { BaseChange } from './lora-config.js';
import type { FactorLayout, LoraModule } from './lora-modules.js';

/** Δ = scale · b (mid ⊙ (a x)). */
export interface Factors {
  /** `[R, in]`. */
  readonly a: DenseTensor;
  /** `[out, R]`. */
  readonly b: DenseTensor;
  readonly mid?: Float32Array;
  readonly scale: number;
}

export async function readFactors(
  folder: AdapterFolder,
  module: LoraModule,
  scale: number,
  layout: FactorLayout,
): Promise<Factors> {
  let a = await readTensor(folder, module.a);
  let b = await readTensor(folder, module.b);
  if (layout.transposed === true || (module.embedding && layout.embeddingRows === true)) a = flipped(a);
  if (layout.transposed === true) b = flipped(b);
  const heads = layout.pairedHeads?.(module.path) ?? 0;
  if (heads > 0) b = unpaired(b, heads);
  const blocks = layout.blocks?.(module.path) ?? { a: 1, b: 1 };
  if (blocks.a > 1) a = unblocked(a, blocks.a);
  if (blocks.b > 1) b = unblocked(b, blocks.b);
  const group = module.embedding ? 1 : (layout.group ?? 1);
  if (group > 1) a = ungrouped(a, group, module);
  if (module.diagonal === undefined) return { a, b, scale };
  return { a, b, scale, mid: await readFloats(folder, module.diagonal) };
}

export function lowRankTerms({ parts }: LoraModule, { a, b, mid, scale }: Factors): LowRankTerm[] {
  return parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a,
    b: rowsOf(b, firstRow, rows),
    scale,
    ...(mid === undefined ? {} : { mid }),
  }));
}

/** A tensor of the same type. */
function like(tensor: DenseTensor, shape: readonly number[]): DenseTensor {
  const count = shape.reduce((product, dim) => product * dim, 1);
  if (tensor.dtype === 'f32') return { dtype: 'f32', shape, data: new Float32Array(count) };
  return { dtype: tensor.dtype, shape, data: new Uint16Array(count) };
}

/** The transpose, in the same type. */
export function flipped(tensor: DenseTensor): DenseTensor {
  const [rows = 0, cols = 0] = tensor.shape;
  const result = like(tensor, [cols, rows]);
  for (let i = 0; i < rows; i += 1) {
    for (let j = 0; j < cols; j += 1) result.data[j * rows + i] = tensor.data[i * cols + j] as number;
  }
  return result;
}

/** Row 2j + s of each head becomes its row j + s · half. */
function unpaired(tensor: DenseTensor, heads: number): DenseTensor {
  const [rows = 0, cols = 0] = tensor.shape;
  const result = like(tensor, tensor.shape);
  const size = rows / heads;
  for (let row = 0; row < rows; row += 1) {
    const within = row % size;
    const to = row - within + Math.floor(within / 2) + (within % 2) * (size / 2);
    result.data.set(tensor.data.subarray(row * cols, (row + 1) * cols), to * cols);
  }
  return result;
}

/** Diagonal blocks `[rows, cols / count]` as `[rows, cols]`. */
function unblocked(tensor: DenseTensor, count: number): DenseTensor {
  const [rows = 0, width = 0] = tensor.shape;
  const result = like(tensor, [rows, width * count]);
  for (let i = 0; i < rows; i += 1) {
    const block = Math.floor((i * count) / rows);
    result.data.set(tensor.data.subarray(i * width, (i + 1) * width), (i * count + block) * width);
  }
  return result;
}

function ungrouped(tensor: DenseTensor, group: number, module: LoraModule): DenseTensor {
  const [rows = 0, width = 0] = tensor.shape;
  const values = toFloats(tensor);
  const result = new Float64Array(rows * width * group);
  for (let i = 0; i < result.length; i += 1) {
    result[i] = ((values[Math.floor(i / group)] as number) * width) / group;
  }
  return rounded(`A of ${module.path} spread over its groups`, [rows, width * group], result);
}

/** How one module's base was changed: computed from W, or as the initial adapter says. */
export type ModuleChange =
  | { readonly kind: 'computed'; readonly request: PartRequest }
  | { readonly kind: 'initial'; readonly a: string; readonly b: string };

/** Checks on headers; undefined where the base is as it was. */
export function changeOf(
  folder: AdapterFolder,
  module: LoraModule,
  change: BaseChange | undefined,
  limits: AdapterLimits,
): ModuleChange | undefined {
  // PEFT begins an embedding's factors at random whatever the field says.
  if (change === undefined || module.embedding) return undefined;
  const { field, part } = change;
  const { path, rank } = module;
  if (2 * rank > limits.maxRank) {
    const what = `on for ${quoteName(path)} of rank ${rank}: with what the training took out of the base it has rank ${2 * rank}`;
    throw refused(field, `${what}, at most ${limits.maxRank} is allowed`, 'Raise --max-lora-rank.');
  }
  const initial = field === 'init_lora_weights' ? initialNames(folder, module) : undefined;
  if (initial !== undefined) return { kind: 'initial', ...initial };
  if (part === undefined) {
    throw refused(
      field,
      'a way to begin that took a part out of the base weights which depends on random numbers or data, ' +
        'and no initial adapter lies beside it',
      `${CONVERT_INITIAL}, or put the initial adapter into a folder ${INITIAL_FOLDERS[0]} beside it.`,
    );
  }
  return { kind: 'computed', request: { part, rank, field, path } };
}

function initialNames(folder: AdapterFolder, { a, b }: LoraModule): { a: string; b: string } | undefined {
  const place = INITIAL_FOLDERS.find((name) => folder.tensors.has(`${name}/${a.name}`));
  if (place === undefined) return undefined;
  const names = { a: `${place}/${a.name}`, b: `${place}/${b.name}` };
  for (const [key, own] of [
    ['a', a],
    ['b', b],
  ] as const) {
    const tensor = folder.tensors.get(names[key]);
    if (tensor === undefined) return undefined;
    checkShape(tensor, own.shape);
  }
  return names;
}

/** Every tensor of an initial adapter says how a module's base was changed. */
export function checkInitial(
  folder: AdapterFolder,
  jobs: readonly { readonly module: LoraModule; readonly change: ModuleChange | undefined }[],
  field: string | undefined,
): void {
  const used = new Set(jobs.flatMap(({ change }) => (change?.kind === 'initial' ? [change.a, change.b] : [])));
  // PEFT begins an embedding's factors at random, so what they were changes nothing.
  const embeddings = jobs.filter(({ module }) => module.embedding && field === 'init_lora_weights');
  const idle = new Set(embeddings.flatMap(({ module }) => [module.a.name, module.b.name]));
  for (const name of folder.tensors.keys()) {
    const place = INITIAL_FOLDERS.find((folderName) => name.startsWith(`${folderName}/`));
    if (place === undefined || used.has(name) || idle.has(name.slice(place.length + 1))) continue;
    throw wrongTensor(
      `${quoteName(name)} has no counterpart in the trained adapter that began with it`,
      'Put the adapter that the training began with into the folder, whole, and nothing else.',
    );
  }
}

/** Joins what was taken out of the base: rank 2r and scale 1. */
export async function withoutChange(
  folder: AdapterFolder,
  module: LoraModule,
  factors: Factors,
  change: ModuleChange,
  base: BaseWeights,
): Promise<Factors> {
  const part = await changedPart(folder, module, factors, change, base);
  const { rank, out, in: width } = module;
  const what = `the base of ${module.path} less what its training took out`;
  const a = new Float64Array(2 * rank * width);
  a.set(toFloats(factors.a));
  a.set(part.right, rank * width);
  const b = new Float64Array(out * 2 * rank);
  const own = toFloats(factors.b);
  for (let i = 0; i < out; i += 1) {
    for (let k = 0; k < rank; k += 1) {
      b[i * 2 * rank + k] = factors.scale * (own[i * rank + k] as number);
      b[i * 2 * rank + rank + k] = -(part.left[i * rank + k] as number);
    }
  }
  const joined = { a: rounded(what, [2 * rank, width], a), b: rounded(what, [out, 2 * rank], b), scale: 1 };
  if (factors.mid === undefined) return joined;
  const mid = new Float32Array(2 * rank).fill(1);
  mid.set(factors.mid);
  return { ...joined, mid };
}

async function changedPart(
  folder: AdapterFolder,
  module: LoraModule,
  { scale }: Factors,
  change: ModuleChange,
  base: BaseWeights,
): Promise<PartFactors> {
  const scaled = (values: Float64Array): Float64Array => values.map((value) => scale * value);
  if (change.kind === 'computed') {
    const found = await partOfBase(base, module, change.request);
    // OLoRA takes out s Q R; PiSSA divides its factors by s first.
    return change.request.part === 'columns' ? { ...found, left: scaled(found.left) } : found;
  }
  const read = async (name: string): Promise<Float64Array> =>
    toDoubles(await readTensor(folder, folder.tensors.get(name) ?? bug(`${name} left its own map`)));
  return { left: scaled(await read(change.b)), right: await read(change.a) };
}
