/** The only place that reads the process's environment and small configuration files. Called by src/cli/main.ts. */
import { readFileSync } from 'node:fs';
import type { ReadFile } from './load-config.js';
import type { Environment } from './sources.js';

export function processEnvironment(): Environment {
  return process.env;
}

export const readTextFile: ReadFile = (path) => readFileSync(path, 'utf8');
