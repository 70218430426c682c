/**
 * What the packed tensors of each kind of source mean: which entries a module has, their shapes on the base, and the terms
 * that they become. A new kind of source is one more member of SOURCES. Called by the importer.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject, JsonValue } from '../../checkpoint/strict-json.js';
import type { Term, TernaryTensor } from '../../core/terms.js';
import { bug } from '../../core/errors.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { flagField, refused, show } from '../config-fields.js';
import type { ImportContext } from '../importer.js';
import { checkedSize, checkRankLimit, disagreement, expectTensor, groupLinears } from '../importers/linear-tensors.js';
import type { LinearTensors } from '../importers/linear-tensors.js';
import { ModulePatterns } from '../importers/lora-patterns.js';
import { checkFolded, wrongTensor } from '../tensor-values.js';
import type { PackedEntry } from './payload.js';
import { planeRows, toPlanes } from './planes.js';
import type { SignedPositions } from './rice.js';
import { sparseTerms } from './sparse-terms.js';

export interface PackedTensors {
  readonly entries: Map<string, PackedEntry>;
  readonly positions: Map<string, SignedPositions>;
}

/** A module whose headers have been checked; the terms are made once the stream has been read. */
export interface ModulePlan {
  readonly path: string;
  /** Empty where the compression left nothing of the module. */
  readonly terms: (tensors: PackedTensors) => Term[];
}

export interface PackedSource {
  /** `packed` is a folder whose tensors are the entries, with their counts as byte lengths. */
  plan(packed: AdapterFolder, context: ImportContext): ModulePlan[];
}

export type SourceType = 'LORA' | 'IA3' | 'S2FT' | 'SFT';

const SOURCES: Readonly<Record<SourceType, (source: JsonObject) => PackedSource>> = {
  LORA: loraSource,
  IA3: (source) => plainSource(source, ia3Plans),
  S2FT: (source) => plainSource(source, s2ftPlans),
  SFT: (source) => plainSource(source, sftPlans),
};

/** `source` is the object of that name in adapter_config.json. Throws 'invalid_adapter'. */
export function sourceOf(type: JsonValue | undefined, source: JsonObject): PackedSource {
  if (typeof type === 'string' && Object.hasOwn(SOURCES, type)) return SOURCES[type as SourceType](source);
  const expected = Object.keys(SOURCES).join(', ');
  throw refused(
    'source_type',
    `${show(type)}, expected one of ${expected}`,
    'Compress an adapter of one of these kinds.',
  );
}

type Plans = (modules: LinearTensors[], context: ImportContext) => ModulePlan[];

function plainSource(
  source: JsonObject,
  { parameters, plans }: { parameters: readonly string[]; plans: Plans },
): PackedSource {
  refuseFields(source, []);
  return { plan: (packed, context) => plans(groupLinears(packed, context.model, { parameters }), context) };
}

function refuseFields(source: JsonObject, known: readonly string[]): void {
  const field = Object.keys(source).find((key) => !known.includes(key));
  if (field === undefined) return;
  throw refused(
    `source.${field.slice(0, 80)}`,
    `${show(source[field])}, a field that this kind of source does not have`,
    'Compress the adapter again.',
  );
}

/** A and B as two ternary factors: Δ = scale · c_A c_B · T_B (T_A x), with the scales in the tensors. */
function loraSource(source: JsonObject): PackedSource {
  refuseFields(source, ['alpha_pattern', 'lora_alpha', 'r', 'rank_pattern', 'use_rslora']);
  const rank = numberOf(source, 'r', checkedSize);
  const alpha = numberOf(source, 'lora_alpha', checkedAlpha);
  const ranks = ModulePatterns.parse('source.rank_pattern', source['rank_pattern'], checkedSize);
  const alphas = ModulePatterns.parse('source.alpha_pattern', source['alpha_pattern'], checkedAlpha);
  const stabilized = flagField(source, 'use_rslora', false);
  const parameters = ['lora_A.weight', 'lora_B.weight'];
  return {
    plan: (packed, { model, limits }) =>
      groupLinears(packed, model, { parameters }).map((module) => {
        const { path } = module;
        const a = expectTensor(module, 'lora_A.weight', [-1, module.in]);
        const found = a.shape[0] ?? 0;
        checkRankLimit(found, path, limits);
        const b = expectTensor(module, 'lora_B.weight', [module.out, found]);
        const expected = ranks.valueFor(path) ?? rank;
        if (expected !== found) throw disagreement('source.r', expected, path, found);
        const scale = (alphas.valueFor(path) ?? alpha) / (stabilized ? Math.sqrt(found) : found);
        return { path, terms: (tensors) => lowRankTerms(module, [a.name, b.name], scale, tensors) };
      }),
  };
}

function numberOf(source: JsonObject, field: string, check: (value: JsonValue) => number | undefined): number {
  const found = check(source[field] ?? null);
  if (found !== undefined) return found;
  throw refused(
    `source.${field}`,
    `${show(source[field])}, expected the number that the adapter was trained with`,
    'Compress it again.',
  );
}

function checkedAlpha(value: JsonValue): number | undefined {
  return typeof value === 'number' && value !== 0 && Number.isFinite(Math.fround(value)) ? value : undefined;
}

