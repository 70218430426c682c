/**
 * Eigenvalues of a symmetric matrix of some hundred rows, and the eigenvectors of some of them: Householder's reduction to a
 * tridiagonal matrix, implicit QL steps for the values, inverse iteration for the vectors (Golub and Van Loan, Matrix
 * Computations, 8.2 and 8.3). The event loop turns in between. Used by folds that need singular vectors of the base's weights.
 */
import { Turns } from './fold.js';

export interface SymmetricEigen {
  /** All, ascending. */
  readonly values: Float64Array;
  /** `[count, n]`; row k belongs to value first + k; orthonormal. */
  readonly vectors: Float64Array;
}

const MAX_STEPS_PER_VALUE = 60;
/** Inverse iterations for a vector; two are enough but for clusters. */
const ITERATIONS = 4;

/** Vectors of the values first .. first + count - 1. `matrix` `[n, n]` is used up. */
export async function symmetricEigen(
  matrix: Float64Array,
  n: number,
  { first, count }: { readonly first: number; readonly count: number },
): Promise<SymmetricEigen> {
  const turns = new Turns();
  const tridiagonal = { diagonal: new Float64Array(n), beside: new Float64Array(n) };
  const reflections = await tridiagonalize(matrix, n, tridiagonal, turns);
  const values = await implicitQl(tridiagonal, n, turns);
  const vectors = new Float64Array(count * n);
  for (let k = 0; k < count; k += 1) {
    inverseIteration(tridiagonal, values, { index: first + k, own: k }, vectors);
    await turns.after(ITERATIONS * 4 * n * (k + 8));
  }
  for (let k = 0; k < count; k += 1) {
    reflectBack(reflections, vectors.subarray(k * n, (k + 1) * n));
    await turns.after(2 * n * n);
  }
  return { values, vectors };
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

/** v ← H_0 H_1 … v: from the tridiagonal matrix's space back to the first one's. */
function reflectBack(reflections: readonly Float64Array[], vector: Float64Array): void {
  for (let k = reflections.length - 1; k >= 0; k -= 1) {
    const v = reflections[k] as Float64Array;
    const start = vector.length - v.length;
    let dot = 0;
    for (let j = 0; j < v.length; j += 1) dot += (vector[start + j] as number) * (v[j] as number);
    for (let j = 0; j < v.length; j += 1) {
      vector[start + j] = (vector[start + j] as number) - 2 * dot * (v[j] as number);
    }
  }
}

/** The eigenvalues, ascending. */
async function implicitQl({ diagonal, beside }: Tridiagonal, n: number, turns: Turns): Promise<Float64Array> {
  const [d, e] = [diagonal.slice(), beside.slice()];
  for (let low = 0; low < n; low += 1) {
    // A matrix of finite values converges in a few steps; what is not finite is found by the caller's checks.
    for (let step = 0; step < MAX_STEPS_PER_VALUE; step += 1) {
      const high = endOfBlock(d, e, low, n);
      if (high === low) break;
      qlStep(d, e, low, high);
      await turns.after(20 * (high - low));
    }
  }
  return d.sort();
}

/** The last row of the block that begins at `low`: the first that is not coupled to the next one. */
function endOfBlock(d: Float64Array, e: Float64Array, low: number, n: number): number {
  for (let m = low; m + 1 < n; m += 1) {
    const size = Math.abs(d[m] as number) + Math.abs(d[m + 1] as number);
    if (Math.abs(e[m] as number) <= Number.EPSILON * size) return m;
  }
  return n - 1;
}

function qlStep(d: Float64Array, e: Float64Array, low: number, high: number): void {
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
  }
  d[low] = (d[low] as number) - shift;
  e[low] = g;
  e[high] = 0;
}

/**
 * Row `own` of `vectors` becomes the eigenvector of values[index], orthogonal to the rows before it. Of equal values any
 * orthonormal vectors of their space come out.
 */
