/**
 * The adapters of a newcomer's first batch: a start that names neither a model nor an adapter serves those of
 * examples/adapters, which are made for the default model. Called by compose.ts and start-table.ts.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { ResolvedConfig } from '../config/resolved-config.js';

/** From dist/src/cli to the repository's root; missing where only the code was installed. */
const FOLDER = fileURLToPath(new URL('../../../examples/adapters', import.meta.url));

/** Their folder when this start serves them. Any --model, --adapter or --adapter-dir means that the user has adapters in mind. */
export function demoAdapterFolder({ model, adapters }: Pick<ResolvedConfig, 'model' | 'adapters'>): string | undefined {
  const isBare = model.model === undefined && adapters.modules.length === 0 && adapters.directory === undefined;
  return isBare && existsSync(FOLDER) ? FOLDER : undefined;
}
