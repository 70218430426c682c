/** Opens a base model by path: a GGUF file, or a folder of either format. Called by the command line. */
import { readdir, stat } from 'node:fs/promises';
import path from 'node:path';

import { ManyfoldError } from '../core/errors.js';
import type { Checkpoint } from './checkpoint.js';
import { GGUF_MAGIC } from './gguf.js';
import { exists, readJsonObject } from './huggingface-text.js';
import { INDEX_FILE, openFolder, SINGLE_FILE } from './open-folder.js';
import { openGguf } from './open-gguf.js';
import { openRegularFile, readRange } from './regular-file.js';

/**
 * Reads headers and small files only; no tensor is loaded. Throws 'invalid_model' naming what is wrong. A folder with
 * config.json and safetensors is a Hugging Face one; else it must hold exactly one GGUF file.
 */
export async function openCheckpoint(modelPath: string): Promise<Checkpoint> {
  const absolute = path.resolve(modelPath);
  const info = await stat(absolute).catch((cause: unknown) => {
    return refuse(`${absolute} does not exist or cannot be read. Check the path`, cause);
  });
  if (!info.isDirectory()) return openFile(absolute);
  const gguf = await findGguf(absolute);
  const hasSafetensors =
    (await exists(path.join(absolute, SINGLE_FILE))) || (await exists(path.join(absolute, INDEX_FILE)));
  const config = await readJsonObject(absolute, 'config.json');
  if (config !== undefined && (hasSafetensors || gguf.length !== 1)) return openFolder(absolute, config);
  const [only] = gguf;
  if (only !== undefined && gguf.length === 1) return openFile(only);
  return refuse(
    `${absolute} holds no config.json and ${gguf.length} GGUF files, expected a Hugging Face folder or exactly one ` +
      'GGUF file. Give the path of the file itself',
  );
}

async function openFile(filePath: string): Promise<Checkpoint> {
  const { handle } = await openRegularFile(filePath);
  let magic: string;
  try {
    magic = Buffer.from(await readRange(handle, 0, GGUF_MAGIC.length)).toString('latin1');
  } finally {
    await handle.close();
  }
  if (magic === GGUF_MAGIC) return openGguf(filePath);
  return refuse(
    `${filePath} is not a GGUF file (it does not start with '${GGUF_MAGIC}'). For safetensors give the folder that ` +
      'holds config.json',
  );
}

async function findGguf(folder: string): Promise<string[]> {
  const names = await readdir(folder);
  return names.filter((name) => name.toLowerCase().endsWith('.gguf')).map((name) => path.join(folder, name));
}

function refuse(problem: string, cause?: unknown): never {
  throw new ManyfoldError('invalid_model', `${problem}.`, cause === undefined ? {} : { cause });
}
