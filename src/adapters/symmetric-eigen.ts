/**
 * All eigenvalues and eigenvectors of a symmetric matrix of some hundred rows: Householder's reduction to a tridiagonal
 * matrix, then implicit QL steps (Golub and Van Loan, Matrix Computations, 8.3). The event loop turns in between. Used by
 * folds that need singular vectors of the base's weights.
 */
import { Turns } from './fold.js';

export interface SymmetricEigen {
  /** Ascending. */
  readonly values: Float64Array;
  /** `[n, n]`; row k belongs to value k and has length 1. */
  readonly vectors: Float64Array;
}

const MAX_STEPS_PER_VALUE = 60;

/** `matrix` `[n, n]` is used up. */
export async function symmetricEigen(matrix: Float64Array, n: number): Promise<SymmetricEigen> {
  const turns = new Turns();
  const diagonal = new Float64Array(n);
  // beside[k] couples values k and k + 1.
  const beside = new Float64Array(n);
  const reflections = await tridiagonalize(matrix, n, { diagonal, beside }, turns);
  const vectors = await accumulate(reflections, n, turns);
  await implicitQl(diagonal, beside, vectors, n, turns);
  const order = Array.from({ length: n }, (_, i) => i).sort(
    (a, b) => (diagonal[a] as number) - (diagonal[b] as number),
  );
  const sorted = new Float64Array(n * n);
  order.forEach((from, to) => {
    sorted.set(vectors.subarray(from * n, (from + 1) * n), to * n);
  });
  return { values: Float64Array.from(order, (i) => diagonal[i] as number), vectors: sorted };
}

interface Tridiagonal {
  readonly diagonal: Float64Array;
  readonly beside: Float64Array;
}

/** Unit vectors v of the reflections I - 2 v vᵀ, in the order in which they were applied to both sides. */
async function tridiagonalize(a: Float64Array, n: number, out: Tridiagonal, turns: Turns): Promise<Float64Array[]> {
  const reflections: Float64Array[] = [];
  for (let k = 0; k + 2 < n; k += 1) {
    const v = reflector(a, n, k);
    reflections.push(v);
    if (v.length > 0) {
      reflectBothSides(a, n, k, v);
      await turns.after(4 * (n - k) * (n - k));
    }
  }
  for (let k = 0; k < n; k += 1) {
    out.diagonal[k] = a[k * n + k] as number;
    if (k + 1 < n) out.beside[k] = a[(k + 1) * n + k] as number;
  }
  return reflections;
}

/** The v that makes column k zero below its entry k + 1; v[i] stands for row k + 1 + i. Empty: nothing to do. */
function reflector(a: Float64Array, n: number, k: number): Float64Array {
  const v = Float64Array.from({ length: n - k - 1 }, (_, i) => a[(k + 1 + i) * n + k] as number);
  let below = 0;
  for (let i = 1; i < v.length; i += 1) below += (v[i] as number) ** 2;
  if (below === 0) return new Float64Array(0);
  const first = v[0] as number;
  const length = Math.sqrt(first * first + below);
  v[0] = first + (first < 0 ? -length : length);
  const norm = Math.sqrt(v[0] ** 2 + below);
  for (let i = 0; i < v.length; i += 1) v[i] = (v[i] as number) / norm;
  return v;
}

/** a ← H a H for rows and columns from k on, H = I - 2 v vᵀ below k: a -= v wᵀ + w vᵀ with w = 2 (a v - v (vᵀ a v)). */
function reflectBothSides(a: Float64Array, n: number, k: number, v: Float64Array): void {
  const size = n - k;
  const w = new Float64Array(size);
  for (let i = 0; i < size; i += 1) {
    const row = (k + i) * n + k + 1;
    let sum = 0;
    for (let j = 0; j < v.length; j += 1) sum += (a[row + j] as number) * (v[j] as number);
    w[i] = 2 * sum;
  }
  let dot = 0;
  for (let i = 0; i < v.length; i += 1) dot += (v[i] as number) * (w[i + 1] as number);
  for (let i = 0; i < v.length; i += 1) w[i + 1] = (w[i + 1] as number) - dot * (v[i] as number);
  for (let i = 0; i < size; i += 1) {
    const row = (k + i) * n + k;
    const left = i === 0 ? 0 : (v[i - 1] as number);
    const right = w[i] as number;
    a[row] = (a[row] as number) - left * (w[0] as number);
    for (let j = 1; j < size; j += 1) {
      a[row + j] = (a[row + j] as number) - left * (w[j] as number) - right * (v[j - 1] as number);
    }
  }
}

