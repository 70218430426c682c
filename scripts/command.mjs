/** Runs other programs for the build scripts. */
import { spawn } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** An error for the user: printed as one sentence, without a stack. */
export class BuildError extends Error {}

/**
 * Runs a program and resolves to its exit code; a signal counts as 128 + its number, as in a shell.
 * With `onLine` each line of its output goes there, else it shares our own.
 */
export function run(program, args, { cwd, env, onLine, stdio } = {}) {
  return new Promise((resolve, reject) => {
    const output = onLine === undefined ? (stdio ?? ['ignore', 2, 2]) : ['ignore', 'pipe', 'pipe'];
    const child = spawn(program, args, { cwd, env: env ?? process.env, stdio: output });
    const stop = () => child.kill('SIGTERM');
    process.once('SIGTERM', stop);
    if (onLine !== undefined) for (const stream of [child.stdout, child.stderr]) splitLines(stream, onLine);
    child.once('error', reject);
    child.once('close', (code, signal) => {
      process.removeListener('SIGTERM', stop);
      resolve(code ?? (signal === 'SIGINT' ? 130 : 143));
    });
  });
}

function splitLines(stream, onLine) {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (chunk) => {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop();
    lines.forEach(onLine);
  });
  stream.on('end', () => rest !== '' && onLine(rest));
}

/** Whether a program can be found, by path or on PATH. */
export function isInstalled(program) {
  if (program.includes('/')) return existsSync(program);
  const names = process.platform === 'win32' ? [program, `${program}.exe`, `${program}.cmd`] : [program];
  return (process.env.PATH ?? '')
    .split(delimiter)
    .some((folder) => names.some((name) => existsSync(join(folder, name))));
}

/** The main part of a script: prints a BuildError as a sentence and ends with a failure code. */
export async function main(work) {
  try {
    process.exitCode = (await work()) ?? 0;
  } catch (error) {
    process.stderr.write(`${error instanceof BuildError ? error.message : error.stack}\n`);
    process.exitCode = 1;
  }
}

/** Whether a module was started by itself, not imported. */
export function isEntry(url) {
  return process.argv[1] !== undefined && fileURLToPath(url) === realpathSync(process.argv[1]);
}
