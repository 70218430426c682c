/** File-system helpers of the build scripts: the repository's root, newest change below a folder, a lock. */
import { mkdirSync, readFileSync, readdirSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/** Folder of package.json. */
export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

/** Messages of the scripts go to stderr: stdout belongs to the command that is run in the end. */
export function say(line) {
  process.stderr.write(`${line}\n`);
}

/** Time of the last change in ms since 1970, or 0 when there is no such file. */
export function changedMs(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/**
 * Newest change of a file or of a folder with all that is in it. Folders count too, so that a deleted file shows.
 * `skip(name, path)` leaves entries out.
 */
export function newestChangeMs(path, skip = () => false) {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return 0;
  let newest = stat.mtimeMs;
  if (!stat.isDirectory()) return newest;
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    const child = join(path, entry.name);
    if (skip(entry.name, child)) continue;
    newest = Math.max(newest, entry.isDirectory() ? newestChangeMs(child, skip) : changedMs(child));
  }
  return newest;
}

/** All files below a folder, as paths that begin with it. */
export function listFiles(folder) {
  const entries = readdirSync(folder, { withFileTypes: true });
  return entries.flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? listFiles(path) : [path];
  });
}

/** Writes the whole file or nothing: readers see the old content or the new one. */
export function writeAtomically(path, content) {
  mkdirSync(dirname(path), { recursive: true });
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, content);
  renameSync(temporary, path);
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** The process that holds the lock, or undefined when it is gone (or died before it wrote its number). */
function holderOf(folder) {
  try {
    const pid = Number(readFileSync(join(folder, 'pid'), 'utf8'));
    return isAlive(pid) ? pid : undefined;
  } catch {
    // The holder writes its number right after it made the folder; give it two seconds.
    return Date.now() - changedMs(folder) < 2000 ? 0 : undefined;
  }
}

/** Runs `work` while no other process runs it under the same lock folder; waits for its turn. */
export async function withLock(folder, work) {
  mkdirSync(dirname(folder), { recursive: true });
  for (let told = false; !tryLock(folder); await sleep(100)) {
    const holder = holderOf(folder);
    if (holder === undefined) {
      // Moved away first: of two that find the same dead lock, one only can move it.
      const grave = `${folder}.${process.pid}.dead`;
      try {
        renameSync(folder, grave);
      } catch (error) {
        if (error.code !== 'ENOENT') throw error;
      }
      rmSync(grave, { recursive: true, force: true });
    } else if (!told) {
      say(`waiting for another build (process ${holder}) to end`);
      told = true;
    }
  }
  const unlock = () => rmSync(folder, { recursive: true, force: true });
  process.once('exit', unlock);
  try {
    return await work();
  } finally {
    process.removeListener('exit', unlock);
    unlock();
  }
}

function tryLock(folder) {
  try {
    mkdirSync(folder);
  } catch (error) {
    if (error.code === 'EEXIST') return false;
    throw error;
  }
  writeFileSync(join(folder, 'pid'), String(process.pid));
  return true;
}
