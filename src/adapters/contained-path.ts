/**
 * Paths that a request may name. Whatever it says (`..`, an absolute path, a link), the real place must lie under the
 * root; it is checked on the resolved path, with its separator, so that /adapters-old is not under /adapters.
 */
import { realpath } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';

/** Longest path that is looked at. */
const MAX_PATH_CHARS = 4096;

/** Whether `inner` is `outer` or lies below it. Both absolute and free of links. */
export function isContained(inner: string, outer: string): boolean {
  return inner === outer || inner.startsWith(outer.endsWith(path.sep) ? outer : outer + path.sep);
}

/**
 * The real absolute path of `given` (relative ones are below `root`). Throws 'not_found' when there is nothing, and
 * 'forbidden' when it lies outside of `root`; both say the same of a path outside, so that nothing is learnt of it.
 */
export async function resolveContained(root: string, given: string): Promise<string> {
  if (given === '' || given.length > MAX_PATH_CHARS || given.includes('\0')) throw outside(given);
  const realRoot = await realpath(root);
  const lexical = path.resolve(realRoot, given);
  // The root may itself be reached through a link, so an absolute path may carry either spelling of it.
  if (!isContained(lexical, realRoot) && !isContained(lexical, path.resolve(root))) throw outside(given);
  let real: string;
  try {
    real = await realpath(lexical);
  } catch (cause) {
    const message = `Nothing lies at ${show(given)} under the adapter folder. Check the path; it is relative to --adapter-dir.`;
    throw new ManyfoldError('not_found', message, { cause });
  }
  if (!isContained(real, realRoot)) throw outside(given);
  return real;
}

function outside(given: string): ManyfoldError {
  return new ManyfoldError(
    'forbidden',
    `Expected a path under --adapter-dir, found ${show(given)}. Put the adapter's folder below --adapter-dir and name that.`,
  );
}

function show(text: string): string {
  return JSON.stringify(text.length > 200 ? `${text.slice(0, 200)}…` : text);
}
