/**
 * The files in which adapters come: a PEFT folder (adapter_config.json, adapter_model.safetensors), an MLX-LM folder
 * (adapter_config.json, adapters.safetensors), or one GGUF file, alone or in a folder. Each is a config and named tensors. Links that
 * leave the root are refused, pickles are never read. Called by adapter-folder.
 */
import { constants } from 'node:fs';
import { access, open, readdir, realpath, stat } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import path from 'node:path';

import { ADAPTER_LIMITS, openSafetensors } from '../checkpoint/safetensors.js';
import type { SafetensorsTensor } from '../checkpoint/safetensors.js';
import { decodeUtf8, isJsonObject, parseJsonStrict, quoteName } from '../checkpoint/strict-json.js';
import type { JsonObject } from '../checkpoint/strict-json.js';
import { ManyfoldError } from '../core/errors.js';
import { isContained } from './contained-path.js';
import { openGgufAdapter } from './gguf-adapter.js';

export const CONFIG_FILE = 'adapter_config.json';
export const TENSORS_FILE = 'adapter_model.safetensors';
export const MLX_TENSORS_FILE = 'adapters.safetensors';
const PICKLE_FILE = 'adapter_model.bin';
const GGUF_SUFFIX = '.gguf';
/** Folders in a PEFT adapter that hold what it was before its training; see importers/lora-factors.ts. */
export const INITIAL_FOLDERS = ['initial_adapter', 'pissa_init', 'olora_init', 'corda_init', 'lora_ga_init'] as const;
/** Values of init_lora_weights after which the base is no longer what it was. */
const CHANGES_BASE = /^(?:pissa|olora|corda|lora_ga)/;
const MAX_CONFIG_BYTES = 1_000_000;
const MAX_CONFIG_DEPTH = 16;

/** Named tensors of an open file. */
export interface TensorFile {
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  /** The tensor's bytes, in a buffer of their own. */
  read(name: string): Promise<Uint8Array>;
  close(): Promise<void>;
}

export interface AdapterContainer extends TensorFile {
  readonly config: JsonObject;
  /** Name of the file with the tensors, for messages. */
  readonly tensorsFile: string;
}

/** Whether files of these names make a folder an adapter's. */
export function isAdapterFolder(names: readonly string[]): boolean {
  return names.includes(CONFIG_FILE) || names.filter((name) => name.endsWith(GGUF_SUFFIX)).length === 1;
}

/** Opens what lies at `place`, a folder or a GGUF file; the caller closes it. `root`: see OpenAdapterOptions. */
export async function openContainer(place: string, root: string | undefined): Promise<AdapterContainer> {
  const gguf = await findGguf(place);
  if (gguf !== undefined) {
    const real = await locate(path.dirname(gguf), path.basename(gguf), root);
    const name = path.basename(gguf);
    return { ...(await openUnmoved(real, () => openGgufAdapter(real, name))), tensorsFile: name };
  }
  const config = await readConfig(await locate(place, CONFIG_FILE, root));
  await refusePickle(place);
  const mlx = !(await exists(path.join(place, TENSORS_FILE))) && (await exists(path.join(place, MLX_TENSORS_FILE)));
  const tensorsFile = mlx ? MLX_TENSORS_FILE : TENSORS_FILE;
  const files = new Map<string, TensorFile>([['', await openTensors(place, tensorsFile, root)]]);
  try {
    for (const name of mlx ? [] : await initialFolders(place, config)) {
      files.set(`${name}/`, await openTensors(path.join(place, name), TENSORS_FILE, root));
    }
    return { config, tensorsFile, ...joined(files) };
  } catch (error) {
    await closeAll(files);
    throw error;
  }
}

/** Only a LoRA whose training changed the base needs what it was before. */
async function initialFolders(place: string, config: JsonObject): Promise<string[]> {
  const init = config['init_lora_weights'];
  if (config['peft_type'] !== 'LORA' || typeof init !== 'string' || !CHANGES_BASE.test(init)) return [];
  const found: string[] = [];
  for (const name of INITIAL_FOLDERS) if (await exists(path.join(place, name, TENSORS_FILE))) found.push(name);
  if (found.length <= 1) return found;
  throw new ManyfoldError(
    'invalid_adapter',
    `${place} holds ${found.join(' and ')}, expected one initial adapter. Leave the one that the training began with.`,
  );
}

