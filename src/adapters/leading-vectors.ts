/**
 * The eigenvectors of the largest eigenvalues of a symmetric operator of thousands of rows, of which only products are asked:
 * block Lanczos with full reorthogonalisation in float64 (Golub and Van Loan, Matrix Computations, 10.3). A rank of some
 * tens out of thousands takes some hundred products, where all eigenvectors would take n³ operations.
 */
import { addLeftProduct, addRowProducts } from './fold-kernels.js';
import { Turns } from './fold.js';
import { symmetricEigen } from './symmetric-eigen.js';

export interface Operator {
  readonly n: number;
  /** x `[count, n]` times the operator, `[count, n]`. */
  apply(x: Float64Array, count: number): Promise<Float64Array>;
}

export interface LeadingVectors {
  /** count + 1 values, descending. */
  readonly values: Float64Array;
  /** `[count, n]`, orthonormal. */
  readonly vectors: Float64Array;
}

/** Vectors that are multiplied at once. */
const BLOCK = 4;
const MOST_VECTORS = 960;
/** Of the residuals of all vectors together, in units of the distance to the next value: what is found is off by this angle. */
const TOLERANCE = 1e-10;
/** Values nearer than this, in units of the largest, may be one of which a block has not found every vector. */
const EQUAL = 1e-9;

/** Undefined where it does not converge, or where two values are so near that a third may be hidden: ask another method. */
export async function leadingVectors(operator: Operator, count: number): Promise<LeadingVectors | undefined> {
  const krylov = new Krylov(operator);
  const most = Math.min(MOST_VECTORS, operator.n - 2 * BLOCK);
  for (let check = Math.max(2 * count, 6 * BLOCK); check <= most; check = Math.ceil(1.2 * check)) {
    while (krylov.size < check) await krylov.grow();
    const { values, vectors, residuals } = await krylov.solve(count + 1);
    const gap = (values[count - 1] as number) - (values[count] as number);
    const residual = Math.hypot(...residuals.subarray(0, count));
    if (residual > TOLERANCE * gap || !((residuals[count] as number) < 0.01 * gap)) continue;
    if (hasEqual(values)) return undefined;
    return { values, vectors: await krylov.expand(vectors, count) };
  }
  return undefined;
}

function hasEqual(values: Float64Array): boolean {
  const least = EQUAL * (values[0] as number);
  return values.some((value, i) => i > 0 && (values[i - 1] as number) - value <= least);
}

class Krylov {
  /** Vectors whose products are known. */
  size = 0;
  /** `[size + BLOCK, n]`, orthonormal. */
  #basis: Float64Array;
  /** The operator on them, `[capacity, capacity]`; its lower half counts. */
  #projected: Float64Array;
  #capacity = 16 * BLOCK;
  /** `[BLOCK, BLOCK]`: what the last product has outside of the basis, in vectors of the next block. */
  #rest: Float64Array = new Float64Array(BLOCK * BLOCK);
  #scale = 0;
  #state = 1;
  readonly #turns = new Turns();

  constructor(private readonly operator: Operator) {
    this.#basis = new Float64Array(this.#capacity * operator.n);
    this.#projected = new Float64Array(this.#capacity ** 2);
    for (let t = 0; t < BLOCK; t += 1) this.#restart(t);
  }

