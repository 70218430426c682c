/**
 * Adapters as inputs of the fuzzers: a config and named tensors that mutations can take apart, and the files that they are
 * written to. The writer puts down what it is told, duplicates and lies included. Called by mutate-adapter.ts and importers.ts.
 */
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';

import type { FuzzInput } from './harness.js';

/** Plain JSON; NaN and infinities are written as Python writes them. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface RawTensor {
  name: string;
  dtype: string;
  shape: number[];
  /** As long as it is, whatever dtype and shape say. */
  data: Buffer;
}

export interface AdapterInput {
  config: Record<string, Json>;
  tensors: RawTensor[];
}

export const CONFIG = 'adapter_config.json';
/** Where tensors lie: PEFT's name first, then MLX's. */
export const TENSOR_FILES = ['adapter_model.safetensors', 'adapters.safetensors'] as const;
/** Name of the folder of test/goldens/models whose base the adapter is for. */
export const MODEL = 'model';

const GOLDENS = path.join('test', 'goldens');

export function goldenFolder(golden: string): string {
  return path.join(GOLDENS, 'kinds', golden);
}

/** The model that an input is for. */
export function modelOf(input: FuzzInput): string {
  return Buffer.from(input.get(MODEL) ?? []).toString('utf8') || 'llama-gqa';
}

/** The files of a golden, e.g. 'llama-gqa/lora'. */
export function goldenSeed(golden: string): FuzzInput {
  const folder = goldenFolder(golden);
  const names = [CONFIG, ...TENSOR_FILES].filter((name) => existsSync(path.join(folder, name)));
  const files = names.map((name) => [name, readFileSync(path.join(folder, name))] as const);
  return new Map<string, Uint8Array>([[MODEL, Buffer.from(golden.split('/')[0] ?? '')], ...files]);
}

export function tensorsFileOf(input: FuzzInput): string {
  return TENSOR_FILES.find((name) => input.has(name)) ?? TENSOR_FILES[0];
}

/** Undefined where the files are not of this form, as after a mutation of their bytes. */
export function decodeAdapter(input: FuzzInput): AdapterInput | undefined {
  const [config, tensors] = [input.get(CONFIG), input.get(tensorsFileOf(input))];
  if (config === undefined || tensors === undefined || tensors.length < 8) return undefined;
  try {
    const parsed = JSON.parse(Buffer.from(config).toString('utf8')) as unknown;
    if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) return undefined;
    return { config: parsed as AdapterInput['config'], tensors: readTensors(Buffer.from(tensors)) };
  } catch {
    // The bytes are what is fuzzed then.
    return undefined;
  }
}

function readTensors(file: Buffer): RawTensor[] {
  const start = 8 + Number(file.readBigUInt64LE());
  const header = JSON.parse(file.subarray(8, start).toString('utf8')) as Record<string, unknown>;
  return Object.entries(header).flatMap(([name, entry]) => {
    if (name === '__metadata__') return [];
    const { dtype, shape, data_offsets } = entry as { dtype: string; shape: number[]; data_offsets: [number, number] };
    const data = Buffer.from(file.subarray(start + data_offsets[0], start + data_offsets[1]));
    return [{ name, dtype, shape: [...shape], data }];
  });
}

/** `like` gives the model and the name of the tensors' file. */
export function encodeAdapter({ config, tensors }: AdapterInput, like: FuzzInput): FuzzInput {
  return new Map([
    ...like,
    [CONFIG, Buffer.from(jsonText(config))],
    [tensorsFileOf(like), safetensorsOf(tensors)] as const,
  ]);
}

function jsonText(value: Json): string {
  if (typeof value === 'number') return Number.isNaN(value) ? 'NaN' : Object.is(value, -0) ? '-0' : numberText(value);
  if (Array.isArray(value)) return `[${value.map(jsonText).join(',')}]`;
  if (typeof value !== 'object' || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, item]) => `${JSON.stringify(key)}:${jsonText(item)}`)
    .join(',')}}`;
}

function numberText(value: number): string {
  return Number.isFinite(value) ? JSON.stringify(value) : value > 0 ? 'Infinity' : '-Infinity';
}

export function safetensorsOf(tensors: readonly RawTensor[]): Buffer {
  let end = 0;
  const entries = tensors.map(({ name, dtype, shape, data }) => {
    const offsets = [end, (end += data.length)];
    return `${JSON.stringify(name)}:${JSON.stringify({ dtype, shape, data_offsets: offsets })}`;
  });
  const json = Buffer.from(`{${entries.join(',')}}`);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, ...tensors.map(({ data }) => data)]);
}
