/** From an adapter folder to terms, by the one importer that knows its method. Called by the engine when it loads. */
import { ManyfoldError } from '../core/errors.js';
import type { AdapterVersion } from '../core/ids.js';
import { openAdapterFolder } from './adapter-folder.js';
import type { AdapterFolder } from './adapter-folder.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from './importer.js';
import { IMPORTERS } from './importers/index.js';
import { adapterVersion } from './version.js';

export interface CompileContext extends ImportContext {
  readonly baseFingerprint: string;
}

/** A version and the folder that held its bytes when it was hashed. */
export interface AdapterLocation {
  readonly version: AdapterVersion;
  readonly directory: string;
}

/** Reads, compiles and hashes the same bytes. Throws 'invalid_adapter', also when the folder holds another version. */
export async function compileAdapter(location: AdapterLocation, context: CompileContext): Promise<CompiledAdapter> {
  const { directory, version } = location;
  const folder = await openAdapterFolder(directory, { limits: context.limits, keepTensors: true });
  try {
    const compiled = await importerOf(folder).compile(folder, context);
    const found = await adapterVersion(folder, context.baseFingerprint);
    if (found !== version) {
      throw new ManyfoldError(
        'invalid_adapter',
        `${directory} changed after it was published: expected ${version}, found ${found}. Load the adapter again.`,
      );
    }
    return compiled;
  } finally {
    await folder.close();
  }
}

/** The one that knows the folder's method. Throws 'invalid_adapter' for a method that nobody knows. */
export function importerOf(folder: AdapterFolder): AdapterImporter {
  const keys = new Set(folder.tensors.keys());
  const importer = IMPORTERS.find((candidate) => candidate.matches(folder.config, keys));
  if (importer !== undefined) return importer;
  const found = JSON.stringify(folder.config['peft_type'] ?? null).slice(0, 80);
  // Files of other programs have no peft_type, and refused methods are none that one should write.
  const known = IMPORTERS.filter((candidate) => candidate.matches({ peft_type: candidate.method }, new Set()));
  throw new ManyfoldError(
    'invalid_adapter',
    `adapter_config.json: peft_type is ${found}, expected one of ${known.map(({ method }) => method).join(', ')}. ` +
      "Merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model, or train a LoRA.",
    { param: 'peft_type' },
  );
}
