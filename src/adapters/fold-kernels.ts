/**
 * The inner loops of folds in float64. Sums run over four or more accumulators at once, for one alone waits for each of its
 * additions, and what is loaded serves several products. Called by fold.ts and what searches singular vectors.
 */

/** Rows of a matrix, float32 as the base has them or float64. */
export type Rows = Float32Array | Float64Array;

/** result `[k, width]` += x[:, first .. first + rows - 1] times block `[rows, width]`; x is `[k, stride]`. */
export function addLeftProduct(
  result: Float64Array,
  x: { readonly data: Float64Array; readonly k: number; readonly stride: number; readonly first: number },
  block: Rows,
  { rows, width }: { readonly rows: number; readonly width: number },
): void {
  const { data, k, stride, first } = x;
  const factors = new Float64Array(8);
  for (let row = 0; row < rows; row += 4) {
    const four = rowsFrom(block, row, rows, width);
    for (let i = 0; i < k; i += 2) {
      const own = result.subarray(i * width, (i + 1) * width);
      // Of an odd row, the second half is thrown away.
      const next = i + 1 < k ? result.subarray((i + 1) * width, (i + 2) * width) : new Float64Array(width);
      for (let t = 0; t < 8; t += 1) {
        const [at, source] = [row + (t % 4), i + (t >> 2)];
        factors[t] = at < rows && source < k ? (data[source * stride + first + at] as number) : 0;
      }
      addPair(own, next, four, factors);
    }
  }
}

type Four = readonly [Rows, Rows, Rows, Rows];

/** Rows row .. row + 3; where there are less, the last one again. */
function rowsFrom(block: Rows, row: number, rows: number, width: number): Four {
  const at = (t: number): Rows => {
    const own = Math.min(row + t, rows - 1);
    return block.subarray(own * width, (own + 1) * width);
  };
  return [at(0), at(1), at(2), at(3)];
}

/** sum += f[0 .. 3] times the four rows, next += f[4 .. 7] times them. */
function addPair(sum: Float64Array, next: Float64Array, [b0, b1, b2, b3]: Four, f: Float64Array): void {
  const f0 = f[0] as number;
  const f1 = f[1] as number;
  const f2 = f[2] as number;
  const f3 = f[3] as number;
  const g0 = f[4] as number;
  const g1 = f[5] as number;
  const g2 = f[6] as number;
  const g3 = f[7] as number;
  const length = sum.length;
  for (let j = 0; j < length; j += 1) {
    const u0 = b0[j] as number;
    const u1 = b1[j] as number;
    const u2 = b2[j] as number;
    const u3 = b3[j] as number;
    sum[j] = (sum[j] as number) + (f0 * u0 + f1 * u1 + (f2 * u2 + f3 * u3));
    next[j] = (next[j] as number) + (g0 * u0 + g1 * u1 + (g2 * u2 + g3 * u3));
  }
}

export interface RowProducts {
  /** Rows of a and of b. */
  readonly n: number;
  readonly m: number;
  readonly width: number;
  /** Of the result's rows. */
  readonly stride: number;
  /** Columns from .. to - 1 are multiplied. */
  readonly from: number;
  readonly to: number;
}

/** result `[n, stride]` += a bᵀ in its first m columns, for a `[n, width]` and b `[m, width]`. */
export function addRowProducts(result: Float64Array, a: Rows, b: Rows, shape: RowProducts): void {
  const { n, m, width, stride, from, to } = shape;
  for (let i = 0; i < n; i += 2) {
    const second = i + 1 < n;
    const a0 = a.subarray(i * width + from, i * width + to);
    const a1 = second ? a.subarray((i + 1) * width + from, (i + 1) * width + to) : a0;
    for (let j = 0; j < m; j += 4) {
      const count = Math.min(4, m - j);
      const row = (t: number): Rows => {
        const own = j + Math.min(t, count - 1);
        return b.subarray(own * width + from, own * width + to);
      };
      products(a0, a1, row(0), row(1), row(2), row(3));
      for (let t = 0; t < count; t += 1) {
        const at = i * stride + j + t;
        result[at] = (result[at] as number) + (SUMS[t] as number);
        if (second) result[at + stride] = (result[at + stride] as number) + (SUMS[4 + t] as number);
      }
    }
  }
}

/** What `products` gives: it has no other place that would not cost an allocation for each call. */
const SUMS = new Float64Array(8);

function products(a0: Rows, a1: Rows, b0: Rows, b1: Rows, b2: Rows, b3: Rows): void {
  let [s0, s1, s2, s3, t0, t1, t2, t3] = [0, 0, 0, 0, 0, 0, 0, 0];
  const length = a0.length;
  for (let k = 0; k < length; k += 1) {
    const x = a0[k] as number;
    const y = a1[k] as number;
    const u0 = b0[k] as number;
    const u1 = b1[k] as number;
    const u2 = b2[k] as number;
    const u3 = b3[k] as number;
    s0 += x * u0;
    s1 += x * u1;
    s2 += x * u2;
    s3 += x * u3;
    t0 += y * u0;
    t1 += y * u1;
    t2 += y * u2;
    t3 += y * u3;
  }
  SUMS.set([s0, s1, s2, s3, t0, t1, t2, t3]);
}
