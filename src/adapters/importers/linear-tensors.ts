/**
 * Tensors of methods that adapt linears, grouped by the linear: keys are `base_model.model.` + module path + `.` + the
 * method's parameter, with or without the adapter's name `default`. A key of any other kind is refused, so that nothing
 * of a file is left out. Called by the importers of the multiplicative and structured methods.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bug } from '../../core/errors.js';
import type { ModelConfig } from '../../core/model-config.js';
import type { DenseTensor } from '../../core/terms.js';
import type { AdapterFolder, AdapterLimits } from '../adapter-folder.js';
import { integerField, numberField, refused, refuseField, refuseUnknownFields, show } from '../config-fields.js';
import { isLinear, partsOf, placeOfModule, siteShape } from '../module-place.js';
import type { ModulePart } from '../module-place.js';
import { checkShape, readTensor, wrongTensor } from '../tensor-values.js';
import { ModulePatterns, TargetModules } from './lora-patterns.js';

export interface LinearTensors {
  /** As in the file, without `base_model.model.`. */
  readonly path: string;
  /** -1 for the head. */
  readonly layer: number;
  readonly parts: readonly ModulePart[];
  readonly out: number;
  readonly in: number;
  /** By the method's name of the parameter. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
}

const PEFT_PREFIX = 'base_model.model.';

export interface GroupOptions {
  /** Parameters as the file names them after the module's path, e.g. `oft_R.weight`. */
  readonly parameters: readonly string[];
}

/** Throws 'invalid_adapter' for the first key that is no parameter of the method on a linear of the base. */
export function groupLinears(
  { tensors }: Pick<AdapterFolder, 'tensors'>,
  model: ModelConfig,
  { parameters }: GroupOptions,
): LinearTensors[] {
  const groups = new Map<string, Map<string, SafetensorsTensor>>();
  for (const [name, tensor] of tensors) {
    const { path, parameter } = parseKey(name, parameters);
    const group = groups.get(path) ?? new Map<string, SafetensorsTensor>();
    groups.set(path, group);
    const other = group.get(parameter);
    if (other !== undefined) throw twice(other.name, tensor.name);
    group.set(parameter, tensor);
  }
  if (groups.size === 0) {
    throw wrongTensor('it holds no tensors, so it would be the base under another name', 'Save the adapter again.');
  }
  const modules = [...groups].map(([path, tensors]) => moduleOf(path, tensors, model));
  refuseAliases(modules);
  return modules;
}

function parseKey(name: string, parameters: readonly string[]): { path: string; parameter: string } {
  const bare = name.startsWith(PEFT_PREFIX) ? name.slice(PEFT_PREFIX.length) : name;
  const key = bare.replace(/\.default(?=\.|$)/, '');
  const fitting = parameters.filter((candidate) => key.endsWith(`.${candidate}`));
  const parameter = fitting.sort((a, b) => b.length - a.length)[0];
  if (parameter === undefined) {
    throw wrongTensor(
      `${quoteName(name)} is none of this method's parameters (${parameters.join(', ')})`,
      "Save the adapter again with its own library, or merge it into its base with PEFT's merge_and_unload() and serve " +
        'the result with --model.',
    );
  }
  return { path: key.slice(0, -parameter.length - 1), parameter };
}

function moduleOf(path: string, tensors: ReadonlyMap<string, SafetensorsTensor>, model: ModelConfig): LinearTensors {
  const place = placeOfModule(path, model);
  const site = place?.sites[0];
  if (place === undefined || site === undefined || !isLinear(site)) {
    throw wrongTensor(
      `it adapts ${quoteName(path)}, which is no linear of the base (${model.family}, ${model.layers.length} layers)`,
      'Serve it on the base that it was trained for, without embeddings and norms among its target modules.',
    );
  }
  const parts = partsOf(place, model);
  const out = parts.reduce((sum, { rows }) => sum + rows, 0);
  return { path, layer: place.layer, parts, out, in: siteShape(model, site).in, tensors };
}

/** Two paths may mean one site (`model.layers.0` and `layers.0`, q_proj and qkv_proj). */
function refuseAliases(modules: readonly LinearTensors[]): void {
  const seen = new Map<string, LinearTensors>();
  for (const module of modules) {
    for (const { site } of module.parts) {
      const place = `${site.layer} ${site.site}`;
      const other = seen.get(place);
      if (other !== undefined) throw twice(other.path, module.path);
      seen.set(place, module);
    }
  }
}

function twice(first: string, second: string): Error {
  return wrongTensor(
    `${quoteName(first)} and ${quoteName(second)} adapt the same place`,
    'Which of them counts cannot be known; save the adapter again.',
  );
}

