/**
 * The best product of two thin matrices for a difference: truncated singular value decomposition by randomised subspace
 * iteration (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1) with a fixed seed, in float64. The matrix is only
 * seen through its rows, so that it may be larger than memory. Called by extract.
 */
import { jacobiEigen } from './jacobi.js';

/** A matrix `[rows, cols]` whose rows come again at each call, some at a time. */
export interface RowStream {
  readonly rows: number;
  readonly cols: number;
  stream(): AsyncIterable<{ readonly row0: number; readonly count: number; readonly values: Float32Array }>;
}

export interface LowRank {
  readonly rank: number;
  /** `[rows, rank]` and `[rank, cols]`; each has the square roots of the singular values in it. */
  readonly left: Float32Array;
  readonly right: Float32Array;
  /** ‖Δ - left · right‖ / ‖Δ‖ (Frobenius) and max|Δ - left · right|, of the float32 factors. */
  readonly relativeError: number;
  readonly largestError: number;
}

/** Columns beyond the rank, and multiplications with Δ Δᵀ; both make the subspace that of the largest singular values. */
const OVERSAMPLING = 8;
const POWER_STEPS = 2;
/** Below this share of ‖Δ‖ what is left is rounding: fewer columns than asked for will do. */
const NEGLIGIBLE = 1e-7;

export async function lowRank(matrix: RowStream, maxRank: number): Promise<LowRank> {
  const { rows, cols } = matrix;
  const width = Math.min(maxRank + OVERSAMPLING, rows, cols);
  let basis = orthonormal(await times(matrix, gaussian(cols, width), width), rows, width);
  for (let step = 0; step < POWER_STEPS; step += 1) {
    const turned = orthonormal(transpose(await timesLeft(matrix, basis, width), width, cols), cols, width);
    basis = orthonormal(await times(matrix, turned, width), rows, width);
  }
  // projected = basisᵀ Δ, [width, cols]; its left singular vectors come from the small Gram matrix.
  const projected = await timesLeft(matrix, basis, width);
  const { values, vectors } = jacobiEigen(gram(projected, width, cols), width);
  const rank = rankFor(values, await squaredNorm(matrix), Math.min(maxRank, width));
  const factors = factorsOf({ basis, projected, values, vectors, width, rows, cols }, rank);
  return { rank, ...factors, ...(await errorsOf(matrix, factors, rank)) };
}

/** The smallest rank whose remainder is negligible, at most `most`. */
function rankFor(squares: Float64Array, total: number, most: number): number {
  let left = total;
  for (let rank = 0; rank < most; rank += 1) {
    if (left <= total * NEGLIGIBLE ** 2 || (squares[rank] as number) <= total * NEGLIGIBLE ** 2)
      return Math.max(rank, 1);
    left -= squares[rank] as number;
  }
  return most;
}

interface Decomposition {
  readonly basis: Float64Array;
  readonly projected: Float64Array;
  readonly values: Float64Array;
  readonly vectors: Float64Array;
  readonly width: number;
  readonly rows: number;
  readonly cols: number;
}

function factorsOf(d: Decomposition, rank: number): { left: Float32Array; right: Float32Array } {
  const left = new Float32Array(d.rows * rank);
  const right = new Float32Array(rank * d.cols);
  for (let k = 0; k < rank; k += 1) {
    const root = Math.max(d.values[k] as number, 0) ** 0.25;
    const vector = Float64Array.from({ length: d.width }, (_, i) => d.vectors[i * d.width + k] as number);
    for (let i = 0; i < d.rows; i += 1) {
      let sum = 0;
      for (let j = 0; j < d.width; j += 1) sum += (d.basis[i * d.width + j] as number) * (vector[j] as number);
      left[i * rank + k] = sum * root;
    }
    for (let j = 0; j < d.cols; j += 1) {
      let sum = 0;
      for (let i = 0; i < d.width; i += 1) sum += (d.projected[i * d.cols + j] as number) * (vector[i] as number);
      right[k * d.cols + j] = root === 0 ? 0 : sum / root;
    }
  }
  return { left, right };
}

async function errorsOf(
  matrix: RowStream,
  { left, right }: { readonly left: Float32Array; readonly right: Float32Array },
  rank: number,
): Promise<{ relativeError: number; largestError: number }> {
  const { cols } = matrix;
  const row = new Float64Array(cols);
  let [total, rest, largestError] = [0, 0, 0];
  for await (const { row0, count, values } of matrix.stream()) {
    for (let i = 0; i < count; i += 1) {
      for (let j = 0; j < cols; j += 1) row[j] = values[i * cols + j] as number;
      for (let j = 0; j < cols; j += 1) total += (row[j] as number) ** 2;
      for (let k = 0; k < rank; k += 1) {
        const factor = left[(row0 + i) * rank + k] as number;
        for (let j = 0; j < cols; j += 1) row[j] = (row[j] as number) - factor * (right[k * cols + j] as number);
      }
      for (let j = 0; j < cols; j += 1) {
        rest += (row[j] as number) ** 2;
        largestError = Math.max(largestError, Math.abs(row[j] as number));
      }
    }
  }
  return { relativeError: total === 0 ? 0 : Math.sqrt(rest / total), largestError };
}

