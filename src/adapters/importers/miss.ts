/**
 * PEFT MiSS (Kang and Yin 2024), which began as Bone: the input, filled up with zeros to a multiple of r, is summed over its
 * runs of r values, and the sum is multiplied by the block D `[r, out]`. One LOWRANK term: A[j, i] = 1 where i mod r = j,
 * B = Dᵀ; in mini form D is `[r, mini_r]`, repeated along the outputs.
 */
import type { DenseTensor, TermTensor, Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { rearranged } from '../block-chain.js';
import { integerField, refused, show } from '../config-fields.js';
import { Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { rowsOf } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  readParameter,
} from './linear-tensors.js';

/** 1 in bf16. */
const ONE = 0x3f80;

export const missImporter = importerOf('MISS', 'miss_block', ['mini_r', 'miss_dropout', 'r']);
/** The name until PEFT 0.17; the same maths. */
export const boneImporter = importerOf('BONE', 'bone_block', ['r']);

function importerOf(method: string, parameter: string, known: readonly string[]): AdapterImporter {
  return {
    method,
    matches: (config) => isPeftType(config, method),
    compile: (folder, context) => compileMiss(folder, context, parameter, known),
  };
}

async function compileMiss(
  folder: AdapterFolder,
  { model, limits }: ImportContext,
  parameter: string,
  known: readonly string[],
): Promise<CompiledAdapter> {
  const { config } = folder;
  const init = config['init_weights'] ?? true;
  if (init === 'bat') {
    throw refused(
      'init_weights',
      '"bat", whose change of a weight is the weight times a block: it is dense and belongs to each base weight',
      "Merge it into its base with PEFT's merge_and_unload() and serve the result with --model, or train it with " +
        'init_weights=True.',
    );
  }
  if (typeof init !== 'boolean' && init !== 'mini') {
    const problem = `${show(init)}, expected true, false or "mini", as PEFT writes it`;
    throw refused('init_weights', problem, 'Write the value that the adapter was trained with.');
  }
  const modules = groupLinears(folder, model, { parameters: [parameter] });
  const notes = checkPeftConfig(config, known, modules);
  const rank = integerField(config, 'r', 1);
  const mini = init === 'mini' ? integerField(config, 'mini_r', 1, 1) : undefined;
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    const [found = 0] = expectTensor(module, parameter, [-1, mini ?? module.out]).shape;
    if (found !== rank) throw disagreement('r', rank, module.path, `rank ${found}`);
    if (rank > module.in) throw disagreement('r', rank, module.path, `${module.in} inputs, and r is at most that`);
    if (mini !== undefined && module.out % mini !== 0) {
      throw disagreement('mini_r', mini, module.path, `${module.out} outputs, which is no multiple`);
    }
    checkRankLimit(rank, module.path, limits);
    budget.take(rank * (module.in + module.out), module.path);
  }
  const terms: Term[] = [];
  const turns = new Turns();
  const tiles = new Map<number, TermTensor>();
  for (const module of modules) {
    const a = tiles.get(module.in) ?? tile(rank, module.in);
    tiles.set(module.in, a);
    const block = await readParameter(folder, module, parameter);
    const b = spread(block, module.out, rank, mini ?? module.out);
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(b, firstRow, rows), scale: 1 });
    }
    await turns.after(16 * rank * module.out);
  }
  return { terms: { terms }, notes };
}

/** A `[r, in]`: rank and width say all of it, so all adapters share it. */
function tile(rank: number, width: number): TermTensor {
  const data = new Uint16Array(rank * width);
  for (let i = 0; i < width; i += 1) data[(i % rank) * width + i] = ONE;
  return { dtype: 'bf16', shape: [rank, width], data, shared: `miss-tile-${rank}-${width}` };
}

/** B `[out, r]` of D `[r, cols]`: B[o, j] = D[j, o mod cols]. */
function spread(block: DenseTensor, out: number, rank: number, cols: number): DenseTensor {
  return rearranged(block, [out, rank], (i) => (i % rank) * cols + (Math.floor(i / rank) % cols));
}
