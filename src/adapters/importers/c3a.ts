/**
 * PEFT C3A (Chen et al. 2024): ΔW of blocks `[b, b]`, block (m, n) circulant with entries w[m, n, (t - j) mod b] / in at
 * row j, column t. An additive BLOCKDIAG chain: either the whole ΔW as one block, or, where that is smaller, the real
 * Fourier form: the cosines and sines of each run of the input, one block for each pair of frequencies over all runs, and
 * the way back.
 */
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { additiveTerms, indices, repeated, roundedStages } from '../block-chain.js';
import type { FoldedStage } from '../block-chain.js';
import { integerField } from '../config-fields.js';
import { product, toDoubles, transposed, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import {
  checkedSize,
  checkPeftConfig,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { ModulePatterns } from './lora-patterns.js';

export const c3aImporter: AdapterImporter = {
  method: 'C3A',
  matches: (config) => isPeftType(config, 'C3A'),
  compile: compileC3a,
};

/** Runs of b values: `rows` of the output, `cols` of the input. */
export interface Grid {
  readonly rows: number;
  readonly cols: number;
  readonly size: number;
}

async function compileC3a(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  const modules = groupLinears(folder, model, { parameters: ['c3a_kernel'] });
  const notes = checkPeftConfig(folder.config, ['block_size', 'block_size_pattern'], modules);
  const sizeOf = blockSizes(folder.config);
  const budget = new FoldBudget(limits);
  const grids = modules.map((module) => {
    const grid = gridOf(module, sizeOf(module.path));
    budget.take(Math.min(denseSize(grid), fourierSize(grid)), module.path);
    return grid;
  });
  const terms: Term[] = [];
  const turns = new Turns();
  for (const [i, module] of modules.entries()) {
    const grid = grids[i] as Grid;
    const kernel = toDoubles(await readParameter(folder, module, 'c3a_kernel'));
    const stages = denseSize(grid) <= fourierSize(grid) ? denseChain(grid, kernel) : fourierChain(grid, kernel);
    terms.push(...additiveTerms(module, roundedStages(`the circulants of ${module.path}`, stages), undefined, 1));
    await turns.after(kernel.length * grid.size);
  }
  return { terms: { terms }, notes };
}

function blockSizes(config: JsonObject): (path: string) => number {
  const size = integerField(config, 'block_size', 1, 256);
  const patterns = ModulePatterns.parse('block_size_pattern', config['block_size_pattern'], checkedSize);
  return (path) => patterns.valueFor(path) ?? size;
}

function gridOf(module: LinearTensors, wanted: number): Grid {
  const [rows = 0, cols = 0, size = 0] = expectTensor(module, 'c3a_kernel', [-1, -1, -1]).shape;
  if (size !== wanted) throw disagreement('block_size', wanted, module.path, `blocks of ${size}`);
  expectTensor(module, 'c3a_kernel', [module.out / size, module.in / size, size]);
  return { rows, cols, size };
}

function denseSize({ rows, cols, size }: Grid): number {
  return rows * cols * size * size;
}

/** Frequencies 0 and b/2 have no sine and stand as one pair; each other frequency's cosine and sine are a pair. */
function pairsOf(size: number): number {
  return Math.max(1, Math.ceil(size / 2));
}

function fourierSize({ rows, cols, size }: Grid): number {
  return pairsOf(size) * (2 * (rows + cols) * size + 4 * rows * cols);
}

export function denseChain({ rows, cols, size }: Grid, kernel: Float64Array): FoldedStage[] {
  const [out, width] = [rows * size, cols * size];
  const values = new Float64Array(out * width);
  for (let m = 0; m < rows; m += 1) {
    for (let n = 0; n < cols; n += 1) {
      const w = kernel.subarray((m * cols + n) * size, (m * cols + n + 1) * size);
      for (let j = 0; j < size; j += 1) {
        const at = (m * size + j) * width + n * size;
        for (let t = 0; t < size; t += 1) values[at + t] = (w[(t - j + size) % size] as number) / width;
      }
    }
  }
  return [{ shape: [1, out, width], values }];
}

/**
 * Row 2f of the transform is the cosine of pair f, row 2f + 1 its sine; of pair 0 the constant and, for even b, the
 * alternation. `[2 · pairs, b]`, row 1 zero where b is odd.
 */
function waves(size: number): Float64Array {
  const pairs = pairsOf(size);
  const result = new Float64Array(2 * pairs * size);
  for (let t = 0; t < size; t += 1) {
    result[t] = 1;
    if (size % 2 === 0) result[size + t] = t % 2 === 0 ? 1 : -1;
    for (let f = 1; f < pairs; f += 1) {
      const angle = (2 * Math.PI * ((f * t) % size)) / size;
      result[2 * f * size + t] = Math.cos(angle);
      result[(2 * f + 1) * size + t] = Math.sin(angle);
    }
  }
  return result;
}

/** The blocks `[pairs, 2 rows, 2 cols]` that multiply the spectra of x with those of w: `[[a, d], [-d, a]]` for each pair. */
function mixingBlocks({ rows, cols, size }: Grid, kernel: Float64Array, table: Float64Array): Float64Array {
  const pairs = pairsOf(size);
  const features = 2 * pairs;
  const spectra = product(kernel, transposed(table, features, size), rows * cols, size, features);
  const mixing = new Float64Array(pairs * 4 * rows * cols);
  for (let f = 0; f < pairs; f += 1) {
    for (let m = 0; m < rows; m += 1) {
      for (let n = 0; n < cols; n += 1) {
        const at = (m * cols + n) * features + 2 * f;
        const [a, d] = [spectra[at] as number, spectra[at + 1] as number];
        const top = (f * 2 * rows + m) * 2 * cols + n;
        const bottom = top + rows * 2 * cols;
        mixing[top] = a;
        mixing[top + cols] = f === 0 ? 0 : d;
        mixing[bottom] = f === 0 ? 0 : -d;
        mixing[bottom + cols] = f === 0 ? d : a;
      }
    }
  }
  return mixing;
}

/**
 * With (c, s) and (a, d) the cosine and sine sums of x and w at one frequency, a run of the output is the sum over
 * frequencies of (c a + s d) cos + (s a - c d) sin, times 1/b, or 2/b for the frequencies that stand for two.
 */
export function fourierChain(grid: Grid, kernel: Float64Array): FoldedStage[] {
  const { rows, cols, size } = grid;
  const pairs = pairsOf(size);
  const features = 2 * pairs;
  const table = waves(size);
  const back = new Float64Array(size * features);
  for (let j = 0; j < size; j += 1) {
    for (let k = 0; k < features; k += 1) {
      back[j * features + k] = ((k < 2 ? 1 : 2) * (table[k * size + j] as number)) / (size * size * cols);
    }
  }
  const [perRun, perPair] = [cols * 2, rows * 2];
  return [
    { shape: [cols, features, size], values: repeated(table, cols) },
    {
      // Pair f: the cosines of all runs, then their sines.
      gather: indices(pairs * perRun, (i) => {
        const [f, rest] = [Math.floor(i / perRun), i % perRun];
        return (rest % cols) * features + 2 * f + Math.floor(rest / cols);
      }),
      shape: [pairs, perPair, perRun],
      values: mixingBlocks(grid, kernel, table),
    },
    {
      gather: indices(rows * features, (i) => {
        const [m, k] = [Math.floor(i / features), i % features];
        return Math.floor(k / 2) * perPair + (k % 2) * rows + m;
      }),
      shape: [rows, size, features],
      values: repeated(back, rows),
    },
  ];
}
