/**
 * Reading byte ranges of a regular file. Used by the container parsers; a pipe or device is refused before it is
 * opened, because opening one may wait for ever.
 */
import { open, stat } from 'node:fs/promises';
import type { FileHandle } from 'node:fs/promises';

import { ManyfoldError } from '../core/errors.js';
import type { ErrorCode } from '../core/errors.js';

export interface RegularFile {
  readonly handle: FileHandle;
  readonly size: number;
}

/** Opens a regular file (links are followed: model caches are made of them). The caller closes the handle. */
export async function openRegularFile(filePath: string, code: ErrorCode = 'invalid_model'): Promise<RegularFile> {
  let handle: FileHandle;
  try {
    if (!(await stat(filePath)).isFile()) {
      throw new ManyfoldError(code, `${filePath}: expected a regular file. Give the path of the file itself.`);
    }
    handle = await open(filePath, 'r');
  } catch (cause) {
    if (cause instanceof ManyfoldError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ManyfoldError(code, `${filePath} cannot be read (${reason}). Check the path and its permissions.`, {
      cause,
    });
  }
  return { handle, size: (await handle.stat()).size };
}

/** Up to `length` bytes from `offset`, in a buffer of their own; fewer only at the end of the file. */
export async function readRange(handle: FileHandle, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await handle.read(bytes, filled, Math.min(length - filled, 1 << 30), offset + filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return filled === length ? bytes : bytes.subarray(0, filled);
}

/** A whole small file; more than `maxBytes` is refused. */
export async function readSmallFile(filePath: string, maxBytes: number): Promise<Uint8Array> {
  const { handle, size } = await openRegularFile(filePath);
  try {
    if (size > maxBytes) {
      const message = `${filePath} has ${size} bytes, at most ${maxBytes} are allowed. Check that it is the right file.`;
      throw new ManyfoldError('invalid_model', message);
    }
    return await readRange(handle, 0, size);
  } finally {
    await handle.close();
  }
}
