/**
 * VB-LoRA (Li et al. 2024, peft tuners/vblora): the factors of a LoRA are built of pieces of `vector_length` values, each a mix
 * of the best `topk` vectors of one bank, weighed by the softmax of their logits. Folded at load to one LOWRANK term a
 * linear, scale 1. Keys: `base_model.vblora_vector_bank [n, v]`; on linears `vblora_logits_A [r, in/v, n]` and
 * `vblora_logits_B [out/v, r, n]`, or, with save_only_topk_weights, `…_topk_indices` and `…_topk_weights` in their place, where
 * the last weight is left out (they sum to 1).
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { LowRankTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { flagField, integerField, refused } from '../config-fields.js';
import { rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readIntegers, readTensor, rowsOf, wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { neededTensor, takeModelTensors } from './module-tensors.js';

const BANK = 'vblora_vector_bank';
const KNOWN = [
  'init_logits_std',
  'init_vector_bank_bound',
  'num_vectors',
  'r',
  'save_only_topk_weights',
  'topk',
  'vblora_dropout',
  'vector_length',
];

export const vbLoraImporter: AdapterImporter = {
  method: 'VBLORA',
  matches: (config) => isPeftType(config, 'VBLORA'),
  compile: compileVbLora,
};

interface Sizes {
  readonly rank: number;
  readonly vectors: number;
  readonly length: number;
  readonly topk: number;
  readonly onlyTopk: boolean;
}

async function compileVbLora(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const sizes = sizesOf(folder);
  const shared = takeModelTensors(folder, /^vblora_vector_bank$/);
  const bankTensor = neededTensor(shared, BANK, 'The file is incomplete; download or save it again.');
  checkShape(bankTensor, [sizes.vectors, sizes.length]);
  const endings = sizes.onlyTopk ? ['_topk_indices', '_topk_weights'] : [''];
  const parameters = ['A', 'B'].flatMap((side) => endings.map((ending) => `vblora_logits_${side}${ending}`));
  const modules = groupLinears(shared.rest, model, { parameters });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    checkModule(module, sizes);
    checkRankLimit(sizes.rank, module.path, limits);
    budget.take(sizes.rank * (module.in + module.out), module.path);
  }
  const bank = toDoubles(await readTensor(folder, bankTensor));
  const terms: LowRankTerm[] = [];
  const turns = new Turns();
  for (const module of modules) {
    const { rank, length } = sizes;
    const what = `the mix of vectors for ${module.path}`;
    const left = mix(await choicesOf(folder, module, 'A', sizes), bank, length);
    const a = rounded(what, [rank, module.in], left);
    // Piece (tile, k) of B is column k of the tile's rows.
    const right = mix(await choicesOf(folder, module, 'B', sizes), bank, length);
    const b = new Float64Array(module.out * rank);
    for (let i = 0; i < b.length; i += 1) {
      const [row, k] = [Math.floor(i / rank), i % rank];
      b[i] = right[(Math.floor(row / length) * rank + k) * length + (row % length)] as number;
    }
    const factor = rounded(what, [module.out, rank], b);
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(factor, firstRow, rows), scale: 1 });
    }
    await turns.after(((module.in + module.out) / length) * rank * (8 * sizes.vectors + sizes.topk * length));
  }
  return { terms: { terms }, notes };
}

function sizesOf({ config }: AdapterFolder): Sizes {
  const vectors = integerField(config, 'num_vectors', 1, 256);
  const topk = integerField(config, 'topk', 1, 2);
  if (topk > vectors) {
    throw refused('topk', `${topk} of ${vectors} vectors`, 'Write the value that the adapter was trained with.');
  }
  return {
    rank: integerField(config, 'r', 1),
    vectors,
    length: integerField(config, 'vector_length', 1, 256),
    topk,
    onlyTopk: flagField(config, 'save_only_topk_weights', false),
  };
}

function checkModule(module: LinearTensors, { rank, vectors, length, topk, onlyTopk }: Sizes): void {
  if (module.in % length !== 0 || module.out % length !== 0) {
    throw refused(
      'vector_length',
      `${length}, which does not divide ${quoteName(module.path)} [${module.out}, ${module.in}]`,
      'Serve it on the base that it was trained for.',
    );
  }
  for (const [name, pieces] of [
    ['vblora_logits_A', [rank, module.in / length]],
    ['vblora_logits_B', [module.out / length, rank]],
  ] as const) {
    if (!onlyTopk) {
      expectTensor(module, name, [...pieces, vectors]);
      continue;
    }
    expectTensor(module, `${name}_topk_indices`, [...pieces, topk]);
    // Of a single choice no weight is stored, and its tensor is empty.
    if (topk > 1) expectTensor(module, `${name}_topk_weights`, [...pieces, topk - 1]);
  }
}

/** For each piece, `topk` vectors and their weights. */
interface Choices {
  readonly topk: number;
  readonly vectors: Float64Array;
  readonly weights: Float64Array;
}

