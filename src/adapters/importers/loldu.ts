/**
 * LoLDU (Shi et al. 2024): W = P L D U by torch.linalg.lu; the first r entries of D are trained as z:
 * ΔW = P L_r diag(f z - s D_r) U_r with s = lora_alpha / rank and f the trained factor, s where the file has none. One LOWRANK
 * term with A = U_r and B = P L_r diag(…). The factors are not in the file and are made again from the base's weights.
 *
 * Only the first r pivots matter, since later ones permute P and L together. A pivot that float32 cannot tell from another is
 * refused: all that follows would be another decomposition. Keys `<linear>.parametrizations.weight.0.vector_z [r]`
 * and `.scaling_factor []`; peft_type "LOLDU"; fields `rank`, `lora_alpha`.
 */
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { choiceField, integerField, numberField } from '../config-fields.js';
import { eachBaseBlock, rounded, toDoubles, Turns } from '../fold.js';
import type { AdapterImporter, BaseWeights, CompiledAdapter, ImportContext } from '../importer.js';
import { rowsOf, wrongTensor } from '../tensor-values.js';
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
import type { LinearTensors } from './linear-tensors.js';

const PREFIX = 'parametrizations.weight.0';
const [VECTOR, FACTOR] = [`${PREFIX}.vector_z`, `${PREFIX}.scaling_factor`] as const;
const KNOWN = ['init_loldu_weights', 'init_method', 'lora_alpha', 'lora_dropout_p', 'rank'];
/** Two candidates nearer than this, in units of the larger, may change places in float32. */
const TIE = 1e-5;

export const lolduImporter: AdapterImporter = {
  method: 'LOLDU',
  matches: (config) => isPeftType(config, 'LOLDU'),
  compile: compileLoldu,
};

async function compileLoldu(folder: AdapterFolder, { model, limits, base }: ImportContext): Promise<CompiledAdapter> {
  refuseOtherKeys(folder);
  const modules = groupLinears(folder, model, { parameters: [VECTOR, FACTOR] });
  const notes = checkPeftConfig(folder.config, KNOWN, modules);
  choiceField(folder.config, 'init_loldu_weights', ['ldu'] as const, 'ldu');
  const rank = integerField(folder.config, 'rank', 1);
  const scale = numberField(folder.config, 'lora_alpha') / rank;
  const budget = new FoldBudget(limits);
  for (const module of modules) {
    const [found = 0] = expectTensor(module, VECTOR, [-1]).shape;
    if (found !== rank) throw disagreement('rank', rank, module.path, `rank ${found}`);
    if (rank > Math.min(module.in, module.out)) {
      throw disagreement('rank', rank, module.path, `a weight of ${module.out} rows and ${module.in} columns`);
    }
    if (module.tensors.has(FACTOR)) expectTensor(module, FACTOR, []);
    checkRankLimit(rank, module.path, limits);
    budget.take(2 * rank * (module.in + module.out), module.path);
  }
  const terms: Term[] = [];
  for (const module of modules) {
    const z = toDoubles(await readParameter(folder, module, VECTOR));
    const factor = module.tensors.has(FACTOR) ? toDoubles(await readParameter(folder, module, FACTOR)) : [scale];
    const { lower, diagonal, upper } = await ldu(base, module, rank);
    const change = z.map((value, k) => (factor[0] as number) * value - scale * (diagonal[k] as number));
    const b = lower.map((value, i) => value * (change[i % rank] as number));
    const what = `the LU factors of ${module.path}`;
    const [first, second] = [rounded(what, [rank, module.in], upper), rounded(what, [module.out, rank], b)];
    for (const { site, firstRow, rows } of module.parts) {
      terms.push({ kind: 'lowrank', site, a: first, b: rowsOf(second, firstRow, rows), scale: 1 });
    }
  }
  const served =
    'Its factors are of the weights as they are served; on a quantised base they differ from the training.';
  return { terms: { terms }, notes: [...notes, served] };
}

