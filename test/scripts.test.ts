/** The build scripts, run in a tiny project of their own: what they build, when, and what they say when it fails. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';

const ADDON = `#include <node_api.h>
int answer(void);
static napi_value init(napi_env env, napi_value exports) {
  napi_value value;
  napi_create_int32(env, answer(), &value);
  napi_set_named_property(env, exports, "answer", value);
  return exports;
}
NAPI_MODULE(NODE_GYP_MODULE_NAME, init)
`;

const MAIN = `import { loadBinding } from '@node-rs/helper';
const addon = loadBinding(process.cwd() + '/native', 'manyfold') as { answer: number };
process.stdout.write([addon.answer, ...process.argv.slice(2)].join(' '));
`;

const TEST = `import { test } from 'node:test';
test('runs', () => undefined);
`;

let project = '';

/** A file that is written later is newer than everything built before: no waiting for clocks. */
function write(path: string, text: string): void {
  mkdirSync(dirname(join(project, path)), { recursive: true });
  writeFileSync(join(project, path), text);
}

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function node(script: string, args: readonly string[] = [], env?: NodeJS.ProcessEnv): Promise<Outcome> {
  const options = { cwd: project, ...(env === undefined ? {} : { env }) };
  return new Promise((resolve) => {
    const child = execFile(process.execPath, [join(project, script), ...args], options, (_error, stdout, stderr) => {
      resolve({ code: child.exitCode ?? -1, stdout, stderr });
    });
  });
}

before(() => {
  project = mkdtempSync(join(tmpdir(), 'manyfold-scripts-'));
  for (const name of ['scripts', 'package.json', 'package-lock.json', 'tsconfig.json']) {
    cpSync(join(process.cwd(), name), join(project, name), { recursive: true });
  }
  symlinkSync(join(process.cwd(), 'node_modules'), join(project, 'node_modules'));
  write('native/binding.gyp', '{"targets": [{"target_name": "manyfold", "sources": ["addon/a.c", "core/b.c"]}]}');
  write('native/addon/a.c', ADDON);
  write('native/core/b.c', 'int answer(void) { return 41; }\n');
  write('src/cli/main.ts', MAIN);
  write('src/core/ids.test.ts', TEST);
});

after(() => rmSync(project, { recursive: true, force: true }));

test('two starts at once build once, and both run', async () => {
  const runs = await Promise.all([
    node('scripts/manyfold.mjs', ['serve', '--port', '1']),
    node('scripts/manyfold.mjs'),
  ]);
  const [first, second] = runs;
  assert.deepEqual([first.stdout, second.stdout], ['41 serve --port 1', '41'], first.stderr + second.stderr);
  const output = first.stderr + second.stderr;
  assert.equal(output.match(/^built native\/manyfold\..*\.node in /gm)?.length, 1, output);
  assert.equal(output.match(/^compiled TypeScript in /gm)?.length, 1, output);
  assert.match(output, /^ {2}compiles addon\/a$/m);
  assert.deepEqual(readdirSync(join(project, '.cache')), ['addon.json'], 'no lock is left');
});

test('nothing stale: nothing is said; a newer source: what depends on it is built', async () => {
  assert.deepEqual(await node('scripts/manyfold.mjs', ['x']), { code: 0, stdout: '41 x', stderr: '' });
  write('native/test/notes.txt', 'not a source of the addon');
  assert.equal((await node('scripts/manyfold.mjs')).stderr, '');
  write('native/core/b.c', 'int answer(void) { return 42; }\n');
  // The lock of a build that was killed does not hold up the next one.
  write('.cache/addon.lock/pid', '999999999');
  const native = await node('scripts/manyfold.mjs');
  assert.equal(native.stdout, '42');
  assert.match(native.stderr, /a source is newer/);
  assert.doesNotMatch(native.stderr, /compiles addon\/a|TypeScript/);
});

test('an addon of another Node is built again', async () => {
  write('.cache/addon.json', '{"modules":"1"}');
  assert.match((await node('scripts/build.mjs')).stderr, /built for another Node[^]*built native/);
  assert.equal((await node('scripts/build.mjs')).stderr, '');
});

test('a native error is shown with its line; the next start tries again', async () => {
  write('native/core/b.c', 'int answer(void) { return x; }\n');
  const failed = await node('scripts/manyfold.mjs');
  assert.equal(failed.code, 1);
  assert.equal(failed.stdout, '');
  assert.match(
    failed.stderr,
    /b\.c:1:\d+: error: .*x.*undeclared[^]*did not build[^]*node scripts\/build-addon\.mjs --force/,
  );
  write('native/core/b.c', 'int answer(void) { return 43; }\n');
  assert.equal((await node('scripts/manyfold.mjs')).stdout, '43');
});

test('missing tools are named with what installs them', async () => {
  write('native/core/b.c', 'int answer(void) { return 44; }\n');
  const empty = join(project, 'empty');
  mkdirSync(empty);
  const failed = await node('scripts/build.mjs', [], { PATH: empty });
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /g\+\+ .*make .*python3 .*not found\. Install it: apt-get install g\+\+ make python3/);
  assert.equal((await node('scripts/build.mjs')).code, 0);
});

test('a type error stops the start; output of deleted files goes', async () => {
  write('src/core/wrong.ts', "export const wrong: number = 'text';\n");
  const failed = await node('scripts/manyfold.mjs');
  assert.equal(failed.code, 1);
  assert.match(failed.stderr, /src\/core\/wrong\.ts\(1,14\): error TS2322[^]*Mend them/);
  rmSync(join(project, 'src/core/wrong.ts'));
  assert.equal((await node('scripts/manyfold.mjs')).code, 0);
  assert.equal(existsSync(join(project, 'dist/src/core/wrong.js')), false);
  assert.equal(existsSync(join(project, 'dist/src/core/ids.test.js')), true);
});
