/**
 * Sparse fine-tuning (SFT: Ansell et al., arXiv 2401.16405, AlanAnsell/peft; composable SFT: arXiv 2110.07560). Keys after
 * `base_model.model.` + module: `sft_delta.values [k]` and `sft_delta.indices [k]` (int32 or int64), flat row-major indices of
 * the module's weight. On a linear they are one SPARSE term.
 *
 * `manyfold adapters convert composable-sft` adds what that format has beside linears: the same keys on embedding and norms
 * (folded into OVERRIDE), `sft_bias_delta.values/.indices` on a linear's bias (a shift), and plain `.weight`/`.bias` keys that
 * replace a tensor as a whole. There, names are of the base's own parameters, so a tied head follows its embedding; a module
 * that peft saved (modules_to_save) is a copy of its own, and the other user of a tied weight keeps the base's.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig, SiteName } from '../../core/model-config.js';
import type { Term } from '../../core/terms.js';
import type { AdapterFolder } from '../adapter-folder.js';
import { refused, refuseUnknownFields, show } from '../config-fields.js';
import type { AdapterImporter, CompiledAdapter, ImportContext } from '../importer.js';
import { isLinear, partsOf, placeOfModule, siteShape } from '../module-place.js';
import type { ModulePlace } from '../module-place.js';
import { checkShape, readIntegers, readTensor, wrongTensor } from '../tensor-values.js';
import { absoluteTerms, biasDeltaTerms, rowDeltaTerms } from './absolute-tensors.js';
import type { TiedContext } from './absolute-tensors.js';
import { isPeftType } from './linear-tensors.js';
import { entriesOfFlat, sparseTerms } from './sparse-entries.js';

export const sftImporter: AdapterImporter = {
  method: 'SFT',
  matches: (config) => isPeftType(config, 'SFT'),
  compile: compileSft,
};

/** The `format` that the converter writes. */
const COMPOSABLE = 'composable-sft';

/** What the entries were chosen and trained by; the tensors hold the result. */
const KNOWN = [
  'candidate_reselection_proportion',
  'candidate_reselection_steps',
  'density',
  'dtype',
  'format',
  'initial_reselection_rate',
  'num_deltas',
  'num_tunable_weights',
  'reselection_steps',
  'selection_accumulation_steps',
  'selection_algorithm',
  'modules_to_save',
];

type Use = 'weight delta' | 'bias delta' | 'weight' | 'bias';

/** What the file says of one module's weight or bias. */
interface Piece {
  readonly path: string;
  readonly use: Use;
  readonly place: ModulePlace;
  /** Of weight or bias, `[out, in]` or `[n]`. */
  readonly shape: readonly number[];
  values?: SafetensorsTensor;
  indices?: SafetensorsTensor;
}

async function compileSft(folder: AdapterFolder, context: ImportContext): Promise<CompiledAdapter> {
  refuseUnknownFields(folder.config, KNOWN);
  const format = folder.config['format'] ?? null;
  if (format !== null && format !== COMPOSABLE) {
    throw refused('format', `${show(format)}, expected "${COMPOSABLE}" or null`, 'Convert the adapter again.');
  }
  const tied = format === COMPOSABLE && context.model.tiedHead;
  const pieces = piecesOf(folder, context.model, tied);
  for (const piece of pieces) checkPiece(piece);
  const terms: Term[] = [];
  for (const piece of pieces) terms.push(...(await termsOf(folder, piece, { ...context, tied })));
  return { terms: { terms: withoutInertShifts(terms) }, notes: [] };
}

const DELTA_KEY = /^(.+)\.sft_(bias_)?delta(?:\.default)?\.(values|indices)$/;
const WHOLE_KEY = /^(.+)\.(weight|bias)$/;

function piecesOf(folder: AdapterFolder, model: ModelConfig, tied: boolean): Piece[] {
  const pieces = new Map<string, Piece>();
  for (const tensor of folder.tensors.values()) {
    const key = tensor.name.replace(/^base_model\.model\./, '');
    const delta = DELTA_KEY.exec(key);
    const match = delta ?? WHOLE_KEY.exec(key);
    if (match === null) throw foreign(tensor.name);
    const path = match[1] ?? '';
    const use: Use = delta === null ? (match[2] as 'weight' | 'bias') : match[2] ? 'bias delta' : 'weight delta';
    const place = placeOf(path, use, tensor.name, model, tied);
    const [first] = place.sites;
    const id = `${place.layer} ${first} ${use.startsWith('bias') ? 'bias' : 'weight'}`;
    const piece = pieces.get(id) ?? { path, use, place, shape: shapeOf(place, use, model) };
    pieces.set(id, piece);
    const slot = delta?.[3] === 'indices' ? 'indices' : 'values';
    if (piece[slot] !== undefined || piece.use !== use || piece.path !== path) {
      throw wrongTensor(
        `${quoteName(tensor.name)} and ${quoteName((piece[slot] ?? piece.values ?? piece.indices ?? tensor).name)} ` +
          'change the same tensor',
        'Which of them counts cannot be known; save the adapter again.',
      );
    }
    piece[slot] = tensor;
  }
  if (pieces.size === 0) {
    throw wrongTensor('it holds no tensors, so it would be the base under another name', 'Save the adapter again.');
  }
  return [...pieces.values()];
}

