/**
 * A PEFT adapter folder as bounded plain data: adapter_config.json (strict JSON) and the tensors of
 * adapter_model.safetensors. Adapters may come from strangers, so nothing is trusted: sizes are checked before anything
 * is allocated, links that leave the folder are refused, pickles are never read. Importers and the content hash read it.
 */
import { constants } from 'node:fs';
import { access, open, realpath } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';
import path from 'node:path';

import { decodeUtf8, isJsonObject, parseJsonStrict } from '../checkpoint/strict-json.js';
import type { JsonObject } from '../checkpoint/strict-json.js';
import { ADAPTER_LIMITS, openSafetensors } from '../checkpoint/safetensors.js';
import type { SafetensorsFile, SafetensorsTensor } from '../checkpoint/safetensors.js';
import { ManyfoldError } from '../core/errors.js';
import { isContained } from './contained-path.js';
import { readAdapterTexts } from './text-files.js';
import type { AdapterTexts } from './text-files.js';

export const CONFIG_FILE = 'adapter_config.json';
export const TENSORS_FILE = 'adapter_model.safetensors';
const PICKLE_FILE = 'adapter_model.bin';
const MAX_CONFIG_BYTES = 1_000_000;
const MAX_CONFIG_DEPTH = 16;

/** Bounds on what one adapter may cost; checked on the headers, before anything is allocated. */
export interface AdapterLimits {
  readonly maxRank: number;
  /** Of all tensors together, as they lie in the file. */
  readonly maxBytes: number;
}

export const DEFAULT_ADAPTER_LIMITS: AdapterLimits = { maxRank: 512, maxBytes: 4 * 1024 ** 3 };

export interface AdapterFolder {
  readonly directory: string;
  readonly config: JsonObject;
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  /** The tensor's bytes, in a buffer of their own. With `keepTensors` every call gives the same bytes. */
  read(name: string): Promise<Uint8Array>;
  /** Contents of the files that change text: chat template and tokenizer. */
  readTexts(): Promise<AdapterTexts>;
  close(): Promise<void>;
}

export interface OpenAdapterOptions {
  readonly limits: AdapterLimits;
  /** Real path that both files must lie under; absent: the operator named the folder and its links are followed. */
  readonly root?: string;
  /** Keep what is read, so that the bytes that were hashed are the bytes that are compiled. */
  readonly keepTensors: boolean;
}

/** Opens the folder and checks the headers. The caller closes it. */
export async function openAdapterFolder(directory: string, options: OpenAdapterOptions): Promise<AdapterFolder> {
  const config = await readConfig(await locate(directory, CONFIG_FILE, options.root));
  await refusePickle(directory);
  const tensorsPath = await locate(directory, TENSORS_FILE, options.root);
  const file = await openSafetensors(tensorsPath, ADAPTER_LIMITS);
  try {
    // Between the check of the path and the opening, a link may have taken its place.
    if ((await realpath(tensorsPath)) !== tensorsPath)
      throw invalid(`${TENSORS_FILE} was replaced while it was opened`);
    checkBytes(file, options.limits);
  } catch (error) {
    await file.close();
    throw error;
  }
  return new OpenAdapter(directory, config, file, options);
}

class OpenAdapter implements AdapterFolder {
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  readonly #kept = new Map<string, Uint8Array>();

  constructor(
    readonly directory: string,
    readonly config: JsonObject,
    private readonly file: SafetensorsFile,
    private readonly options: OpenAdapterOptions,
  ) {
    this.tensors = file.tensors;
  }

  async read(name: string): Promise<Uint8Array> {
    const kept = this.#kept.get(name);
    if (kept !== undefined) return kept;
    const bytes = await this.file.read(name);
    if (this.options.keepTensors) this.#kept.set(name, bytes);
    return bytes;
  }

  readTexts(): Promise<AdapterTexts> {
    return readAdapterTexts(this.directory, this.options.root);
  }

  async close(): Promise<void> {
    this.#kept.clear();
    await this.file.close();
  }
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
      'Give the path of a PEFT adapter folder, as save_pretrained() writes it.';
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
      'Convert it where you trust it: python -c "import torch, safetensors.torch as s; s.save_file(torch.load(' +
      `'${PICKLE_FILE}', map_location='cpu', weights_only=True), '${TENSORS_FILE}')".`,
  );
}

async function exists(file: string): Promise<boolean> {
  return access(file).then(
    () => true,
    () => false,
  );
}

function checkBytes(file: SafetensorsFile, limits: AdapterLimits): void {
  let total = 0;
  for (const tensor of file.tensors.values()) total += tensor.byteLength;
  if (total <= limits.maxBytes) return;
  throw new ManyfoldError(
    'invalid_adapter',
    `${TENSORS_FILE} holds ${total} bytes of tensors, at most ${limits.maxBytes} are allowed. ` +
      'Serve an adapter of this size as a model of its own: merge it into its base and use --model.',
  );
}

function invalid(problem: string): ManyfoldError {
  const message = `${problem}. The file is damaged or is no adapter; save it again with PEFT's save_pretrained().`;
  return new ManyfoldError('invalid_adapter', message);
}