/** Rows are the columns of H_0 H_1 …, so that QL steps turn pairs of rows. */
async function accumulate(reflections: readonly Float64Array[], n: number, turns: Turns): Promise<Float64Array> {
  const rows = new Float64Array(n * n);
  for (let i = 0; i < n; i += 1) rows[i * n + i] = 1;
  for (let k = reflections.length - 1; k >= 0; k -= 1) {
    const v = reflections[k] as Float64Array;
    const start = n - v.length;
    for (let i = 0; i < n && v.length > 0; i += 1) {
      const at = i * n + start;
      let dot = 0;
      for (let j = 0; j < v.length; j += 1) dot += (rows[at + j] as number) * (v[j] as number);
      for (let j = 0; j < v.length; j += 1) rows[at + j] = (rows[at + j] as number) - 2 * dot * (v[j] as number);
    }
    await turns.after(4 * n * v.length);
  }
  return rows;
}

/** Makes the tridiagonal matrix diagonal; every rotation of values k and k + 1 is applied to rows k and k + 1. */
async function implicitQl(
  d: Float64Array,
  e: Float64Array,
  rows: Float64Array,
  n: number,
  turns: Turns,
): Promise<void> {
  for (let low = 0; low < n; low += 1) {
    for (let step = 0; ; step += 1) {
      const high = endOfBlock(d, e, low, n);
      if (high === low) break;
      // A matrix of finite values always converges; what is not finite is found by the caller's checks.
      if (step === MAX_STEPS_PER_VALUE) break;
      qlStep(d, e, { low, high }, rows, n);
      await turns.after(6 * n * (high - low));
    }
  }
}

/** The last row of the block that begins at `low`: the first that is not coupled to the next one. */
function endOfBlock(d: Float64Array, e: Float64Array, low: number, n: number): number {
  for (let m = low; m + 1 < n; m += 1) {
    const size = Math.abs(d[m] as number) + Math.abs(d[m + 1] as number);
    if (Math.abs(e[m] as number) <= Number.EPSILON * size) return m;
  }
  return n - 1;
}

function qlStep(
  d: Float64Array,
  e: Float64Array,
  { low, high }: { readonly low: number; readonly high: number },
  rows: Float64Array,
  n: number,
): void {
  const half = ((d[low + 1] as number) - (d[low] as number)) / (2 * (e[low] as number));
  const root = Math.hypot(half, 1);
  let g = (d[high] as number) - (d[low] as number) + (e[low] as number) / (half + (half < 0 ? -root : root));
  let [sine, cosine, shift] = [1, 1, 0];
  for (let i = high - 1; i >= low; i -= 1) {
    const f = sine * (e[i] as number);
    const b = cosine * (e[i] as number);
    const r = Math.hypot(f, g);
    e[i + 1] = r;
    if (r === 0) {
      d[i + 1] = (d[i + 1] as number) - shift;
      e[high] = 0;
      return;
    }
    sine = f / r;
    cosine = g / r;
    const next = (d[i + 1] as number) - shift;
    const t = ((d[i] as number) - next) * sine + 2 * cosine * b;
    shift = sine * t;
    d[i + 1] = next + shift;
    g = cosine * t - b;
    turnRows(rows, n, i, sine, cosine);
  }
  d[low] = (d[low] as number) - shift;
  e[low] = g;
  e[high] = 0;
}

function turnRows(rows: Float64Array, n: number, i: number, sine: number, cosine: number): void {
  const [first, second] = [i * n, (i + 1) * n];
  for (let k = 0; k < n; k += 1) {
    const [x, y] = [rows[first + k] as number, rows[second + k] as number];
    rows[second + k] = sine * x + cosine * y;
    rows[first + k] = cosine * x - sine * y;
  }
}
