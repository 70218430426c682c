#!/usr/bin/env node
/**
 * The `manyfold` command of a source checkout: builds what is stale, then runs the command line in this process.
 * `npm start` is `manyfold serve`.
 */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ensureBuilt } from './build.mjs';
import { BuildError } from './command.mjs';
import { ROOT, say } from './files.mjs';

try {
  await ensureBuilt();
} catch (error) {
  say(error instanceof BuildError ? error.message : error.stack);
  process.exit(1);
}
await import(pathToFileURL(join(ROOT, 'dist', 'src', 'cli', 'main.js')).href);
