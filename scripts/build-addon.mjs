/**
 * Builds the native addon with node-gyp when it is missing, older than its sources, or built for another Node.
 * Called by build.mjs; `node scripts/build-addon.mjs [--force]` does it alone.
 *
 * The headers are those of the running Node where they lie next to it, so that nothing is downloaded.
 */
import { copyFileSync, existsSync, readFileSync, realpathSync, renameSync, rmSync, utimesSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { BuildError, isEntry, isInstalled, main, run } from './command.mjs';
import { changedMs, listFiles, ROOT, say, withLock, writeAtomically } from './files.mjs';

/** Folders of native/ whose files go into the addon. */
const SOURCE_FOLDERS = ['addon', 'core', 'cpu', 'cuda', 'model', 'third_party'];

/** The name under which @node-rs/helper looks for the addon on this platform: `manyfold.linux-x64-gnu.node`. */
export function addonName() {
  const { platform, arch } = process;
  if (platform === 'darwin') return `manyfold.darwin-${arch}.node`;
  if (platform === 'win32') return `manyfold.win32-${arch}-msvc.node`;
  const libc = existsSync('/etc/alpine-release') ? 'musl' : 'gnu';
  return `manyfold.${platform}-${arch}-${libc}${arch === 'arm' ? 'eabihf' : ''}.node`;
}

function pathsOf(root) {
  const native = join(root, 'native');
  return {
    native,
    addon: join(native, addonName()),
    built: join(native, 'build', 'Release', 'manyfold.node'),
    stamp: join(root, '.cache', 'addon.json'),
    lock: join(root, '.cache', 'addon.lock'),
  };
}

/** What an addon is bound to beside its sources. */
function currentStamp() {
  const { platform, arch, versions } = process;
  const backend = chosenBackend().cudaHome === undefined ? 'cpu' : 'cuda';
  return JSON.stringify({ platform, arch, modules: versions.modules, napi: versions.napi, backend });
}

/**
 * What MANYFOLD_BUILD asks for: `cpu` (the default) or `cuda`, which adds the CUDA backend where its toolkit is: in
 * CUDA_HOME, beside the nvcc of PATH, or in /usr/local/cuda. `missing` tells that CUDA was asked for and is left out.
 */
export function chosenBackend(environment = process.env) {
  const asked = environment.MANYFOLD_BUILD || 'cpu';
  if (asked === 'cpu') return {};
  if (asked !== 'cuda')
    throw new BuildError(`MANYFOLD_BUILD is '${asked}'; expected 'cpu' or 'cuda'. Set one of them.`);
  const onPath = (environment.PATH ?? '').split(':').map((folder) => join(folder, 'nvcc'));
  const found = onPath.find((path) => existsSync(path));
  const homes = [environment.CUDA_HOME, found && dirname(dirname(realpathSync(found))), '/usr/local/cuda'];
  // Both: an nvcc on PATH may be a script that calls the one of a toolkit elsewhere.
  const needed = ['bin/nvcc', 'include/cuda_runtime.h'];
  const cudaHome = homes.find((home) => home && needed.every((path) => existsSync(join(home, path))));
  return cudaHome === undefined ? { missing: true } : { cudaHome };
}

function readStamp(path) {
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

/** Why a build is needed, or undefined when the addon is good. */
export function reasonToBuild(root = ROOT) {
  const { native, addon, stamp } = pathsOf(root);
  // An installed package without sources, as in the image: what lies there is all there is.
  if (!existsSync(join(native, 'binding.gyp'))) return undefined;
  const built = changedMs(addon);
  if (built === 0) return 'it is missing';
  const newest = Math.max(...nativeSources(native).map(changedMs));
  if (newest > built) return 'a source is newer';
  return readStamp(stamp) === currentStamp() ? undefined : 'it was built for another Node';
}

function nativeSources(native) {
  const folders = SOURCE_FOLDERS.map((name) => join(native, name));
  return [join(native, 'binding.gyp'), ...folders.filter((folder) => existsSync(folder)).flatMap(listFiles)];
}

/** `--nodedir` of the running Node's own headers, or undefined when they are not on this machine. */
export function findHeaders() {
  const beside = [process.execPath, realpathSync(process.execPath)].map((path) => dirname(dirname(path)));
  const major = Number(process.versions.node.split('.')[0]);
  return [...beside, '/usr', '/usr/local'].find((nodedir) => {
    const include = join(nodedir, 'include', 'node');
    if (!existsSync(join(include, 'node_api.h')) || !existsSync(join(include, 'common.gypi'))) return false;
    const version = readFileSync(join(include, 'node_version.h'), 'utf8');
    return Number(/NODE_MAJOR_VERSION (\d+)/.exec(version)?.[1]) === major;
  });
}

function checkTools() {
  const needed = [
    {
      tool: process.env.CXX?.split(' ')[0] || (process.platform === 'darwin' ? 'c++' : 'g++'),
      what: 'a C++20 compiler',
    },
    { tool: 'make', what: 'which node-gyp drives' },
    {
      tool: process.env.PYTHON || process.env.npm_config_python || 'python3',
      what: 'Python 3, which node-gyp is written in',
    },
  ];
  const missing = needed.filter(({ tool }) => !isInstalled(tool));
  if (missing.length === 0) return;
  const list = missing.map(({ tool, what }) => `${tool} (${what})`).join(', ');
  const mend =
    process.platform === 'darwin'
      ? 'xcode-select --install'
      : 'apt-get install g++ make python3 (Debian, Ubuntu), dnf install gcc-c++ make python3 (Fedora)';
  throw new BuildError(`The native addon cannot be built: ${list} not found. Install it: ${mend}`);
}

function nodeGypScript(root) {
  try {
    return createRequire(join(root, 'package.json')).resolve('node-gyp/bin/node-gyp.js');
  } catch {
    throw new BuildError('The native addon cannot be built: node-gyp is not installed. Run: npm ci');
  }
}

/** `  CXX(target) Release/obj.target/manyfold/cpu/isa/avx2.o` is shown as `  compiles cpu/isa/avx2`. */
export function shorten(line) {
  const match = /^\s+(CXX|CC|SOLINK_MODULE|SOLINK|LIBTOOL-STATIC|AR)\(target\) (?:Release\/)?(.*)$/.exec(line);
  if (match === null) return undefined;
  const [, tool, target] = match;
  if (tool !== 'CXX' && tool !== 'CC') return `  links ${target.split('/').at(-1)}`;
  return `  compiles ${target.replace(/^obj\.target\/[^/]+\//, '').replace(/\.o$/, '')}`;
}

async function runNodeGyp(root, { clean }) {
  const headers = findHeaders();
  if (headers === undefined) say('  the headers of this Node are not on the machine: node-gyp downloads them');
  const args = [nodeGypScript(root), clean ? 'rebuild' : 'configure', ...(clean ? [] : ['build'])];
  args.push('--directory=native', `--jobs=${availableParallelism()}`);
  if (headers !== undefined) args.push(`--nodedir=${headers}`);
  const { cudaHome, missing } = chosenBackend();
  if (missing)
    say(
      '  CUDA is left out: nvcc was found neither in CUDA_HOME nor on PATH. Install the CUDA 13 toolkit and build again',
    );
  if (cudaHome !== undefined) args.push('--', '-Dcuda=1', `-Dcuda_home=${cudaHome}`);
  const output = [];
  const onLine = (line) => {
    output.push(line);
    const short = shorten(line);
    if (short !== undefined) say(short);
    // What compilers and make complain about is shown whole; node-gyp's own chatter only after a failure.
    else if (/(error|warning|note|\*\*\*)[: ]/i.test(line) && !line.startsWith('gyp ')) say(line);
  };
  const code = await run(process.execPath, args, { cwd: root, onLine });
  if (code === 0) return;
  if (code >= 128)
    throw new BuildError('The build of the native addon was interrupted. The next start goes on with it.');
  const chatter = /^(gyp (info|verb|ERR!)|make: (Entering|Leaving))/;
  const tail = output
    .filter((line) => !chatter.test(line))
    .slice(-40)
    .join('\n');
  throw new BuildError(
    `${tail}\n\nThe native addon did not build (node-gyp ended with ${code}). Mend what the lines above name, then run: ` +
      'node scripts/build-addon.mjs --force',
  );
}

async function build(root, reason) {
  const { native, addon, built, stamp } = pathsOf(root);
  const started = Date.now();
  say(`building the native addon (${reason}), with ${availableParallelism()} jobs`);
  checkTools();
  await runNodeGyp(root, { clean: existsSync(join(native, 'build')) && readStamp(stamp) !== currentStamp() });
  // A process that has the old addon mapped keeps it: the new one gets the name by rename.
  const temporary = `${addon}.${process.pid}.tmp`;
  copyFileSync(built, temporary);
  // A source that changes while the compiler runs is newer than the addon, and found so the next time.
  utimesSync(temporary, started / 1000, started / 1000);
  renameSync(temporary, addon);
  writeAtomically(stamp, currentStamp());
  say(`built native/${addonName()} in ${((Date.now() - started) / 1000).toFixed(1)} s`);
}

/** Builds if there is a reason to. Safe to call from several processes at once: one builds, the others wait. */
export async function ensureAddon({ root = ROOT, force = false } = {}) {
  if (!force && reasonToBuild(root) === undefined) return;
  await withLock(pathsOf(root).lock, async () => {
    if (force) rmSync(pathsOf(root).stamp, { force: true });
    const reason = force ? 'as asked' : reasonToBuild(root);
    if (reason !== undefined) await build(root, reason);
  });
}

if (isEntry(import.meta.url)) {
  await main(() => ensureAddon({ force: process.argv.includes('--force') }));
}
