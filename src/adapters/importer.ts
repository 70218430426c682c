/**
 * The seam for adapter methods: one importer file a method, which compiles a folder to terms exactly or refuses it with
 * the reason and the mend. compile-adapter.ts lists them; nothing else knows methods.
 */
import type { JsonObject } from '../checkpoint/strict-json.js';
import type { ModelConfig } from '../core/model-config.js';
import type { TermSet } from '../core/terms.js';
import type { AdapterFolder, AdapterLimits } from './adapter-folder.js';

export interface CompiledAdapter {
  readonly terms: TermSet;
  /** What an operator should know of an adapter that is served all the same; sentences for the log. */
  readonly notes: readonly string[];
}

export interface AdapterImporter {
  /** For messages, e.g. 'LORA'. */
  readonly method: string;
  matches(config: JsonObject, tensorKeys: ReadonlySet<string>): boolean;
  /** Checks shapes and limits on the headers before it reads any tensor. Throws 'invalid_adapter'. */
  compile(folder: AdapterFolder, model: ModelConfig, limits: AdapterLimits): Promise<CompiledAdapter>;
}
