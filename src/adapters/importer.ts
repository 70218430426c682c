/**
 * The seam for adapter methods: one importer file a method, which compiles a folder to terms exactly or refuses it with
 * the reason and the mend. importers/index.ts lists them; nothing else knows methods.
 */
import type { JsonObject } from '../checkpoint/strict-json.js';
import type { ModelConfig, SiteRef } from '../core/model-config.js';
import type { TermSet } from '../core/terms.js';
import type { AdapterFolder, AdapterLimits } from './adapter-folder.js';

export interface CompiledAdapter {
  readonly terms: TermSet;
  /** What an operator should know of an adapter that is served all the same; sentences for the log. */
  readonly notes: readonly string[];
}

/** The base's weights as they are served (after packing and rounding), for methods whose fold needs W (DoRA, HRA). */
export interface BaseWeights {
  /**
   * Rows row0 .. row0 + rows - 1, `[rows, in]` row-major; norms have one row. A tied head is the embedding. Every call
   * unpacks anew: ask for some hundred rows at a time and let the event loop turn between.
   */
  weight(site: SiteRef, row0: number, rows: number): Float32Array;
  /** `[out]`; undefined where the base has no bias. */
  bias(site: SiteRef): Float32Array | undefined;
}

export interface ImportContext {
  readonly model: ModelConfig;
  readonly base: BaseWeights;
  readonly limits: AdapterLimits;
}

export interface AdapterImporter {
  /** For messages, e.g. 'LORA'. */
  readonly method: string;
  matches(config: JsonObject, tensorKeys: ReadonlySet<string>): boolean;
  /** Checks shapes and limits on the headers before it reads any tensor. Throws 'invalid_adapter'. */
  compile(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter>;
}
