/** `npm run fuzz [NAME…] [-- OPTION…]`: builds what is stale, then hands everything on to test/fuzz/run.ts. */
import { join } from 'node:path';
import { ensureBuilt } from './build.mjs';
import { main, run } from './command.mjs';
import { ROOT } from './files.mjs';

await main(async () => {
  await ensureBuilt();
  const args = [join(ROOT, 'dist', 'test', 'fuzz', 'run.js'), ...process.argv.slice(2)];
  return run(process.execPath, args, { cwd: ROOT, stdio: ['ignore', 'inherit', 'inherit'] });
});
