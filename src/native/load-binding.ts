/**
 * Loads the native addon: the only file that touches a `.node` file. Everything else sees {@link NativeBinding}.
 */
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { loadBinding } from '@node-rs/helper';
import { ManyfoldError } from '../core/errors.js';
import type { NativeBinding } from './binding-types.js';

/** Folders above a compiled file that are searched for `native`: the file may lie in any output folder. */
const LEVELS_UP = 6;

const FUNCTIONS = ['info', 'createEngine', 'dequantize'] as const;

/** Whether a folder is the repository's `native`, or that of an image, which holds only the addon. */
function isNativeFolder(folder: string): boolean {
  return existsSync(folder) && readdirSync(folder).some((name) => name === 'binding.gyp' || name.endsWith('.node'));
}

/** The `native` folder, seen from the folder of a compiled file; undefined when there is none above it. */
export function findNativeFolder(from: string): string | undefined {
  let folder = from;
  for (let level = 0; level < LEVELS_UP; level += 1) {
    const candidate = join(folder, 'native');
    if (isNativeFolder(candidate)) return candidate;
    folder = dirname(folder);
  }
  return undefined;
}

function isNativeBinding(value: unknown): value is NativeBinding {
  if (typeof value !== 'object' || value === null) return false;
  const functions = new Map<string, unknown>(Object.entries(value));
  return FUNCTIONS.every((name) => typeof functions.get(name) === 'function');
}

/** Throws `native_unavailable`, telling what was tried and how to mend it. The addon is loaded once a process. */
export function loadNative(): NativeBinding {
  const start = dirname(fileURLToPath(import.meta.url));
  const folder = findNativeFolder(start);
  if (folder === undefined) {
    throw new ManyfoldError(
      'native_unavailable',
      `The native addon was not found: expected a folder 'native' with the addon above ${start}. Run Manyfold from its own repository or image.`,
    );
  }
  return loadFrom(folder);
}

/** The same from a given folder. */
export function loadFrom(folder: string): NativeBinding {
  let loaded: unknown;
  try {
    loaded = loadBinding(folder, 'manyfold', 'manyfold');
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.trim() : String(cause);
    throw new ManyfoldError(
      'native_unavailable',
      `The native addon could not be loaded: tried manyfold.${process.platform}-${process.arch}*.node in ${folder} and the package ` +
        `manyfold-${process.platform}-${process.arch} (${reason}). Run \`npm run build\` to build it.`,
      { cause },
    );
  }
  if (!isNativeBinding(loaded)) {
    throw new ManyfoldError(
      'native_unavailable',
      `The native addon in ${folder} lacks some of ${FUNCTIONS.join(', ')}: it was built from other sources. Run \`npm run build\` to build it again.`,
    );
  }
  return loaded;
}
