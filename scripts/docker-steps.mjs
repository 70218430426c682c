/**
 * Runs the steps of the Dockerfile where no image can be built: each stage in a root of its own, an overlay over this
 * machine's root with an empty /app, in its own mount and process namespaces. Then starts what the image would start, as
 * its user, asks /health, and stops it. Nothing outside the temporary folder changes and no process is left.
 *
 * Needs Linux and root; this machine stands in for the base image, so its Node must have the image's major version.
 * `node scripts/docker-steps.mjs`; called by .ci/run.
 */
import { spawn, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join, posix, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BuildError, main, run } from './command.mjs';
import { ignoreFilter, parseDockerfile, parseExec } from './dockerfile.mjs';
import { ROOT, say } from './files.mjs';

/** Seconds until the started server must be healthy; the first start fetches the default model. */
const HEALTHY_SECONDS = 180;
const API_KEY = 'docker-steps';

function check(program, args) {
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new BuildError(`${program} ${args.join(' ')} failed: ${stderr.trim()}`);
}

/** A writable copy of this machine's root: what is written goes to a folder of its own. */
function mountRoot(folder) {
  const [upper, work, merged] = ['upper', 'work', 'merged'].map((name) => join(folder, name));
  for (const path of [upper, work, merged]) mkdirSync(path, { recursive: true });
  check('mount', ['-t', 'overlay', 'overlay', '-o', `lowerdir=/,upperdir=${upper},workdir=${work}`, merged]);
  check('mount', ['-t', 'proc', 'proc', join(merged, 'proc')]);
  check('mount', ['--rbind', '/dev', join(merged, 'dev')]);
  check('mount', ['-t', 'tmpfs', 'tmpfs', join(merged, 'tmp')]);
  // The checkout itself must not be reachable: what the image needs has to be copied.
  mkdirSync(join(merged, ROOT), { recursive: true });
  check('mount', ['-t', 'tmpfs', 'tmpfs', join(merged, ROOT)]);
  return merged;
}

function checkBase({ image, name }) {
  const major = /^node:(\d+)/.exec(image)?.[1];
  if (major === process.versions.node.split('.')[0]) return;
  throw new BuildError(
    `Stage ${name} begins with ${image}, but this is Node ${process.version}. Run it with Node ${major}.`,
  );
}

/** Host settings of registries and proxies go on; our own variables come from the Dockerfile alone. */
function baseEnvironment() {
  const kept = Object.entries(process.env).filter(([key]) => !key.startsWith('MANYFOLD_') && !key.startsWith('npm_'));
  return { ...Object.fromEntries(kept), HOME: '/root' };
}

class Stage {
  constructor(root) {
    this.root = root;
    this.workdir = '/';
    this.env = baseEnvironment();
    this.user = '0:0';
    this.entrypoint = [];
    this.command = [];
    this.healthcheck = undefined;
    this.stopSignal = 'SIGTERM';
  }

  /** Path inside the stage, seen from outside. */
  outside(path) {
    return join(this.root, posix.resolve(this.workdir, path));
  }

  chrootArgs(words) {
    const inWorkdir = ['/bin/sh', '-c', 'cd "$0" && exec "$@"', this.workdir];
    return [`--userspec=${this.user}`, this.root, ...inWorkdir, ...words];
  }
}

async function runStep(stage, { instruction, rest, line }, { context, stages }) {
  say(`  ${line.length > 110 ? `${line.slice(0, 107)}...` : line}`);
  switch (instruction) {
    case 'RUN': {
      const code = await run('chroot', stage.chrootArgs(['/bin/sh', '-c', rest]), { env: stage.env });
      if (code !== 0) throw new BuildError(`RUN ${rest}\nended with ${code}.`);
      return;
    }
    case 'COPY':
      return copy(stage, rest, { context, stages });
    case 'WORKDIR':
      stage.workdir = posix.resolve(stage.workdir, rest);
      mkdirSync(stage.outside('.'), { recursive: true });
      return;
    // Its default: nobody gives build arguments here.
    case 'ARG':
    case 'ENV': {
      const [, key, value] = /^([A-Z0-9_]+)=(\S+)$/.exec(rest) ?? [];
      if (key === undefined)
        throw new BuildError(`${instruction} ${rest}: write one KEY=value a line, without quotes.`);
      stage.env[key] = value;
      return;
    }
    case 'USER':
      return setUser(stage, rest);
    case 'ENTRYPOINT':
      stage.entrypoint = parseExec(rest);
      return;
    case 'CMD':
      stage.command = parseExec(rest);
      return;
    case 'HEALTHCHECK':
      stage.healthcheck = parseExec(rest.replace(/^.*?CMD\s+/, ''));
      return;
    case 'STOPSIGNAL':
      stage.stopSignal = rest;
      return;
    default:
      throw new BuildError(`${instruction} is parsed but not run. Teach scripts/docker-steps.mjs.`);
  }
}

