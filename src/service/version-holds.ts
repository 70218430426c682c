/**
 * Versions that a request has chosen but not yet submitted. A version is released only when nobody prepares a request
 * for it; after the submission the engine's own lease holds it.
 */
import type { AdapterVersion } from '../core/ids.js';

export class VersionHolds {
  readonly #counts = new Map<AdapterVersion, number>();
  readonly #waiters = new Map<AdapterVersion, (() => void)[]>();

  /** Holds a version (the base needs no hold); the returned function lets go and is idempotent. */
  take(version: AdapterVersion | undefined): () => void {
    if (version === undefined) return () => undefined;
    this.#counts.set(version, (this.#counts.get(version) ?? 0) + 1);
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#drop(version);
    };
  }

  held(version: AdapterVersion): boolean {
    return this.#counts.has(version);
  }

  /** Resolves when those who hold the version have let go; by then somebody new may hold it. */
  free(version: AdapterVersion): Promise<void> {
    if (!this.held(version)) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiters.set(version, [...(this.#waiters.get(version) ?? []), resolve]);
    });
  }

  #drop(version: AdapterVersion): void {
    const left = (this.#counts.get(version) ?? 0) - 1;
    if (left > 0) {
      this.#counts.set(version, left);
      return;
    }
    this.#counts.delete(version);
    for (const wake of this.#waiters.get(version) ?? []) wake();
    this.#waiters.delete(version);
  }
}
