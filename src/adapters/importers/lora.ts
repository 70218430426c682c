/**
 * PEFT LoRA with its variants: one LOWRANK term for each adapted module, Δ = scale · B A x, factors in the file's type
 * where nothing has to be folded. What a variant adds is in dora.ts, lora-factors.ts, base-part.ts and lora-saved.ts.
 *
 * On the embedding, A is [r, vocab] and its input is the token's one-hot, so the kernel gathers a column of A; Gemma's
 * embedding scale applies to both, as in PEFT. On the head, base and head may be tied: only the head is adapted.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bug } from '../../core/errors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { DiagTerm, Term, TermSet } from '../../core/terms.js';
import { INITIAL_FOLDERS } from '../adapter-container.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { refused } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { checkFolded, readFloats, wrongTensor } from '../tensor-values.js';
import { checkParts } from './base-part.js';
import { checkDoraTable, doraTable, doraTerms } from './dora.js';
import { parseLoraConfig } from './lora-config.js';
import type { BlockConfig, LoraConfig } from './lora-config.js';
import { changeOf, checkInitial, flipped, lowRankTerms, readFactors, withoutChange } from './lora-factors.js';
import type { Factors, ModuleChange } from './lora-factors.js';
import { groupModules } from './lora-modules.js';
import type { FactorLayout, LoraModule } from './lora-modules.js';
import { savedTerms, sortSaved } from './lora-saved.js';
import { peftKeys, sortTensors } from './lora-tensors.js';

export const loraImporter: AdapterImporter = {
  method: 'LORA',
  matches: (config) => config['peft_type'] === 'LORA',
  compile: compileLora,
};

async function compileLora(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  const { model, limits } = context;
  const config = parseLoraConfig(folder.config, model.vocabSize);
  const layout: FactorLayout = { group: config.group, blocks: (path) => blocksOf(path, config.blocks) };
  const tensors = sortTensors(ownTensors(folder), peftKeys);
  if (tensors.length === 0) throw emptyFile();
  const modules = groupModules(tensors, model, layout);
  const saved = sortSaved(tensors, config, context);
  const jobs = modules.map((module): Job => {
    checkVariant(module, config);
    const job = { module, scale: checkedScale(module, config, limits), layout };
    const change = changeOf(folder, module, config.baseChange, limits);
    if (module.magnitude !== undefined && module.embedding) checkDoraTable(module, limits);
    return { ...job, change };
  });
  checkInitial(folder, jobs, config.baseChange?.field);
  checkParts(
    jobs.flatMap(({ module, change }) =>
      change?.kind === 'computed' ? [{ matrix: module, request: change.request }] : [],
    ),
  );
  refuseTiedFactors(modules, config, model);
  refuseTwoTables(modules, saved);
  const { terms, inert } = await termsOfModules(folder, jobs, context);
  const { terms: savedOnes, notes } = await savedTerms(folder, saved, context);
  return {
    terms: withInvocation(mergeDiagonals([...terms, ...savedOnes]), config),
    notes: [...config.notes, ...notes, ...notesOf(modules, config, inert)],
  };
}

/** Without those of the initial adapter, which changeOf finds by their names. */
function ownTensors(folder: AdapterFolder): SafetensorsTensor[] {
  const places = INITIAL_FOLDERS.map((name) => `${name}/`);
  return [...folder.tensors.values()].filter(({ name }) => !places.some((place) => name.startsWith(place)));
}

export function emptyFile(): Error {
  return wrongTensor(
    'it holds no tensors, so it would be the base under another name',
    'Save the adapter again with PEFT.',
  );
}

/** What is to be done for one module; made while only headers have been read. */
export interface Job {
  readonly module: LoraModule;
  readonly scale: number;
  readonly layout: FactorLayout;
  readonly change: ModuleChange | undefined;
}

/** Terms of all modules, and the paths of those whose B is all zero. */
export async function termsOfModules(
  folder: AdapterFolder,
  jobs: readonly Job[],
  context: ImportContext,
): Promise<{ readonly terms: Term[]; readonly inert: string[] }> {
  const terms: Term[] = [];
  const inert: string[] = [];
  for (const { module, scale, layout, change } of jobs) {
    const read = await readFactors(folder, module, scale, layout);
    const plain = change === undefined && module.magnitude === undefined && module.bBias === undefined;
    if (plain && read.b.data.every((value) => value === 0)) inert.push(module.path);
    const factors = change === undefined ? read : await withoutChange(folder, module, read, change, context.base);
    terms.push(...(await termsOfFactors(folder, module, factors, context, layout)));
  }
  return { terms, inert };
}

