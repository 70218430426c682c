/**
 * An adapter's identity: SHA-256 over its tensors (name, dtype, shape, bytes), its config in canonical form, its
 * chat template and tokenizer files, and the base's fingerprint. Computed by the front when a folder is published and again by the engine over the bytes that it
 * compiles; names, paths and file times play no part.
 */
import { isJsonObject } from '../checkpoint/strict-json.js';
import type { JsonValue } from '../checkpoint/strict-json.js';
import { bug } from '../core/errors.js';
import { parseAdapterVersion } from '../core/ids.js';
import type { AdapterVersion } from '../core/ids.js';
import type { AdapterFolder } from './adapter-folder.js';
import { TaggedHash } from './tagged-hash.js';

export async function adapterVersion(folder: AdapterFolder, baseFingerprint: string): Promise<AdapterVersion> {
  const hash = new TaggedHash();
  hash.part('format', 'manyfold adapter 1').part('base', baseFingerprint).part('config', canonicalJson(folder.config));
  const names = [...folder.tensors.keys()].sort(byCodeUnits);
  hash.part('tensors', String(names.length));
  for (const name of names) {
    const tensor = folder.tensors.get(name) ?? bug(`tensor ${name} left its own map`);
    hash.part('name', name).part('dtype', tensor.dtype).part('shape', tensor.shape.join(','));
    await hash.largePart('bytes', await folder.read(name));
  }
  for (const [key, text] of Object.entries(await folder.readTexts())) hash.part(`text ${key}`, text);
  return parseAdapterVersion(`sha256:${hash.digest().toString('hex')}`) ?? bug('a SHA-256 had no 64 hex digits');
}

/** One text for one value: keys in order of their code units, no space. */
export function canonicalJson(value: JsonValue): string {
  if (isJsonObject(value)) {
    const keys = Object.keys(value).sort(byCodeUnits);
    return `{${keys.map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key] ?? null)}`).join(',')}}`;
  }
  if (Array.isArray(value)) {
    const items: readonly JsonValue[] = value;
    return `[${items.map(canonicalJson).join(',')}]`;
  }
  return JSON.stringify(value);
}

function byCodeUnits(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
