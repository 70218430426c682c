/**
 * Tensors of a checkpoint, by name → {@link WeightEntry}s by site. Every tensor that the model needs must be there
 * with the right shape, and every tensor that is there must be needed or be on a list of harmless ones. Called by
 * open-checkpoint.
 */
import { ManyfoldError } from '../core/errors.js';
import { linearShape, SITES } from '../core/model-config.js';
import type { ModelConfig, SiteName, SiteRef } from '../core/model-config.js';
import type { WeightDtype, WeightEntry } from '../native/binding-types.js';
import type { ModelDescription } from './model-description.js';
import { quoteName } from './strict-json.js';

/** A tensor of any container, its range already checked. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Index into the checkpoint's files. */
  readonly file: number;
  readonly offset: number;
  readonly byteLength: number;
}

export interface WeightNaming {
  /** Name of the tensor of a site, without `.weight` or `.bias`. */
  name(ref: SiteRef): string;
  /** Tensors that are there for others and change nothing here. */
  ignored(name: string): boolean;
  /** Container's dtype → ours; undefined when it is not served. */
  dtype(name: string): WeightDtype | undefined;
  /** What dtypes are served, for messages. */
  readonly dtypes: string;
  /** Heads of a q or k whose rows come in GGUF's Llama order; see WeightEntry.permutedHeads. */
  permutedHeads(site: SiteName): number;
  /** Added to every norm weight. */
  readonly normAdd: number;
}

interface Place {
  readonly ref: SiteRef;
  readonly part: 'weight' | 'bias';
}

/** The entries in forward order. */
export function mapWeights(
  tensors: ReadonlyMap<string, TensorSource>,
  model: ModelDescription,
  naming: WeightNaming,
): WeightEntry[] {
  const used = new Set<string>();
  const entries = places(model).map((place) => {
    const name = `${naming.name(place.ref)}.${place.part}`;
    const shape = expectedShape(model.config, place);
    const tensor = tensors.get(name) ?? missing(name, shape);
    used.add(name);
    return entry(tensor, place, shape, naming);
  });
  const unknown = [...tensors.keys()].filter((name) => !used.has(name) && !naming.ignored(name));
  if (unknown.length > 0) refuseUnknown(unknown);
  return entries;
}

/** All tensors that the model has. */
function places(model: ModelDescription): Place[] {
  const { config, biases } = model;
  const list: Place[] = [{ ref: { layer: -1, site: 'embedding' }, part: 'weight' }];
  const sites = layerSites(config);
  for (let layer = 0; layer < config.layers.length; layer += 1) {
    for (const site of sites) {
      list.push({ ref: { layer, site }, part: 'weight' });
      if (biases.has(site)) list.push({ ref: { layer, site }, part: 'bias' });
    }
  }
  list.push({ ref: { layer: -1, site: 'finalNorm' }, part: 'weight' });
  if (!config.tiedHead) list.push({ ref: { layer: -1, site: 'head' }, part: 'weight' });
  return list;
}

function layerSites(config: ModelConfig): SiteName[] {
  const sites: SiteName[] = ['attnNorm', 'q', 'k', 'v'];
  if (config.qkNorm) sites.push('qNorm', 'kNorm');
  sites.push('o');
  if (config.postNorms) sites.push('postAttnNorm');
  sites.push('mlpNorm', 'gate', 'up', 'down');
  if (config.postNorms) sites.push('postMlpNorm');
  return sites;
}

function isNorm(site: SiteName): boolean {
  return site.endsWith('Norm');
}

function expectedShape(config: ModelConfig, { ref, part }: Place): readonly number[] {
  if (ref.site === 'embedding') return [config.vocabSize, config.hiddenSize];
  if (ref.site === 'qNorm' || ref.site === 'kNorm') return [config.headDim];
  const linear = linearShape(config, ref.site);
  if (linear === undefined) return [config.hiddenSize];
  return part === 'bias' ? [linear.out] : [linear.out, linear.in];
}

function entry(
  tensor: TensorSource,
  { ref, part }: Place,
  shape: readonly number[],
  naming: WeightNaming,
): WeightEntry {
  const at = `tensor ${quoteName(tensor.name)}`;
  const dtype = naming.dtype(tensor.dtype);
  if (dtype === undefined) refuse(`${at} has dtype ${tensor.dtype}, expected ${naming.dtypes}`, tensor.name);
  if (tensor.shape.length !== shape.length || tensor.shape.some((dim, i) => dim !== shape[i])) {
    refuse(`${at} has shape [${tensor.shape.join(', ')}], expected [${shape.join(', ')}]`, tensor.name);
  }
  const [rows, cols] = shape.length === 2 ? shape : [1, shape[0]];
  return {
    file: tensor.file,
    offset: tensor.offset,
    byteLength: tensor.byteLength,
    dtype,
    rows: rows ?? 1,
    cols: cols ?? 1,
    layer: ref.layer,
    site: SITES[ref.site],
    part,
    permutedHeads: naming.permutedHeads(ref.site),
    add: isNorm(ref.site) ? naming.normAdd : 0,
  };
}

function missing(name: string, shape: readonly number[]): never {
  return refuse(`tensor ${quoteName(name)} of shape [${shape.join(', ')}] is missing`, name);
}

function refuseUnknown(names: readonly string[]): never {
  const shown = names.slice(0, 5).map(quoteName).join(', ');
  const more = names.length > 5 ? ` and ${names.length - 5} more` : '';
  return refuse(`tensors that this model does not have: ${shown}${more}`, names[0] ?? '');
}

function refuse(problem: string, param: string): never {
  const mend = 'The checkpoint is incomplete or of another kind than its config says; download it again.';
  throw new ManyfoldError('invalid_model', `${problem}. ${mend}`, { param });
}

/** The dtype that holds most bytes of the linears, embedding and head aside. */
export function dominantDtype(weights: readonly WeightEntry[]): WeightDtype {
  const bytes = new Map<WeightDtype, number>();
  for (const { layer, rows, dtype, byteLength } of weights) {
    if (layer >= 0 && rows > 1) bytes.set(dtype, (bytes.get(dtype) ?? 0) + byteLength);
  }
  const [first] = [...bytes].sort((a, b) => b[1] - a[1]);
  return first?.[0] ?? 'f32';
}