function placeOf(path: string, use: Use, name: string, model: ModelConfig, tied: boolean): ModulePlace {
  const place = placeOfModule(path, model);
  const site = place?.sites[0];
  if (place === undefined || site === undefined || (use.startsWith('bias') && !isLinear(site))) {
    throw wrongTensor(
      `${quoteName(name)} changes a tensor that the base (${model.family}, ${model.layers.length} layers) does not have`,
      'Serve it on the base that it was trained for.',
    );
  }
  if (use === 'weight' && isLinear(site) && site !== 'head') {
    throw wrongTensor(
      `${quoteName(name)} replaces the whole weight of a linear, expected sft_delta.values and .indices`,
      'Write the difference from the base as entries (manyfold adapters extract), or serve the whole model with --model.',
    );
  }
  if (use === 'weight' && site === 'head' && tied) {
    throw wrongTensor(
      `${quoteName(name)} replaces the head, which this base shares with its embedding`,
      'Save it as the weight of embed_tokens, or train it on a base with tie_word_embeddings=false.',
    );
  }
  return place;
}

function shapeOf(place: ModulePlace, use: Use, model: ModelConfig): readonly number[] {
  const site = place.sites[0] as SiteName;
  const { out, in: width } = siteShape(model, site);
  const rows = partsOf(place, model).reduce((sum, part) => sum + part.rows, 0);
  if (use.startsWith('bias')) return [rows];
  return isLinear(site) || site === 'embedding' ? [site === 'embedding' ? out : rows, width] : [width];
}

function checkPiece({ path, use, shape, values, indices }: Piece): void {
  if (values === undefined || (use.endsWith('delta') && indices === undefined)) {
    const [present, missing] = values === undefined ? [indices, 'values'] : [values, 'indices'];
    throw wrongTensor(
      `${quoteName(present?.name ?? path)} has no ${missing} beside it`,
      'The file is incomplete; download or save it again.',
    );
  }
  if (indices === undefined) return checkShape(values, shape);
  const count = values.shape[0] ?? 0;
  checkShape(values, [count], '[k]');
  checkShape(indices, [count], `[${count}], one for each value`);
}

async function termsOf(folder: AdapterFolder, piece: Piece, context: TiedContext): Promise<Term[]> {
  const { model } = context;
  const { path, use, place, shape, values, indices } = piece as Required<Piece>;
  const tensor = await readTensor(folder, values);
  if (use === 'weight' || use === 'bias') return absoluteTerms(place, use, tensor, context);
  const [rows, width] = shape.length === 2 ? (shape as [number, number]) : [1, shape[0] ?? 0];
  const entries = entriesOfFlat(indices.name, await readIntegers(folder, indices), rows, width);
  const module = { path, layer: place.layer, parts: partsOf(place, model), out: rows, in: width, tensors: new Map() };
  if (use === 'weight delta' && isLinear(place.sites[0] as SiteName)) return sparseTerms(module, entries, tensor, 1);
  // The same sorting and the same refusal of duplicates as for a linear, on one site.
  const site = { layer: place.layer, site: place.sites[0] as SiteName };
  const whole = { ...module, parts: [{ site, firstRow: 0, rows }] };
  const delta = sparseTerms(whole, entries, tensor, 1)[0];
  if (delta === undefined) return [];
  return use === 'bias delta' ? biasDeltaTerms(place, delta, model) : rowDeltaTerms(place, delta, context, path);
}

function withoutInertShifts(terms: readonly Term[]): Term[] {
  return terms.filter((term) => term.kind !== 'diag' || term.c?.some((value) => value !== 0) === true);
}

function foreign(name: string): Error {
  return wrongTensor(
    `${quoteName(name)} is no tensor of SFT (sft_delta.values, sft_delta.indices)`,
    'Save the adapter again with its own library, or merge it into its base and serve the result with --model.',
  );
}
