/** Writes adapter folders: adapter_config.json and adapter_model.safetensors. Used by the tools that make adapters. */
import { mkdir, open, readdir, writeFile } from 'node:fs/promises';
import path from 'node:path';

import type { SafetensorsDtype } from '../../checkpoint/safetensors.js';
import { ManyfoldError } from '../../core/errors.js';
import { CONFIG_FILE, TENSORS_FILE } from '../adapter-folder.js';

export interface WrittenTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** Little-endian and row-major, as long as dtype and shape say. */
  readonly data: NodeJS.ArrayBufferView;
}

/** safetensors aligns the data to this; tensors with wide elements come first, so that each lies aligned. */
const ALIGNMENT = 8;

/** Throws 'invalid_config' when the folder holds files already, before anything is written. */
export async function refuseFullFolder(directory: string): Promise<void> {
  const names = await readdir(directory).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw new ManyfoldError(
      'invalid_config',
      `--out ${directory} cannot be read (${error.message}). Give a new folder.`,
    );
  });
  if (names.length === 0) return;
  throw new ManyfoldError(
    'invalid_config',
    `--out ${directory} holds files, expected a folder that is empty or does not exist. Give another folder.`,
  );
}

export async function writeAdapterFolder(
  directory: string,
  config: Readonly<Record<string, unknown>>,
  tensors: readonly WrittenTensor[],
): Promise<void> {
  await refuseFullFolder(directory);
  await mkdir(directory, { recursive: true });
  const ordered = [...tensors].sort((a, b) => elementBytes(b) - elementBytes(a) || (a.name < b.name ? -1 : 1));
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let end = 0;
  for (const { name, dtype, shape, data } of ordered) {
    header[name] = { dtype, shape, data_offsets: [end, (end += data.byteLength)] };
  }
  const json = Buffer.from(JSON.stringify(header));
  const padded = Buffer.alloc(Math.ceil(json.length / ALIGNMENT) * ALIGNMENT, ' ');
  json.copy(padded);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  const file = await open(path.join(directory, TENSORS_FILE), 'w');
  try {
    for (const part of [length, padded, ...ordered.map(({ data }) => data)]) await writeAll(file, part);
  } finally {
    await file.close();
  }
  // The config comes last: a folder without it is not taken for an adapter.
  await writeFile(path.join(directory, CONFIG_FILE), `${JSON.stringify(config, undefined, 2)}\n`);
}

async function writeAll(file: Awaited<ReturnType<typeof open>>, part: NodeJS.ArrayBufferView): Promise<void> {
  const bytes = new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
  for (let at = 0; at < bytes.length;)
    at += (await file.write(bytes, at, Math.min(bytes.length - at, 1 << 30))).bytesWritten;
}

function elementBytes({ shape, data }: WrittenTensor): number {
  return data.byteLength / shape.reduce((product, dim) => product * dim, 1);
}
