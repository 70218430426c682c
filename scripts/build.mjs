/**
 * Builds what is missing or older than its sources: the native addon and dist/ (tsc, incremental).
 * Called by `npm run build`, by manyfold.mjs and by test.mjs. When nothing is stale it only looks at file times.
 */
import { existsSync, rmSync, utimesSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, relative } from 'node:path';
import { ensureAddon } from './build-addon.mjs';
import { BuildError, isEntry, main, run } from './command.mjs';
import { changedMs, listFiles, newestChangeMs, ROOT, say, withLock, writeAtomically } from './files.mjs';

/** What tsconfig.json includes. */
const SOURCE_FOLDERS = ['src', 'test', 'bench', 'loadtest'];
const STAMP = join(ROOT, 'dist', '.built');

function isStale() {
  // An installed package without sources: what lies in dist/ is all there is.
  if (!existsSync(join(ROOT, 'src'))) return false;
  const inputs = [...SOURCE_FOLDERS, 'tsconfig.json', 'package-lock.json'].map((name) => join(ROOT, name));
  return Math.max(...inputs.map((path) => newestChangeMs(path))) > changedMs(STAMP);
}

/** Deletes output whose source is gone, so that no test of a deleted file goes on passing. */
function pruneOutput() {
  for (const folder of SOURCE_FOLDERS) {
    const output = join(ROOT, 'dist', folder);
    if (!existsSync(output)) continue;
    for (const path of listFiles(output)) {
      const source = relative(join(ROOT, 'dist'), path).replace(/(\.d\.ts|\.js|\.js\.map)$/, '.ts');
      if (!existsSync(join(ROOT, source))) rmSync(path);
    }
  }
}

function typescriptCompiler() {
  try {
    return createRequire(join(ROOT, 'package.json')).resolve('typescript/bin/tsc');
  } catch {
    throw new BuildError('dist/ cannot be built: typescript is not installed. Run: npm ci');
  }
}

async function compile() {
  const started = Date.now();
  say('compiling TypeScript');
  const code = await run(process.execPath, [typescriptCompiler(), '-p', 'tsconfig.json'], { cwd: ROOT });
  if (code !== 0) throw new BuildError('TypeScript found the errors above. Mend them and run again.');
  pruneOutput();
  writeAtomically(STAMP, '');
  // A source that changes while the compiler runs is newer than the stamp, and found so the next time.
  utimesSync(STAMP, started / 1000, started / 1000);
  say(`compiled TypeScript in ${((Date.now() - started) / 1000).toFixed(1)} s`);
}

export async function ensureDist() {
  if (!isStale()) return;
  await withLock(join(ROOT, '.cache', 'dist.lock'), async () => {
    if (isStale()) await compile();
  });
}

export async function ensureBuilt() {
  await ensureAddon();
  await ensureDist();
}

if (isEntry(import.meta.url)) await main(ensureBuilt);