/** The parameter's tensor, checked on its header; -1 stands for a size that is not known. */
export function expectTensor(module: LinearTensors, parameter: string, shape: readonly number[]): SafetensorsTensor {
  const tensor = module.tensors.get(parameter);
  if (tensor === undefined) {
    throw wrongTensor(
      `${quoteName(module.path)} has no ${parameter} beside its other tensors`,
      'The file is incomplete; download or save it again.',
    );
  }
  const wanted = shape.map((size, i) => (size === -1 ? (tensor.shape[i] ?? 0) : size));
  const words = shape.map((size) => (size === -1 ? '?' : String(size))).join(', ');
  checkShape(tensor, wanted, `[${words}]`);
  return tensor;
}

/** Reads a tensor that {@link expectTensor} has checked. */
export function readParameter(folder: AdapterFolder, module: LinearTensors, parameter: string): Promise<DenseTensor> {
  return readTensor(folder, module.tensors.get(parameter) ?? bug(`${parameter} was not checked`));
}

const MERGE = "merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model";

/** Fields of PEFT's tuners that say how an adapter was trained; they do not change what it computes. */
const TRAINING_FIELDS: readonly string[] = ['fan_in_fan_out', 'init_weights'];

/** Checks what all these methods have in common against the modules of the file; gives notes. */
export function checkPeftConfig(
  config: JsonObject,
  known: readonly string[],
  modules: readonly LinearTensors[],
): string[] {
  refuseField(
    config,
    'modules_to_save',
    'whole trained modules replace those of the base',
    `Train it without, or ${MERGE}.`,
  );
  refuseUnknownFields(config, [...known, ...TRAINING_FIELDS, 'bias', 'modules_to_save']);
  const bias = config['bias'] ?? 'none';
  if (bias !== 'none') {
    const reason = 'trained biases replace those of the base';
    throw refused('bias', `${show(bias)}, expected "none": ${reason}`, `Train it with bias="none", or ${MERGE}.`);
  }
  const targets = TargetModules.parse('target_modules', config['target_modules']);
  const excluded = TargetModules.parse('exclude_modules', config['exclude_modules']);
  for (const { path } of modules) {
    if (targets.names(path) === false) {
      throw refused('target_modules', `without ${quoteName(path)}, which has tensors`, 'Save both again together.');
    }
    if (excluded.names(path) === true) {
      throw refused('exclude_modules', `with ${quoteName(path)}, which has tensors`, 'Save both again together.');
    }
  }
  const unused = targets.unusedNames(modules.map(({ path }) => path));
  return unused.length === 0
    ? []
    : [`target_modules names ${unused.join(', ')}, which have no tensors and stay as the base.`];
}

/** Rank and alpha of a module, patterns counted. */
export interface RankConfig {
  rank(path: string): number;
  alpha(path: string): number;
}

export const RANK_FIELDS: readonly string[] = ['alpha', 'alpha_pattern', 'r', 'rank_pattern'];

export function parseRanks(config: JsonObject): RankConfig {
  const [rank, alpha] = [integerField(config, 'r', 1), numberField(config, 'alpha')];
  const ranks = ModulePatterns.parse('rank_pattern', config['rank_pattern'], checkedSize);
  const alphas = ModulePatterns.parse('alpha_pattern', config['alpha_pattern'], (value) =>
    typeof value === 'number' && Number.isFinite(Math.fround(value)) ? value : undefined,
  );
  return { rank: (path) => ranks.valueFor(path) ?? rank, alpha: (path) => alphas.valueFor(path) ?? alpha };
}

/** For patterns whose values are sizes. */
export function checkedSize(value: JsonValue): number | undefined {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 1 ? value : undefined;
}

/** The error for a config that says another size than the tensors. */
export function disagreement(field: string, expected: number | string, path: string, found: number | string): Error {
  return refused(
    field,
    `${expected} for ${quoteName(path)}, its tensors have ${found}`,
    'Config and tensors do not belong together; save them again together.',
  );
}

export function checkRankLimit(rank: number, path: string, limits: AdapterLimits): void {
  if (rank <= limits.maxRank) return;
  throw refused('r', `${rank} for ${quoteName(path)}, at most ${limits.maxRank} is allowed`, 'Raise --max-lora-rank.');
}

/** Bounds what the folds of one adapter may allocate; asked before anything is. */
export class FoldBudget {
  #bytes = 0;

  constructor(private readonly limits: AdapterLimits) {}

  /** float32 values that a fold of the module will keep. */
  take(values: number, path: string): void {
    this.#bytes += 4 * values;
    if (this.#bytes <= this.limits.maxBytes) return;
    throw wrongTensor(
      `its terms take more than ${this.limits.maxBytes} bytes (${quoteName(path)} would need ${4 * values})`,
      'Serve an adapter of this size as a model of its own: merge it into its base and use --model.',
    );
  }
}

/** Whether a config names a method of PEFT. */
export function isPeftType(config: JsonObject, ...types: readonly string[]): boolean {
  const type = config['peft_type'];
  return typeof type === 'string' && types.includes(type);
}