function lowRankTerms(
  module: LinearTensors,
  names: readonly [string, string],
  scale: number,
  tensors: PackedTensors,
): Term[] {
  const [a, b] = names.map((name) => matrix(name, tensors));
  if (a === undefined || b === undefined) return [];
  checkFolded(`the scale of ${quoteName(module.path)}`, Float32Array.of(scale * a.scale * b.scale));
  return module.parts.map(({ site, firstRow, rows }) => ({
    kind: 'lowrank',
    site,
    a,
    b: planeRows(b, firstRow, rows),
    scale,
  }));
}

/** Undefined where no entry is left. */
function matrix(name: string, { entries, positions }: PackedTensors): TernaryTensor | undefined {
  const entry = entries.get(name) ?? bug(`${name} was not read`);
  const [rows = 0, cols = 0] = entry.shape;
  return entry.count === 0
    ? undefined
    : toPlanes(positions.get(name) ?? bug(`${name} was not read`), [rows, cols], entry.scale);
}

/** l = 1 + c·T: `[out, 1]` scales the output, bias included, `[1, in]` (feed-forward modules) the input. */
const ia3Plans = {
  parameters: ['ia3_l'],
  plans: (modules: LinearTensors[], { base }: ImportContext): ModulePlan[] =>
    modules.map((module) => {
      const onInput = module.tensors.get('ia3_l')?.shape[0] === 1;
      const { name } = expectTensor(module, 'ia3_l', onInput ? [1, module.in] : [module.out, 1]);
      const terms = (tensors: PackedTensors): Term[] => {
        const entry = tensors.entries.get(name) ?? bug(`${name} was not read`);
        const { positions, negative } = tensors.positions.get(name) ?? bug(`${name} was not read`);
        if (entry.count === 0) return [];
        const l = new Float32Array(onInput ? module.in : module.out).fill(1);
        positions.forEach((position, i) => {
          l[position] = 1 + (negative?.[i] === 1 ? -entry.scale : entry.scale);
        });
        if (onInput) return module.parts.map(({ site }) => ({ kind: 'diag', site, h: l }));
        return module.parts.map(({ site, firstRow, rows }) => {
          const g = l.subarray(firstRow, firstRow + rows);
          // The base adds its bias unscaled: the rest of it is a shift.
          const bias = base.bias(site);
          const c =
            bias &&
            checkFolded(
              `${quoteName(name)} on the base's bias`,
              bias.map((b, i) => ((g[i] ?? 1) - 1) * b),
            );
          return { kind: 'diag', site, g, ...(c === undefined ? {} : { c }) };
        });
      };
      return { path: module.path, terms };
    }),
};

const S2FT_SIDES = [
  { side: 'out', part: 's2ft_rows' },
  { side: 'in', part: 's2ft_columns' },
] as const;

/** Whole rows or columns of a difference: their numbers as an index, their values ternary. */
const s2ftPlans = {
  parameters: S2FT_SIDES.flatMap(({ part }) => [`${part}.index`, `${part}.values`]),
  plans: (modules: LinearTensors[]): ModulePlan[] =>
    modules.map((module) => {
      const { path, tensors: headers, parts } = module;
      const found = S2FT_SIDES.filter(({ part }) => headers.has(`${part}.index`) || headers.has(`${part}.values`));
      const [first, other] = found;
      const [onlyPart] = parts;
      if (first === undefined || onlyPart === undefined || other !== undefined || parts.length > 1) {
        throw wrongTensor(
          `${quoteName(path)} has ${found.map(({ part }) => part).join(' and ')}, expected one of them on one linear`,
          'Compress the adapter again.',
        );
      }
      const index = expectTensor(module, `${first.part}.index`, [-1]);
      const channels = first.side === 'out' ? module.out : module.in;
      if ((index.shape[0] ?? 0) > channels || index.byteLength === 0) {
        throw wrongTensor(
          `${quoteName(index.name)} has ${index.byteLength} numbers below ${index.shape[0]}, expected some below ${channels}`,
          'The adapter was trained for another base.',
        );
      }
      // The count of an index is its length; headersOf puts it here.
      const k = index.byteLength;
      const values = expectTensor(
        module,
        `${first.part}.values`,
        first.side === 'out' ? [k, module.in] : [module.out, k],
      );
      const terms = (tensors: PackedTensors): Term[] => {
        const ternary = matrix(values.name, tensors);
        const positions = tensors.positions.get(index.name)?.positions ?? bug(`${index.name} was not read`);
        if (ternary === undefined) return [];
        return [{ kind: 'rowcol', site: onlyPart.site, side: first.side, index: positions, values: ternary, scale: 1 }];
      };
      return { path, terms };
    }),
};

/** Entries of the whole difference `[out, in]`, by flat row-major position; the shape says only where the last one is. */
const sftPlans = {
  parameters: ['sft_delta'],
  plans: (modules: LinearTensors[]): ModulePlan[] =>
    modules.map((module) => {
      const { name, shape } = expectTensor(module, 'sft_delta', [-1]);
      if ((shape[0] ?? 0) > module.out * module.in) {
        throw wrongTensor(
          `${quoteName(name)} reaches to value ${shape[0]}, the weight of ${quoteName(module.path)} is [${module.out}, ${module.in}]`,
          'The adapter was trained for another base.',
        );
      }
      const terms = (tensors: PackedTensors): Term[] => {
        const entry = tensors.entries.get(name) ?? bug(`${name} was not read`);
        return sparseTerms(module, tensors.positions.get(name) ?? bug(`${name} was not read`), entry.scale);
      };
      return { path: module.path, terms };
    }),
};
