/** What the converters share: the folder that is written, and values of a pickle by type. Called by the converters. */
import type { PickleValue, TorchTensor } from '../../checkpoint/pickle-globals.js';
import type { TorchFile } from '../../checkpoint/torch-file.js';
import { ManyfoldError } from '../../core/errors.js';
import type { WrittenTensor } from './adapter-writer.js';

export interface Conversion {
  readonly directory: string;
  readonly tensors: number;
  /** Sentences for the operator. */
  readonly notes: readonly string[];
}

/** A tensor of the pickle as one of safetensors. */
export async function writtenTensor(file: TorchFile, name: string, tensor: TorchTensor): Promise<WrittenTensor> {
  return { name, dtype: tensor.storage.dtype, shape: tensor.shape, data: await file.read(tensor) };
}

/** A dictionary with names as keys. */
export function namedEntries(value: PickleValue | undefined, what: string): [string, PickleValue][] {
  if (!(value instanceof Map)) throw notThis(what, 'no dictionary');
  return [...value].map(([key, entry]) =>
    typeof key === 'string' ? [key, entry] : fail(notThis(what, 'a dictionary whose keys are not names')),
  );
}

function fail(error: ManyfoldError): never {
  throw error;
}

export function notThis(what: string, found: string): ManyfoldError {
  return new ManyfoldError(
    'invalid_adapter',
    `${what} is ${found}. Check that it is the file that this converter is for (manyfold adapters convert --help).`,
  );
}