async function termsOfFactors(
  folder: AdapterFolder,
  module: LoraModule,
  factors: Factors,
  { model, base }: ImportContext,
  layout: FactorLayout,
): Promise<Term[]> {
  if (module.magnitude !== undefined) {
    const magnitude = await readFloats(folder, module.magnitude);
    if (!module.embedding) return doraTerms(module, factors, magnitude, base);
    const perToken = layout.magnitudePerToken === true;
    const values = await doraTable(module, factors, magnitude, { perToken, base });
    const rows = Uint32Array.from({ length: module.in }, (_, i) => i);
    const sites =
      layout.tiedHead === true && model.tiedHead ? (['embedding', 'head'] as const) : (['embedding'] as const);
    return sites.map((site) => ({ kind: 'override', site: { layer: -1, site }, rows, values }));
  }
  const terms: Term[] = lowRankTerms(module, factors);
  if (module.embedding && layout.tiedHead === true && model.tiedHead) terms.push(tiedHeadTerm(factors));
  if (module.bBias === undefined) return terms;
  const bias = await readFloats(folder, module.bBias);
  for (const { site, firstRow, rows } of module.parts) {
    const c = bias.slice(firstRow, firstRow + rows).map((value) => factors.scale * value);
    terms.push({ kind: 'diag', site, c: checkFolded(`the bias of B of ${module.path}`, c) });
  }
  return terms;
}

/** The change of a row of the table is the change of the tied head's row: A becomes Bᵀ and B becomes Aᵀ. */
function tiedHeadTerm({ a, b, scale }: Factors): Term {
  return { kind: 'lowrank', site: { layer: -1, site: 'head' }, a: flipped(b), b: flipped(a), scale };
}

/** DIAG must be single on a site: shifts add up. */
export function mergeDiagonals(terms: readonly Term[]): Term[] {
  const merged: Term[] = [];
  const places = new Map<string, number>();
  for (const term of terms) {
    const place = `${term.site.layer} ${term.site.site}`;
    const at = term.kind === 'diag' ? places.get(place) : undefined;
    if (term.kind !== 'diag' || at === undefined) {
      if (term.kind === 'diag') places.set(place, merged.length);
      merged.push(term);
    } else {
      merged[at] = bothDiagonals(merged[at] as DiagTerm, term);
    }
  }
  return merged;
}

function bothDiagonals(first: DiagTerm, second: DiagTerm): DiagTerm {
  if (first.g !== undefined && second.g !== undefined) bug('two scales for one site');
  const { c } = second;
  const sum =
    first.c === undefined || c === undefined ? undefined : first.c.map((value, i) => value + (c[i] as number));
  return { ...first, ...second, ...(sum === undefined ? {} : { c: checkFolded('the sum of two biases', sum) }) };
}

function withInvocation(terms: readonly Term[], { invocation }: LoraConfig): TermSet {
  return invocation === undefined ? { terms } : { terms, invocation };
}

/** PEFT looks for parts of the module's last name. */
function blocksOf(path: string, blocks: BlockConfig | undefined): { a: number; b: number } {
  if (blocks === undefined) return { a: 1, b: 1 };
  const name = path.slice(path.lastIndexOf('.') + 1);
  const [inA, inB] = [blocks.a, blocks.b].map((parts) => parts.some((part) => name.includes(part)));
  if (inA === true && inB === true) {
    throw refused('use_bdlora', `blocks for both A and B of ${quoteName(path)}`, 'Save the adapter again with PEFT.');
  }
  return { a: inA === true ? blocks.count : 1, b: inB === true ? blocks.count : 1 };
}

