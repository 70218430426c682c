/**
 * S²FT (structured sparse fine-tuning) in our own format, docs/formats/s2ft.md: of each adapted linear some whole output
 * rows or input columns of the difference, with their numbers. One ROWCOL term a module, in the file's type:
 *
 *     rows (v_proj, up_proj):       y[index] += V x,     V [k, in]
 *     columns (o_proj, down_proj):  y += V x[index],     V [out, k]
 *
 * Nothing is folded, so limits.maxBytes, which openAdapterFolder asks of the file, bounds the memory too; a rank has no meaning.
 *
 * Equations: S2ColumnLinear and S2RowLinear of the paper's code (arXiv 2412.06289), with the channels in the base's order.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig, SiteRef } from '../../core/model-config.js';
import type { RowColTerm } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refused, refuseUnknownFields, show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { isLayerLinear, placeOfModule, siteShape } from '../module-place.js';
import { checkShape, readIntegers, readTensor, wrongTensor } from '../tensor-values.js';

export const S2FT_VERSION = 1;
/** Names of the two tensors of a module, behind its path. */
export const S2FT_PART = { out: 's2ft_rows', in: 's2ft_columns' } as const;

export const s2ftImporter: AdapterImporter = {
  method: 'S2FT',
  matches: (config) => config['peft_type'] === 'S2FT',
  compile: compileS2ft,
};

const FORMAT = 'docs/formats/s2ft.md has the format.';
const KEY = /^(.+)\.s2ft_(rows|columns)\.(index|values)$/;

interface S2ftModule {
  readonly path: string;
  readonly site: SiteRef;
  readonly side: 'in' | 'out';
  readonly index: SafetensorsTensor;
  readonly values: SafetensorsTensor;
  /** Channels that an index may name. */
  readonly channels: number;
}

async function compileS2ft(folder: AdapterFolder, { model }: ImportContext): Promise<CompiledAdapter> {
  checkConfig(folder);
  const modules = groupModules(folder.tensors, model);
  const terms: RowColTerm[] = [];
  const inert: string[] = [];
  for (const module of modules) {
    const index = await readIndex(folder, module);
    const values = await readTensor(folder, module.values);
    if (values.data.every((value) => value === 0)) inert.push(module.path);
    terms.push({ kind: 'rowcol', site: module.site, side: module.side, index, values, scale: 1 });
  }
  const note = `The values are all zero in ${inert.length} of ${modules.length} modules, which stay as the base.`;
  return { terms: { terms }, notes: inert.length > 0 ? [note] : [] };
}

function checkConfig({ config }: AdapterFolder): void {
  const version = config['s2ft_version'];
  if (version !== S2FT_VERSION) {
    const mend = `Write the adapter with the version that this server reads; ${FORMAT}`;
    throw refused('s2ft_version', `${show(version)}, expected ${S2FT_VERSION}`, mend);
  }
  refuseUnknownFields(config, ['s2ft_version']);
}

interface Pair {
  readonly path: string;
  readonly side: 'in' | 'out';
  index?: SafetensorsTensor;
  values?: SafetensorsTensor;
}

function groupModules(tensors: ReadonlyMap<string, SafetensorsTensor>, model: ModelConfig): S2ftModule[] {
  const pairs = new Map<string, Pair>();
  for (const tensor of tensors.values()) {
    const [, path, part, role] = KEY.exec(tensor.name) ?? [];
    if (path === undefined) {
      throw wrongTensor(
        `${quoteName(tensor.name)} is no tensor of an S2FT adapter ` +
          '("….s2ft_rows.index", "….s2ft_rows.values" and the same with s2ft_columns)',
        FORMAT,
      );
    }
    const pair: Pair = pairs.get(`${path} ${part}`) ?? { path, side: part === 'rows' ? 'out' : 'in' };
    pairs.set(`${path} ${part}`, pair);
    pair[role === 'index' ? 'index' : 'values'] = tensor;
  }
  if (pairs.size === 0) {
    throw wrongTensor('it holds no tensors, so it would be the base under another name', FORMAT);
  }
  const places = new Map<string, S2ftModule>();
  for (const pair of pairs.values()) {
    const module = moduleOf(pair, model);
    const place = `${module.site.layer} ${module.site.site}`;
    const other = places.get(place);
    if (other !== undefined) throw twice(other, module);
    places.set(place, module);
  }
  return [...places.values()];
}

function moduleOf({ path, side, index, values }: Pair, model: ModelConfig): S2ftModule {
  const place = placeOfModule(path, model);
  const site = place?.sites[0];
  if (place === undefined || site === undefined || place.sites.length !== 1 || !isLayerLinear(site)) {
    throw wrongTensor(
      `it adapts ${quoteName(path)}, which is no linear of the base's layers (${model.family}, ` +
        `${model.layers.length} layers), expected for example "model.layers.0.mlp.down_proj"`,
      'Serve it on the base that it was trained for.',
    );
  }
  if (index === undefined || values === undefined) {
    const missing = index === undefined ? 'index' : 'values';
    throw wrongTensor(
      `${quoteName(path)} has no ${S2FT_PART[side]}.${missing}`,
      'The file is incomplete; download or save it again.',
    );
  }
  if (index.dtype !== 'I32') {
    throw wrongTensor(`${quoteName(index.name)} is ${index.dtype}, expected I32`, `Save it as int32; ${FORMAT}`);
  }
  const shape = siteShape(model, site);
  const channels = shape[side];
  const count = index.shape[0] ?? 0;
  checkShape(index, [count], `[k] with k of 1 to ${channels}`);
  if (count > channels) throw outOfRange(index, `${count} numbers`, channels);
  const [wanted, words] =
    side === 'out'
      ? [[count, shape.in], `[${count}, ${shape.in}], one row for each number of its index`]
      : [[shape.out, count], `[${shape.out}, ${count}], one column for each number of its index`];
  checkShape(values, wanted, words);
  return { path, site: { layer: place.layer, site }, side, index, values, channels };
}

async function readIndex(folder: AdapterFolder, { index, channels }: S2ftModule): Promise<Uint32Array> {
  const values = await readIntegers(folder, index);
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i] as number;
    if (value < 0 || value >= channels) throw outOfRange(index, String(value), channels);
    const before = i === 0 ? -1 : (values[i - 1] as number);
    if (value > before) continue;
    throw wrongTensor(
      value === before
        ? `${quoteName(index.name)} holds ${value} twice, expected each number once`
        : `${quoteName(index.name)} holds ${value} after ${before}, expected ascending numbers`,
      'Sort the numbers, and the rows or columns of the values with them; add up those of one number.',
    );
  }
  return Uint32Array.from(values);
}

function outOfRange(index: SafetensorsTensor, found: string, channels: number): Error {
  return wrongTensor(
    `${quoteName(index.name)} holds ${found}, expected numbers from 0 to ${channels - 1}`,
    'The adapter was made for another base; serve it on that one.',
  );
}

function twice(first: S2ftModule, second: S2ftModule): Error {
  return wrongTensor(
    `${quoteName(first.values.name)} and ${quoteName(second.values.name)} adapt the same linear`,
    'A linear has either rows or columns, under one name; write it once.',
  );
}
