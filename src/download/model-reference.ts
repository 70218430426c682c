/** How users name a model on a hub: `owner/name`, with `:QUANT` or `:file.gguf`, and with `@revision`. */
import { failed } from './http-get.js';

export interface ModelReference {
  /** `owner/name`. */
  readonly id: string;
  /** Branch, tag or commit. */
  readonly revision: string;
  /** Name of a GGUF file, or of a quantization that one file's name ends with; undefined: what the folder holds. */
  readonly file: string | undefined;
}

const REFERENCE =
  /^([A-Za-z0-9][A-Za-z0-9._-]{0,95}\/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?::([A-Za-z0-9][A-Za-z0-9._-]{0,199}))?(?:@([A-Za-z0-9][A-Za-z0-9._/-]{0,199}))?$/;

/** Undefined when the text is no reference, for instance because it is a path. */
export function parseModelReference(text: string): ModelReference | undefined {
  const [, id, file, revision] = REFERENCE.exec(text) ?? [];
  if (id === undefined || `${id}/${revision ?? ''}`.split('/').includes('..')) return undefined;
  return { id, file, revision: revision ?? 'main' };
}

/** A file of a repository, as the hub lists it. */
export interface HubFile {
  readonly name: string;
  readonly size: number | undefined;
  readonly sha256: string | undefined;
}

/** What to download, and where the model then is: a file's name, or '' for the folder. */
export interface Selection {
  readonly files: readonly HubFile[];
  /** Its shards are to be downloaded too. */
  readonly index: boolean;
  readonly open: string;
}

const FOLDER_FILES: readonly string[] = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'chat_template.jinja',
  'chat_template.json',
];
export const INDEX_NAME = 'model.safetensors.index.json';
/** Parts of one GGUF model, which have to be joined before use. */
const SPLIT_GGUF = /-[0-9]{5}-of-[0-9]{5}\.gguf$/i;

/** Picks from a repository's listing; folders inside it are not looked at. */
export function selectFiles(listing: readonly HubFile[], reference: ModelReference): Selection {
  const files = listing.filter(({ name }) => !name.includes('/'));
  const byName = new Map(files.map((file) => [file.name, file]));
  const ggufs = files.filter(({ name }) => name.toLowerCase().endsWith('.gguf'));
  if (reference.file !== undefined) return single(pickGguf(ggufs, reference, reference.file));
  const weights = byName.get('model.safetensors') ?? byName.get(INDEX_NAME);
  if (byName.has('config.json') && weights !== undefined) {
    const small = FOLDER_FILES.flatMap((name) => byName.get(name) ?? []);
    return { files: [...small, weights], index: weights.name === INDEX_NAME, open: '' };
  }
  const [only] = ggufs;
  if (only !== undefined && ggufs.length === 1) return single(only);
  if (only !== undefined)
    throw failed(`${reference.id} has several GGUF files. Name one: ${choices(ggufs, reference)}.`);
  throw failed(
    `${reference.id} has neither config.json with safetensors nor a GGUF file. Pickle files (.bin, .pt) are never read; ` +
      'use a repository that has safetensors.',
  );
}

function single(file: HubFile): Selection {
  if (SPLIT_GGUF.test(file.name)) {
    throw failed(`${file.name} is one part of several. Use a file that holds the whole model, or join them yourself.`);
  }
  return { files: [file], index: false, open: file.name };
}

function pickGguf(ggufs: readonly HubFile[], reference: ModelReference, wanted: string): HubFile {
  const lower = wanted.toLowerCase();
  // 'Q4_K_M' is the end of 'name-Q4_K_M.gguf' and 'name.q4_k_m.gguf', not of 'name-IQ4_K_M.gguf'.
  const fits = (name: string): boolean =>
    name === lower || (name.endsWith(`${lower}.gguf`) && '-._'.includes(name.at(-lower.length - 6) ?? '-'));
  const matches = ggufs.filter(({ name }) => fits(name.toLowerCase()));
  const [match] = matches;
  if (match !== undefined && matches.length === 1) return match;
  const found = matches.length === 0 ? 'no GGUF file' : `${matches.length} GGUF files`;
  throw failed(`${reference.id} has ${found} for ${wanted}. Name one: ${choices(ggufs, reference)}.`);
}

function choices(ggufs: readonly HubFile[], reference: ModelReference): string {
  if (ggufs.length === 0) return 'it has no GGUF file at all';
  return ggufs
    .slice(0, 20)
    .map(({ name }) => `${reference.id}:${name}`)
    .join(', ');
}