  /** One product more. */
  async grow(): Promise<void> {
    const { size } = this;
    const { n } = this.operator;
    const known = size + BLOCK;
    this.#makeRoom(known + BLOCK);
    const y = await this.operator.apply(this.#basis.subarray(size * n, known * n), BLOCK);
    const inside = new Float64Array(BLOCK * known);
    for (let pass = 0; pass < 2; pass += 1) {
      const part = this.#withoutBasis(y, BLOCK, known);
      for (let i = 0; i < part.length; i += 1) inside[i] = (inside[i] as number) + (part[i] as number);
      await this.#turns.after(2 * known * BLOCK * n);
    }
    for (let t = 0; t < BLOCK; t += 1) {
      for (let j = 0; j <= size + t; j += 1) this.#set(size + t, j, inside[t * known + j] as number);
    }
    for (const value of inside) this.#scale = Math.max(this.#scale, Math.abs(value));
    this.#basis.set(y, known * n);
    this.size = known;
    this.#orthonormalize();
    for (let t = 0; t < BLOCK; t += 1) {
      for (let s = 0; s < BLOCK; s += 1) this.#set(known + s, size + t, this.#rest[t * BLOCK + s] as number);
    }
  }

  /** The largest `count` values on the basis, descending, their vectors in it, and how far each is from an eigenvector. */
  async solve(count: number): Promise<{ values: Float64Array; vectors: Float64Array; residuals: Float64Array }> {
    const { size } = this;
    const matrix = new Float64Array(size * size);
    for (let i = 0; i < size; i += 1) {
      for (let j = 0; j <= i; j += 1) {
        const value = this.#projected[i * this.#capacity + j] as number;
        matrix[i * size + j] = value;
        matrix[j * size + i] = value;
      }
    }
    const found = await symmetricEigen(matrix, size, { first: size - count, count });
    const values = found.values.slice(size - count).reverse();
    const vectors = new Float64Array(count * size);
    const residuals = new Float64Array(count);
    for (let k = 0; k < count; k += 1) {
      const own = found.vectors.subarray((count - 1 - k) * size, (count - k) * size);
      vectors.set(own, k * size);
      residuals[k] = this.#residual(own.subarray(size - BLOCK));
    }
    return { values, vectors, residuals };
  }

  /** Vectors `[.., size]` in the basis as vectors of the space. */
  async expand(vectors: Float64Array, count: number): Promise<Float64Array> {
    const { size } = this;
    const { n } = this.operator;
    const result = new Float64Array(count * n);
    const block = this.#basis.subarray(0, size * n);
    addLeftProduct(result, { data: vectors, k: count, stride: size, first: 0 }, block, { rows: size, width: n });
    await this.#turns.after(count * size * n);
    return result;
  }

  #residual(last: Float64Array): number {
    let sum = 0;
    for (let s = 0; s < BLOCK; s += 1) {
      let value = 0;
      for (let t = 0; t < BLOCK; t += 1) value += (last[t] as number) * (this.#rest[t * BLOCK + s] as number);
      sum += value * value;
    }
    return Math.sqrt(sum);
  }

  /** Takes the parts along the first `known` vectors out of rows of y and gives them, `[count, known]`. */
  #withoutBasis(y: Float64Array, count: number, known: number): Float64Array {
    const { n } = this.operator;
    const part = new Float64Array(count * known);
    const basis = this.#basis.subarray(0, known * n);
    addRowProducts(part, y, basis, { n: count, m: known, width: n, stride: known, from: 0, to: n });
    const negative = { data: part.map((value) => -value), k: count, stride: known, first: 0 };
    addLeftProduct(y, negative, basis, { rows: known, width: n });
    return part;
  }

  /** The block after `size` becomes orthonormal, each vector to those before it twice, which keeps it so. */
  #orthonormalize(): void {
    const { n } = this.operator;
    this.#rest.fill(0);
    for (let t = 0; t < BLOCK; t += 1) {
      const at = this.size + t;
      const own = this.#basis.subarray(at * n, (at + 1) * n);
      for (let pass = 0; pass < 2; pass += 1) {
        for (let s = 0; s < t; s += 1) {
          const other = this.#basis.subarray((this.size + s) * n, (this.size + s + 1) * n);
          const dot = dotProduct(own, other);
          this.#rest[t * BLOCK + s] = (this.#rest[t * BLOCK + s] as number) + dot;
          for (let i = 0; i < n; i += 1) own[i] = (own[i] as number) - dot * (other[i] as number);
        }
      }
      const length = Math.sqrt(dotProduct(own, own));
      if (length > n * Number.EPSILON * this.#scale) {
        this.#rest[t * BLOCK + t] = length;
        for (let i = 0; i < n; i += 1) own[i] = (own[i] as number) / length;
      } else {
        // The space is used up: go on in another one.
        this.#restart(at);
      }
    }
  }

  /** Vector `at` becomes a random one, orthonormal to those before it. */
  #restart(at: number): void {
    const { n } = this.operator;
    const own = this.#basis.subarray(at * n, (at + 1) * n);
    for (let i = 0; i < n; i += 1) {
      this.#state = (Math.imul(this.#state, 1664525) + 1013904223) >>> 0;
      own[i] = this.#state / 2 ** 31 - 1;
    }
    for (let pass = 0; pass < 2; pass += 1) if (at > 0) this.#withoutBasis(own, 1, at);
    const length = Math.sqrt(dotProduct(own, own));
    for (let i = 0; i < n; i += 1) own[i] = (own[i] as number) / length;
  }

  #set(i: number, j: number, value: number): void {
    this.#projected[i * this.#capacity + j] = value;
  }

  #makeRoom(vectors: number): void {
    if (vectors <= this.#capacity) return;
    const { n } = this.operator;
    const [old, capacity] = [this.#capacity, 2 * this.#capacity];
    const basis = new Float64Array(capacity * n);
    basis.set(this.#basis);
    const projected = new Float64Array(capacity * capacity);
    for (let i = 0; i < old; i += 1) projected.set(this.#projected.subarray(i * old, (i + 1) * old), i * capacity);
    this.#basis = basis;
    this.#projected = projected;
    this.#capacity = capacity;
  }
}

function dotProduct(a: Float64Array, b: Float64Array): number {
  let [even, odd] = [0, 0];
  const pairs = a.length - (a.length % 2);
  for (let i = 0; i < pairs; i += 2) {
    even += (a[i] as number) * (b[i] as number);
    odd += (a[i + 1] as number) * (b[i + 1] as number);
  }
  return pairs === a.length ? even + odd : even + odd + (a[pairs] as number) * (b[pairs] as number);
}
