/**
 * adapter_model.bin of PEFT, a pickled dictionary of tensors, as adapter_model.safetensors: the same keys, types and values.
 * The config is copied. AdapterHub's files (pytorch_adapter.bin or adapter.safetensors) go the same way.
 */
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';

import { decodeUtf8, isJsonObject, parseJsonStrict, quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import { TorchTensor } from '../../checkpoint/pickle-globals.js';
import { ADAPTER_LIMITS, openSafetensors } from '../../checkpoint/safetensors.js';
import { openTorchFile } from '../../checkpoint/torch-file.js';
import { ManyfoldError } from '../../core/errors.js';
import { CONFIG_FILE } from '../adapter-folder.js';
import { refuseFullFolder, writeAdapterFolder } from './adapter-writer.js';
import type { WrittenTensor } from './adapter-writer.js';
import { namedEntries, notThis, writtenTensor } from './converted-folder.js';
import type { Conversion } from './converted-folder.js';

const MAX_CONFIG_BYTES = 1_000_000;
const MAX_CONFIG_DEPTH = 16;

/** `source` is the folder, or the pickle with adapter_config.json beside it. */
export async function convertPeftPickle(source: string, directory: string): Promise<Conversion> {
  const folder = await folderOf(source);
  const pickle = folder === source ? path.join(source, 'adapter_model.bin') : source;
  return write(directory, await readConfig(folder), await readPickledTensors(pickle));
}

/** AdapterHub writes bottlenecks as adapter.safetensors or pytorch_adapter.bin, and a head beside them if there is one. */
export async function convertAdapterHub(source: string, directory: string): Promise<Conversion> {
  const config = await readConfig(source);
  for (const head of ['model_head.safetensors', 'pytorch_model_head.bin']) {
    if (!(await exists(path.join(source, head)))) continue;
    throw new ManyfoldError(
      'invalid_adapter',
      `${source} holds ${head}, a head that belongs to the adapter and would be lost. ` +
        'Save it with save_adapter(path, name, with_head=False) if the head is that of the base; else it cannot be served.',
    );
  }
  const safe = path.join(source, 'adapter.safetensors');
  const tensors = (await exists(safe))
    ? await readSafeTensors(safe)
    : await readPickledTensors(path.join(source, 'pytorch_adapter.bin'));
  return write(directory, config, tensors);
}

async function write(directory: string, config: JsonObject, tensors: readonly WrittenTensor[]): Promise<Conversion> {
  await refuseFullFolder(directory);
  await writeAdapterFolder(directory, config, tensors);
  return { directory, tensors: tensors.length, notes: [] };
}

async function readPickledTensors(pickle: string): Promise<WrittenTensor[]> {
  const what = path.basename(pickle);
  const file = await openTorchFile(pickle, what);
  try {
    const tensors: WrittenTensor[] = [];
    for (const [name, value] of namedEntries(file.root, what)) {
      if (!(value instanceof TorchTensor)) throw notThis(`${what}: ${quoteName(name)}`, 'no tensor');
      tensors.push(await writtenTensor(file, name, value));
    }
    return tensors;
  } finally {
    await file.close();
  }
}

async function readSafeTensors(filePath: string): Promise<WrittenTensor[]> {
  const file = await openSafetensors(filePath, ADAPTER_LIMITS);
  try {
    const tensors: WrittenTensor[] = [];
    for (const { name, dtype, shape } of file.tensors.values()) {
      tensors.push({ name, dtype, shape, data: await file.read(name) });
    }
    return tensors;
  } finally {
    await file.close();
  }
}

async function folderOf(source: string): Promise<string> {
  const found = await stat(source).catch(() => undefined);
  if (found !== undefined) return found.isDirectory() ? source : path.dirname(source);
  throw new ManyfoldError('invalid_adapter', `${source} does not exist. Give a PEFT folder or its adapter_model.bin.`);
}

async function readConfig(folder: string): Promise<JsonObject> {
  const file = path.join(folder, CONFIG_FILE);
  const found = await stat(file).catch(() => undefined);
  if (found?.isFile() !== true || found.size > MAX_CONFIG_BYTES) {
    throw new ManyfoldError(
      'invalid_adapter',
      `${folder} holds no ${CONFIG_FILE} of at most ${MAX_CONFIG_BYTES} bytes. It says how the tensors are used; put it there.`,
    );
  }
  const text = decodeUtf8(await readFile(file), CONFIG_FILE, 'invalid_adapter');
  const config = parseJsonStrict(text, { maxDepth: MAX_CONFIG_DEPTH, what: CONFIG_FILE, code: 'invalid_adapter' });
  if (isJsonObject(config)) return config;
  throw notThis(CONFIG_FILE, 'no object');
}

function exists(file: string): Promise<boolean> {
  return stat(file).then(
    () => true,
    () => false,
  );
}