/** Δ · right, `[rows, width]`; right `[cols, width]`. */
async function times(matrix: RowStream, right: Float64Array, width: number): Promise<Float64Array> {
  const { cols } = matrix;
  const product = new Float64Array(matrix.rows * width);
  for await (const { row0, count, values } of matrix.stream()) {
    for (let i = 0; i < count; i += 1) {
      const row = values.subarray(i * cols, (i + 1) * cols);
      addCombination(product, (row0 + i) * width, width, row, right, cols);
    }
  }
  return product;
}

/** leftᵀ · Δ, `[width, cols]`; left `[rows, width]`. */
async function timesLeft(matrix: RowStream, left: Float64Array, width: number): Promise<Float64Array> {
  const { cols } = matrix;
  const product = new Float64Array(width * cols);
  for await (const { row0, count, values } of matrix.stream()) {
    const factors = new Float64Array(count);
    for (let k = 0; k < width; k += 1) {
      for (let i = 0; i < count; i += 1) factors[i] = left[(row0 + i) * width + k] as number;
      addCombination(product, k * cols, cols, factors, values, count);
    }
  }
  return product;
}

/**
 * sum[at + j] += Σ_i factors[i] · rows[i · width + j] for i below `count`: four rows at a time, because the sum would else be
 * loaded and stored for every product.
 */
function addCombination(
  sum: Float64Array,
  at: number,
  width: number,
  factors: Float32Array | Float64Array,
  rows: Float32Array | Float64Array,
  count: number,
): void {
  let i = 0;
  for (; i + 4 <= count; i += 4) {
    const [a, b, c, d] = [factors[i], factors[i + 1], factors[i + 2], factors[i + 3]] as [
      number,
      number,
      number,
      number,
    ];
    if (a === 0 && b === 0 && c === 0 && d === 0) continue;
    let from = i * width;
    for (let j = at; j < at + width; j += 1, from += 1) {
      sum[j] =
        (sum[j] as number) +
        a * (rows[from] as number) +
        b * (rows[from + width] as number) +
        c * (rows[from + 2 * width] as number) +
        d * (rows[from + 3 * width] as number);
    }
  }
  for (; i < count; i += 1) {
    const a = factors[i] as number;
    for (let j = 0; j < width; j += 1) sum[at + j] = (sum[at + j] as number) + a * (rows[i * width + j] as number);
  }
}

async function squaredNorm(matrix: RowStream): Promise<number> {
  let sum = 0;
  for await (const { values } of matrix.stream()) for (const value of values) sum += value * value;
  return sum;
}

function gram(matrix: Float64Array, rows: number, cols: number): Float64Array {
  const product = new Float64Array(rows * rows);
  for (let i = 0; i < rows; i += 1) {
    for (let k = 0; k <= i; k += 1) {
      let sum = 0;
      for (let j = 0; j < cols; j += 1) sum += (matrix[i * cols + j] as number) * (matrix[k * cols + j] as number);
      product[i * rows + k] = sum;
      product[k * rows + i] = sum;
    }
  }
  return product;
}

function transpose(matrix: Float64Array, rows: number, cols: number): Float64Array {
  return Float64Array.from({ length: matrix.length }, (_, at) => {
    return matrix[(at % rows) * cols + Math.floor(at / rows)] as number;
  });
}

/** Modified Gram-Schmidt on the columns, twice; a column that depends on those before it becomes zero. */
function orthonormal(matrix: Float64Array, rows: number, width: number): Float64Array {
  const dot = (a: number, b: number): number => {
    let sum = 0;
    for (let i = 0; i < rows; i += 1) sum += (matrix[i * width + a] as number) * (matrix[i * width + b] as number);
    return sum;
  };
  for (let k = 0; k < width; k += 1) {
    const before = Math.sqrt(dot(k, k));
    for (let pass = 0; pass < 2; pass += 1) {
      for (let p = 0; p < k; p += 1) {
        const share = dot(k, p);
        for (let i = 0; i < rows; i += 1) {
          matrix[i * width + k] = (matrix[i * width + k] as number) - share * (matrix[i * width + p] as number);
        }
      }
    }
    const norm = Math.sqrt(dot(k, k));
    const scale = norm <= before * 1e-12 ? 0 : 1 / norm;
    for (let i = 0; i < rows; i += 1) matrix[i * width + k] = (matrix[i * width + k] as number) * scale;
  }
  return matrix;
}

/** Normal numbers (Box and Muller) of one fixed seed, so that one difference always gives one adapter. */
function gaussian(rows: number, cols: number): Float64Array {
  let state = 0x2545f491;
  const uniform = (): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return ((state >>> 0) + 0.5) / 2 ** 32;
  };
  return Float64Array.from(
    { length: rows * cols },
    () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()),
  );
}
