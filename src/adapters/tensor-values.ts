/** Tensors of an adapter's file as values: read, checked for NaN and infinity, widened. Used by importers. */
import { setImmediate as nextTurn } from 'node:timers/promises';

import { quoteName } from '../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../checkpoint/safetensors.js';
import { bf16ToF32, f16ToF32 } from '../core/half.js';
import { bug, ManyfoldError } from '../core/errors.js';
import type { DenseTensor } from '../core/terms.js';
import type { AdapterFolder } from './adapter-folder.js';

/** Reads a tensor of floats as it lies in the file; throws 'invalid_adapter' for another dtype, NaN and infinity. */
export async function readTensor(folder: AdapterFolder, tensor: SafetensorsTensor): Promise<DenseTensor> {
  const values = toDense(tensor, await folder.read(tensor.name));
  if (!isFinite(values)) {
    throw wrongTensor(
      `${quoteName(tensor.name)} holds NaN or infinity, expected finite values`,
      'The training diverged or the file is damaged; use an earlier checkpoint.',
    );
  }
  // Large adapters must not hold up the streams that run: one tensor, one turn.
  await nextTurn();
  return values;
}

/** The same, as float32. */
export async function readFloats(folder: AdapterFolder, tensor: SafetensorsTensor): Promise<Float32Array> {
  return toFloats(await readTensor(folder, tensor));
}

/** Reads whole numbers of any integer dtype, or floats that are whole, as PEFT saves indices on some systems. */
export async function readIntegers(folder: AdapterFolder, tensor: SafetensorsTensor): Promise<Float64Array> {
  const bytes = await folder.read(tensor.name);
  const values = integersOf(tensor, bytes);
  await nextTurn();
  const wrong = values.find((value) => !Number.isSafeInteger(value));
  if (wrong === undefined) return values;
  throw wrongTensor(
    `${quoteName(tensor.name)} holds ${wrong}, expected whole numbers`,
    'The file is damaged; download or save it again.',
  );
}

function integersOf(tensor: SafetensorsTensor, bytes: Uint8Array): Float64Array {
  const count = countOf(tensor.shape);
  const { buffer, byteOffset } = bytes;
  switch (tensor.dtype) {
    case 'I8':
      return Float64Array.from(new Int8Array(buffer, byteOffset, count));
    case 'U8':
      return Float64Array.from(bytes);
    case 'I16':
      return Float64Array.from(new Int16Array(buffer, byteOffset, count));
    case 'U16':
      return Float64Array.from(new Uint16Array(buffer, byteOffset, count));
    case 'I32':
      return Float64Array.from(new Int32Array(buffer, byteOffset, count));
    case 'U32':
      return Float64Array.from(new Uint32Array(buffer, byteOffset, count));
    case 'I64':
      return Float64Array.from(new BigInt64Array(buffer, byteOffset, count), Number);
    case 'U64':
      return Float64Array.from(new BigUint64Array(buffer, byteOffset, count), Number);
    case 'F32':
    case 'F16':
    case 'BF16':
      return wholeFloats(tensor, toDense(tensor, bytes));
    default:
      throw wrongTensor(
        `${quoteName(tensor.name)} is ${tensor.dtype}, expected whole numbers such as I32`,
        'Convert the tensor, e.g. with .to(torch.int32), and save it again.',
      );
  }
}

/** From here on, a float may stand for its whole neighbours too: the number that was meant is lost. */
const FIRST_ROUNDED = { f32: 2 ** 24, f16: 2 ** 11, bf16: 2 ** 8 } as const;

function wholeFloats(tensor: SafetensorsTensor, dense: DenseTensor): Float64Array {
  const values = Float64Array.from(toFloats(dense));
  const limit = FIRST_ROUNDED[dense.dtype];
  const wrong = values.find((value) => Math.abs(value) >= limit);
  if (wrong === undefined) return values;
  throw wrongTensor(
    `${quoteName(tensor.name)} holds ${wrong} as ${tensor.dtype}, which tells whole numbers apart below ${limit} only`,
    'Save the indices as int32 or int64.',
  );
}

