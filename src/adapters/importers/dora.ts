/**
 * DoRA (Liu et al. 2024): y = g ⊙ (W x + s B A x) + b with g = m / ‖W + s B A‖, the norm of each row. g goes to the base
 * product and into B. It depends on the base as it is served.
 *
 * An embedding's matrix is the vocabulary's rows, which PEFT scales by hidden dimension (m `[hidden]`) and MLX by token
 * (m `[vocab]`); either way every row of the table changes, so that the term is the whole table. Called by the LoRA importers.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { DenseTensor, Term } from '../../core/terms.js';
import type { AdapterLimits } from '../adapter-folder.js';
import { addLeftProduct } from '../fold-kernels.js';
import { eachBaseBlock, rounded } from '../fold.js';
import type { BaseMatrix } from '../fold.js';
import type { BaseWeights } from '../importer.js';
import { checkFolded, floatTensor, toFloats, wrongTensor } from '../tensor-values.js';
import { lowRankTerms } from './lora-factors.js';
import type { Factors } from './lora-factors.js';
import type { LoraModule } from './lora-modules.js';

/** m `[out]`. */
export async function doraTerms(
  module: LoraModule,
  factors: Factors,
  magnitude: Float32Array,
  base: BaseWeights,
): Promise<Term[]> {
  const [rank = 0] = factors.a.shape;
  const a = toFloats(factors.a);
  const b = toFloats(factors.b);
  const g = new Float64Array(module.out);
  const { in: width } = module;
  const left = Float64Array.from(b, (value) => factors.scale * value);
  await eachBaseBlock(base, module, rank + 1, (block, first, rows) => {
    const sum = Float64Array.from(block);
    const own = { data: left.subarray(first * rank), k: rows, stride: rank, first: 0 };
    addLeftProduct(sum, own, a, { rows: rank, width });
    for (let row = 0; row < rows; row += 1) {
      g[first + row] = (magnitude[first + row] as number) / norm(sum.subarray(row * width, (row + 1) * width));
    }
  });
  const what = `DoRA's scale of ${module.path}`;
  const scaled = left.map((value, i) => (g[Math.floor(i / rank)] as number) * value);
  const own = { a: factors.a, b: rounded(what, [module.out, rank], scaled), scale: 1 };
  const scales = checkFolded(what, Float32Array.from(g));
  const diagonals = module.parts.map(({ site, firstRow, rows }): Term => ({
    kind: 'diag',
    site,
    g: scales.slice(firstRow, firstRow + rows),
  }));
  return [...lowRankTerms(module, own), ...diagonals];
}

function norm(values: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i += 1) sum += (values[i] as number) ** 2;
  return Math.sqrt(sum);
}

/** Before anything is read: the table must fit. */
export function checkDoraTable({ path, out, in: vocab }: LoraModule, limits: AdapterLimits): void {
  const bytes = 4 * vocab * out;
  if (bytes <= limits.maxBytes) return;
  throw wrongTensor(
    `DoRA on ${quoteName(path)} changes every row of the embedding, ${bytes} bytes, at most ${limits.maxBytes} are allowed`,
    'Merge the adapter into its base and serve the result with --model.',
  );
}

/** The embedding with its factors and m: `[vocab, hidden]`; m is `[hidden]`, or with `perToken` `[vocab]`. */
export async function doraTable(
  module: LoraModule,
  factors: Factors,
  magnitude: Float32Array,
  options: { readonly perToken: boolean; readonly base: BaseWeights },
): Promise<DenseTensor> {
  const { out: hidden, in: vocab } = module;
  const site = { layer: -1, site: 'embedding' } as const;
  const matrix: BaseMatrix = { parts: [{ site, firstRow: 0, rows: vocab }], out: vocab, in: hidden };
  const row = adaptedRows(module, factors);
  const squares = new Float64Array(options.perToken ? vocab : hidden);
  const [rank = 0] = factors.a.shape;
  await eachBaseBlock(options.base, matrix, rank + 1, (block, first, rows) => {
    for (let i = 0; i < rows; i += 1) {
      row(block, i, first + i).forEach((value, j) => {
        const at = options.perToken ? first + i : j;
        squares[at] = (squares[at] as number) + value * value;
      });
    }
  });
  const g = squares.map((square, i) => (magnitude[i] as number) / Math.sqrt(square));
  const values = new Float32Array(vocab * hidden);
  await eachBaseBlock(options.base, matrix, rank + 1, (block, first, rows) => {
    for (let i = 0; i < rows; i += 1) {
      row(block, i, first + i).forEach((value, j) => {
        values[(first + i) * hidden + j] = (g[options.perToken ? first + i : j] as number) * value;
      });
    }
  });
  return floatTensor([vocab, hidden], checkFolded(`DoRA's scale of ${module.path}`, values));
}

/** Row `index` of the block plus s B A of its token, in an array that the next call uses again. */
function adaptedRows(
  { out: hidden, in: vocab }: LoraModule,
  { a, b, scale }: Factors,
): (block: Float32Array, index: number, token: number) => Float64Array {
  const [rank = 0] = a.shape;
  const [down, up] = [toFloats(a), toFloats(b)];
  const row = new Float64Array(hidden);
  return (block, index, token) => {
    for (let j = 0; j < hidden; j += 1) {
      let sum = 0;
      for (let k = 0; k < rank; k += 1) sum += (down[k * vocab + token] as number) * (up[j * rank + k] as number);
      row[j] = (block[index * hidden + j] as number) + scale * sum;
    }
    return row;
  };
}