/** Docker's rules: a folder's content is copied; with several sources, or a slash at the end, the target is a folder. */
function copy(stage, rest, { context, stages }) {
  const words = rest.split(/\s+/);
  const from = words[0].startsWith('--from=') ? words.shift().slice('--from='.length) : undefined;
  if (words.some((word) => word.startsWith('--')))
    throw new BuildError(`COPY ${rest}: this flag is not supported here.`);
  const source = from === undefined ? context : stages.get(from)?.root;
  if (source === undefined) throw new BuildError(`COPY ${rest}: there is no stage ${from}.`);
  const target = words.pop();
  const script = `
    set -e; shopt -s nullglob; target=$1; into=$2; shift 2
    for pattern in "$@"; do
      found=0
      for path in $pattern; do
        found=1
        if [ -d "$path" ]; then mkdir -p "$target"; cp -R "$path/." "$target/"
        elif [ "$into" = 1 ]; then mkdir -p "$target"; cp "$path" "$target/"
        else mkdir -p "$(dirname "$target")"; cp "$path" "$target"; fi
      done
      [ $found = 1 ] || { echo "$pattern matches nothing" >&2; exit 1; }
    done`;
  const into = target.endsWith('/') || words.length > 1 ? '1' : '0';
  check('bash', ['-c', script, 'copy', stage.outside(target), into, ...words.map((word) => join(source, word))]);
}

function setUser(stage, user) {
  const accounts = readFileSync(join(stage.root, 'etc', 'passwd'), 'utf8').split('\n');
  const account = accounts.map((line) => line.split(':')).find(([name, , uid]) => name === user || uid === user);
  if (account === undefined) throw new BuildError(`USER ${user}: the stage has no such account.`);
  stage.user = `${account[2]}:${account[3]}`;
  stage.env.HOME = account[5];
}

async function freePort() {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts the image's program, waits until it is healthy, stops it as Docker would. */
async function tryImage(stage) {
  const port = await freePort();
  const env = { ...stage.env, MANYFOLD_PORT: String(port), MANYFOLD_API_KEY: API_KEY };
  const words = [...stage.entrypoint, ...stage.command];
  say(`starting ${words.join(' ')} as ${stage.user} on port ${port}`);
  const server = spawn('chroot', stage.chrootArgs(words), { env, stdio: ['ignore', 2, 2] });
  const ended = new Promise((resolve) => server.once('exit', (code, signal) => resolve(code ?? signal)));
  let isOver = false;
  void ended.then(() => (isOver = true));
  for (let second = 0; !(await isHealthy(port)); second++) {
    if (isOver) throw new BuildError(`The server ended with ${await ended} before it was healthy.`);
    if (second >= HEALTHY_SECONDS) throw new BuildError(`The server was not healthy after ${HEALTHY_SECONDS} s.`);
    await sleep(1000);
  }
  if (stage.healthcheck === undefined) throw new BuildError('The image has no HEALTHCHECK.');
  const code = await run('chroot', stage.chrootArgs(stage.healthcheck), { env });
  if (code !== 0) throw new BuildError(`The HEALTHCHECK of a healthy server ended with ${code}.`);
  server.kill(stage.stopSignal);
  const exit = await ended;
  if (exit !== 0) throw new BuildError(`After ${stage.stopSignal} the server ended with ${exit}, not with 0.`);
  say(`healthy, and ended with 0 after ${stage.stopSignal}`);
}

async function isHealthy(port) {
  try {
    return (await fetch(`http://127.0.0.1:${port}/health`)).ok;
  } catch {
    return false; // It does not listen yet.
  }
}

/** The inner half: runs as process 1 of its own namespaces, so that its end takes all mounts and processes with it. */
async function inside(folder) {
  const context = join(folder, 'context');
  const isIgnored = ignoreFilter(readFileSync(join(ROOT, '.dockerignore'), 'utf8'));
  cpSync(ROOT, context, { recursive: true, filter: (path) => !isIgnored(relative(ROOT, path)) });
  const stages = new Map();
  let last;
  for (const { image, name, steps } of parseDockerfile(readFileSync(join(ROOT, 'Dockerfile'), 'utf8'))) {
    checkBase({ image, name });
    say(`stage ${name}`);
    last = new Stage(mountRoot(join(folder, name)));
    if (existsSync(last.outside('app'))) throw new BuildError('This machine has a folder /app already. Move it away.');
    for (const step of steps) await runStep(last, step, { context, stages });
    stages.set(name, last);
  }
  await tryImage(last);
}

async function outside() {
  if (process.platform !== 'linux' || process.getuid() !== 0) {
    throw new BuildError('This needs Linux and root, for a root folder of its own. Use docker build in its place.');
  }
  const folder = mkdtempSync(join(tmpdir(), 'manyfold-docker-'));
  const namespaces = ['--mount', '--propagation', 'private', '--pid', '--fork', '--kill-child', '--mount-proc'];
  try {
    const self = [process.execPath, join(ROOT, 'scripts', 'docker-steps.mjs'), '--inside', folder];
    return await run('unshare', [...namespaces, ...self], { cwd: ROOT });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const [flag, folder] = process.argv.slice(2);
await main(() => (flag === '--inside' ? inside(folder) : outside()));