function toDense(tensor: SafetensorsTensor, bytes: Uint8Array): DenseTensor {
  const { shape } = tensor;
  const count = countOf(shape);
  switch (tensor.dtype) {
    case 'F32':
      return { dtype: 'f32', shape, data: new Float32Array(bytes.buffer, bytes.byteOffset, count) };
    case 'F16':
      return { dtype: 'f16', shape, data: new Uint16Array(bytes.buffer, bytes.byteOffset, count) };
    case 'BF16':
      return { dtype: 'bf16', shape, data: new Uint16Array(bytes.buffer, bytes.byteOffset, count) };
    default:
      throw wrongTensor(
        `${quoteName(tensor.name)} is ${tensor.dtype}, expected F32, F16 or BF16`,
        'Convert the tensors, e.g. with .to(torch.bfloat16), and save them again.',
      );
  }
}

/** The bits of an exponent that is all ones: NaN or infinity. */
const EXPONENT = { f32: 0x7f800000, f16: 0x7c00, bf16: 0x7f80 } as const;

function isFinite(tensor: DenseTensor): boolean {
  const mask = EXPONENT[tensor.dtype];
  const { data } = tensor;
  const bits = tensor.dtype === 'f32' ? new Uint32Array(data.buffer, data.byteOffset, data.length) : data;
  for (let i = 0; i < bits.length; i += 1) if (((bits[i] as number) & mask) === mask) return false;
  return true;
}

/** Exact: every f16 and bf16 is a float32. */
export function toFloats(tensor: DenseTensor): Float32Array {
  if (tensor.dtype === 'f32') return tensor.data;
  const widen = tensor.dtype === 'bf16' ? bf16ToF32 : f16ToF32;
  return Float32Array.from(tensor.data, widen);
}

/** Rows of a row-major `[n, cols]` tensor, without a copy. */
export function rowsOf(tensor: DenseTensor, firstRow: number, rows: number): DenseTensor {
  const cols = tensor.shape[1] ?? bug('rowsOf takes a matrix');
  const shape = [rows, cols];
  const [from, to] = [firstRow * cols, (firstRow + rows) * cols];
  if (tensor.dtype === 'f32') return { dtype: 'f32', shape, data: tensor.data.subarray(from, to) };
  return { dtype: tensor.dtype, shape, data: tensor.data.subarray(from, to) };
}

export function floatTensor(shape: readonly number[], data: Float32Array): DenseTensor {
  return { dtype: 'f32', shape, data };
}

/**
 * After a fold: finite values or 'invalid_adapter' (a division by a zero norm, a product that overflows). `what` names
 * tensor and fold.
 */
export function checkFolded(what: string, values: Float32Array): Float32Array {
  if (values.every(Number.isFinite)) return values;
  throw wrongTensor(
    `${what} gives NaN or infinity`,
    'Its values are too large, or a norm that it divides by is zero; use an earlier checkpoint.',
  );
}

export function checkShape(tensor: SafetensorsTensor, wanted: readonly number[], words?: string): void {
  const fits = tensor.shape.length === wanted.length && tensor.shape.every((dim, i) => dim === wanted[i] && dim > 0);
  if (fits) return;
  throw wrongTensor(
    `${quoteName(tensor.name)} has shape [${tensor.shape.join(', ')}], expected ${words ?? `[${wanted.join(', ')}]`}`,
    'The adapter was trained for another base, or its tensors are transposed; save it with PEFT for this base.',
  );
}

const PEFT_FILE = 'adapter_model.safetensors: ';

/** The error for a tensor that cannot be served. */
export function wrongTensor(problem: string, mend: string): ManyfoldError {
  return new ManyfoldError('invalid_adapter', `${PEFT_FILE}${problem}. ${mend}`);
}

/** Runs an importer whose tensors lie in another file than PEFT's: its errors name that one. */
export async function inFile<T>(name: string, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    if (!(error instanceof ManyfoldError) || !error.message.startsWith(PEFT_FILE)) throw error;
    throw new ManyfoldError(error.code, `${name}: ${error.message.slice(PEFT_FILE.length)}`, { cause: error });
  }
}

function countOf(shape: readonly number[]): number {
  return shape.reduce((product, dim) => product * dim, 1);
}
