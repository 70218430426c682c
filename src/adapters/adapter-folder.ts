/**
 * An adapter as bounded plain data: its config (strict JSON, or a GGUF file's metadata) and its tensors. Adapters may come
 * from strangers, so nothing is trusted: sizes are checked before anything is allocated, links that leave the folder are
 * refused, pickles are never read. Importers and the content hash read it.
 */
import type { SafetensorsTensor } from '../checkpoint/safetensors.js';
import type { JsonObject } from '../checkpoint/strict-json.js';
import { ManyfoldError } from '../core/errors.js';
import { openContainer } from './adapter-container.js';
import type { AdapterContainer } from './adapter-container.js';
import { readAdapterTexts } from './text-files.js';
import type { AdapterTexts } from './text-files.js';

export { CONFIG_FILE, isAdapterFolder, TENSORS_FILE } from './adapter-container.js';

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

/** Opens a folder or a GGUF file and checks the headers. The caller closes it. */
export async function openAdapterFolder(directory: string, options: OpenAdapterOptions): Promise<AdapterFolder> {
  const container = await openContainer(directory, options.root);
  try {
    checkBytes(container, options.limits);
  } catch (error) {
    await container.close();
    throw error;
  }
  return new OpenAdapter(directory, container, options);
}

class OpenAdapter implements AdapterFolder {
  readonly config: JsonObject;
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  readonly #kept = new Map<string, Uint8Array>();

  constructor(
    readonly directory: string,
    private readonly container: AdapterContainer,
    private readonly options: OpenAdapterOptions,
  ) {
    this.config = container.config;
    this.tensors = container.tensors;
  }

  async read(name: string): Promise<Uint8Array> {
    const kept = this.#kept.get(name);
    if (kept !== undefined) return kept;
    const bytes = await this.container.read(name);
    if (this.options.keepTensors) this.#kept.set(name, bytes);
    return bytes;
  }

  readTexts(): Promise<AdapterTexts> {
    return readAdapterTexts(this.directory, this.options.root);
  }

  async close(): Promise<void> {
    this.#kept.clear();
    await this.container.close();
  }
}

function checkBytes(file: AdapterContainer, limits: AdapterLimits): void {
  let total = 0;
  for (const tensor of file.tensors.values()) total += tensor.byteLength;
  if (total <= limits.maxBytes) return;
  throw new ManyfoldError(
    'invalid_adapter',
    `${file.tensorsFile} holds ${total} bytes of tensors, at most ${limits.maxBytes} are allowed. ` +
      'Serve an adapter of this size as a model of its own: merge it into its base and use --model.',
  );
}