async function choicesOf(
  folder: AdapterFolder,
  module: LinearTensors,
  side: 'A' | 'B',
  sizes: Sizes,
): Promise<Choices> {
  const name = `vblora_logits_${side}`;
  if (!sizes.onlyTopk) {
    const tensor = expectTensor(module, name, [-1, -1, -1]);
    return best(tensor.name, toDoubles(await readTensor(folder, tensor)), sizes);
  }
  const indices = expectTensor(module, `${name}_topk_indices`, [-1, -1, -1]);
  const vectors = await readIntegers(folder, indices);
  const stored = module.tensors.get(`${name}_topk_weights`);
  const values = sizes.topk === 1 || stored === undefined ? undefined : toDoubles(await readTensor(folder, stored));
  return completed(indices.name, vectors, values, sizes);
}

function best(name: string, logits: Float64Array, { vectors: count, topk }: Sizes): Choices {
  const pieces = logits.length / count;
  const vectors = new Float64Array(pieces * topk);
  const weights = new Float64Array(pieces * topk);
  const order = new Uint32Array(count);
  for (let piece = 0; piece < pieces; piece += 1) {
    const row = logits.subarray(piece * count, (piece + 1) * count);
    for (let i = 0; i < count; i += 1) order[i] = i;
    order.sort((a, b) => (row[b] as number) - (row[a] as number));
    if (topk < count && row[order[topk - 1] as number] === row[order[topk] as number]) {
      throw wrongTensor(
        `${quoteName(name)} has equal logits at the edge of the best ${topk}, and which vector is taken is not defined`,
        'Save the adapter again with save_only_topk_weights=True, which stores the choice.',
      );
    }
    const largest = row[order[0] as number] as number;
    let sum = 0;
    for (let k = 0; k < topk; k += 1) {
      const weight = Math.exp((row[order[k] as number] as number) - largest);
      vectors[piece * topk + k] = order[k] as number;
      weights[piece * topk + k] = weight;
      sum += weight;
    }
    for (let k = 0; k < topk; k += 1) weights[piece * topk + k] = (weights[piece * topk + k] as number) / sum;
  }
  return { topk, vectors, weights };
}

/** Adds the last weight of each piece. */
function completed(
  name: string,
  vectors: Float64Array,
  stored: Float64Array | undefined,
  { topk, vectors: count }: Sizes,
): Choices {
  const weights = new Float64Array(vectors.length);
  for (let piece = 0; piece * topk < vectors.length; piece += 1) {
    const chosen = vectors.subarray(piece * topk, (piece + 1) * topk);
    if (new Set(chosen).size !== topk || chosen.some((vector) => vector < 0 || vector >= count)) {
      throw wrongTensor(
        `${quoteName(name)} names vectors ${[...chosen].join(', ')}, expected ${topk} different ones below ${count}`,
        'The file is damaged; download or save it again.',
      );
    }
    let last = 1;
    for (let k = 0; k + 1 < topk; k += 1) {
      const weight = stored?.[piece * (topk - 1) + k] ?? 0;
      weights[piece * topk + k] = weight;
      last -= weight;
    }
    weights[piece * topk + topk - 1] = last;
    if (weights.subarray(piece * topk, (piece + 1) * topk).some((weight) => weight < 0)) {
      throw wrongTensor(
        `the weights beside ${quoteName(name)} are not those of a softmax: one is below 0, or they sum to more than 1`,
        'Save the adapter again in float32.',
      );
    }
  }
  return { topk, vectors, weights };
}

/** The pieces, one after the other. */
function mix({ topk, vectors, weights }: Choices, bank: Float64Array, length: number): Float64Array {
  const result = new Float64Array((vectors.length / topk) * length);
  for (let i = 0; i < vectors.length; i += 1) {
    const [from, to] = [(vectors[i] as number) * length, Math.floor(i / topk) * length];
    for (let j = 0; j < length; j += 1) {
      result[to + j] = (result[to + j] as number) + (weights[i] as number) * (bank[from + j] as number);
    }
  }
  return result;
}
