/**
 * What PEFT saves beside every tuner's own tensors, as it does beside LoRA's: whole modules (modules_to_save, a resized
 * embedding) and, for tuners with the field `bias`, trained biases. These are taken out of the folder and compiled by
 * lora-saved.ts; the method's importer sees the rest, and a base whose biases are the trained ones b′. Its shift c stands
 * for what it adds to W x + b′, so c + (b′ − b) is right for methods that scale or turn the bias as well (RoAd, GLoRA).
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { JsonObject } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { SiteRef } from '../../core/model-config.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { isOff, refused, show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { partsOf, placeOfModule } from '../module-place.js';
import { readFloats, wrongTensor } from '../tensor-values.js';
import { mergeDiagonals } from './lora.js';
import { TargetModules } from './lora-patterns.js';
import { savedTerms, sortSaved } from './lora-saved.js';
import type { SavedConfig, SavedTensor } from './lora-saved.js';
import { peftKeys, sortTensors } from './lora-tensors.js';
import { withTensors } from './module-tensors.js';

export interface SavedPartsOptions {
  /** Whether the tuner's config has the field `bias`. */
  readonly bias: boolean;
}

/** The importer, for folders that may hold such parts as well. */
export function withSavedParts(importer: AdapterImporter, { bias }: SavedPartsOptions): AdapterImporter {
  return {
    method: importer.method,
    matches: (config, keys) => importer.matches(config, keys),
    compile: async (folder, context) => {
      const { saved, own } = splitTensors(folder, context);
      const fields = savedFields(folder.config, bias);
      const config = withoutFields(folder.config, bias ? ['bias', 'modules_to_save'] : ['modules_to_save']);
      const parts = sortSaved(sortTensors(saved.values(), peftKeys), fields, context);
      const rest = withTensors(folder, own, config);
      const base = parts.length === 0 ? context.base : await trainedBase(folder, parts, context);
      const compiled = await importer.compile(rest, { ...context, base });
      const beside = await savedTerms(folder, parts, context);
      refuseBoth(compiled.terms.terms, beside.terms);
      return joined(compiled, beside, unsaved(fields, parts));
    },
  };
}

/** Whole weights and biases of the base's own modules, and all other tensors. */
function splitTensors(
  folder: AdapterFolder,
  { model }: ImportContext,
): { saved: Map<string, SafetensorsTensor>; own: Map<string, SafetensorsTensor> } {
  const [saved, own] = [new Map<string, SafetensorsTensor>(), new Map<string, SafetensorsTensor>()];
  for (const [name, tensor] of folder.tensors) {
    const key = peftKeys(name);
    const whole = key?.role === 'weight' || key?.role === 'bias' || key?.role === 'baseWeight';
    const head = whole && /(?:^|\.)(?:score|classifier|v_head)$/.test(key.path);
    const part = whole && (head || placeOfModule(key.path, model) !== undefined);
    (part ? saved : own).set(name, tensor);
  }
  return { saved, own };
}

function savedFields(config: JsonObject, bias: boolean): SavedConfig {
  const trained = config['bias'] ?? 'none';
  const known = trained === 'none' || trained === 'all' || (typeof trained === 'string' && /^\w+_only$/.test(trained));
  if (bias && !known) {
    throw refused(
      'bias',
      `${show(trained)}, expected "none", "all" or one that ends with "_only"`,
      'Correct adapter_config.json.',
    );
  }
  return {
    trainsBias: bias && trained !== 'none',
    savedModules: TargetModules.parse('modules_to_save', config['modules_to_save'] ?? []),
    savesModules: !isOff(config['modules_to_save']),
    tokens: [],
    tiesEmbeddings: false,
    trainingState: false,
  };
}

function withoutFields(config: JsonObject, fields: readonly string[]): JsonObject {
  return Object.fromEntries(Object.entries(config).filter(([field]) => !fields.includes(field)));
}

const siteKey = ({ layer, site }: SiteRef): string => `${layer} ${site}`;

/** The base with the biases that were trained. */
async function trainedBase(
  folder: AdapterFolder,
  parts: readonly SavedTensor[],
  { model, base }: ImportContext,
): Promise<ImportContext['base']> {
  const biases = new Map<string, Float32Array>();
  for (const { role, place, tensor } of parts) {
    if (role !== 'bias') continue;
    const values = await readFloats(folder, tensor);
    for (const { site, firstRow, rows } of partsOf(place, model)) {
      biases.set(siteKey(site), values.slice(firstRow, firstRow + rows));
    }
  }
  return {
    weight: (site, row0, rows) => base.weight(site, row0, rows),
    bias: (site) => biases.get(siteKey(site)) ?? base.bias(site),
  };
}

/** A module that is replaced and adapted as well: which comes first is not defined. */
function refuseBoth(own: readonly Term[], saved: readonly Term[]): void {
  const adapted = new Set(own.map(({ site }) => siteKey(site)));
  const both = saved.find(({ kind, site }) => kind === 'override' && adapted.has(siteKey(site)));
  if (both === undefined) return;
  const { site, layer } = both.site;
  throw wrongTensor(
    `it replaces the whole ${site}${layer < 0 ? '' : ` of layer ${layer}`} and adapts it as well`,
    "Which of them comes first cannot be known; merge the adapter into its base with PEFT's merge_and_unload().",
  );
}

/** Names of modules_to_save without a tensor: they stay as the base. */
function unsaved({ savedModules }: SavedConfig, parts: readonly SavedTensor[]): string[] {
  const names = savedModules.unusedNames(parts.map(({ path }) => path));
  if (names.length === 0) return [];
  return [`modules_to_save names ${names.map(quoteName).join(', ')}, which have no tensors and stay as the base.`];
}

function joined(
  own: CompiledAdapter,
  saved: { readonly terms: readonly Term[]; readonly notes: readonly string[] },
  unused: readonly string[],
): CompiledAdapter {
  const terms = saved.terms.length === 0 ? own.terms.terms : mergeDiagonals([...own.terms.terms, ...saved.terms]);
  return { terms: { ...own.terms, terms }, notes: [...own.notes, ...saved.notes, ...unused] };
}
