/** Every fuzz target. Called by the runner and the tests. */
import type { FuzzTarget } from './harness.js';
import { compeftPayload } from './compeft.js';
import { CONTAINER_TARGETS } from './containers.js';
import { FILE_TARGETS } from './files.js';
import { IMPORTER_TARGETS } from './importers.js';

export const TARGETS: readonly FuzzTarget[] = [
  ...CONTAINER_TARGETS,
  compeftPayload,
  ...FILE_TARGETS,
  ...IMPORTER_TARGETS,
];
