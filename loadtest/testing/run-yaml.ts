/** A scenario text → its report, without the command line. For tests. */
import { systemClock } from '../../src/core/clock.js';
import type { RunReport } from '../report/run-report.js';
import { runScenario } from '../run/run-scenario.js';
import type { RunOptions } from '../run/run-scenario.js';
import { readScenario } from '../scenario/read-scenario.js';

export function runYaml(yaml: string, options: Partial<RunOptions> = {}): Promise<RunReport> {
  return runScenario({
    scenario: readScenario('test.yaml', () => yaml),
    clock: systemClock,
    apiKey: undefined,
    allowRemote: false,
    signal: new AbortController().signal,
    version: 'test',
    command: 'test',
    ...options,
  });
}
