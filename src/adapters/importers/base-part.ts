/**
 * The part of a base weight that a training took out of it before it began: PiSSA the r largest singular parts, OLoRA (but
 * for its scale) what the first r columns of Q in W = Q R span, KaSA (which leaves it out for good) the r smallest singular parts. Each is P W or
 * W P for a projection P, so signs of singular vectors do not matter. Found in float64 from the weight as it is served.
 */
import { addLeftProduct, addRowProducts } from '../fold-kernels.js';
import { eachBaseBlock, timesBase, transposed, Turns } from '../fold.js';
import type { BaseMatrix } from '../fold.js';
import { refused } from '../config-fields.js';
import { choleskyFactor, gramMatrix, solveCholesky } from '../gram.js';
import type { BaseWeights } from '../importer.js';
import { leadingVectors } from '../leading-vectors.js';
import { symmetricEigen } from '../symmetric-eigen.js';

export type BasePart = 'largest' | 'smallest' | 'columns';

/** left `[out, r]` times right `[r, in]`. */
export interface PartFactors {
  readonly left: Float64Array;
  readonly right: Float64Array;
}

/**
 * Multiplications that the singular vectors of all weights of one adapter may take, some ten minutes: the 16 largest parts of
 * all linears of a model of a billion weights take 8e11.
 */
const MAX_OPERATIONS = 1e12;
/** Products with W and Wᵀ that the largest parts of a trained weight take at most, as far as was seen. */
const PRODUCTS = 400;
/** Least distance of the singular values on both sides of the cut, in units of the largest: else the part is not defined. */
const LEAST_GAP = 1e-7;
/** The same of their squares, in units of the trace, below which the inverse of a Gram matrix is not exact enough. */
const LEAST_PART = 1e-13;

const CONVERT =
  "Convert it with PEFT's save_pretrained(path, path_initial_model_for_weight_conversion=INITIAL), " +
  'which writes a plain LoRA, or put the initial adapter into a folder initial_adapter beside it.';

export interface PartRequest {
  readonly part: BasePart;
  readonly rank: number;
  /** Config field and module, for messages. */
  readonly field: string;
  readonly path: string;
}

/** Before anything is read: whether the parts can be computed at all, and in a time that one may wait. */
export function checkParts(parts: readonly { readonly matrix: BaseMatrix; readonly request: PartRequest }[]): void {
  let operations = 0;
  for (const { matrix, request } of parts) {
    const { part, rank, field, path } = request;
    const size = Math.min(matrix.out, matrix.in);
    const most = part === 'smallest' ? size - 1 : size;
    if (rank > most) {
      throw refused(field, `on with rank ${rank} for ${path}, whose weight has ${size} singular values`, CONVERT);
    }
    if (part === 'columns') continue;
    operations += operationsOf(matrix, request);
    if (operations <= MAX_OPERATIONS) continue;
    throw refused(
      field,
      `on for ${parts.length} weights such as ${path} of [${matrix.out}, ${matrix.in}], whose singular vectors would take ` +
        'too long to compute at load',
      CONVERT,
    );
  }
}

function operationsOf({ out, in: width }: BaseMatrix, request: PartRequest): number {
  const size = Math.min(out, width);
  if (!isFew(size, request)) return size * size * (out + width + size);
  if (request.part === 'largest') return 2 * PRODUCTS * out * width;
  return size * size * (Math.max(out, width) / 2 + size / 6 + PRODUCTS);
}

/** Up to so many rows all eigenvectors are found at once, and where the part is more than this share of them. */
const SMALL = 256;
const SHARE = 1 / 8;

function isFew(size: number, { rank }: PartRequest): boolean {
  return size > SMALL && rank <= SHARE * size;
}

export async function partOfBase(base: BaseWeights, matrix: BaseMatrix, request: PartRequest): Promise<PartFactors> {
  const { part, rank } = request;
  const { out, in: width } = matrix;
  if (part === 'columns') {
    const rows = await orthonormalColumns(base, matrix, rank);
    return { left: transposed(rows, rank, out), right: await timesBase(base, matrix, rows, rank) };
  }
  const weight = await wholeBase(base, matrix);
  const wide = out <= width;
  // The smaller side first: S is W or Wᵀ.
  const turns = new Turns();
  const s: Sides = wide
    ? { data: weight, n: out, width, turns }
    : { data: await flippedRows(weight, out, width, turns), n: width, width: out, turns };
  const vectors = await singularVectors(s, request);
  const others = await timesSides(vectors, s, rank);
  return wide
    ? { left: transposed(vectors, rank, out), right: others }
    : { left: transposed(others, rank, out), right: vectors };
}

/** S `[n, width]` with n ≤ width. */
interface Sides {
  readonly data: Float32Array;
  readonly n: number;
  readonly width: number;
  /** One count for all products, of which each alone would be too short to turn. */
  readonly turns: Turns;
}

async function flippedRows(weight: Float32Array, out: number, width: number, turns: Turns): Promise<Float32Array> {
  const result = new Float32Array(weight.length);
  for (let row = 0; row < out; row += TILE) {
    for (let col = 0; col < width; col += TILE) {
      for (let i = row; i < Math.min(out, row + TILE); i += 1) {
        for (let j = col; j < Math.min(width, col + TILE); j += 1)
          result[j * out + i] = weight[i * width + j] as number;
      }
    }
    await turns.after(4 * TILE * width);
  }
  return result;
}

const TILE = 32;
/** Rows at once between two turns of the event loop. */
const ROWS = 256;

