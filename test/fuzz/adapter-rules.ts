/**
 * What must hold of an adapter that compiles: the addon takes its terms (so shapes, indices and values are checked), they keep the
 * limits, two compilations are alike, every tensor was read, and a tensor or a field that nobody knows is refused. Called by the
 * importers' fuzz targets.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import path from 'node:path';
import { isDeepStrictEqual } from 'node:util';

import { nativeBaseWeights } from '../../src/adapters/base-weights.js';
import type { AdapterFolder, AdapterLimits } from '../../src/adapters/adapter-folder.js';
import { importerOf } from '../../src/adapters/compile-adapter.js';
import type { CompiledAdapter, ImportContext } from '../../src/adapters/importer.js';
import { termSetFacts, toNativeTerms } from '../../src/adapters/native-terms.js';
import { toFloats } from '../../src/adapters/tensor-values.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { SafetensorsTensor } from '../../src/checkpoint/safetensors.js';
import { ManyfoldError } from '../../src/core/errors.js';
import type { JsonObject } from '../../src/checkpoint/strict-json.js';
import { openTestEngine } from '../support/engine.js';
import type { TestEngine } from '../support/engine.js';
import { BrokenRule } from './harness.js';

export const LIMITS: AdapterLimits = { maxRank: 64, maxBytes: 1 << 20 };
/** Shapes of one size more than the file's may come out of a fold; never many. */
const MAX_TERM_BYTES = 4 * LIMITS.maxBytes;

export interface FuzzBase {
  readonly engine: TestEngine;
  readonly context: ImportContext;
}

const bases = new Map<string, Promise<FuzzBase>>();

/** A tiny model of test/goldens/models, opened once. */
export function openBase(model: string): Promise<FuzzBase> {
  const found = bases.get(model) ?? startBase(model);
  bases.set(model, found);
  return found;
}

async function startBase(model: string): Promise<FuzzBase> {
  const checkpoint = await openCheckpoint(path.join('test', 'goldens', 'models', model));
  const engine = await openTestEngine(checkpoint, { threads: 1, kvPages: 4, maxRows: 4 });
  const context = { model: checkpoint.config, base: nativeBaseWeights(engine.engine), limits: LIMITS };
  return { engine, context };
}

export async function closeBases(): Promise<void> {
  for (const base of bases.values()) (await base).engine.engine.dispose();
  bases.clear();
}

/** An adapter folder in memory. */
export interface MemoryFolder {
  readonly config: JsonObject;
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  /** Of the tensor, in a buffer of their own. */
  readonly bytes: (name: string) => Uint8Array;
}

/** Compiles and checks every rule; refusals pass through. Returns the kinds of terms, as an outcome in a word. */
export async function checkedCompile(folder: MemoryFolder, model: string): Promise<string> {
  const base = await openBase(model);
  const { compiled, read } = await compile(folder, base);
  await checkTerms(compiled, base);
  const again = await compile(folder, base);
  if (!isDeepStrictEqual(compiled, again.compiled)) throw new BrokenRule('two compilations of one file differ');
  checkRead(folder, read);
  await checkRefusals(folder, base);
  const kinds = Object.keys(termSetFacts(compiled.terms).kinds).sort();
  return `compiled: ${[...kinds, ...(compiled.terms.softPrompt === undefined ? [] : ['soft prompt'])].join(' ')}`;
}

async function compile(
  { config, tensors, bytes }: MemoryFolder,
  { context }: FuzzBase,
): Promise<{ compiled: CompiledAdapter; read: ReadonlySet<string> }> {
  const read = new Set<string>();
  const folder: AdapterFolder = {
    directory: 'adapter',
    config,
    tensors,
    read: async (name) => {
      read.add(name);
      await nextTurn();
      return bytes(name);
    },
    readTexts: () => Promise.reject(new Error('no importer reads texts')),
    close: () => Promise.resolve(),
  };
  return { compiled: await importerOf(folder).compile(folder, context), read };
}

