/**
 * Compiles every kernel of native/cuda with nvcc for all targets of native/binding.gyp and looks at what the assembler
 * says: a kernel that spills registers to memory, or needs more than a block of it may have, fails. Needs no GPU.
 * `node scripts/cuda-check.mjs [--table]`; called by .ci/run.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { chosenBackend } from './build-addon.mjs';
import { BuildError, isEntry, main } from './command.mjs';
import { ROOT, say } from './files.mjs';

/** Registers of a thread: with 252, one block of 256 threads still fits a multiprocessor (65,536 in all). */
export const MOST_REGISTERS = 252;

const KERNELS = join(ROOT, 'native', 'cuda', 'kernels');

/** The value of `nvcc_flags` in native/binding.gyp, so that what is checked is what is built. */
export function nvccFlags(gyp = readFileSync(join(ROOT, 'native', 'binding.gyp'), 'utf8')) {
  const list = /'nvcc_flags': \[([^\]]*)\]/.exec(gyp);
  if (list === null) throw new BuildError("native/binding.gyp has no list 'nvcc_flags'. Restore it.");
  return [...list[1].matchAll(/'([^']*)'/g)].map((match) => match[1]);
}

/**
 * Kernels in what `nvcc -Xptxas -v` prints: `{ name, target, registers, spills, stack }`, spills and stack in bytes.
 */
export function parsePtxas(text) {
  const kernels = [];
  let entry;
  for (const line of text.split('\n')) {
    const start = /Compiling entry function '(\S+)' for '(\S+)'/.exec(line);
    if (start !== null) {
      entry = { name: start[1], target: start[2], registers: 0, spills: 0, stack: 0 };
      kernels.push(entry);
    }
    const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (frame !== null && entry !== undefined) {
      entry.stack = Number(frame[1]);
      entry.spills = Number(frame[2]) + Number(frame[3]);
    }
    const used = /Used (\d+) registers/.exec(line);
    if (used !== null && entry !== undefined) {
      entry.registers = Number(used[1]);
      entry = undefined;
    }
  }
  return kernels;
}

/** What is wrong with a kernel, or undefined. */
export function problemOf({ name, target, registers, spills }) {
  if (spills > 0) return `${name} spills ${spills} bytes on ${target}; expected none: give it fewer live values`;
  if (registers > MOST_REGISTERS) {
    return `${name} takes ${registers} registers on ${target}; expected at most ${MOST_REGISTERS}: give it smaller tiles`;
  }
  return undefined;
}

function compile(nvcc, path, output) {
  return new Promise((resolve, reject) => {
    const child = spawn(nvcc, [...nvccFlags(), '-Werror', 'all-warnings', '-Xptxas', '-v', '-c', path, '-o', output]);
    let text = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (text += chunk));
    child.once('error', reject);
    child.once('close', (code) => {
      if (code === 0) resolve(parsePtxas(text));
      else reject(new BuildError(`${text}\nnvcc ended with ${code} on ${path}. Mend what the lines above name.`));
    });
  });
}

async function check() {
  const { cudaHome } = chosenBackend({ ...process.env, MANYFOLD_BUILD: 'cuda' });
  if (cudaHome === undefined) {
    throw new BuildError(
      'The CUDA kernels cannot be checked: nvcc was not found. Install the CUDA 13 toolkit, or set CUDA_HOME.',
    );
  }
  const sources = readdirSync(KERNELS).filter((name) => name.endsWith('.cu'));
  const folder = mkdtempSync(join(tmpdir(), 'cuda-check-'));
  const kernels = [];
  try {
    const left = [...sources];
    const worker = async () => {
      for (let name = left.pop(); name !== undefined; name = left.pop()) {
        kernels.push(...(await compile(join(cudaHome, 'bin', 'nvcc'), join(KERNELS, name), join(folder, `${name}.o`))));
      }
    };
    await Promise.all(Array.from({ length: availableParallelism() }, worker));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  if (kernels.length === 0) throw new BuildError('nvcc named no kernel: what it prints is no longer understood.');
  kernels.sort((a, b) => b.registers - a.registers);
  if (process.argv.includes('--table')) {
    for (const k of kernels) say(`${String(k.registers).padStart(4)} registers  ${k.target}  ${k.name}`);
  }
  const problems = kernels.map(problemOf).filter((problem) => problem !== undefined);
  if (problems.length > 0) throw new BuildError(problems.join('\n'));
  say(`${kernels.length} kernels of ${sources.length} files: no spills, at most ${kernels[0].registers} registers`);
}

if (isEntry(import.meta.url)) await main(check);
