/**
 * The front's directory of adapters: names, the versions that they point at, and what was found but cannot be served,
 * with the reason. It knows files and names, not the engine: the service loads a version into the engine before it
 * publishes the name, and releases it after the name has gone. A request resolves its name once and keeps the version.
 */
import type { Dirent } from 'node:fs';
import { readdir, realpath } from 'node:fs/promises';
import path from 'node:path';

import type { Clock } from '../core/clock.js';
import { ManyfoldError, toPlainError } from '../core/errors.js';
import type { PlainError } from '../core/errors.js';
import { ADAPTER_NAME_RULE, parseAdapterName } from '../core/ids.js';
import type { AdapterName, AdapterVersion } from '../core/ids.js';
import { isAdapterFolder, openAdapterFolder } from './adapter-folder.js';
import type { AdapterLimits } from './adapter-folder.js';
import { resolveContained } from './contained-path.js';
import { adapterVersion } from './version.js';

/** Folders below the adapter folder that are looked at, and how deep; a guard against a wrong folder such as /. */
const MAX_SCANNED_FOLDERS = 100_000;
const MAX_SCAN_DEPTH = 8;

/** A name, the version that it points at, and where its files lie. */
export interface PublishedAdapter {
  readonly name: AdapterName;
  readonly version: AdapterVersion;
  /** Real absolute folder. */
  readonly directory: string;
  /** Unix seconds since when this version has this name. */
  readonly createdSeconds: number;
}

/** A folder that was found but cannot be served. */
export interface RefusedAdapter {
  /** Its path below the adapter folder; may break the rule for names. */
  readonly name: string;
  readonly directory: string;
  readonly error: PlainError;
}

export interface RegistryOptions {
  /** `--adapter-dir`: what requests may name lies under it; absent: they may name nothing. */
  readonly root: string | undefined;
  /** Names of the base, which no adapter may take. */
  readonly reservedNames: readonly string[];
  readonly baseFingerprint: string;
  readonly limits: AdapterLimits;
  readonly clock: Clock;
}

export class AdapterRegistry {
  readonly #options: RegistryOptions;
  readonly #published = new Map<string, PublishedAdapter>();
  readonly #refused = new Map<string, RefusedAdapter>();

  constructor(options: RegistryOptions) {
    this.#options = options;
  }

  resolve(name: string): PublishedAdapter | undefined {
    return this.#published.get(name);
  }

  /** In the order in which they were first published. */
  list(): readonly PublishedAdapter[] {
    return [...this.#published.values()];
  }

  refused(): readonly RefusedAdapter[] {
    return [...this.#refused.values()];
  }

  /** The name of {@link parseAdapterName}; throws 'invalid_user_input' when it breaks the rule or is the base's. */
  checkName(text: string): AdapterName {
    const name = parseAdapterName(text);
    const shown = JSON.stringify(text.slice(0, 128));
    if (name === undefined) {
      const message = `The adapter name ${shown} cannot be used. Choose ${ADAPTER_NAME_RULE}.`;
      throw new ManyfoldError('invalid_user_input', message, { param: 'lora_name' });
    }
    if (this.#options.reservedNames.includes(text)) {
      const message = `The name ${shown} is that of the base model. Choose another name for the adapter.`;
      throw new ManyfoldError('invalid_user_input', message, { param: 'lora_name' });
    }
    return name;
  }

  /**
   * Reads and hashes a folder that a request names, without publishing it. Throws 'not_found' when there is none,
   * 'forbidden' when it lies outside of the adapter folder, 'invalid_adapter' when it cannot be served.
   */
  async inspect(name: AdapterName, given: string): Promise<PublishedAdapter> {
    const { root } = this.#options;
    if (root === undefined) {
      const message = 'No adapter folder is set, so none can be loaded. Start the server with --adapter-dir.';
      throw new ManyfoldError('forbidden', message);
    }
    return this.#read(name, await resolveContained(root, given), await realpath(root));
  }

  /** The same for a folder that the operator names (`--adapter name=path`): it may lie anywhere, links are followed. */
  async inspectAnywhere(name: AdapterName, directory: string): Promise<PublishedAdapter> {
    let real: string;
    try {
      real = await realpath(directory);
    } catch (cause) {
      const message = `Nothing lies at ${path.resolve(directory)}. Check the path of --adapter ${name}=PATH.`;
      throw new ManyfoldError('not_found', message, { cause });
    }
    return this.#read(name, real, undefined);
  }

  /** Makes the name point at the version, at once. */
  publish(adapter: PublishedAdapter): void {
    this.#refused.delete(adapter.name);
    this.#published.set(adapter.name, adapter);
  }

  /** Takes the name away, at once; returns what it pointed at. */
  remove(name: string): PublishedAdapter | undefined {
    const adapter = this.#published.get(name);
    this.#published.delete(name);
    return adapter;
  }

  /** Lists a folder as found but not served; a published adapter of that name stays as it is. */
  refuse(name: string, directory: string, error: unknown): void {
    if (!this.#published.has(name)) this.#refused.set(name, { name, directory, error: toPlainError(error) });
  }

  /**
   * Every folder with an adapter (see isAdapterFolder) below the adapter folder, its name being its path below it; sorted. Links
   * to folders are not followed.
   */
  async scan(): Promise<{ readonly name: string; readonly directory: string }[]> {
    const { root } = this.#options;
    if (root === undefined) return [];
    const found: { name: string; directory: string }[] = [];
    const pending: { directory: string; names: readonly string[] }[] = [{ directory: root, names: [] }];
    let looked = 0;
    for (let next = pending.shift(); next !== undefined; next = pending.shift()) {
      looked += 1;
      if (looked > MAX_SCANNED_FOLDERS) throw tooManyFolders(root);
      const { directory, names } = next;
      const entries = await this.#entriesOf(directory, names);
      const isAdapter = names.length > 0 && isAdapterFolder(entries.map((entry) => entry.name));
      if (isAdapter) found.push({ name: names.join('/'), directory });
      if (isAdapter || names.length >= MAX_SCAN_DEPTH) continue;
      for (const entry of entries) {
        if (!entry.isDirectory() || entry.name.startsWith('.')) continue;
        pending.push({ directory: path.join(directory, entry.name), names: [...names, entry.name] });
      }
    }
    return found.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** A folder below the root that cannot be read is listed as refused; the root itself must be readable. */
  async #entriesOf(directory: string, names: readonly string[]): Promise<readonly Dirent[]> {
    try {
      return await readdir(directory, { withFileTypes: true });
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const message = `${directory} cannot be read (${reason}). Check --adapter-dir and its permissions.`;
      const error = new ManyfoldError(names.length === 0 ? 'invalid_config' : 'invalid_adapter', message, { cause });
      if (names.length === 0) throw error;
      this.refuse(names.join('/'), directory, error);
      return [];
    }
  }

  async #read(name: AdapterName, directory: string, root: string | undefined): Promise<PublishedAdapter> {
    const { limits, baseFingerprint, clock } = this.#options;
    const folder = await openAdapterFolder(directory, {
      limits,
      keepTensors: false,
      ...(root === undefined ? {} : { root }),
    });
    try {
      const version = await adapterVersion(folder, baseFingerprint);
      return { name, version, directory, createdSeconds: clock.unixSeconds() };
    } finally {
      await folder.close();
    }
  }
}

function tooManyFolders(root: string): ManyfoldError {
  return new ManyfoldError(
    'invalid_config',
    `${root} holds more than ${MAX_SCANNED_FOLDERS} folders. Point --adapter-dir at the folder of the adapters alone.`,
  );
}
