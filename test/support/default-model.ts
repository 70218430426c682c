/**
 * Where the tests find the default model: in the cache that the server uses, fetched into it when it is not there yet
 * (`npm test` has done so before any test runs).
 */
import { readFileSync } from 'node:fs';
import { loadConfig } from '../../src/config/load-config.js';
import { ensureDefaultModel } from '../../src/download/default-model.js';

/** What decides where the cache lies. Other variables (the tests' own among them) are no business of it. */
const VARIABLES = ['MANYFOLD_CACHE_DIR', 'XDG_CACHE_HOME', 'HOME', 'USERPROFILE'];

export async function defaultModelPath(): Promise<string> {
  const env = Object.fromEntries(VARIABLES.map((name) => [name, process.env[name]]));
  const config = loadConfig([], env, (path) => readFileSync(path, 'utf8'));
  return ensureDefaultModel({
    cacheDir: config.model.cacheDir,
    onLine: (line) => process.stderr.write(`${line}\n`),
  });
}