function inverseIteration(
  matrix: Tridiagonal,
  values: Float64Array,
  { index, own }: { readonly index: number; readonly own: number },
  vectors: Float64Array,
): void {
  const n = values.length;
  const size = Math.max(Math.abs(values[0] as number), Math.abs(values[n - 1] as number)) || 1;
  // Shifts that differ a little keep the solves of equal values apart.
  const solve = shiftedSolver(matrix, (values[index] as number) + (own + 1) * Number.EPSILON * size, size);
  const vector = vectors.subarray(own * n, (own + 1) * n);
  let state = 2 * own + 1;
  for (let i = 0; i < n; i += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    vector[i] = state / 2 ** 31 - 1;
  }
  for (let pass = 0; pass < ITERATIONS; pass += 1) {
    solve(vector);
    scaleToOne(vector);
    for (let other = 0; other < own; other += 1) subtractPart(vector, vectors.subarray(other * n, (other + 1) * n));
    scaleToOne(vector);
  }
  for (let other = 0; other < own; other += 1) subtractPart(vector, vectors.subarray(other * n, (other + 1) * n));
  scaleToOne(vector);
}

/** Solves (T - shift I) x = b in place: elimination with row exchanges, whose second diagonal above fills. */
function shiftedSolver({ diagonal, beside }: Tridiagonal, shift: number, size: number): (x: Float64Array) => void {
  const n = diagonal.length;
  const main = diagonal.map((value) => value - shift);
  const above = beside.slice();
  const second = new Float64Array(n);
  const factor = new Float64Array(n);
  const exchanged = new Uint8Array(n);
  const least = Number.EPSILON * size;
  for (let i = 0; i + 1 < n; i += 1) {
    const below = beside[i] as number;
    if (Math.abs(below) > Math.abs(main[i] as number)) {
      exchanged[i] = 1;
      factor[i] = (main[i] as number) / below;
      const next = main[i + 1] as number;
      main[i + 1] = (above[i] as number) - (factor[i] as number) * next;
      main[i] = below;
      above[i] = next;
      second[i] = above[i + 1] as number;
      above[i + 1] = -(factor[i] as number) * (above[i + 1] as number);
    } else {
      if (Math.abs(main[i] as number) < least) main[i] = least;
      factor[i] = below / (main[i] as number);
      main[i + 1] = (main[i + 1] as number) - (factor[i] as number) * (above[i] as number);
    }
  }
  if (Math.abs(main[n - 1] as number) < least) main[n - 1] = least;
  return (x) => {
    for (let i = 0; i + 1 < n; i += 1) {
      const [upper, lower] = [x[i] as number, x[i + 1] as number];
      const pivot = exchanged[i] === 1 ? lower : upper;
      x[i] = pivot;
      x[i + 1] = (exchanged[i] === 1 ? upper : lower) - (factor[i] as number) * pivot;
    }
    for (let i = n - 1; i >= 0; i -= 1) {
      let value = x[i] as number;
      if (i + 1 < n) value -= (above[i] as number) * (x[i + 1] as number);
      if (i + 2 < n) value -= (second[i] as number) * (x[i + 2] as number);
      x[i] = value / (main[i] as number);
    }
  };
}

function scaleToOne(vector: Float64Array): void {
  let largest = 0;
  for (let i = 0; i < vector.length; i += 1) largest = Math.max(largest, Math.abs(vector[i] as number));
  let sum = 0;
  for (let i = 0; i < vector.length; i += 1) sum += ((vector[i] as number) / largest) ** 2;
  const length = Math.sqrt(sum);
  for (let i = 0; i < vector.length; i += 1) vector[i] = (vector[i] as number) / largest / length;
}

function subtractPart(vector: Float64Array, unit: Float64Array): void {
  let dot = 0;
  for (let i = 0; i < vector.length; i += 1) dot += (vector[i] as number) * (unit[i] as number);
  for (let i = 0; i < vector.length; i += 1) vector[i] = (vector[i] as number) - dot * (unit[i] as number);
}
