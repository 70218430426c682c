/**
 * The Gram matrix G = S Sᵀ of a base weight in float64, its Cholesky factor and solves with it (Golub and Van Loan, Matrix
 * Computations, 4.2). The event loop turns in between. Used by folds that need singular vectors of the base's weights.
 */
import { addRowProducts } from './fold-kernels.js';
import { Turns } from './fold.js';

/** Columns at once, so that the rows' pieces stay in the cache. */
const COLUMNS = 512;
const ROWS = 8;

/** S `[n, width]` gives `[n, n]`. */
export async function gramMatrix(s: Float32Array, n: number, width: number): Promise<Float64Array> {
  const gram = new Float64Array(n * n);
  const turns = new Turns();
  for (let from = 0; from < width; from += COLUMNS) {
    const to = Math.min(width, from + COLUMNS);
    for (let i = 0; i < n; i += ROWS) {
      const rows = Math.min(ROWS, n - i);
      const shape = { n: rows, m: i + rows, width, stride: n, from, to };
      addRowProducts(gram.subarray(i * n), s.subarray(i * width), s, shape);
      await turns.after(rows * (i + rows) * (to - from));
    }
  }
  for (let i = 0; i < n; i += 1) for (let j = i + 1; j < n; j += 1) gram[i * n + j] = gram[j * n + i] as number;
  return gram;
}

/** L with L Lᵀ = G, in the lower half of a new `[n, n]`; undefined where G is not positive definite to float64. */
export async function choleskyFactor(gram: Float64Array, n: number): Promise<Float64Array | undefined> {
  const l = new Float64Array(n * n);
  const turns = new Turns();
  for (let first = 0; first < n; first += 4) {
    const rows = Math.min(4, n - first);
    for (let j = 0; j < first; j += 1) {
      const inverse = 1 / (l[j * n + j] as number);
      const dots = fourDots(l, n, first, rows, j);
      for (let t = 0; t < rows; t += 1) {
        const at = (first + t) * n + j;
        l[at] = ((gram[at] as number) - (dots[t] as number)) * inverse;
      }
    }
    for (let i = first; i < first + rows; i += 1) if (!finishRow(l, gram, n, i, first)) return undefined;
    await turns.after(2 * first * first);
  }
  return l;
}

const DOTS = new Float64Array(4);

/** Rows first .. of L times row j, over the columns before j. */
function fourDots(l: Float64Array, n: number, first: number, rows: number, j: number): Float64Array {
  const row = (t: number): Float64Array => {
    const own = first + Math.min(t, rows - 1);
    return l.subarray(own * n, own * n + j);
  };
  const [a, b, c, d] = [row(0), row(1), row(2), row(3)];
  const own = l.subarray(j * n, j * n + j);
  let [s0, s1, s2, s3] = [0, 0, 0, 0];
  for (let k = 0; k < j; k += 1) {
    const factor = own[k] as number;
    s0 += (a[k] as number) * factor;
    s1 += (b[k] as number) * factor;
    s2 += (c[k] as number) * factor;
    s3 += (d[k] as number) * factor;
  }
  DOTS.set([s0, s1, s2, s3]);
  return DOTS;
}

/** Columns first .. i of row i. */
function finishRow(l: Float64Array, gram: Float64Array, n: number, i: number, first: number): boolean {
  for (let j = first; j <= i; j += 1) {
    let sum = gram[i * n + j] as number;
    for (let k = 0; k < j; k += 1) sum -= (l[i * n + k] as number) * (l[j * n + k] as number);
    if (j < i) l[i * n + j] = sum / (l[j * n + j] as number);
    else if (sum > n * Number.EPSILON * (gram[i * n + i] as number)) l[i * n + i] = Math.sqrt(sum);
    else return false;
  }
  return true;
}

/** Each row b of x `[.., n]` becomes G⁻¹ b. */
export async function solveCholesky(l: Float64Array, n: number, x: Float64Array, turns: Turns): Promise<void> {
  for (let row = 0; row * n < x.length; row += 1) {
    const b = x.subarray(row * n, (row + 1) * n);
    for (let i = 0; i < n; i += 1) {
      const own = l.subarray(i * n, i * n + i + 1);
      let [even, odd] = [0, 0];
      const pairs = i - (i % 2);
      for (let k = 0; k < pairs; k += 2) {
        even += (own[k] as number) * (b[k] as number);
        odd += (own[k + 1] as number) * (b[k + 1] as number);
      }
      if (pairs < i) even += (own[pairs] as number) * (b[pairs] as number);
      b[i] = ((b[i] as number) - (even + odd)) / (own[i] as number);
    }
    for (let i = n - 1; i >= 0; i -= 1) {
      const own = l.subarray(i * n, i * n + i + 1);
      const value = (b[i] as number) / (own[i] as number);
      b[i] = value;
      for (let k = 0; k < i; k += 1) b[k] = (b[k] as number) - value * (own[k] as number);
    }
    await turns.after(n * n);
  }
}
