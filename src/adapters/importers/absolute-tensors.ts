/**
 * Embedding, head, norms and biases that a file replaces, or changes at single entries: OVERRIDE terms and shifts of DIAG.
 * Called by the importers of sparse methods.
 */
import type { ModelConfig, SiteName, SiteRef } from '../../core/model-config.js';
import type { DenseTensor, SparseTerm, Term } from '../../core/terms.js';
import type { ImportContext } from '../importer.js';
import { partsOf, siteShape } from '../module-place.js';
import type { ModulePlace } from '../module-place.js';
import { checkFolded, floatTensor, toFloats } from '../tensor-values.js';

export interface TiedContext extends Pick<ImportContext, 'model' | 'base'> {
  /** What changes the embedding changes the head as well: they are one parameter, and the file names parameters. */
  readonly tied: boolean;
}

/** `tensor` stands in the place of the module's weight (embedding, head or norm) or of a linear's bias. */
export function absoluteTerms(
  place: ModulePlace,
  use: 'weight' | 'bias',
  tensor: DenseTensor,
  context: TiedContext,
): Term[] {
  const { model } = context;
  if (use === 'bias') return biasTerms(place, tensor, context);
  const site = place.sites[0] as SiteName;
  if (site === 'embedding' || site === 'head') {
    const rows = Uint32Array.from({ length: model.vocabSize }, (_, i) => i);
    return vocabularyOverrides(site, rows, tensor, context.tied);
  }
  // The file has Gemma's w, the term has the effective 1 + w.
  const plus = model.family === 'gemma3' ? 1 : 0;
  const values = checkFolded(
    `the norm at ${site}`,
    Float32Array.from(toFloats(tensor), (value) => value + plus),
  );
  return [{ kind: 'override', site: { layer: place.layer, site }, values: floatTensor([1, values.length], values) }];
}

function vocabularyOverrides(site: SiteName, rows: Uint32Array, values: DenseTensor, tied: boolean): Term[] {
  const sites: SiteName[] = site === 'embedding' && tied ? ['embedding', 'head'] : [site];
  return sites.map((name) => ({ kind: 'override', site: { layer: -1, site: name }, rows, values }));
}

/** c = b' − b of each part. */
function biasTerms(place: ModulePlace, tensor: DenseTensor, { model, base }: TiedContext): Term[] {
  const wanted = toFloats(tensor);
  return partsOf(place, model).map(({ site, firstRow, rows }) => {
    const old = base.bias(site);
    const c = wanted.slice(firstRow, firstRow + rows).map((value, i) => value - (old?.[i] ?? 0));
    return { kind: 'diag', site, c: checkFolded(`the bias at ${site.site}`, c) };
  });
}

/** Entries of a difference from a bias, `[1, out]` as one row. */
export function biasDeltaTerms(place: ModulePlace, { columns, values }: SparseTerm, model: ModelConfig): Term[] {
  const delta = toFloats(values as DenseTensor);
  const parts = partsOf(place, model);
  const shift = new Float32Array(parts.reduce((sum, { rows }) => sum + rows, 0));
  for (const [i, column] of columns.entries()) shift[column] = delta[i] as number;
  return parts.map(({ site, firstRow, rows }) => ({
    kind: 'diag',
    site,
    c: shift.slice(firstRow, firstRow + rows),
  }));
}

/** Entries of a difference from embedding or norm: the touched rows are the base's plus the entries. */
export function rowDeltaTerms(
  place: ModulePlace,
  delta: SparseTerm,
  { model, base, tied }: TiedContext,
  path: string,
): Term[] {
  const site: SiteRef = { layer: place.layer, site: place.sites[0] as SiteName };
  const width = siteShape(model, site.site).in;
  const ids = touchedRows(delta);
  const rows = new Float32Array(ids.length * width);
  const values = toFloats(delta.values as DenseTensor);
  for (const [k, id] of ids.entries()) {
    const row = Float64Array.from(base.weight(site, id, 1));
    for (let i = delta.rowStart[id] as number; i < (delta.rowStart[id + 1] as number); i += 1) {
      const column = delta.columns[i] as number;
      row[column] = (row[column] as number) + (values[i] as number);
    }
    rows.set(row, k * width);
  }
  const tensor = floatTensor([ids.length, width], checkFolded(path, rows));
  if (site.site !== 'embedding') return [{ kind: 'override', site, values: tensor }];
  return vocabularyOverrides('embedding', ids, tensor, tied);
}

function touchedRows({ rowStart }: SparseTerm): Uint32Array {
  const ids: number[] = [];
  for (let row = 0; row + 1 < rowStart.length; row += 1) if (rowStart[row] !== rowStart[row + 1]) ids.push(row);
  return Uint32Array.from(ids);
}
