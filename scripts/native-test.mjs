/**
 * Builds and runs the native checks of native/test: plain, and with the address and undefined-behaviour sanitizers.
 * Called by .ci/run; `node scripts/native-test.mjs sanitize` runs one of the two.
 */
import { availableParallelism } from 'node:os';
import { BuildError, main, run } from './command.mjs';
import { ROOT, say } from './files.mjs';

const TARGETS = ['test', 'cuda', 'sanitize', 'cuda-sanitize'];

await main(async () => {
  const chosen = process.argv.slice(2);
  const unknown = chosen.find((target) => !TARGETS.includes(target));
  if (unknown !== undefined) throw new BuildError(`There is no target '${unknown}'. Choose of: ${TARGETS.join(', ')}`);
  for (const target of chosen.length === 0 ? TARGETS : chosen) {
    const started = Date.now();
    say(`native checks: ${target}`);
    const code = await run('make', ['-C', 'native/test', `-j${availableParallelism()}`, target], { cwd: ROOT });
    if (code !== 0) throw new BuildError(`The native checks failed: make -C native/test ${target} ended with ${code}.`);
    say(`native checks: ${target} passed in ${((Date.now() - started) / 1000).toFixed(1)} s`);
  }
});
