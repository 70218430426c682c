/** From the `model` field to what answers: the base under its served names, or an adapter version. */
import { ManyfoldError } from '../core/errors.js';
import type { AdapterVersion } from '../core/ids.js';
import type { EngineInfo } from '../engine/port.js';
import type { AdapterDirectory, ServedAdapter } from './ports.js';

export interface BaseModel {
  /** At least one; the first is echoed in answers. */
  readonly servedNames: readonly [string, ...string[]];
  /** Where it was loaded from, as the user gave it. */
  readonly root: string;
  readonly createdSeconds: number;
}

export interface ModelTarget {
  /** The name to echo. */
  readonly name: string;
  /** Undefined for the base. */
  readonly version: AdapterVersion | undefined;
  readonly fingerprint: string;
}

/** One entry of GET /v1/models. */
export interface ModelCard {
  readonly id: string;
  readonly createdSeconds: number;
  readonly root: string;
  readonly parent: string | null;
  readonly maxModelLen: number | null;
}

const FINGERPRINT_DIGITS = 10;

export class ServedModels {
  readonly base: BaseModel;
  readonly #adapters: AdapterDirectory;
  readonly #info: EngineInfo;

  constructor(base: BaseModel, adapters: AdapterDirectory, info: EngineInfo) {
    this.base = base;
    this.#adapters = adapters;
    this.#info = info;
  }

  isBase(name: string): boolean {
    return this.base.servedNames.includes(name);
  }

  /** A request without a model means the base. Throws 'model_not_found', 'bad_request' for a refused adapter. */
  resolve(name: string | undefined): ModelTarget {
    const base = `fp_${this.#info.baseFingerprint.slice(0, FINGERPRINT_DIGITS)}`;
    if (name === undefined || this.isBase(name)) {
      return { name: this.base.servedNames[0], version: undefined, fingerprint: base };
    }
    const adapter = this.#adapters.resolve(name);
    if (adapter === undefined) throw this.#unknown(name);
    const hash = adapter.version.slice('sha256:'.length).slice(0, FINGERPRINT_DIGITS);
    return { name: adapter.name, version: adapter.version, fingerprint: `${base}_${hash}` };
  }

  /** The base first, under each of its names, then the adapters. */
  list(): ModelCard[] {
    const { servedNames, root, createdSeconds } = this.base;
    const bases = servedNames.map((id) => ({
      id,
      createdSeconds,
      root,
      parent: null,
      maxModelLen: this.#info.maxModelLen,
    }));
    return [...bases, ...this.#adapters.list().map((adapter) => this.#adapterCard(adapter))];
  }

  /** Throws 'model_not_found', 'bad_request' for a refused adapter. */
  card(id: string): ModelCard {
    const found = this.list().find((card) => card.id === id);
    if (found === undefined) throw this.#unknown(id);
    return found;
  }

  /** An adapter that was found but refused is told with its reason, in vLLM's words and with its status. */
  #unknown(name: string): ManyfoldError {
    const refused = this.#adapters.refused().find((adapter) => adapter.name === name);
    if (refused === undefined) return unknownModel(name);
    const message = `The LoRA adapter '${name}' was found but could not be loaded: ${refused.error.message}`;
    return new ManyfoldError('bad_request', message, { param: 'model' });
  }

  #adapterCard(adapter: ServedAdapter): ModelCard {
    return {
      id: adapter.name,
      createdSeconds: adapter.createdSeconds,
      root: adapter.directory,
      parent: this.base.servedNames[0],
      maxModelLen: null,
    };
  }
}

const SHOWN_NAME_CHARS = 128;

function unknownModel(name: string): ManyfoldError {
  return new ManyfoldError(
    'model_not_found',
    `The model '${name.slice(0, SHOWN_NAME_CHARS)}' does not exist. Use one of the names that GET /v1/models lists.`,
    { param: 'model' },
  );
}
