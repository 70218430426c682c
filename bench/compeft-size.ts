/**
 * What a ComPEFT adapter takes beside the LoRA that it was made from: on disk, in the IR, and in the memory of the engine.
 *
 *   node dist/bench/compeft-size.js [--rank 16] [--density 0.1] [--base MODEL]
 *
 * A random bf16 LoRA on all linears of the base (SmolLM2-135M, the built-in model, when none is named) is compressed and both
 * are loaded. Prints a Markdown table; size does not depend on the values, only on how many are kept.
 */
import { mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import {
  CONFIG_FILE,
  DEFAULT_ADAPTER_LIMITS,
  openAdapterFolder,
  TENSORS_FILE,
} from '../src/adapters/adapter-folder.js';
import { compressAdapter } from '../src/adapters/compeft/compress.js';
import { PAYLOAD_TENSOR } from '../src/adapters/compeft/payload.js';
import { fromPlanes } from '../src/adapters/compeft/planes.js';
import { writeAdapterFolder } from '../src/adapters/convert/adapter-writer.js';
import { toNativeTerms } from '../src/adapters/native-terms.js';
import { fetchModel } from '../src/cli/fetch-model.js';
import { processEnvironment, readTextFile } from '../src/config/environment.js';
import { loadConfig } from '../src/config/load-config.js';
import { openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import type { TermSet } from '../src/core/terms.js';
import { compileFolder, openTestEngine, type TestEngine } from '../test/support/engine.js';
import { writeRandomLora } from '../test/support/random-lora.js';

const { values } = parseArgs({
  options: {
    rank: { type: 'string', default: '16' },
    density: { type: 'string', default: '0.1' },
    base: { type: 'string' },
  },
});

interface Size {
  readonly what: string;
  readonly bytes: number;
  /** Of the LoRA, that `bytes` stand against. */
  readonly of: number;
  readonly goal: string;
}

async function main(rank: number, density: number): Promise<void> {
  const config = loadConfig(values.base === undefined ? [] : [values.base], processEnvironment(), readTextFile);
  const checkpoint = await openCheckpoint(await fetchModel(config.model, process.stderr));
  const root = await mkdtemp(path.join(tmpdir(), 'manyfold-size-'));
  const test = await openTestEngine(checkpoint, { dtype: 'bf16', kvPages: 1, maxRows: 1 });
  try {
    const [lora, packed] = [path.join(root, 'lora'), path.join(root, 'packed')];
    await writeRandomLora(lora, checkpoint.config, { rank, seed: 1 });
    const parameters = await writePacked(lora, packed, density);
    const sizes = [...(await diskSizes(lora, packed)), ...(await memorySizes(test, lora, packed))];
    process.stdout.write(
      `ComPEFT at density ${density} beside LoRA r${rank} bf16 on all linears of ${path.basename(checkpoint.path)}: ` +
        `${parameters} values.\n\n${table(sizes, parameters)}`,
    );
  } finally {
    test.engine.dispose();
    await rm(root, { recursive: true, force: true });
  }
}

async function writePacked(lora: string, packed: string, density: number): Promise<number> {
  const folder = await openAdapterFolder(lora, { limits: DEFAULT_ADAPTER_LIMITS, keepTensors: false });
  const compress = compressAdapter(folder, { density, alpha: 1, scope: 'tensor' });
  const { config, payload, parameters } = await compress.finally(() => folder.close());
  const tensor = { name: PAYLOAD_TENSOR, dtype: 'U8', shape: [payload.length], data: payload } as const;
  await writeAdapterFolder(packed, config, [tensor]);
  return parameters;
}

/** Files and headers included. */
async function diskSizes(lora: string, packed: string): Promise<Size[]> {
  const of = await folderBytes(lora);
  return [{ what: 'on disk, both files', bytes: await folderBytes(packed), of, goal: '25' }];
}

async function folderBytes(folder: string): Promise<number> {
  const files = await Promise.all([CONFIG_FILE, TENSORS_FILE].map((name) => stat(path.join(folder, name))));
  return files.reduce((sum, { size }) => sum + size, 0);
}

async function memorySizes(test: TestEngine, lora: string, packed: string): Promise<Size[]> {
  const whole = await compileFolder(test, lora);
  const ternary = await compileFolder(test, packed);
  const of = bf16Bytes(whole);
  const engineOf = await engineBytes(test, whole);
  return [
    { what: 'two bits a value, and scales', bytes: denseBits(ternary), of, goal: '7.9' },
    { what: 'lists of u16 (column, sign), and their starts', bytes: listBytes(ternary), of, goal: '9.5' },
    { what: 'planes of the IR, rows in 32-bit words', bytes: planeBytes(ternary), of, goal: '' },
    { what: 'in the engine (termBytes)', bytes: await engineBytes(test, ternary), of: engineOf, goal: '9.5' },
  ];
}

async function engineBytes({ engine }: TestEngine, set: TermSet): Promise<number> {
  const before = engine.info().termBytes;
  const handle = await engine.loadTerms(toNativeTerms(set));
  const bytes = engine.info().termBytes - before;
  engine.freeTerms(handle);
  return bytes;
}

function bf16Bytes(set: TermSet): number {
  return factorsOf(set).reduce((sum, { shape: [rows = 0, cols = 0] }) => sum + 2 * rows * cols, 0);
}

/** Both planes without padding, and a float32. */
function denseBits(set: TermSet): number {
  return factorsOf(set).reduce((sum, { shape: [rows = 0, cols = 0] }) => sum + 2 * Math.ceil((rows * cols) / 8) + 4, 0);
}

/**
 * One list for each of the r rows of A and columns of B: 15 bits of place and the sign for each non-zero, 32-bit starts, and a
 * float32.
 */
function listBytes(set: TermSet): number {
  return factorsOf(set).reduce((sum, factor) => {
    const { shape } = factor;
    const nonZeros = factor.dtype === 'ternary' ? fromPlanes(factor).positions.length : 0;
    return sum + 2 * nonZeros + 4 * (Math.min(shape[0] ?? 0, shape[1] ?? 0) + 1) + 4;
  }, 0);
}

function planeBytes(set: TermSet): number {
  return factorsOf(set).reduce(
    (sum, factor) =>
      sum + (factor.dtype === 'ternary' ? factor.positive.byteLength + factor.negative.byteLength + 4 : 0),
    0,
  );
}

function factorsOf({ terms }: TermSet) {
  return terms.flatMap((term) => (term.kind === 'lowrank' ? [term.a, term.b] : []));
}

function table(sizes: readonly Size[], parameters: number): string {
  const rows = sizes.map(({ what, bytes, of, goal }) => {
    const perGib = (size: number): string => (2 ** 30 / size).toFixed(0);
    const cells = [
      what,
      bytes,
      ((8 * bytes) / parameters).toFixed(3),
      perGib(bytes),
      perGib(of),
      `${(of / bytes).toFixed(2)}×`,
    ];
    return `| ${[...cells, goal === '' ? '' : `≥ ${goal}×`].join(' | ')} |\n`;
  });
  const head =
    '| form | bytes | bits a value | adapters a GiB | LoRA a GiB | smaller | goal |\n|---|---:|---:|---:|---:|---:|---:|\n';
  return head + rows.join('');
}

await main(Number(values.rank), Number(values.density));
