/**
 * What this machine can do at most: peak of fused multiply-adds and read bandwidth, by the native bench. Every table of
 * figures prints it first, because machines differ and shared ones drift.
 */
import { execFile } from 'node:child_process';
import { cpus } from 'node:os';
import { promisify } from 'node:util';

export interface MachineBound {
  readonly threads: number;
  /** Of the widest units that the engine's kernels use, all threads together. */
  readonly gflops: number;
  /** Of int8 products and sums, likewise. */
  readonly int8Gops: number;
  /** Of buffers far larger than the last-level cache, all threads together. */
  readonly gbPerSecond: number;
}

const run = promisify(execFile);

/** Builds the native bench if need be and asks it for the bounds alone. */
export async function measureMachine(): Promise<MachineBound> {
  await run('make', ['-C', 'native/bench', `-j${cpus().length}`, 'build/run']);
  const { stdout } = await run('native/bench/build/run', ['bounds']);
  return parseMachine(stdout);
}

/**
 * Reads the last line like `avx2, 2 threads: f32 228.1 GFLOP/s, bf16 455.0 GFLOP/s, int8 910.0 GOP/s, read 31.4 GB/s`;
 * bf16 may be absent.
 */
export function parseMachine(output: string): MachineBound {
  const pattern =
    /, (\d+) threads?: f32 ([\d.]+) GFLOP\/s(?:, bf16 ([\d.]+) GFLOP\/s)?, int8 ([\d.]+) GOP\/s, read ([\d.]+) GB\/s/g;
  const last = [...output.matchAll(pattern)].at(-1);
  if (last === undefined) throw new Error(`native/bench/build/run bounds printed no line of bounds:\n${output}`);
  const [, threads, f32, bf16, int8, read] = last;
  return {
    threads: Number(threads),
    gflops: Number(bf16 ?? f32),
    int8Gops: Number(int8),
    gbPerSecond: Number(read),
  };
}
