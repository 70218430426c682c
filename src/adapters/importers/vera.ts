/**
 * Methods whose adapters share one pair of random or trained projections and own only vectors, one LOWRANK term a linear:
 *
 *     VeRA (Kopiczko et al. 2024, peft tuners/vera):  Δ = λ_b ⊙ (B[:out] (λ_d ⊙ (A[:, :in] x)))
 *     PVeRA (peft tuners/pvera):                      the same with the mean half of A and λ_d
 *     S2-LoRA (sparsely shared LoRA, Liu et al. 2023): Δ = scale · B (λ ⊙ (A x))
 *
 * Keys of VeRA: `base_model.vera_A [r, max_in]`, `base_model.vera_B [max_out, r]`, on linears `vera_lambda_d [r]`,
 * `vera_lambda_b [out]`. PVeRA: pvera_A `[2r, max_in]`, pvera_lambda_d `[2r]`. S2-LoRA has no public file; ours is peft_type
 * "S2LORA" with `base_model.s2lora_A`, `base_model.s2lora_B`, on linears `s2lora_lambda [r]`, and the field `scale` (1).
 * A and B are named by content, so that backends hold one copy for all adapters that bring them.
 */
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { LowRankTerm, TermTensor } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { flagField, integerField, numberField, refuseField, refused } from '../config-fields.js';
import { Turns } from '../fold.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkShape, readFloats, readTensor } from '../tensor-values.js';
import {
  checkPeftConfig,
  checkRankLimit,
  expectTensor,
  FoldBudget,
  groupLinears,
  isPeftType,
} from './linear-tensors.js';
import type { LinearTensors } from './linear-tensors.js';
import { neededTensor, sharedCorner, sharedRows, sharedTensor, takeModelTensors } from './module-tensors.js';
import type { SharedTensor } from './module-tensors.js';

interface SharedMethod {
  readonly method: string;
  readonly prefix: string;
  /** Of A and λ_d for each of B; the first part counts. */
  readonly halves: 1 | 2;
  readonly middle: string;
  readonly outer?: string;
  readonly fields: readonly string[];
}

const PROJECTION_FIELDS = ['r', 'd_initial', 'projection_prng_key', 'save_projection'];
const METHODS: readonly SharedMethod[] = [
  {
    method: 'VERA',
    prefix: 'vera',
    halves: 1,
    middle: 'vera_lambda_d',
    outer: 'vera_lambda_b',
    fields: [...PROJECTION_FIELDS, 'vera_dropout'],
  },
  {
    method: 'PVERA',
    prefix: 'pvera',
    halves: 2,
    middle: 'pvera_lambda_d',
    outer: 'pvera_lambda_b',
    // The seed is read only where the adapter samples.
    fields: [...PROJECTION_FIELDS, 'pvera_dropout', 'generator_seed', 'sample_at_inference'],
  },
  { method: 'S2LORA', prefix: 's2lora', halves: 1, middle: 's2lora_lambda', fields: ['r', 'scale'] },
];

export const SHARED_PROJECTION_IMPORTERS: readonly AdapterImporter[] = METHODS.map((method) => ({
  method: method.method,
  matches: (config) => isPeftType(config, method.method),
  compile: (folder, context) => compileShared(method, folder, context),
}));

const SAVE_AGAIN =
  'The numbers of a random generator are not the same on every machine; save the adapter again with ' +
  'save_projection=True where it was trained.';

async function compileShared(
  method: SharedMethod,
  folder: AdapterFolder,
  { model, limits }: ImportContext,
): Promise<CompiledAdapter> {
  const { config } = folder;
  refuseUnsaved(method, folder);
  const shared = takeModelTensors(folder, new RegExp(`^${method.prefix}_[AB]$`));
  const [a, b] = [`${method.prefix}_A`, `${method.prefix}_B`].map((name) => neededTensor(shared, name, SAVE_AGAIN));
  const parameters = method.outer === undefined ? [method.middle] : [method.middle, method.outer];
  const modules = groupLinears(shared.rest, model, { parameters });
  const notes = checkPeftConfig(config, method.fields, modules);
  const rank = integerField(config, 'r', 1);
  checkRankLimit(rank, method.method, limits);
  checkProjections(method, rank, modules, a as SafetensorsTensor, b as SafetensorsTensor);
  const budget = new FoldBudget(limits);
  for (const width of new Set(modules.map((module) => module.in))) budget.take(rank * width, `inputs of ${width}`);
  for (const module of modules) {
    expectTensor(module, method.middle, [method.halves * rank]);
    if (method.outer !== undefined) expectTensor(module, method.outer, [module.out]);
  }
  const scale = method.method === 'S2LORA' ? numberField(config, 'scale', 1) : 1;
  const left = await sharedTensor(await readTensor(folder, a as SafetensorsTensor));
  const right = await sharedTensor(await readTensor(folder, b as SafetensorsTensor));
  const terms: LowRankTerm[] = [];
  const corners = new Corners(left, rank);
  for (const module of modules) {
    const mid = (await readFloats(folder, expectTensor(module, method.middle, [-1]))).slice(0, rank);
    const outer = method.outer && (await readFloats(folder, expectTensor(module, method.outer, [-1])));
    const inner = await corners.of(module.in);
    for (const { site, firstRow, rows } of module.parts) {
      const term: LowRankTerm = { kind: 'lowrank', site, a: inner, b: sharedRows(right, firstRow, rows), scale, mid };
      terms.push(outer ? { ...term, outDiag: outer.slice(firstRow, firstRow + rows) } : term);
    }
  }
  return { terms: { terms }, notes };
}

/** A[:r, :in] for each width that occurs, cut out once. */
class Corners {
  readonly #corners = new Map<number, TermTensor>();
  readonly #turns = new Turns();

  constructor(
    private readonly whole: SharedTensor,
    private readonly rank: number,
  ) {}

  async of(width: number): Promise<TermTensor> {
    const known = this.#corners.get(width);
    if (known !== undefined) return known;
    const corner = sharedCorner(this.whole, this.rank, width);
    this.#corners.set(width, corner);
    await this.#turns.after(this.rank * width);
    return corner;
  }
}

function checkProjections(
  { halves }: SharedMethod,
  rank: number,
  modules: readonly LinearTensors[],
  a: SafetensorsTensor,
  b: SafetensorsTensor,
): void {
  const width = Math.max(...modules.map((module) => module.in));
  const height = Math.max(...modules.map((module) => module.out));
  const [, columns = 0] = a.shape;
  const [lines = 0] = b.shape;
  checkShape(a, [halves * rank, Math.max(columns, width)], `[${halves * rank}, at least ${width}]`);
  checkShape(b, [Math.max(lines, height), rank], `[at least ${height}, ${rank}]`);
}

function refuseUnsaved({ method }: SharedMethod, { config }: AdapterFolder): void {
  if (method === 'S2LORA') return;
  if (!flagField(config, 'save_projection', true)) {
    throw refused('save_projection', 'false: the projections are to be drawn again by torch', SAVE_AGAIN);
  }
  if (method === 'PVERA') {
    const mend = 'Set it to false, which serves the mean of what it was trained for.';
    refuseField(config, 'sample_at_inference', 'the same request would be answered with other noise each time', mend);
  }
}
