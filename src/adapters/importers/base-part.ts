/**
 * The part of a base weight that a training took out of it before it began: PiSSA the r largest singular parts, OLoRA (but
 * for its scale) what the first r columns of Q in W = Q R span, KaSA (which leaves it out for good) the r smallest singular parts. Each is P W or
 * W P for a projection P, so signs of singular vectors do not matter. Found in float64 from the weight as it is served.
 */
import { baseTimes, eachBaseBlock, timesBase, transposed, Turns } from '../fold.js';
import type { BaseMatrix } from '../fold.js';
import { refused } from '../config-fields.js';
import type { BaseWeights } from '../importer.js';
import { symmetricEigen } from '../symmetric-eigen.js';

export type BasePart = 'largest' | 'smallest' | 'columns';

/** left `[out, r]` times right `[r, in]`. */
export interface PartFactors {
  readonly left: Float64Array;
  readonly right: Float64Array;
}

/**
 * Multiplications that the singular vectors of all weights of one adapter may take, some minutes: all linears of a model of
 * 30 layers and 576 dimensions take 1e11.
 */
const MAX_OPERATIONS = 3e11;
/** Least distance of the singular values on both sides of the cut, in units of the largest: else the part is not defined. */
const LEAST_GAP = 1e-7;

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
    operations += size * size * (matrix.out + matrix.in + size);
    if (operations <= MAX_OPERATIONS) continue;
    throw refused(
      field,
      `on for ${parts.length} weights such as ${path} of [${matrix.out}, ${matrix.in}], whose singular vectors would take ` +
        'too long to compute at load',
      CONVERT,
    );
  }
}

export async function partOfBase(base: BaseWeights, matrix: BaseMatrix, request: PartRequest): Promise<PartFactors> {
  const { part, rank } = request;
  const { out, in: width } = matrix;
  if (part === 'columns') {
    const rows = await orthonormalColumns(base, matrix, rank);
    return { left: transposed(rows, rank, out), right: await timesBase(base, matrix, rows, rank) };
  }
  if (out <= width) {
    const rows = await singularVectors(await rowGram(base, matrix), out, request);
    return { left: transposed(rows, rank, out), right: await timesBase(base, matrix, rows, rank) };
  }
  const rows = await singularVectors(await columnGram(base, matrix), width, request);
  return { left: await baseTimes(base, matrix, rows, rank), right: rows };
}

/** `[rank, n]`: eigenvectors of a Gram matrix `[n, n]`. */
async function singularVectors(gram: Float64Array, n: number, request: PartRequest): Promise<Float64Array> {
  const { part, rank, field, path } = request;
  const first = part === 'largest' ? n - rank : 0;
  const { values, vectors } = await symmetricEigen(gram, n, { first, count: rank });
  const cut = part === 'largest' ? first : rank;
  const singular = (i: number): number => Math.sqrt(Math.max(0, values[i] ?? 0));
  if (cut > 0 && cut < n && !(singular(cut) - singular(cut - 1) > LEAST_GAP * singular(n - 1))) {
    throw refused(
      field,
      `on for ${path}, two of whose singular values are equal at rank ${rank}, so that what the training took out is not defined`,
      CONVERT,
    );
  }
  return vectors;
}

async function wholeBase(base: BaseWeights, matrix: BaseMatrix): Promise<Float32Array> {
  const whole = new Float32Array(matrix.out * matrix.in);
  await eachBaseBlock(base, matrix, 1, (block, firstRow) => {
    whole.set(block, firstRow * matrix.in);
  });
  return whole;
}

/** W Wᵀ. */
async function rowGram(base: BaseWeights, matrix: BaseMatrix): Promise<Float64Array> {
  const { out, in: width } = matrix;
  const whole = await wholeBase(base, matrix);
  const turns = new Turns();
  const gram = new Float64Array(out * out);
  for (let i = 0; i < out; i += 1) {
    for (let j = 0; j <= i; j += 1) {
      let sum = 0;
      for (let k = 0; k < width; k += 1) sum += (whole[i * width + k] as number) * (whole[j * width + k] as number);
      gram[i * out + j] = sum;
      gram[j * out + i] = sum;
    }
    await turns.after(i * width);
  }
  return gram;
}

/** Wᵀ W, row by row of W. */
async function columnGram(base: BaseWeights, matrix: BaseMatrix): Promise<Float64Array> {
  const { out, in: width } = matrix;
  const whole = await wholeBase(base, matrix);
  const turns = new Turns();
  const gram = new Float64Array(width * width);
  for (let row = 0; row < out; row += 1) {
    const values = whole.subarray(row * width, (row + 1) * width);
    for (let i = 0; i < width; i += 1) {
      const factor = values[i] as number;
      const at = i * width;
      for (let j = 0; j <= i; j += 1) gram[at + j] = (gram[at + j] as number) + factor * (values[j] as number);
    }
    await turns.after((width * width) / 2);
  }
  for (let i = 0; i < width; i += 1) for (let j = 0; j < i; j += 1) gram[j * width + i] = gram[i * width + j] as number;
  return gram;
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