/** The variant's own tensors are there exactly where the config says so. */
function checkVariant({ path, a, magnitude, bBias, diagonal, embedding }: LoraModule, config: LoraConfig): void {
  const wanted: readonly (readonly [string, string, boolean, boolean])[] = [
    ['use_dora', 'lora_magnitude_vector', config.useDora, magnitude !== undefined],
    ['lora_bias', 'lora_B.bias', config.hasBBias && !embedding, bBias !== undefined],
    ['kasa_config', 'lora_diag', config.hasDiagonal && !embedding, diagonal !== undefined],
  ];
  for (const [field, tensor, on, there] of wanted) {
    if (on === there) continue;
    const problem = on
      ? `${quoteName(a.name)} has no ${tensor} beside it, which ${field} asks for`
      : `${quoteName(path)} has a ${tensor}, while ${field} is off in adapter_config.json`;
    throw wrongTensor(problem, 'Config and tensors do not belong together; save them again together.');
  }
}

/** Checks the module against the config, and gives its scale. */
function checkedScale(module: LoraModule, config: LoraConfig, limits: AdapterLimits): number {
  const { path, rank } = module;
  checkRank(module, limits);
  const expected = config.rankPattern.valueFor(path) ?? config.rank;
  if (expected !== rank) {
    throw refused(
      'r',
      `${expected} for ${quoteName(path)} (rank_pattern counted), its tensors have rank ${rank}`,
      'Config and tensors do not belong together, and the scale depends on both; save them again together.',
    );
  }
  checkNamed(module, config);
  const alpha = config.alphaPattern.valueFor(path) ?? config.alpha;
  return alpha / (config.rankStabilized ? Math.sqrt(rank) : rank);
}

export function checkRank({ path, rank }: LoraModule, limits: AdapterLimits): void {
  if (rank <= limits.maxRank) return;
  throw refused('r', `${rank} for ${quoteName(path)}, at most ${limits.maxRank} is allowed`, 'Raise --max-lora-rank.');
}

/** The config's lists of modules and layers agree with the tensors. */
export function checkNamed(
  { path, layer }: LoraModule,
  { targets, excluded, layers }: Pick<LoraConfig, 'targets' | 'excluded' | 'layers'>,
): void {
  if (targets.names(path) === false) {
    throw refused('target_modules', `without ${quoteName(path)}, which has tensors`, 'Save both again together.');
  }
  if (excluded.names(path) === true) {
    throw refused('exclude_modules', `with ${quoteName(path)}, which has tensors`, 'Save both again together.');
  }
  if (layer >= 0 && layers?.has(layer) === false) {
    throw refused('layers_to_transform', `without ${layer}, which has tensors`, 'Save both again together.');
  }
}

/**
 * With tied embeddings that PEFT keeps tied, one pair of factors serves two modules. New files have both; where only one is
 * there, it cannot be known whether the other is to follow.
 */
function refuseTiedFactors(modules: readonly LoraModule[], config: LoraConfig, model: ModelConfig): void {
  if (!config.tiesEmbeddings || !model.tiedHead) return;
  const touched = modules.filter(({ layer }) => layer === -1);
  if (touched.length !== 1) return;
  throw refused(
    'ensure_weight_tying',
    `true with factors for ${quoteName(touched[0]?.path ?? '')} alone: they also belong to the module that shares its weight`,
    'Train it with ensure_weight_tying=False, or merge it into its base and serve the result with --model.',
  );
}

/** A table that is replaced and adapted as well: which comes first is not defined. */
function refuseTwoTables(modules: readonly LoraModule[], saved: ReturnType<typeof sortSaved>): void {
  for (const { role, path, tensor } of saved) {
    const both = modules.find((module) => module.path === path);
    if (both === undefined || role === 'bias' || role === 'baseWeight') continue;
    throw wrongTensor(
      `${quoteName(tensor.name)} replaces values of ${quoteName(path)}, which has LoRA factors as well`,
      "Which of them comes first cannot be known; merge the adapter into its base with PEFT's merge_and_unload().",
    );
  }
}

function notesOf(modules: readonly LoraModule[], config: LoraConfig, inert: readonly string[]): string[] {
  const notes: string[] = [];
  const unused = config.targets.unusedNames(modules.map(({ path }) => path));
  if (unused.length > 0)
    notes.push(`target_modules names ${unused.join(', ')}, which have no tensors and stay as the base.`);
  if (inert.length > 0)
    notes.push(`B is all zero in ${inert.length} of ${modules.length} modules, which stay as the base.`);
  const folded = modules.some(({ magnitude }) => magnitude !== undefined) || config.baseChange?.part !== undefined;
  if (folded)
    notes.push(
      'It was folded with the base weights as they are served; on a quantised base it differs from its training.',
    );
  return notes;
}
