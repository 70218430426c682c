/**
 * An adapter folder → a ComPEFT adapter: ternarise its task vectors and pack them. Called by `manyfold adapters compress` and
 * by the benchmark.
 */
import type { AdapterFolder } from '../adapter-folder.js';
import { COMPEFT_VERSION, encodePayload, PAYLOAD_TENSOR } from './payload.js';
import { readSource } from './read-source.js';
import type { CompressSource } from './read-source.js';
import { ternarise } from './ternarise.js';
import type { Scope, TernariseOptions } from './ternarise.js';

export interface CompressOptions extends TernariseOptions {
  readonly scope: Scope;
}

export interface Compressed {
  readonly config: Readonly<Record<string, unknown>>;
  /** The one tensor {@link PAYLOAD_TENSOR} of adapter_model.safetensors. */
  readonly payload: Uint8Array;
  readonly parameters: number;
  readonly nonZeros: number;
  /** Names of tensors of which nothing is left. */
  readonly emptied: readonly string[];
}

/** Throws 'invalid_adapter' for what cannot be compressed. */
export async function compressAdapter(folder: AdapterFolder, options: CompressOptions): Promise<Compressed> {
  return compressSource(await readSource(folder), folder, options);
}

/** The same of a source that has been read; for several compressions of one. */
export function compressSource(source: CompressSource, folder: AdapterFolder, options: CompressOptions): Compressed {
  const vectors = source.tensors.map(({ values }) => values);
  const ternary = ternarise(vectors, options.scope, options);
  const entries = source.tensors.map(({ pack }, i) =>
    pack(ternary[i] ?? { positions: NONE, negative: NO_SIGNS, scale: 0 }),
  );
  const base = folder.config['base_model_name_or_path'];
  return {
    config: {
      peft_type: 'COMPEFT',
      compeft_version: COMPEFT_VERSION,
      task_type: 'CAUSAL_LM',
      ...(typeof base === 'string' ? { base_model_name_or_path: base } : {}),
      source_type: source.type,
      source: source.config,
      compression: { density: options.density, alpha: options.alpha, scope: options.scope },
    },
    payload: encodePayload([...entries, ...source.indices]),
    parameters: vectors.reduce((sum, { length }) => sum + length, 0),
    nonZeros: ternary.reduce((sum, { positions }) => sum + positions.length, 0),
    emptied: source.tensors.filter((_, i) => ternary[i]?.positions.length === 0).map(({ name }) => name),
  };
}

const NONE = new Uint32Array(0);
const NO_SIGNS = new Uint8Array(0);

/** A folder in memory, which the importer compiles like one on disk. */
export function compressedFolder({ config, payload }: Compressed, like: AdapterFolder): AdapterFolder {
  const tensor = {
    name: PAYLOAD_TENSOR,
    dtype: 'U8',
    shape: [payload.length],
    offset: 0,
    byteLength: payload.length,
  } as const;
  return {
    directory: like.directory,
    // What JSON would give back.
    config: JSON.parse(JSON.stringify(config)) as AdapterFolder['config'],
    tensors: new Map([[PAYLOAD_TENSOR, tensor]]),
    read: () => Promise.resolve(payload),
    readTexts: () => like.readTexts(),
    close: () => Promise.resolve(),
  };
}