interface Ldu {
  /** P L_r `[out, r]`, rows in W's order. */
  readonly lower: Float64Array;
  readonly diagonal: Float64Array;
  /** U_r with a unit diagonal `[r, in]`. */
  readonly upper: Float64Array;
}

/** The first r steps of W = P L D U with partial pivoting; reads r columns and r rows of W. */
export async function ldu(base: BaseWeights, module: LinearTensors, rank: number): Promise<Ldu> {
  const { out, in: width } = module;
  const lower = new Float64Array(out * rank);
  await eachBaseBlock(base, module, 1, (block, firstRow, rows) => {
    for (let i = 0; i < rows; i += 1) {
      for (let k = 0; k < rank; k += 1) lower[(firstRow + i) * rank + k] = block[i * width + k] as number;
    }
  });
  const diagonal = new Float64Array(rank);
  const upper = new Float64Array(rank * width);
  const used = new Uint8Array(out);
  const turns = new Turns();
  for (let k = 0; k < rank; k += 1) {
    // Column k of what is left of W, from the columns and rows before it.
    for (let i = 0; i < out; i += 1) {
      let value = lower[i * rank + k] as number;
      for (let j = 0; j < k; j += 1) {
        value -= (lower[i * rank + j] as number) * (diagonal[j] as number) * (upper[j * width + k] as number);
      }
      lower[i * rank + k] = used[i] === 1 ? 0 : value;
    }
    const pivot = pivotOf(lower, rank, k, used, module.path);
    const value = lower[pivot * rank + k] as number;
    const row = Float64Array.from(baseRow(base, module, pivot));
    for (let j = 0; j < k; j += 1) {
      const along = (lower[pivot * rank + j] as number) * (diagonal[j] as number);
      for (let c = 0; c < width; c += 1) row[c] = (row[c] as number) - along * (upper[j * width + c] as number);
    }
    for (let c = 0; c < width; c += 1) upper[k * width + c] = c < k ? 0 : (row[c] as number) / value;
    diagonal[k] = value;
    for (let i = 0; i < out; i += 1) lower[i * rank + k] = (lower[i * rank + k] as number) / value;
    used[pivot] = 1;
    await turns.after(2 * (k + 1) * (out + width));
  }
  return { lower, diagonal, upper };
}

/** The largest entry of the column among the rows that are left. In step 0 no arithmetic has been done: the first counts. */
function pivotOf(lower: Float64Array, rank: number, k: number, used: Uint8Array, path: string): number {
  let best = -1;
  let [largest, second] = [0, 0];
  used.forEach((done, i) => {
    if (done === 1) return;
    const size = Math.abs(lower[i * rank + k] as number);
    if (best === -1 || size > largest) [best, second, largest] = [i, largest, size];
    else if (size > second) second = size;
  });
  const tied = k > 0 && largest - second < TIE * largest;
  if (largest > 0 && !tied) return best;
  const reason = largest > 0 ? 'two candidates for a pivot are equal in float32' : 'a pivot is zero';
  throw wrongTensor(
    `${JSON.stringify(path)} cannot be made again from the base: in step ${k} of its LU decomposition ${reason}`,
    "Merge the adapter into its base with the repository's merge_loldu() and serve the result with --model.",
  );
}

function baseRow(base: BaseWeights, { parts }: LinearTensors, row: number): Float32Array {
  const part = parts.find(({ firstRow, rows }) => row >= firstRow && row < firstRow + rows);
  return part === undefined ? new Float32Array(0) : base.weight(part.site, row - part.firstRow, 1);
}

function refuseOtherKeys(folder: AdapterFolder): void {
  const other = [...folder.tensors.keys()].find((name) =>
    /\.parametrizations\.weight\.(?:original|0\.(?:P|lora_[AB]|lora_dropout_mask|layer_weights))$/.test(name),
  );
  if (other === undefined) return;
  throw wrongTensor(
    `${JSON.stringify(other)} is made from the base's weights, and only what was trained is taken`,
    'Save vector_z and scaling_factor alone: the rest is computed again from the base.',
  );
}