/** The files' tensors under one roof, each name behind its file's prefix. */
function joined(files: ReadonlyMap<string, TensorFile>): TensorFile {
  const tensors = new Map<string, SafetensorsTensor>();
  const owners = new Map<string, { readonly file: TensorFile; readonly name: string }>();
  for (const [prefix, file] of files) {
    for (const [name, tensor] of file.tensors) {
      if (tensors.has(prefix + name)) throw invalid(`two files hold a tensor ${quoteName(prefix + name)}`);
      tensors.set(prefix + name, { ...tensor, name: prefix + name });
      owners.set(prefix + name, { file, name });
    }
  }
  const read = (name: string): Promise<Uint8Array> => {
    const owner = owners.get(name) ?? { file: [...files.values()][0] as TensorFile, name };
    return owner.file.read(owner.name);
  };
  return { tensors, read, close: () => closeAll(files) };
}

async function closeAll(files: ReadonlyMap<string, TensorFile>): Promise<void> {
  await Promise.all([...files.values()].map((file) => file.close()));
}

/** The GGUF file that is meant; undefined: a folder with adapter_config.json, or nothing at all. */
async function findGguf(place: string): Promise<string | undefined> {
  const info = await stat(place).catch(() => undefined);
  if (info?.isFile() === true && place.endsWith(GGUF_SUFFIX)) return place;
  if (info?.isDirectory() !== true || (await exists(path.join(place, CONFIG_FILE)))) return undefined;
  const names = (await readdir(place)).filter((name) => name.endsWith(GGUF_SUFFIX));
  const [only] = names;
  if (only === undefined) return undefined;
  if (names.length === 1) return path.join(place, only);
  throw new ManyfoldError(
    'invalid_adapter',
    `${place} holds ${names.length} GGUF files, expected one. Give the path of the file that is meant.`,
  );
}

async function openTensors(directory: string, name: string, root: string | undefined): Promise<TensorFile> {
  const real = await locate(directory, name, root);
  return openUnmoved(real, () => openSafetensors(real, ADAPTER_LIMITS));
}

/** Between the check of the path and the opening, a link may have taken its place. */
async function openUnmoved<T extends TensorFile>(real: string, openFile: () => Promise<T>): Promise<T> {
  const file = await openFile();
  const now = await realpath(real).catch(() => undefined);
  if (now === real) return file;
  await file.close();
  throw invalid(`${path.basename(real)} was replaced while it was opened`);
}

/** The real path of one file of the folder. */
async function locate(directory: string, name: string, root: string | undefined): Promise<string> {
  let real: string;
  try {
    real = await realpath(path.join(directory, name));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    const message =
      `${directory} holds no readable ${name} (${reason}). ` +
      'Give the path of a PEFT adapter folder, as save_pretrained() writes it, of an MLX-LM one, or of a GGUF file.';
    throw new ManyfoldError('invalid_adapter', message, { cause });
  }
  if (root !== undefined && !isContained(real, root)) {
    throw new ManyfoldError(
      'forbidden',
      `${name} is a link that leaves the adapter folder's root. Put the file itself there instead.`,
    );
  }
  return real;
}

async function readConfig(realPath: string): Promise<JsonObject> {
  const handle = await openConfig(realPath);
  let bytes: Uint8Array;
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw invalid(`${CONFIG_FILE}: expected a regular file`);
    if (stat.size > MAX_CONFIG_BYTES) {
      throw invalid(`${CONFIG_FILE} has ${stat.size} bytes, at most ${MAX_CONFIG_BYTES} are allowed`);
    }
    const buffer = new Uint8Array(stat.size);
    const { bytesRead } = await handle.read(buffer, 0, stat.size, 0);
    bytes = buffer.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
  const text = decodeUtf8(bytes, CONFIG_FILE, 'invalid_adapter');
  const value = parseJsonStrict(text, { maxDepth: MAX_CONFIG_DEPTH, what: CONFIG_FILE, code: 'invalid_adapter' });
  if (!isJsonObject(value)) throw invalid(`${CONFIG_FILE}: expected an object`);
  return value;
}

/** The last component must not have become a link since; a pipe must not make the server wait. */
async function openConfig(realPath: string): Promise<FileHandle> {
  try {
    return await open(realPath, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    const message = `${realPath} cannot be opened (${reason}). Check its permissions.`;
    throw new ManyfoldError('invalid_adapter', message, { cause });
  }
}

/** A folder with only a pickle gets told how to convert it. */
async function refusePickle(directory: string): Promise<void> {
  if (await exists(path.join(directory, TENSORS_FILE))) return;
  if (!(await exists(path.join(directory, PICKLE_FILE)))) return;
  throw new ManyfoldError(
    'invalid_adapter',
    `${directory} holds ${PICKLE_FILE}, a Python pickle, which can run code when it is read; expected ${TENSORS_FILE}. ` +
      `Convert it with "manyfold adapters convert pickle ${directory} --out DIR", which reads it and runs nothing.`,
  );
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}

function invalid(problem: string): ManyfoldError {
  const message = `${problem}. The file is damaged or is no adapter; save it again with PEFT's save_pretrained().`;
  return new ManyfoldError('invalid_adapter', message);
}
