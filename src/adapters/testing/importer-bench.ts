/** Compiles adapters that a test writes tensor by tensor, and catches refusals. */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';

import type { SafetensorsDtype } from '../../checkpoint/safetensors.js';
import { f32ToBf16 } from '../../core/half.js';
import { ManyfoldError } from '../../core/errors.js';
import { DEFAULT_ADAPTER_LIMITS, openAdapterFolder } from '../adapter-folder.js';
import { compileAdapter } from '../compile-adapter.js';
import { writeAdapterFolder } from '../convert/adapter-writer.js';
import type { WrittenTensor } from '../convert/adapter-writer.js';
import type { CompiledAdapter, ImportContext } from '../importer.js';
import { adapterVersion } from '../version.js';
import { UNREAD_BASE } from './base.js';
import { TINY_MODEL } from './peft-folder.js';

export interface BenchTensor {
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  readonly data: NodeJS.ArrayBufferView;
}

export const f32 = (shape: readonly number[], values: readonly number[]): BenchTensor => ({
  dtype: 'F32',
  shape,
  data: Float32Array.from(values),
});
export const bf16 = (shape: readonly number[], values: readonly number[]): BenchTensor => ({
  dtype: 'BF16',
  shape,
  data: Uint16Array.from(values, f32ToBf16),
});
export const i32 = (shape: readonly number[], values: readonly number[]): BenchTensor => ({
  dtype: 'I32',
  shape,
  data: Int32Array.from(values),
});
export const i64 = (shape: readonly number[], values: readonly number[]): BenchTensor => ({
  dtype: 'I64',
  shape,
  data: BigInt64Array.from(values, BigInt),
});

/** `count` different values. */
export function ramp(count: number, step = 0.25): number[] {
  return Array.from({ length: count }, (_, i) => ((i % 17) - 8) * step);
}

export class ImporterBench {
  #root: Promise<string> | undefined;
  #folders = 0;

  /** A path for a new folder. */
  async folder(): Promise<string> {
    this.#root ??= mkdtemp(path.join(tmpdir(), 'manyfold-importer-'));
    return path.join(await this.#root, `a${(this.#folders += 1)}`);
  }

  async compile(
    config: Readonly<Record<string, unknown>>,
    tensors: Readonly<Record<string, BenchTensor>>,
    context: Partial<ImportContext> = {},
  ): Promise<CompiledAdapter> {
    const directory = await this.folder();
    const written: WrittenTensor[] = Object.entries(tensors).map(([name, tensor]) => ({ name, ...tensor }));
    await writeAdapterFolder(directory, config, written);
    return this.compileFolder(directory, context);
  }

  async compileFolder(directory: string, context: Partial<ImportContext> = {}): Promise<CompiledAdapter> {
    const full = { model: TINY_MODEL, base: UNREAD_BASE, limits: DEFAULT_ADAPTER_LIMITS, ...context };
    const folder = await openAdapterFolder(directory, { limits: full.limits, keepTensors: false });
    const version = await adapterVersion(folder, 'base').finally(() => folder.close());
    return compileAdapter({ version, directory }, { ...full, baseFingerprint: 'base' });
  }

  /** The message with which the adapter is refused. */
  async refusal(...adapter: Parameters<ImporterBench['compile']>): Promise<string> {
    return refusalOf(() => this.compile(...adapter));
  }

  async close(): Promise<void> {
    if (this.#root !== undefined) await rm(await this.#root, { recursive: true, force: true });
  }
}

export async function refusalOf(run: () => Promise<unknown>): Promise<string> {
  try {
    await run();
  } catch (error) {
    assert.ok(error instanceof ManyfoldError && error.code === 'invalid_adapter', String(error));
    return error.message;
  }
  return assert.fail('it should have been refused');
}
