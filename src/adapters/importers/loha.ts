/**
 * PEFT LoHa (FedPara, Hyeon-Woo et al. 2022): ΔW = s (w1_a w1_b) ⊙ (w2_a w2_b), s = alpha / r. By the mixed product of
 * Khatri and Rao this is one LOWRANK term of rank r²: column (k, l) of B is w1_a[:, k] ⊙ w2_a[:, l], row (k, l) of A is
 * w1_b[k, :] ⊙ w2_b[l, :].
 */
import type { DenseTensor } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refused, refuseField } from '../config-fields.js';
import { rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { rowsOf, wrongTensor } from '../tensor-values.js';
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

const FACTORS = ['hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'] as const;
const KNOWN = [...RANK_FIELDS, 'module_dropout', 'rank_dropout', 'use_effective_conv2d'];

export const lohaImporter: AdapterImporter = {
  method: 'LOHA',
  matches: (config) => isPeftType(config, 'LOHA'),
  compile: compileLoha,
};

async function compileLoha(folder: AdapterFolder, { model, limits }: ImportContext): Promise<CompiledAdapter> {
  refuseConvolutions(folder);
  const modules = groupLinears(folder, model, { parameters: FACTORS });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  const ranks = parseRanks(folder.config);
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    const rank = rankOf(module, ranks.rank(module.path));
    if (rank * rank > limits.maxRank) {
      throw refused(
        'r',
        `${rank} for ${JSON.stringify(module.path)}, which is served with rank r² = ${rank * rank}; at most ` +
          `${limits.maxRank} is allowed`,
        'Raise --max-lora-rank.',
      );
    }
    budget.take(rank * rank * (module.in + module.out), module.path);
  }
  const terms: CompiledAdapter['terms']['terms'][number][] = [];
  const turns = new Turns();
  for (const module of modules) {
    const [a1, b1, a2, b2] = await Promise.all(FACTORS.map((name) => readParameter(folder, module, name)));
    const rank = rankOf(module, ranks.rank(module.path));
    const { a, b } = khatriRao(module, rank, [a1, b1, a2, b2] as DenseTensor[]);
    const scale = ranks.alpha(module.path) / rank;
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a, b: rowsOf(b, firstRow, rows), scale });
    }
    await turns.after(16 * rank * rank * (module.in + module.out));
  }
  return { terms: { terms }, notes };
}

/** The rank of the factors, checked on the headers. */
function rankOf(module: LinearTensors, expected: number): number {
  const rank = expectTensor(module, 'hada_w1_a', [module.out, -1]).shape[1] ?? 0;
  expectTensor(module, 'hada_w1_b', [rank, module.in]);
  expectTensor(module, 'hada_w2_a', [module.out, rank]);
  expectTensor(module, 'hada_w2_b', [rank, module.in]);
  if (rank !== expected) throw disagreement('r', expected, module.path, `rank ${rank}`);
  return rank;
}

/** A `[r², in]` and B `[out, r²]` of w1_a, w2_a `[out, r]` and w1_b, w2_b `[r, in]`. */
function khatriRao(
  module: LinearTensors,
  r: number,
  factors: readonly DenseTensor[],
): { a: DenseTensor; b: DenseTensor } {
  const [a1, b1, a2, b2] = factors.map(toDoubles) as [Float64Array, Float64Array, Float64Array, Float64Array];
  const { out, in: width, path } = module;
  const a = new Float64Array(r * r * width);
  const b = new Float64Array(out * r * r);
  for (let k = 0; k < r; k += 1) {
    for (let l = 0; l < r; l += 1) {
      const at = k * r + l;
      for (let j = 0; j < width; j += 1)
        a[at * width + j] = (b1[k * width + j] as number) * (b2[l * width + j] as number);
      for (let i = 0; i < out; i += 1) b[i * r * r + at] = (a1[i * r + k] as number) * (a2[i * r + l] as number);
    }
  }
  const what = `LoHa's product for ${path}`;
  return { a: rounded(what, [r * r, width], a), b: rounded(what, [out, r * r], b) };
}

function refuseConvolutions(folder: AdapterFolder): void {
  const core = [...folder.tensors.keys()].find((name) => /\.hada_t[12](?:\.|$)/.test(name));
  if (core !== undefined) {
    throw wrongTensor(
      `${JSON.stringify(core)} is the Tucker core of a convolution, which the base does not have`,
      'Serve it with the image model that it was trained for; for a language model train LoHa on linears.',
    );
  }
  refuseField(folder.config, 'use_effective_conv2d', 'convolutions are not served', 'Train it on linears, without it.');
}
