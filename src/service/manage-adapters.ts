/**
 * The use cases of loading and unloading adapters at run time, with vLLM's contract (names, messages, errors). A name
 * points at a version only after the engine can serve it; a version leaves the engine only when no name points at it
 * and nobody prepares a request for it.
 */
import { ManyfoldError } from '../core/errors.js';
import { ADAPTER_NAME_RULE, parseAdapterName } from '../core/ids.js';
import type { AdapterName, AdapterVersion } from '../core/ids.js';
import type { EnginePort } from '../engine/port.js';
import type { Logger } from '../telemetry/log.js';
import type { AdapterDirectory, ServedAdapter, TextModels } from './ports.js';
import type { ServedModels } from './served-models.js';
import type { VersionHolds } from './version-holds.js';

export interface ManageAdaptersDeps {
  readonly engine: EnginePort;
  readonly adapters: AdapterDirectory;
  readonly texts: TextModels;
  readonly models: ServedModels;
  readonly holds: VersionHolds;
  readonly logger: Logger;
}

export interface LoadAdapterCommand {
  readonly name?: string | undefined;
  readonly path?: string | undefined;
  /** Whether a name that is taken moves to the new version. */
  readonly inPlace: boolean;
}

export class ManageAdapters {
  readonly #deps: ManageAdaptersDeps;
  /** The last change of each name; the next one waits for it. */
  readonly #changes = new Map<string, Promise<unknown>>();

  constructor(deps: ManageAdaptersDeps) {
    this.#deps = deps;
  }

  /** Throws 'invalid_user_input' (400), 'not_found' (404), 'bad_request' (400, any other reason). */
  async load(command: LoadAdapterCommand): Promise<ServedAdapter> {
    const { name, path, inPlace } = command;
    if (name === undefined || name === '' || path === undefined || path === '') {
      throw new ManyfoldError('invalid_user_input', "Both 'lora_name' and 'lora_path' must be provided.", {
        param: name === undefined || name === '' ? 'lora_name' : 'lora_path',
      });
    }
    const checked = this.#checkName(name);
    return this.#inOrder(checked, () => this.#load(checked, path, inPlace));
  }

  /** Loads an inspected adapter and makes its name point at it. Also called at the start, for what the flags name. */
  async serve(adapter: ServedAdapter): Promise<void> {
    const { adapters, engine, holds, texts } = this.#deps;
    const { name, version, directory } = adapter;
    const letGo = holds.take(version);
    try {
      await texts.add(adapter);
      const { notes = [] } = await engine.load({ version, directory });
      adapters.publish(adapter);
      if (notes.length > 0) this.#deps.logger.warn({ adapter: name, adapterVersion: version, notes }, 'adapter notes');
    } catch (error) {
      if (!this.#isNamed(version)) texts.remove(version);
      throw error;
    } finally {
      letGo();
    }
  }

  /** Throws 'invalid_user_input' (400) and 'not_found' (404). Requests that run keep what they started with. */
  async unload(name: string | undefined): Promise<ServedAdapter> {
    if (name === undefined || name === '') {
      throw new ManyfoldError('invalid_user_input', "'lora_name' needs to be provided to unload a LoRA adapter.", {
        param: 'lora_name',
      });
    }
    return this.#inOrder(name, async () => {
      const removed = this.#deps.adapters.remove(name);
      if (removed === undefined) {
        throw new ManyfoldError('not_found', `The lora adapter '${name}' cannot be found.`, { param: 'lora_name' });
      }
      await this.#releaseIfUnnamed(removed.version);
      this.#deps.logger.info({ adapter: name, adapterVersion: removed.version }, 'adapter unloaded');
      return removed;
    });
  }

  #checkName(name: string): AdapterName {
    const checked = parseAdapterName(name);
    if (checked === undefined) {
      throw new ManyfoldError(
        'bad_request',
        `'${name.slice(0, 128)}' cannot be an adapter's name. A name is ${ADAPTER_NAME_RULE}: choose another.`,
        { param: 'lora_name' },
      );
    }
    if (this.#deps.models.isBase(name)) {
      throw new ManyfoldError('bad_request', `'${name}' is a name of the base model. Choose another for the adapter.`, {
        param: 'lora_name',
      });
    }
    return checked;
  }

  async #load(name: AdapterName, path: string, inPlace: boolean): Promise<ServedAdapter> {
    const { adapters, logger } = this.#deps;
    const before = adapters.resolve(name);
    if (before !== undefined && !inPlace) {
      throw new ManyfoldError(
        'invalid_user_input',
        `The lora adapter '${name}' has already been loaded. If you want to load the adapter in place, set ` +
          "'load_inplace' to True.",
        { param: 'lora_name' },
      );
    }
    try {
      const found = await adapters.inspect(name, path);
      await this.serve(found);
      logger.info({ adapter: name, adapterVersion: found.version }, 'adapter loaded');
      if (before !== undefined) await this.#releaseIfUnnamed(before.version);
      return found;
    } catch (error) {
      throw asVllm(error);
    }
  }

  async #releaseIfUnnamed(version: AdapterVersion): Promise<void> {
    const { holds } = this.#deps;
    while (holds.held(version)) await holds.free(version);
    // From here to the engine's release nothing is awaited: nobody can name the version in between.
    if (this.#isNamed(version)) return;
    this.#deps.texts.remove(version);
    await this.#deps.engine.release(version);
  }

  #isNamed(version: AdapterVersion): boolean {
    return this.#deps.adapters.list().some((adapter) => adapter.version === version);
  }

  /** Changes of one name happen one after the other. */
  async #inOrder<T>(name: string, change: () => Promise<T>): Promise<T> {
    const before = this.#changes.get(name) ?? Promise.resolve();
    const mine = before.then(change, change);
    this.#changes.set(name, mine);
    try {
      return await mine;
    } finally {
      if (this.#changes.get(name) === mine) this.#changes.delete(name);
    }
  }
}

/** vLLM answers every failure to load with 400 BadRequestError, but 404 when there is no adapter. */
function asVllm(error: unknown): unknown {
  if (!(error instanceof ManyfoldError) || error.status >= 500 || error.code === 'not_found') return error;
  return new ManyfoldError('bad_request', error.message, {
    cause: error,
    ...(error.param === undefined ? {} : { param: error.param }),
  });
}
