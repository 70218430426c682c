/**
 * PEFT LoKr (Yeh et al. 2024, LyCORIS): ΔW = s · w1 ⊗ w2, s = alpha / r; w1 `[o1, i1]` or w1_a w1_b, w2 `[o2, i2]` or
 * w2_a w2_b. With x seen as `[i1, i2]`, Δ = w1 X w2ᵀ seen as `[o1, o2]`: an additive BLOCKDIAG chain that applies one
 * factor to all rows of X and then the other to all columns, in the cheaper order. A pair stays two stages where
 * that is smaller than its product.
 */
import type { BlockStage, DenseTensor, Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { additiveTerms, copies, indices } from '../block-chain.js';
import { refuseField } from '../config-fields.js';
import { product, rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { wrongTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  disagreement,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
  parseRanks,
  RANK_FIELDS,
  readParameter,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';

const PARAMETERS = ['lokr_w1', 'lokr_w1_a', 'lokr_w1_b', 'lokr_w2', 'lokr_w2_a', 'lokr_w2_b'];
const KNOWN = [
  ...RANK_FIELDS,
  'decompose_both',
  'decompose_factor',
  'module_dropout',
  'rank_dropout',
  'rank_dropout_scale',
  'use_effective_conv2d',
];

export const lokrImporter: AdapterImporter = {
  method: 'LOKR',
  matches: (config) => isPeftType(config, 'LOKR'),
  compile: compileLokr,
};

/** One factor `[p, q]` as the headers tell it; `rank` where it is a pair. */
interface Factor {
  readonly name: 'lokr_w1' | 'lokr_w2';
  readonly p: number;
  readonly q: number;
  readonly rank: number | undefined;
}

async function compileLokr(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  refuseConvolutions(folder);
  const modules = groupLinears(folder, model, { parameters: PARAMETERS });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const ranks = parseRanks(folder.config);
  const budget = new FoldBudget(limits);
  const plans = modules.map((module) => {
    const factors = factorsOf(module, ranks.rank(module.path));
    budget.take(planOf(factors).size, module.path);
    return factors;
  });
  const terms: Term[] = [];
  const turns = new Turns();
  for (const [i, module] of modules.entries()) {
    const factors = plans[i] as [Factor, Factor];
    const scale = ranks.alpha(module.path) / ranks.rank(module.path);
    const { stages, output } = await chainOf(folder, module, factors);
    terms.push(...additiveTerms(module, stages, output, scale));
    await turns.after(16 * planOf(factors).size);
  }
  return { terms: { terms }, notes };
}

function factorsOf(module: LinearTensors, rank: number): [Factor, Factor] {
  const [w1, w2] = [factorOf(module, 'lokr_w1'), factorOf(module, 'lokr_w2')];
  for (const factor of [w1, w2]) {
    if (factor.rank !== undefined && factor.rank !== rank)
      throw disagreement('r', rank, module.path, `rank ${factor.rank}`);
  }
  if (w1.p * w2.p !== module.out || w1.q * w2.q !== module.in) {
    throw wrongTensor(
      `${JSON.stringify(module.path)} has factors [${w1.p}, ${w1.q}] and [${w2.p}, ${w2.q}], whose Kronecker product is ` +
        `[${w1.p * w2.p}, ${w1.q * w2.q}], expected [${module.out}, ${module.in}]`,
      'The adapter was trained for another base; serve it on that one.',
    );
  }
  return [w1, w2];
}

function factorOf(module: LinearTensors, name: Factor['name']): Factor {
  const [first, second] = [`${name}_a`, `${name}_b`];
  const paired = module.tensors.has(first) || module.tensors.has(second);
  if (!paired) {
    const [p = 0, q = 0] = expectTensor(module, name, [-1, -1]).shape;
    return { name, p, q, rank: undefined };
  }
  if (module.tensors.has(name)) {
    throw wrongTensor(
      `${JSON.stringify(module.path)} has both ${name} and ${first}, ${second}`,
      'Which of them counts cannot be known; save the adapter again.',
    );
  }
  const [p = 0, rank = 0] = expectTensor(module, first, [-1, -1]).shape;
  const [, q = 0] = expectTensor(module, second, [rank, -1]).shape;
  return { name, p, q, rank };
}

/** Whether two stages are smaller than their product. */
function staysPair({ p, q, rank }: Factor): boolean {
  return rank !== undefined && rank * (p + q) < p * q;
}

function sizeOf(factor: Factor): number {
  return staysPair(factor) ? (factor.rank ?? 0) * (factor.p + factor.q) : factor.p * factor.q;
}

/** Values of all stages: w2 first has i1 copies of w2 and o2 of w1; w1 first has i2 of w1 and o1 of w2. */
function planOf([w1, w2]: readonly [Factor, Factor]): { readonly size: number; readonly w2First: boolean } {
  const w2First = w1.q * sizeOf(w2) + w2.p * sizeOf(w1);
  const w1First = w2.q * sizeOf(w1) + w1.p * sizeOf(w2);
  return { size: Math.min(w2First, w1First), w2First: w2First <= w1First };
}

async function chainOf(
  folder: AdapterFolder,
  module: LinearTensors,
  factors: readonly [Factor, Factor],
): Promise<{ stages: BlockStage[]; output: Uint32Array }> {
  const [w1, w2] = factors;
  const [first, second] = [await stagesOf(folder, module, w1), await stagesOf(folder, module, w2)];
  const { out } = module;
  if (planOf(factors).w2First) {
    // [i1, i2] → w2 → [i1, o2] → transposed [o2, i1] → w1 → [o2, o1] → transposed [o1, o2].
    const turned = indices(w2.p * w1.q, (i) => (i % w1.q) * w2.p + Math.floor(i / w1.q));
    return {
      stages: [...second(w1.q), ...first(w2.p, turned)],
      output: indices(out, (i) => (i % w2.p) * w1.p + Math.floor(i / w2.p)),
    };
  }
  // [i1, i2] → transposed [i2, i1] → w1 → [i2, o1] → transposed [o1, i2] → w2 → [o1, o2].
  const before = indices(module.in, (i) => (i % w1.q) * w2.q + Math.floor(i / w1.q));
  const between = indices(w1.p * w2.q, (i) => (i % w2.q) * w1.p + Math.floor(i / w2.q));
  return { stages: [...first(w2.q, before), ...second(w1.p, between)], output: indices(out, (i) => i) };
}

/** Gives the stages that apply the factor to `count` runs of q values. */
async function stagesOf(
  folder: AdapterFolder,
  module: LinearTensors,
  factor: Factor,
): Promise<(count: number, gather?: Uint32Array) => BlockStage[]> {
  const { name, p, q, rank } = factor;
  const stage = (blocks: DenseTensor, gather?: Uint32Array): BlockStage => ({
    blocks,
    ...(gather === undefined ? {} : { gather }),
  });
  if (rank === undefined) {
    const whole = await readParameter(folder, module, name);
    return (count, gather) => [stage(copies(whole, count, p, q), gather)];
  }
  const a = await readParameter(folder, module, `${name}_a`);
  const b = await readParameter(folder, module, `${name}_b`);
  if (staysPair(factor)) {
    return (count, gather) => [stage(copies(b, count, rank, q), gather), stage(copies(a, count, p, rank))];
  }
  const folded = product(toDoubles(a), toDoubles(b), p, rank, q);
  const whole = rounded(`${name}_a ${name}_b of ${module.path}`, [p, q], folded);
  return (count, gather) => [stage(copies(whole, count, p, q), gather)];
}

function refuseConvolutions(folder: AdapterFolder): void {
  const core = [...folder.tensors.keys()].find((name) => /\.lokr_t2(?:\.|$)/.test(name));
  if (core !== undefined) {
    throw wrongTensor(
      `${JSON.stringify(core)} is the Tucker core of a convolution, which the base does not have`,
      'Serve it with the image model that it was trained for; for a language model train LoKr on linears.',
    );
  }
  refuseField(folder.config, 'use_effective_conv2d', 'convolutions are not served', 'Train it on linears, without it.');
}