/** x S for x `[k, n]`: `[k, width]`. */
async function timesSides(x: Float64Array, { data, n, width, turns }: Sides, k: number): Promise<Float64Array> {
  const result = new Float64Array(k * width);
  for (let first = 0; first < n; first += ROWS) {
    const rows = Math.min(ROWS, n - first);
    const block = data.subarray(first * width, (first + rows) * width);
    addLeftProduct(result, { data: x, k, stride: n, first }, block, { rows, width });
    await turns.after(k * rows * width);
  }
  return result;
}

/** y Sᵀ for y `[k, width]`: `[k, n]`. */
async function sidesTimes(y: Float64Array, { data, n, width, turns }: Sides, k: number): Promise<Float64Array> {
  const result = new Float64Array(k * n);
  for (let first = 0; first < n; first += ROWS) {
    const rows = Math.min(ROWS, n - first);
    const block = data.subarray(first * width, (first + rows) * width);
    addRowProducts(result.subarray(first), y, block, { n: k, m: rows, width, stride: n, from: 0, to: width });
    await turns.after(k * rows * width);
  }
  return result;
}

/** `[rank, n]`: left singular vectors of S. */
async function singularVectors(s: Sides, request: PartRequest): Promise<Float64Array> {
  const few = isFew(s.n, request);
  if (few && request.part === 'largest') {
    const found = await leadingVectors(
      { n: s.n, apply: async (x, count) => sidesTimes(await timesSides(x, s, count), s, count) },
      request.rank,
    );
    if (found !== undefined) {
      const [first = 0] = found.values;
      checkGap(found.values[request.rank - 1] ?? 0, found.values[request.rank] ?? 0, first, request);
      return found.vectors;
    }
  }
  const gram = await gramMatrix(s.data, s.n, s.width);
  return (
    (few && request.part === 'smallest' ? await smallestVectors(gram, s.n, request) : undefined) ??
    allVectors(gram, s.n, request)
  );
}

/** By way of the inverse, whose largest values they have; undefined where that is not exact enough. */
async function smallestVectors(gram: Float64Array, n: number, request: PartRequest): Promise<Float64Array | undefined> {
  const factor = await choleskyFactor(gram, n);
  const turns = new Turns();
  if (factor === undefined) return undefined;
  const apply = async (x: Float64Array): Promise<Float64Array> => {
    const result = x.slice();
    await solveCholesky(factor, n, result, turns);
    return result;
  };
  const found = await leadingVectors({ n, apply }, request.rank);
  if (found === undefined) return undefined;
  // No eigenvalue is above the trace, which is some times the largest.
  let trace = 0;
  for (let i = 0; i < n; i += 1) trace += gram[i * n + i] as number;
  const { values } = found;
  // What rounding does to G must be small beside the distance to the next value.
  const [inside, next] = [1 / (values[request.rank - 1] as number), 1 / (values[request.rank] as number)];
  if (!(next - inside > LEAST_PART * trace)) return undefined;
  checkGap(next, inside, trace / n, request);
  return found.vectors;
}

/** By the eigenvectors of the Gram matrix `[n, n]`, which is used up. */
async function allVectors(gram: Float64Array, n: number, request: PartRequest): Promise<Float64Array> {
  const { part, rank } = request;
  const first = part === 'largest' ? n - rank : 0;
  const { values, vectors } = await symmetricEigen(gram, n, { first, count: rank });
  const cut = part === 'largest' ? first : rank;
  if (cut > 0 && cut < n) checkGap(values[cut] ?? 0, values[cut - 1] ?? 0, values[n - 1] ?? 0, request);
  return vectors;
}

/** Squares of the singular values on both sides of the cut, and of the largest. */
function checkGap(above: number, below: number, largest: number, { field, path, rank }: PartRequest): void {
  const [high, low, most] = [above, below, largest].map((value) => Math.sqrt(Math.max(0, value)));
  if ((high as number) - (low as number) > LEAST_GAP * (most as number)) return;
  throw refused(
    field,
    `on for ${path}, two of whose singular values are equal at rank ${rank}, so that what the training took out is not defined`,
    CONVERT,
  );
}

async function wholeBase(base: BaseWeights, matrix: BaseMatrix): Promise<Float32Array> {
  const whole = new Float32Array(matrix.out * matrix.in);
  await eachBaseBlock(base, matrix, 1, (block, firstRow) => {
    whole.set(block, firstRow * matrix.in);
  });
  return whole;
}

/** `[rank, out]`: the first columns of W made orthonormal one after the other, each twice, which keeps them so in float64. */
async function orthonormalColumns(base: BaseWeights, matrix: BaseMatrix, rank: number): Promise<Float64Array> {
  const { out, in: width } = matrix;
  const rows = new Float64Array(rank * out);
  await eachBaseBlock(base, matrix, 1, (block, firstRow, count) => {
    for (let row = 0; row < count; row += 1) {
      for (let k = 0; k < rank; k += 1) rows[k * out + firstRow + row] = block[row * width + k] as number;
    }
  });
  const turns = new Turns();
  for (let k = 0; k < rank; k += 1) {
    const own = rows.subarray(k * out, (k + 1) * out);
    for (let pass = 0; pass < 2; pass += 1) {
      for (let other = 0; other < k; other += 1) subtractProjection(own, rows.subarray(other * out, (other + 1) * out));
      const length = Math.sqrt(dotProduct(own, own));
      // A column that depends on those before adds nothing: NaN is found by checkFolded.
      for (let i = 0; i < out; i += 1) own[i] = (own[i] as number) / length;
    }
    await turns.after(4 * k * out);
  }
  return rows;
}

function subtractProjection(vector: Float64Array, unit: Float64Array): void {
  const dot = dotProduct(vector, unit);
  for (let i = 0; i < vector.length; i += 1) vector[i] = (vector[i] as number) - dot * (unit[i] as number);
}

function dotProduct(a: Float64Array, b: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < a.length; i += 1) sum += (a[i] as number) * (b[i] as number);
  return sum;
}
