/**
 * What a PEFT file replaces beside its factors: modules_to_save and resized embeddings (OVERRIDE), trained biases (a shift of
 * DIAG), rows of trained tokens (OVERRIDE of rows), and copies of the base's own weights, which are compared.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import { bf16ToF32, f32ToBf16 } from '../../core/half.js';
import type { SiteName } from '../../core/model-config.js';
import type { DenseTensor, Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refused, show } from '../config-fields.js';
import { eachBaseBlock } from '../fold.js';
import type { ImportContext } from '../importer.js';
import { isLinear, partsOf, placeOfModule, siteShape } from '../module-place.js';
import type { ModulePlace } from '../module-place.js';
import { checkShape, floatTensor, readTensor, toFloats, wrongTensor } from '../tensor-values.js';
import { absoluteTerms } from './absolute-tensors.js';
import type { LoraConfig } from './lora-config.js';
import { twice } from './lora-tensors.js';
import type { LoraRole, LoraTensor } from './lora-tensors.js';

/** The fields of a config that say what may lie beside the factors. */
export type SavedConfig = Pick<
  LoraConfig,
  'trainsBias' | 'savedModules' | 'savesModules' | 'tokens' | 'tiesEmbeddings' | 'trainingState'
>;

export interface SavedTensor extends LoraTensor {
  readonly place: ModulePlace;
  readonly site: SiteName;
  /** What changes the embedding changes the tied head too. */
  readonly tied: boolean;
  /** Of trained tokens, in the order of the file. */
  readonly ids: readonly number[];
}

const SAVED: ReadonlySet<LoraRole> = new Set<LoraRole>(['weight', 'bias', 'baseWeight', 'tokens']);
const MERGE = "Merge the adapter into its base with PEFT's merge_and_unload() and serve the result with --model.";

/** Checks places and shapes on the headers; throws 'invalid_adapter'. */
export function sortSaved(
  tensors: readonly LoraTensor[],
  config: SavedConfig,
  { model }: Pick<ImportContext, 'model'>,
): SavedTensor[] {
  const state = tensors.find(({ role }) => role === 'training');
  if (state !== undefined && !config.trainingState) {
    throw wrongTensor(
      `${quoteName(state.tensor.name)} is state of a training method that adapter_config.json does not name`,
      'Config and tensors do not belong together; save them again together.',
    );
  }
  const wholes = tensors.filter(({ role }) => role === 'weight' || role === 'baseWeight');
  const ownHead = wholes.some(({ path }) => placeOfModule(path, model)?.sites[0] === 'head');
  const tokenHead = tensors.some(
    ({ role, path }) => role === 'tokens' && placeOfModule(path, model)?.sites[0] === 'head',
  );
  const saved = tensors
    .filter(({ role }) => SAVED.has(role))
    .map((tensor): SavedTensor => {
      const place = checkedPlace(tensor, config, model);
      const site = place.sites[0] as SiteName;
      const plain = tensor.role !== 'weight' || config.savedModules.names(tensor.path) !== true;
      const alone = tensor.role === 'tokens' ? tokenHead : ownHead || !(plain || config.tiesEmbeddings);
      const ids = tensor.role === 'tokens' ? idsOf(tensor, config) : [];
      return { ...tensor, place, site, tied: model.tiedHead && !alone, ids };
    });
  for (const { name } of config.tokens) {
    if (saved.some(({ role, path }) => role === 'tokens' && endsWithName(path, name))) continue;
    // The tied head has the embedding's rows.
    if (model.tiedHead && name.endsWith('lm_head') && saved.some(({ role }) => role === 'tokens')) continue;
    throw refused(
      'trainable_token_indices',
      `on for ${show(name)}, which has no trainable_tokens_delta in the file`,
      'The file is incomplete; download or save it again.',
    );
  }
  return saved;
}

function checkedPlace(
  { path, role, tensor }: LoraTensor,
  config: SavedConfig,
  model: ImportContext['model'],
): ModulePlace {
  const place = placeOfModule(path, model);
  const site = place?.sites[0];
  if (place === undefined || site === undefined) {
    const what = /(?:^|\.)(?:score|classifier|v_head)$/.test(path)
      ? 'is a head for another task than text generation'
      : `belongs to a module that the base (${model.family}, ${model.layers.length} layers) does not have`;
    throw wrongTensor(`${quoteName(tensor.name)} ${what}`, 'Serve it on the base and for the task it was trained for.');
  }
  const { out, in: width } = siteShape(model, site);
  const norm = !isLinear(site) && site !== 'embedding';
  if (role === 'bias') {
    if (!isLinear(site) || !(config.trainsBias || config.savesModules)) {
      throw wrongTensor(
        `${quoteName(tensor.name)} is a bias, while adapter_config.json trains none there (bias is "none")`,
        'Config and tensors do not belong together; save them again together.',
      );
    }
    checkShape(tensor, [rowsOfModule(place, model)]);
  } else if (role === 'tokens') {
    if (site !== 'embedding' && site !== 'head') {
      throw wrongTensor(
        `${quoteName(tensor.name)} has rows of tokens, which only embedding and head have`,
        'Save the adapter again with PEFT.',
      );
    }
    checkShape(tensor, [tensor.shape[0] ?? 0, width], `[n, ${width}]`);
  } else if (norm) {
    checkShape(tensor, [width]);
  } else if (isLinear(site) && site !== 'head') {
    if (role === 'weight') throw wholeLinear(tensor);
    checkShape(tensor, [rowsOfModule(place, model), width]);
  } else {
    checkShape(tensor, [out, width], `[${out}, ${width}] (an adapter cannot change the size of the vocabulary)`);
  }
  return place;
}

