/** The entry of the command line: hands the process to program.ts. Started by scripts/manyfold.mjs or by node itself. */
import { processEnvironment, readTextFile } from '../config/environment.js';
import { systemClock } from '../core/clock.js';
import { fetchModel } from './fetch-model.js';
import { runCli } from './program.js';

// A reader that goes away (`manyfold config print | head`) ends the output, not the program.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
});

process.exitCode = await runCli({
  argv: process.argv.slice(2),
  env: processEnvironment(),
  readFile: readTextFile,
  stdin: process.stdin,
  stdout: process.stdout,
  stderr: process.stderr,
  clock: systemClock,
  // Loaded when it is needed: the other commands start faster without the engine.
  serve: async (config) => {
    const { serve } = await import('./serve.js');
    return serve(config, await fetchModel(config.model, process.stderr));
  },
  fetchModel: (settings) => fetchModel(settings, process.stderr),
});
