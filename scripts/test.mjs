/**
 * `npm test`: builds what is stale, fetches the default model once, then runs every test with Node's own runner.
 * `npm test -- engine text/stop` runs the files whose path has one of the words in it; arguments that begin with a
 * dash go to the runner (`--test-name-pattern=...`).
 */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join, relative } from 'node:path';
import { ensureBuilt } from './build.mjs';
import { BuildError, main, run } from './command.mjs';
import { listFiles, ROOT } from './files.mjs';

function testFiles(words) {
  const folders = ['src', 'test', 'bench', 'loadtest']
    .map((name) => join(ROOT, 'dist', name))
    .filter((path) => existsSync(path));
  const all = folders.flatMap(listFiles).filter((path) => path.endsWith('.test.js'));
  const paths = all.map((path) => relative(ROOT, path)).sort();
  const chosen = words.length === 0 ? paths : paths.filter((path) => words.some((word) => path.includes(word)));
  if (chosen.length > 0) return chosen;
  throw new BuildError(`No test file has ${words.join(' or ')} in its path. Look in src/ and test/.`);
}

/** The developer's own settings must not change what is tested; where models are kept is no part of it. */
function testEnvironment() {
  const kept = Object.entries(process.env).filter(([name]) => {
    return !name.startsWith('MANYFOLD_') || name === 'MANYFOLD_CACHE_DIR';
  });
  return Object.fromEntries(kept);
}

await main(async () => {
  const given = process.argv.slice(2);
  const flags = given.filter((argument) => argument.startsWith('-'));
  const words = given.filter((argument) => !argument.startsWith('-'));
  await ensureBuilt();
  const files = testFiles(words);
  const env = testEnvironment();
  const pulled = await run(process.execPath, [join(ROOT, 'dist', 'src', 'cli', 'main.js'), 'pull'], { cwd: ROOT, env });
  if (pulled !== 0) throw new BuildError('The default model, which the tests use, could not be fetched: see above.');
  // Tests of the engine bring threads of their own: more than four files at once would only wait for each other.
  const concurrency = Math.min(4, availableParallelism());
  const args = ['--test', '--test-reporter=spec', `--test-concurrency=${concurrency}`, ...flags, ...files];
  return run(process.execPath, args, { cwd: ROOT, env, stdio: ['ignore', 'inherit', 'inherit'] });
});
