/**
 * Writes the option tables of docs/configuration.md anew from src/config/options.ts. Run it after a change of an option:
 * `npm run build && node scripts/make-docs.mjs`. A test fails while the page is older than the options.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ensureDist } from './build.mjs';
import { main } from './command.mjs';
import { ROOT, say, writeAtomically } from './files.mjs';

await main(async () => {
  await ensureDist();
  const { withOptions } = await import('../dist/src/config/markdown.js');
  const path = join(ROOT, 'docs', 'configuration.md');
  const before = readFileSync(path, 'utf8');
  const after = withOptions(before);
  if (after === before) return say('docs/configuration.md is up to date');
  writeAtomically(path, after);
  say('wrote docs/configuration.md');
});
