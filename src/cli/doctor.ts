/** `manyfold doctor`: what this machine and this build offer, and what `serve` would use of it. Called by program.ts. */
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { join } from 'node:path';
import type { NativeInfo } from '../native/binding-types.js';
import { humanBytes } from './human-bytes.js';

/** What was found. Undefined: the machine does not tell, or has none. */
export interface MachineFacts {
  readonly cpu: string;
  readonly memoryBytes: number;
  readonly native: NativeInfo;
  /** Content of /sys/kernel/mm/transparent_hugepage/enabled. */
  readonly hugePages?: string;
  /** First line of /proc/driver/nvidia/version. */
  readonly driver?: string;
  /** Models of the GPUs that the driver knows. */
  readonly gpus: readonly string[];
  /** Last line but one of `nvcc --version`. */
  readonly nvcc?: string;
}

interface Line {
  readonly what: string;
  readonly found: string;
  readonly mend?: string;
}

function hugePageLine(enabled: string | undefined): Line {
  const what = 'huge pages';
  if (enabled === undefined) return { what, found: 'unknown: the kernel does not tell' };
  const mode = /\[(\w+)\]/.exec(enabled)?.[1] ?? enabled.trim();
  if (mode !== 'never') return { what, found: `${mode}: weights and the KV pool use them` };
  return {
    what,
    found: 'never: weights are read through 4 KiB pages, at about half the speed',
    mend: 'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root)',
  };
}

function gpuLines({ gpus, driver, nvcc, native }: MachineFacts): Line[] {
  const built = native.backends.includes('cuda');
  const lines: Line[] = [
    { what: 'GPU', found: gpus.length === 0 ? 'none that an NVIDIA driver knows' : gpus.join(', ') },
    { what: 'driver', found: driver ?? 'no NVIDIA driver is loaded' },
    { what: 'CUDA toolkit', found: nvcc ?? 'nvcc is not on PATH' },
    { what: 'CUDA backend', found: built ? 'in this build' : 'not in this build' },
  ];
  if (gpus.length > 0 && !built) {
    const mend = `${nvcc === undefined ? 'install the CUDA 13 toolkit, then ' : ''}MANYFOLD_BUILD=cuda npm run build`;
    lines.push({ what: '', found: 'the GPU is not used', mend });
  }
  return lines;
}

/** The report, a line each. Pure. */
export function doctorReport(facts: MachineFacts): string[] {
  const { native } = facts;
  const [best] = native.isas;
  const scalar = best === undefined || best === 'scalar';
  const usesGpu = native.backends.includes('cuda') && facts.gpus.length > 0;
  const lines: Line[] = [
    { what: 'build', found: `${native.version}, backends ${native.backends.join(', ')}` },
    { what: 'CPU', found: `${facts.cpu}, ${native.cores} cores for this process` },
    {
      what: 'instruction sets',
      found: native.isas.join(', '),
      ...(scalar ? { mend: 'use a processor with AVX2: the scalar tier is for checks, not for serving' } : {}),
    },
    { what: 'memory', found: humanBytes(facts.memoryBytes) },
    hugePageLine(facts.hugePages),
    ...gpuLines(facts),
    {
      what: 'serve would use',
      found: `the cpu backend, ${best ?? 'scalar'}, ${native.cores} threads${usesGpu ? '; with --backend cuda the GPU' : ''}`,
    },
  ];
  return lines.flatMap(({ what, found, mend }) => [
    `${what.padEnd(18)}${found}`,
    ...(mend === undefined ? [] : [`${' '.repeat(18)}mend: ${mend}`]),
  ]);
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

/** Names in /proc/driver/nvidia/gpus, whose `information` files have a line `Model: ...`. */
function gpuModels(folder: string): string[] {
  let names: string[];
  try {
    names = readdirSync(folder);
  } catch {
    return [];
  }
  return names.map((name) => /Model:\s*(.+)/.exec(readText(join(folder, name, 'information')) ?? '')?.[1] ?? name);
}

export function readMachine(native: NativeInfo): MachineFacts {
  const nvcc = spawnSync('nvcc', ['--version'], { encoding: 'utf8' });
  const release = nvcc.status === 0 ? /release .*/.exec(nvcc.stdout)?.[0] : undefined;
  const hugePages = readText('/sys/kernel/mm/transparent_hugepage/enabled');
  const driver = readText('/proc/driver/nvidia/version')?.split('\n')[0];
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    memoryBytes: totalmem(),
    native,
    gpus: gpuModels('/proc/driver/nvidia/gpus'),
    ...(hugePages === undefined ? {} : { hugePages }),
    ...(driver === undefined ? {} : { driver }),
    ...(release === undefined ? {} : { nvcc: release }),
  };
}
