/**
 * Joins the text registry (which knows versions and file contents) with the service's port (which knows adapters). Made
 * by compose.ts.
 */
import { isContained } from '../adapters/contained-path.js';
import { readAdapterTexts } from '../adapters/text-files.js';
import type { TextModels } from '../service/ports.js';
import type { TextRegistry } from '../text/text-registry.js';

/** `root`: the real path of the adapter folder; files of adapters below it may not lie outside of it. */
export function serviceTextModels(registry: TextRegistry, root: string | undefined): TextModels {
  return {
    lookup: (version) => registry.lookup(version),
    add: async ({ version, directory }) => {
      const inside = root !== undefined && isContained(directory, root);
      await registry.add(version, await readAdapterTexts(directory, inside ? root : undefined));
    },
    remove: (version) => registry.remove(version),
  };
}
