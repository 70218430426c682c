/**
 * PEFT BOFT (Liu et al. 2024): y = s ⊙ (W Bᵀ x) + b, B a product of butterfly factors P_i blockdiag(R_i) P_iᵀ, each R a
 * Cayley rotation. A BLOCKDIAG chain before the base product, the last factor first, and DIAG g = s.
 *
 * PEFT builds only one factor where its CUDA extension is missing, whatever the config says; the tensors tell.
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { indices, inverse, preTerms, roundedStages } from '../block-chain.js';
import type { FoldedStage } from '../block-chain.js';
import { integerField } from '../config-fields.js';
import { toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { toFloats, wrongTensor } from '../tensor-values.js';
import { cayleyTransposed } from './cayley.js';
import {
  checkPeftConfig,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const KNOWN = ['boft_block_num', 'boft_block_size', 'boft_dropout', 'boft_n_butterfly_factor'];

export const boftImporter: AdapterImporter = {
  method: 'BOFT',
  matches: (config) => isPeftType(config, 'BOFT'),
  compile: compileBoft,
};

/** N butterfly factors of D blocks `[b, b]`. */
export interface Butterfly {
  readonly factors: number;
  readonly blocks: number;
  readonly size: number;
}

async function compileBoft(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['boft_R', 'boft_s'] });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const wanted = {
    size: integerField(folder.config, 'boft_block_size', 0, 4),
    blocks: integerField(folder.config, 'boft_block_num', 0, 0),
    factors: integerField(folder.config, 'boft_n_butterfly_factor', 1, 1),
  };
  const budget = new FoldBudget(limits);
  const shapes = modules.map((module) => {
    const shape = butterflyOf(module, wanted);
    budget.take(shape.factors * module.in * shape.size, module.path);
    return shape;
  });
  const terms: Term[] = [];
  const turns = new Turns();
  for (const [i, module] of modules.entries()) {
    const shape = shapes[i] as Butterfly;
    const raw = toDoubles(await readParameter(folder, module, 'boft_R'));
    const scales = toFloats(await readParameter(folder, module, 'boft_s'));
    const { stages, output } = await butterflyChain(raw, shape, turns);
    terms.push(...preTerms(module, roundedStages(`the rotation of ${module.path}`, stages), output));
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'diag', site, g: scales.slice(firstRow, firstRow + rows) });
    }
  }
  const quirk = shapes.some(({ factors }) => factors !== wanted.factors);
  return { terms: { terms }, notes: quirk ? [...notes, oneFactorNote(wanted.factors)] : notes };
}

function oneFactorNote(wanted: number): string {
  return `boft_n_butterfly_factor is ${wanted}, but it was trained with 1, as PEFT does without its CUDA extension.`;
}

function butterflyOf(module: LinearTensors, wanted: Butterfly): Butterfly {
  const [factors = 0, blocks = 0, size = 0] = expectTensor(module, 'boft_R', [-1, -1, -1, -1]).shape;
  expectTensor(module, 'boft_R', [factors, blocks, size, size]);
  expectTensor(module, 'boft_s', [module.out, 1]);
  if (blocks * size !== module.in) {
    throw wrongTensor(
      `${JSON.stringify(module.path)} has ${blocks} blocks of ${size}, expected blocks over its ${module.in} inputs`,
      'The adapter was trained for another base; serve it on that one.',
    );
  }
  if (wanted.size !== 0 && wanted.size !== size) {
    throw disagreement('boft_block_size', wanted.size, module.path, `blocks of ${size}`);
  }
  if (wanted.blocks !== 0 && wanted.blocks !== blocks) {
    throw disagreement('boft_block_num', wanted.blocks, module.path, `${blocks} blocks`);
  }
  if (factors !== 1 && factors !== wanted.factors) {
    throw disagreement('boft_n_butterfly_factor', wanted.factors, module.path, `${factors} factors`);
  }
  if (factors > 1 && (size % 2 !== 0 || blocks % 2 ** (factors - 1) !== 0)) {
    throw wrongTensor(
      `${JSON.stringify(module.path)} has ${factors} butterfly factors of ${blocks} blocks of ${size}: no butterfly ` +
        'permutation fits, which needs an even size and a number of blocks that is a multiple of 2^(factors - 1)',
      'Save the adapter again with the settings that it was trained with.',
    );
  }
  return { factors, blocks, size };
}

/** Stages for Bᵀ x = … P_1 R_1ᵀ P_1ᵀ x of raw `[N, D, b, b]`, the permutations between two factors joined. */
export async function butterflyChain(
  raw: Float64Array,
  { factors, blocks, size }: Butterfly,
  turns: Turns,
): Promise<{ stages: FoldedStage[]; output: Uint32Array | undefined }> {
  const stages: FoldedStage[] = [];
  const shape = [blocks, size, size] as const;
  let before: Uint32Array | undefined;
  for (let factor = factors - 1; factor >= 0; factor -= 1) {
    const values = new Float64Array(blocks * size * size);
    for (let block = 0; block < blocks; block += 1) {
      const from = (factor * blocks + block) * size * size;
      const q = skewPart(raw.subarray(from, from + size * size), size);
      values.set(cayleyTransposed(q, size), block * size * size);
      await turns.after(3 * size ** 3);
    }
    if (factors === 1) return { stages: [{ shape, values }], output: undefined };
    const permutation = butterflyPermutation(blocks * size, size, factor);
    const back = inverse(permutation);
    const last = before;
    stages.push({ shape, values, gather: last === undefined ? back : back.map((from) => last[from] as number) });
    before = permutation;
  }
  return { stages, output: before };
}

/** (R - Rᵀ) / 2. */
function skewPart(matrix: Float64Array, n: number): Float64Array {
  return matrix.map((value, i) => (value - (matrix[(i % n) * n + Math.floor(i / n)] as number)) / 2);
}

/**
 * P_i: in runs of b·2^i values, cut into chunks of b/2, the chunks at even places come before those at odd ones. Entry j is
 * where output j comes from.
 */
function butterflyPermutation(width: number, size: number, factor: number): Uint32Array {
  const [run, chunk] = [size * 2 ** factor, size / 2];
  const half = run / chunk / 2;
  return indices(width, (i) => {
    const place = Math.floor((i % run) / chunk);
    const from = place < half ? 2 * place : 2 * (place - half) + 1;
    return i - (i % run) + from * chunk + (i % chunk);
  });
}
