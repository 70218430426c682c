/** Eigenvalues of a small symmetric matrix by cyclic Jacobi rotations (Golub and Van Loan, 8.5). Used by low-rank. */

export interface Eigen {
  /** Descending. */
  readonly values: Float64Array;
  /** `[n, n]`; column k belongs to value k. */
  readonly vectors: Float64Array;
}

const MAX_SWEEPS = 60;

/** `matrix` `[n, n]` is used up. */
export function jacobiEigen(matrix: Float64Array, n: number): Eigen {
  const vectors = new Float64Array(n * n);
  for (let i = 0; i < n; i += 1) vectors[i * n + i] = 1;
  for (let sweep = 0; sweep < MAX_SWEEPS && !isDiagonal(matrix, n); sweep += 1) {
    for (let p = 0; p < n; p += 1) for (let q = p + 1; q < n; q += 1) rotate(matrix, vectors, n, p, q);
  }
  const order = Array.from({ length: n }, (_, i) => i).sort((a, b) => at(matrix, n, b, b) - at(matrix, n, a, a));
  return {
    values: Float64Array.from(order, (i) => at(matrix, n, i, i)),
    vectors: vectors.map((_, index) => at(vectors, n, Math.floor(index / n), order[index % n] as number)),
  };
}

function at(matrix: Float64Array, n: number, i: number, j: number): number {
  return matrix[i * n + j] as number;
}

function isDiagonal(matrix: Float64Array, n: number): boolean {
  let [off, all] = [0, 0];
  for (let i = 0; i < n; i += 1) {
    for (let j = 0; j < n; j += 1) {
      all += at(matrix, n, i, j) ** 2;
      if (i !== j) off += at(matrix, n, i, j) ** 2;
    }
  }
  return off <= all * 1e-30;
}

/** Makes the values (p, q) and (q, p) zero. */
function rotate(matrix: Float64Array, vectors: Float64Array, n: number, p: number, q: number): void {
  const off = at(matrix, n, p, q);
  if (off === 0) return;
  const theta = (at(matrix, n, q, q) - at(matrix, n, p, p)) / (2 * off);
  const tangent = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
  const cosine = 1 / Math.hypot(tangent, 1);
  const sine = tangent * cosine;
  const turn = (values: Float64Array, first: number, second: number): void => {
    const [a, b] = [values[first] as number, values[second] as number];
    values[first] = cosine * a - sine * b;
    values[second] = sine * a + cosine * b;
  };
  for (let k = 0; k < n; k += 1) turn(matrix, k * n + p, k * n + q);
  for (let k = 0; k < n; k += 1) turn(matrix, p * n + k, q * n + k);
  for (let k = 0; k < n; k += 1) turn(vectors, k * n + p, k * n + q);
}
