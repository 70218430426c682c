/**
 * PEFT OFT from 0.14 on (Qiu et al. 2023; the Neumann form is OFTv2, Qiu et al. 2025): y = W (R x) with one rotation for
 * each block of the input, R = Cayley(Q) of a skew-symmetric Q whose upper triangle the file holds. A BLOCKDIAG term
 * before the base product. PEFT multiplies rows, x R, so the blocks are the transposes of its R.
 */
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { preTerms } from '../block-chain.js';
import { flagField, integerField, numberField, refused, show } from '../config-fields.js';
import { rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { wrongTensor } from '../tensor-values.js';
import { cayleyTransposed, neumannTransposed } from './cayley.js';
import {
  checkPeftConfig,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const KNOWN = [
  'block_share',
  'coft',
  'eps',
  'module_dropout',
  'num_cayley_neumann_terms',
  'oft_block_size',
  'r',
  'use_cayley_neumann',
];
const MAX_TERMS = 64;

export const oftImporter: AdapterImporter = {
  method: 'OFT',
  matches: (config) => isPeftType(config, 'OFT'),
  compile: compileOft,
};

export interface OftConfig {
  readonly blocks: number;
  readonly blockSize: number;
  readonly shared: boolean;
  /** Largest Frobenius norm of all Q together (COFT). */
  readonly eps: number | undefined;
  /** Powers of the Neumann series; undefined: the exact inverse. */
  readonly terms: number | undefined;
  readonly lastTwice: boolean;
}

async function compileOft(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  refuseOldKeys(folder);
  const modules = groupLinears(folder, model, { parameters: ['oft_R.weight'] });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const config = parseOft(folder.config);
  const budget = new FoldBudget(limits);
  for (const module of modules) budget.take(module.in * blockSizeOf(module, config), module.path);
  const terms: Term[] = [];
  const turns = new Turns();
  for (const module of modules) {
    const size = blockSizeOf(module, config);
    const triangles = toDoubles(await readParameter(folder, module, 'oft_R.weight'));
    const rotations = await oftRotations(triangles, size, config, turns);
    const count = module.in / size;
    const blocks = new Float64Array(count * size * size);
    for (let i = 0; i < count; i += 1) blocks.set(rotations[config.shared ? 0 : i] as Float64Array, i * size * size);
    const rotation = rounded(`the rotation of ${module.path}`, [count, size, size], blocks);
    terms.push(...preTerms(module, [{ blocks: rotation }]));
  }
  return { terms: { terms }, notes: [...notes, ...config.notes] };
}

/** Rᵀ `[size, size]` of each row of the upper triangles `[n, size (size - 1) / 2]`. */
export async function oftRotations(
  triangles: Float64Array,
  size: number,
  config: Pick<OftConfig, 'eps' | 'lastTwice' | 'terms'>,
  turns: Turns,
): Promise<Float64Array[]> {
  const elements = (size * (size - 1)) / 2;
  const count = triangles.length / elements;
  const result: Float64Array[] = [];
  for (let i = 0; i < count; i += 1) {
    const q = skew(triangles.subarray(i * elements, (i + 1) * elements), size);
    if (config.eps !== undefined) project(q, config.eps / Math.sqrt(count));
    result.push(
      config.terms === undefined
        ? cayleyTransposed(q, size)
        : neumannTransposed(q, size, config.terms, config.lastTwice),
    );
    await turns.after(size ** 3 * (config.terms ?? 3));
  }
  return result;
}

/** Q of its upper triangle, row by row, without the diagonal. */
function skew(triangle: Float64Array, size: number): Float64Array {
  const q = new Float64Array(size * size);
  let at = 0;
  for (let i = 0; i < size; i += 1) {
    for (let j = i + 1; j < size; j += 1) {
      const value = triangle[at] as number;
      q[i * size + j] = value;
      q[j * size + i] = -value;
      at += 1;
    }
  }
  return q;
}

/** COFT: back onto the ball of radius `eps` (Frobenius). */
function project(q: Float64Array, eps: number): void {
  const norm = Math.sqrt(q.reduce((sum, value) => sum + value * value, 0));
  if (norm <= eps) return;
  for (let i = 0; i < q.length; i += 1) q[i] = ((q[i] as number) * eps) / norm;
}

function parseOft(config: JsonObject): OftConfig & { readonly notes: readonly string[] } {
  if (config['oft_block_size'] === undefined) {
    throw refused(
      'oft_block_size',
      'missing: the adapter was made by PEFT before 0.14, whose OFT is another parametrisation',
      "Merge it into its base with PEFT 0.13's merge_and_unload() and serve the result with --model.",
    );
  }
  const [blocks, blockSize] = [integerField(config, 'r', 0, 0), integerField(config, 'oft_block_size', 0)];
  if ((blocks === 0) === (blockSize === 0)) {
    throw refused(
      'oft_block_size',
      `${blockSize} with r ${blocks}, expected one of them to be 0`,
      'Correct the config.',
    );
  }
  const neumann = flagField(config, 'use_cayley_neumann', false);
  const terms = neumann ? integerField(config, 'num_cayley_neumann_terms', 1, 5) : undefined;
  if (terms !== undefined && terms > MAX_TERMS) {
    throw refused(
      'num_cayley_neumann_terms',
      `${terms}, at most ${MAX_TERMS} is allowed`,
      'Use the exact form instead.',
    );
  }
  const lastTwice = neumann && isBefore018(config);
  const eps = flagField(config, 'coft', false) ? numberField(config, 'eps', 6e-5) : undefined;
  return {
    blocks,
    blockSize,
    shared: flagField(config, 'block_share', false),
    eps,
    terms,
    lastTwice,
    notes: lastTwice ? ["It was trained with PEFT before 0.18 and is served with that version's Neumann series."] : [],
  };
}

/** PEFT writes its version from 0.18 on, the release that changed the Neumann series. */
function isBefore018(config: JsonObject): boolean {
  const version = config['peft_version'];
  if (version === undefined || version === null) return true;
  const match = typeof version === 'string' ? /^(\d{1,4})\.(\d{1,4})\.([^@]*)/.exec(version) : null;
  const [, major, minor, rest = ''] = match ?? [];
  const order = Number(major) * 10_000 + Number(minor);
  const between = (order === 17 && rest.includes('dev')) || (order === 18 && /^0\.?(?:dev|rc|a|b)/.test(rest));
  if (match === null || between) {
    throw refused(
      'peft_version',
      `${show(version)}: the Neumann series changed in PEFT 0.18.0, and which one this version has cannot be known`,
      'Write the release that the adapter was trained with, e.g. "0.17.1" or "0.18.0".',
    );
  }
  return order < 18;
}

/** Of the triangle's length b (b - 1) / 2; checked against the config as PEFT would adjust it. */
function blockSizeOf(module: LinearTensors, { blocks, blockSize, shared }: OftConfig): number {
  const [count = 0, elements = 0] = expectTensor(module, 'oft_R.weight', [-1, -1]).shape;
  const size = Math.round((1 + Math.sqrt(1 + 8 * elements)) / 2);
  if ((size * (size - 1)) / 2 !== elements || module.in % size !== 0 || count !== (shared ? 1 : module.in / size)) {
    throw wrongTensor(
      `${JSON.stringify(module.path)} has oft_R.weight [${count}, ${elements}], expected triangles of ${module.in} / b ` +
        `blocks [b, b]${shared ? ', of which one is shared' : ''}`,
      'The adapter was trained for another base, or block_share is not what it was trained with.',
    );
  }
  const expected =
    blockSize === 0 ? module.in / nearestDivisor(module.in, blocks) : nearestDivisor(module.in, blockSize);
  if (expected !== size) throw disagreement('oft_block_size', expected, module.path, `blocks of ${size}`);
  return size;
}

/** What PEFT makes of a size that does not divide the width: the nearest divisor, the smaller one of two. */
function nearestDivisor(width: number, wanted: number): number {
  if (wanted >= width) return width;
  let [lower, higher] = [wanted, wanted];
  while (lower > 1 && width % lower !== 0) lower -= 1;
  while (width % higher !== 0) higher += 1;
  return wanted - lower <= higher - wanted ? lower : higher;
}

function refuseOldKeys(folder: AdapterFolder): void {
  const embedding = [...folder.tensors.keys()].find((name) => name.includes('.oft_embedding_R.'));
  if (embedding !== undefined) {
    throw wrongTensor(
      `${JSON.stringify(embedding)} rotates the embedding, which has no base product to stand before`,
      'Train it without embed_tokens among its target modules, or merge it and serve the result with --model.',
    );
  }
  const old = [...folder.tensors.keys()].find((name) => /\.oft_r(?:\.|$)/.test(name));
  if (old === undefined) return;
  throw wrongTensor(
    `${JSON.stringify(old)} is of PEFT before 0.14, whose OFT is another parametrisation`,
    "Merge it into its base with PEFT 0.13's merge_and_unload() and serve the result with --model.",
  );
}
