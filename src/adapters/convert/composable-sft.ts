/**
 * composable-sft (arXiv 2110.07560, github.com/cambridgeltl/composable-sft, src/sft/sft.py): pytorch_diff.bin, a pickle of
 * {'diffs': {parameter: {size, index_steps, values}}, 'abs': {parameter: tensor}}, as a folder with peft_type "SFT".
 *
 * Its flat index runs through the first coordinate fastest and is written as steps; its own reader adds the steps in int32,
 * this one in 53 bits. Ours is row-major. 'abs' tensors replace a parameter as a whole.
 */
import path from 'node:path';

import type { PickleValue } from '../../checkpoint/pickle-globals.js';
import { TorchTensor } from '../../checkpoint/pickle-globals.js';
import { quoteName } from '../../checkpoint/strict-json.js';
import { openTorchFile } from '../../checkpoint/torch-file.js';
import type { TorchFile } from '../../checkpoint/torch-file.js';
import { ManyfoldError } from '../../core/errors.js';
import { refuseFullFolder, writeAdapterFolder } from './adapter-writer.js';
import type { WrittenTensor } from './adapter-writer.js';
import { namedEntries, notThis, writtenTensor } from './converted-folder.js';
import type { Conversion } from './converted-folder.js';

const PREFIX = 'base_model.model.';
const PARAMETER = /^([A-Za-z0-9_.]+)\.(weight|bias)$/;
const MAX_INT32 = 2 ** 31 - 1;

export async function convertComposableSft(source: string, directory: string): Promise<Conversion> {
  await refuseFullFolder(directory);
  const what = path.basename(source);
  const file = await openTorchFile(source, what);
  try {
    const parts = new Map(namedEntries(file.root, what));
    const unknown = [...parts.keys()].find((name) => name !== 'diffs' && name !== 'abs');
    if (unknown !== undefined || parts.size === 0) {
      throw notThis(what, unknown === undefined ? 'empty' : `a dictionary with ${quoteName(unknown)}`);
    }
    const tensors: WrittenTensor[] = [];
    for (const [name, diff] of namedEntries(parts.get('diffs') ?? new Map(), `${what}: diffs`)) {
      tensors.push(...(await diffTensors(file, name, diff)));
    }
    for (const [name, value] of namedEntries(parts.get('abs') ?? new Map(), `${what}: abs`)) {
      if (!(value instanceof TorchTensor)) throw notThis(`abs of ${quoteName(name)}`, 'no tensor');
      parameterOf(name);
      tensors.push(await writtenTensor(file, PREFIX + name, value));
    }
    if (tensors.length === 0) throw notThis(what, 'without a single tensor');
    await writeAdapterFolder(directory, { peft_type: 'SFT', format: 'composable-sft' }, tensors);
    return { directory, tensors: tensors.length, notes: [] };
  } finally {
    await file.close();
  }
}

/** Module and weight or bias. */
function parameterOf(name: string): { readonly module: string; readonly bias: boolean } {
  const match = PARAMETER.exec(name);
  if (match !== null) return { module: match[1] ?? '', bias: match[2] === 'bias' };
  throw notThis(`the parameter ${quoteName(name)}`, 'neither a weight nor a bias');
}

async function diffTensors(file: TorchFile, name: string, diff: PickleValue): Promise<WrittenTensor[]> {
  const { module, bias } = parameterOf(name);
  const at = `diffs of ${quoteName(name)}`;
  const fields = new Map(namedEntries(diff, at));
  const [size, steps, values] = [fields.get('size'), fields.get('index_steps'), fields.get('values')];
  if (fields.size !== 3 || !Array.isArray(size) || !Array.isArray(steps) || !(values instanceof TorchTensor)) {
    throw notThis(at, 'no {size, index_steps, values}');
  }
  const shape = size.map((dim) => (typeof dim === 'number' && dim > 0 ? dim : Number.NaN));
  if (shape.length < 1 || shape.length > 2 || shape.some(Number.isNaN)) throw notThis(at, 'no vector and no matrix');
  if (values.shape.length !== 1 || values.shape[0] !== steps.length) {
    throw new ManyfoldError(
      'invalid_adapter',
      `${at}: ${steps.length} steps for values of shape [${values.shape.join(', ')}], expected one value a step. ` +
        'The file is damaged; save it again.',
    );
  }
  // A parameter that did not change.
  if (steps.length === 0) return [];
  const flat = rowMajor(steps, shape as [number] | [number, number], at);
  const key = `${PREFIX}${module}.sft_${bias ? 'bias_' : ''}delta`;
  const large = shape.reduce((product, dim) => product * dim, 1) > MAX_INT32;
  const written = await writtenTensor(file, `${key}.values`, values);
  return [
    written,
    {
      name: `${key}.indices`,
      dtype: large ? 'I64' : 'I32',
      shape: [flat.length],
      data: large ? BigInt64Array.from(flat, BigInt) : Int32Array.from(flat),
    },
  ];
}

/** Sums the steps, and turns row + column · rows into row · columns + column. */
function rowMajor(
  steps: readonly PickleValue[],
  shape: readonly [number] | readonly [number, number],
  at: string,
): Float64Array {
  const [rows, cols] = [shape[0], shape[1] ?? 1];
  const flat = new Float64Array(steps.length);
  let index = 0;
  for (const [i, step] of steps.entries()) {
    if (typeof step !== 'number' || !Number.isSafeInteger(step) || step < (i === 0 ? 0 : 1)) {
      throw notThis(
        `${at}: step ${i}`,
        `${typeof step === 'number' ? step : typeof step}, expected a whole number above 0`,
      );
    }
    index += step;
    if (index >= rows * cols) throw notThis(`${at}: index ${index}`, `outside of [${shape.join(', ')}]`);
    flat[i] = (index % rows) * cols + Math.floor(index / rows);
  }
  return flat;
}
