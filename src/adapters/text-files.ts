/**
 * The files of an adapter folder that change text rather than weights: chat template and tokenizer. They are part of the
 * content hash, because two folders with the same tensors and other templates answer differently.
 */
import { open, realpath } from 'node:fs/promises';
import path from 'node:path';
import { ManyfoldError } from '../core/errors.js';
import { isContained } from './contained-path.js';

/** By the names under which `src/text` takes their contents. */
export const TEXT_FILES = {
  chatTemplate: 'chat_template.jinja',
  tokenizerConfig: 'tokenizer_config.json',
  tokenizerJson: 'tokenizer.json',
  addedTokens: 'added_tokens.json',
} as const;

export type AdapterTexts = { readonly [K in keyof typeof TEXT_FILES]?: string };

const MAX_TEXT_FILE_BYTES = 64 * 1024 * 1024;

/** What there is of them. With a root, links that leave it are refused; without, the operator's links are followed. */
export async function readAdapterTexts(directory: string, root: string | undefined): Promise<AdapterTexts> {
  const found: { -readonly [K in keyof AdapterTexts]: string } = {};
  for (const [key, name] of Object.entries(TEXT_FILES) as [keyof AdapterTexts, string][]) {
    const content = await readText(directory, name, root);
    if (content !== undefined) found[key] = content;
  }
  return found;
}

async function readText(directory: string, name: string, root: string | undefined): Promise<string | undefined> {
  const real = await realpath(path.join(directory, name)).catch(() => undefined);
  if (real === undefined) return undefined;
  if (root !== undefined && !isContained(real, root)) {
    throw new ManyfoldError(
      'forbidden',
      `${name} is a link that leaves the adapter folder's root. Put the file itself there instead.`,
    );
  }
  const handle = await open(real, 'r');
  try {
    const stat = await handle.stat();
    if (!stat.isFile() || stat.size > MAX_TEXT_FILE_BYTES) {
      throw new ManyfoldError(
        'invalid_adapter',
        `${name} has ${stat.size} bytes; expected a regular file of at most ${MAX_TEXT_FILE_BYTES}. Remove or shorten it.`,
      );
    }
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}