function wholeLinear(tensor: SafetensorsTensor): Error {
  return wrongTensor(
    `${quoteName(tensor.name)} replaces a whole linear of the base, which would cost as much as a model of its own`,
    `Train the linear with a low-rank adapter instead of modules_to_save. ${MERGE}`,
  );
}

function rowsOfModule(place: ModulePlace, model: ImportContext['model']): number {
  return partsOf(place, model).reduce((sum, { rows }) => sum + rows, 0);
}

function endsWithName(path: string, name: string): boolean {
  return path === name || path.endsWith(`.${name}`);
}

function idsOf({ path, tensor }: LoraTensor, { tokens }: SavedConfig): readonly number[] {
  const entry = tokens.find(({ name }) => endsWithName(path, name));
  const ids = entry?.ids ?? [];
  if (ids.length === tensor.shape[0] && new Set(ids).size === ids.length) return ids;
  throw refused(
    'trainable_token_indices',
    `${show([...ids])} for ${quoteName(path)}, expected ${tensor.shape[0]} different token ids, one for each row of ` +
      quoteName(tensor.name),
    'Config and tensors do not belong together; save them again together.',
  );
}

/** Reads and compiles; notes say what was found equal to the base. */
export async function savedTerms(
  folder: AdapterFolder,
  saved: readonly SavedTensor[],
  context: ImportContext,
): Promise<{ readonly terms: Term[]; readonly notes: string[] }> {
  const terms: Term[] = [];
  const owners = new Map<string, SavedTensor>();
  const equal: string[] = [];
  for (const item of saved) {
    const values = await readTensor(folder, item.tensor);
    if ((item.role === 'weight' || item.role === 'baseWeight') && (await isBaseOwn(item, values, context))) {
      equal.push(item.path);
      continue;
    }
    const own = termsOf(item, values, context);
    for (const { kind, site } of own) {
      const place = `${kind} ${site.layer} ${site.site}`;
      // Two paths may mean one module, and whole weights may come beside rows of tokens.
      const other = owners.get(place);
      if (other !== undefined) throw twice(other.tensor.name, item.tensor.name);
      owners.set(place, item);
    }
    terms.push(...own);
  }
  const notes = equal.length === 0 ? [] : [`Weights of ${equal.join(', ')} lie in the file and are those of the base.`];
  return { terms, notes };
}

function termsOf(item: SavedTensor, values: DenseTensor, context: ImportContext): readonly Term[] {
  if (item.role === 'tokens') return tokenTerms(item, values);
  const part = item.role === 'bias' ? 'bias' : 'weight';
  if (part === 'weight' && isLinear(item.site) && item.site !== 'head') throw wholeLinear(item.tensor);
  return absoluteTerms(item.place, part, values, { ...context, tied: item.tied });
}

function tokenTerms({ site, tied, ids }: SavedTensor, values: DenseTensor): Term[] {
  const order = ids.map((_, i) => i).sort((a, b) => (ids[a] as number) - (ids[b] as number));
  const width = values.shape[1] ?? 0;
  const source = toFloats(values);
  const data = new Float32Array(source.length);
  order.forEach((from, to) => {
    data.set(source.subarray(from * width, (from + 1) * width), to * width);
  });
  const rows = Uint32Array.from(order, (i) => ids[i] as number);
  const sites: SiteName[] = site === 'embedding' && tied ? ['embedding', 'head'] : [site];
  const tensor = floatTensor(values.shape, data);
  return sites.map((name) => ({ kind: 'override', site: { layer: -1, site: name }, rows, values: tensor }));
}

/** Whether the values are those that are served, which may have been rounded to 16 bits since. */
async function isBaseOwn(item: SavedTensor, tensor: DenseTensor, { model, base }: ImportContext): Promise<boolean> {
  const { place, site } = item;
  const linear = isLinear(site) && site !== 'head';
  const { out: siteRows, in: width } = siteShape(model, site);
  const out = linear ? rowsOfModule(place, model) : siteRows;
  const parts = linear ? partsOf(place, model) : [{ site: { layer: place.layer, site }, firstRow: 0, rows: siteRows }];
  // Gemma's files have the norm's w, the base has 1 + w.
  const plus = model.family === 'gemma3' && !isLinear(site) && site !== 'embedding' ? 1 : 0;
  const values = toFloats(tensor);
  let same = true;
  await eachBaseBlock(base, { parts, out, in: width }, 1, (block, firstRow) => {
    const from = firstRow * width;
    for (let i = 0; same && i < block.length; i += 1) {
      same = roundsTo(Math.fround((values[from + i] as number) + plus), block[i] as number);
    }
  });
  return same;
}

function roundsTo(value: number, served: number): boolean {
  return value === served || bf16ToF32(f32ToBf16(value)) === served;
}