async function checkTerms({ terms, notes }: CompiledAdapter, { engine, context }: FuzzBase): Promise<void> {
  const facts = termSetFacts(terms);
  const { model, limits } = context;
  if (facts.bytes > MAX_TERM_BYTES) throw new BrokenRule(`it compiled to ${facts.bytes} bytes of terms`);
  if (facts.maxRank > limits.maxRank) throw new BrokenRule(`it compiled to rank ${facts.maxRank}`);
  if (facts.prefixTokens + facts.softPromptTokens >= model.maxPositions)
    throw new BrokenRule('its prefix leaves no position');
  const { softPrompt, invocation } = terms;
  if (softPrompt !== undefined) {
    const [rows = 0, width] = softPrompt.shape;
    const values = toFloats(softPrompt);
    if (rows < 1 || width !== model.hiddenSize || values.length !== rows * width || !values.every(Number.isFinite)) {
      throw new BrokenRule(`a soft prompt of shape [${softPrompt.shape.join(', ')}], or with NaN or infinity in it`);
    }
  }
  if (invocation?.every((id) => Number.isInteger(id) && id >= 0 && id < model.vocabSize) === false) {
    throw new BrokenRule(`an invocation of ${JSON.stringify(invocation)}`);
  }
  if (terms.terms.length === 0 && softPrompt === undefined && notes.length === 0) {
    throw new BrokenRule('it compiled to nothing, without a note');
  }
  try {
    engine.engine.freeTerms(await engine.engine.loadTerms(toNativeTerms(terms)));
  } catch (error) {
    throw new BrokenRule(`the addon does not take its terms: ${String(error)}`);
  }
}

/** Tensors whose values the served result does not depend on, so that nobody reads them. */
const UNREAD: readonly RegExp[] = [];

function checkRead({ tensors }: MemoryFolder, read: ReadonlySet<string>): void {
  const unread = [...tensors.keys()].filter((name) => !read.has(name) && !UNREAD.some((known) => known.test(name)));
  if (unread.length > 0) throw new BrokenRule(`it compiled without reading ${JSON.stringify(unread.slice(0, 4))}`);
}

/** With something in it that nobody knows, the same adapter must be refused. */
async function checkRefusals(folder: MemoryFolder, base: FuzzBase): Promise<void> {
  const [first] = folder.tensors.values();
  const own = first?.name ?? '';
  const strangers = [
    'stranger',
    `${own}_stranger`,
    own.replace(/layers\.\d+|blk\.\d+/, '$&9999'),
    own.replace(/(self_attn|mlp)\.\w+/, '$1.stranger'),
    `base_model.model.model.layers.0.self_attn.q_proj.stranger`,
  ];
  for (const name of new Set(strangers)) {
    if (folder.tensors.has(name)) continue;
    const data = first === undefined ? new Uint8Array(4) : folder.bytes(own);
    const tensor = first ?? { name, dtype: 'F32', shape: [1], offset: 0, byteLength: 4 };
    const tensors = new Map([...folder.tensors, [name, { ...tensor, name }] as const]);
    const bytes = (asked: string): Uint8Array => (asked === name ? data.slice() : folder.bytes(asked));
    await mustRefuse({ ...folder, tensors, bytes }, base, `the tensor ${JSON.stringify(name)}`);
  }
  if (folder.config['general.architecture'] !== undefined) return;
  const config = { ...folder.config, use_stranger: true };
  await mustRefuse({ ...folder, config }, base, 'the field "use_stranger": true');
}

async function mustRefuse(folder: MemoryFolder, base: FuzzBase, what: string): Promise<void> {
  try {
    await compile(folder, base);
  } catch (error) {
    if (error instanceof ManyfoldError && error.code === 'invalid_adapter') return;
    throw error;
  }
  throw new BrokenRule(`it also compiles with ${what}`);
}
