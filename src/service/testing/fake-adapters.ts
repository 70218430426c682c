/** A directory of adapters that are only names: a version is the hash of its path's last segment. */
import { createHash } from 'node:crypto';
import { ManyfoldError } from '../../core/errors.js';
import type { PlainError } from '../../core/errors.js';
import { parseAdapterVersion } from '../../core/ids.js';
import type { AdapterName } from '../../core/ids.js';
import type { AdapterDirectory, ServedAdapter } from '../ports.js';

export class FakeAdapters implements AdapterDirectory {
  readonly #served = new Map<string, ServedAdapter>();
  /** Tests put what was found but cannot be served here. */
  readonly broken: { readonly name: string; readonly error: PlainError }[] = [];

  resolve(name: string): ServedAdapter | undefined {
    return this.#served.get(name);
  }

  list(): readonly ServedAdapter[] {
    return [...this.#served.values()];
  }

  refused(): readonly { readonly name: string; readonly error: PlainError }[] {
    return this.broken;
  }

  inspect(name: AdapterName, path: string): Promise<ServedAdapter> {
    if (path.includes('missing')) {
      return Promise.reject(
        new ManyfoldError('not_found', `No adapter found for '${name}' at '${path}'. Check the path.`),
      );
    }
    if (path.includes('broken')) {
      return Promise.reject(new ManyfoldError('invalid_adapter', `'${path}' has rank 0. Train it again.`));
    }
    const version = parseAdapterVersion(`sha256:${createHash('sha256').update(path).digest('hex')}`);
    if (version === undefined) return Promise.reject(new Error('a SHA-256 is a version'));
    return Promise.resolve({ name, version, directory: `/adapters/${path}`, createdSeconds: 1_700_000_000 });
  }

  publish(adapter: ServedAdapter): void {
    this.#served.set(adapter.name, adapter);
  }

  remove(name: string): ServedAdapter | undefined {
    const served = this.#served.get(name);
    this.#served.delete(name);
    return served;
  }
}
