/** A base and a fine-tune of it, opened side by side and made comparable. Called by the tools that compare checkpoints. */
import { openWeights } from '../../checkpoint/read-rows.js';
import type { RowReader, WeightReader } from '../../checkpoint/read-rows.js';
import { dominantDtype } from '../../checkpoint/weight-map.js';
import { huggingFaceNaming } from '../../checkpoint/weight-names.js';
import { bug, ManyfoldError } from '../../core/errors.js';
import { SITES } from '../../core/model-config.js';
import type { ModelConfig, SiteName, SiteRef } from '../../core/model-config.js';
import { roundTo, SIGNIFICAND_BITS } from './round-to.js';
import type { FloatType } from './round-to.js';

export interface WeightPlace {
  readonly ref: SiteRef;
  readonly part: 'weight' | 'bias';
}

export interface ModelPair {
  readonly basePath: string;
  readonly model: ModelConfig;
  /** Its values are rounded to the fine-tune's type where that is narrower: so the training saw them. */
  readonly base: Pick<WeightReader, 'tensor'>;
  readonly tuned: Pick<WeightReader, 'tensor'>;
  /** The model of the fine-tune; vocabulary and tied head may differ. */
  readonly tunedModel: ModelConfig;
  readonly places: readonly WeightPlace[];
  readonly notes: readonly string[];
  close(): Promise<void>;
}

export async function openModelPair(basePath: string, tunedPath: string): Promise<ModelPair> {
  const base = await openWeights(basePath);
  let tuned: WeightReader | undefined;
  try {
    tuned = await openWeights(tunedPath);
    refuseOtherModel(base.config, tuned.config);
    return pairOf(basePath, base, tuned);
  } catch (error) {
    await base.close();
    await tuned?.close();
    throw error;
  }
}

function pairOf(basePath: string, base: WeightReader, tuned: WeightReader): ModelPair {
  return {
    basePath,
    model: base.config,
    base: { tensor: (site, part) => rounded(headOf(base, site, part), headOf(tuned, site, part)?.dtype) },
    tuned: { tensor: (site, part) => headOf(tuned, site, part) },
    tunedModel: tuned.config,
    places: placesOf(base, tuned),
    notes: [...typeNotes(base, tuned), ...vocabularyNotes(base.config, tuned.config)],
    close: async () => {
      await Promise.all([base.close(), tuned.close()]);
    },
  };
}

/** A tied head is the embedding. */
function headOf(source: WeightReader, site: SiteRef, part?: 'weight' | 'bias'): RowReader | undefined {
  const own = source.tensor(site, part);
  if (own !== undefined || site.site !== 'head' || part === 'bias') return own;
  return source.tensor({ layer: -1, site: 'embedding' });
}

function rounded(reader: RowReader | undefined, type: FloatType | undefined): RowReader | undefined {
  if (reader === undefined || type === undefined || !isNarrower(type, reader.dtype)) return reader;
  return {
    ...reader,
    read: async (row0, count) => (await reader.read(row0, count)).map((value) => roundTo(type, value)),
  };
}

/** bf16 and f16 do not hold one another's values: a base in one, trained in the other, was rounded on the way. */
function isNarrower(type: FloatType, than: FloatType): boolean {
  return type !== than && (SIGNIFICAND_BITS[type] < SIGNIFICAND_BITS[than] || type === 'f16');
}

function typeNotes(base: WeightReader, tuned: WeightReader): string[] {
  const types = [base, tuned].map(({ weights }) => dominantDtype(weights) as FloatType);
  const [ours = 'f32', theirs = 'f32'] = types;
  if (!isNarrower(theirs, ours)) return [];
  const serve = theirs === 'bf16' ? ' (serve it with --dtype bf16)' : '';
  return [
    `The base is ${ours}, the fine-tune ${theirs}: the base is taken as rounded to ${theirs}, as it was in training, and ` +
      `the adapter is exact on the base in that type${serve}.`,
  ];
}

function vocabularyNotes({ vocabSize: ours }: ModelConfig, { vocabSize: theirs }: ModelConfig): string[] {
  if (theirs === ours) return [];
  if (theirs < ours)
    return [`The fine-tune has ${theirs} vocabulary rows; rows up to the base's ${ours} stay as the base.`];
  const padding = theirs === 8 * Math.ceil(ours / 8) ? ' (padding to a multiple of 8)' : '';
  return [
    `The fine-tune has ${theirs} vocabulary rows, the base ${ours}: the ${theirs - ours} appended ones are left out${padding}.`,
  ];
}

const SAME = [
  'family',
  'hiddenSize',
  'numHeads',
  'numKvHeads',
  'headDim',
  'ffnSize',
  'activation',
  'qkNorm',
  'postNorms',
  'normEps',
  'embedScale',
  'attnScale',
  'layers',
  'ropes',
] as const satisfies readonly (keyof ModelConfig)[];

function refuseOtherModel(base: ModelConfig, tuned: ModelConfig): void {
  for (const key of SAME) {
    const [ours, theirs] = [textOf(base[key]), textOf(tuned[key])];
    if (ours === theirs) continue;
    const short = (text: string): string => (text.length > 60 ? `${text.slice(0, 60)}…` : text);
    throw new ManyfoldError(
      'invalid_model',
      `The fine-tune is of another model than the base: ${key} is ${short(theirs)}, expected ${short(ours)}. ` +
        'Give the base that it was trained from.',
    );
  }
}

function textOf(value: unknown): string {
  return JSON.stringify(value, (_key, part: unknown) => (part instanceof Float32Array ? [...part] : part));
}

/** Path of a site's module in a Hugging Face checkpoint, e.g. `model.layers.0.mlp.down_proj`. */
export function modulePath(site: SiteRef, model: ModelConfig): string {
  return huggingFaceNaming(model, new Set()).name(site);
}

/** Every tensor that either side has; one of a tied head only where the fine-tune has a head of its own. */
function placesOf(base: WeightReader, tuned: WeightReader): WeightPlace[] {
  const names = new Map<number, SiteName>(Object.entries(SITES).map(([name, number]) => [number, name as SiteName]));
  const places = new Map<string, WeightPlace>();
  for (const { layer, site, part } of [...base.weights, ...tuned.weights]) {
    const ref = { layer, site: names.get(site) ?? bug(`site ${site}`) };
    places.set(`${layer} ${site} ${part}`, { ref, part });
  }
  return [...places.values()];
}
