/**
 * The modules that a LoRA adapts: their tensors put together, their places in the model, and their shapes checked on the
 * headers.
 */
import { quoteName } from '../../checkpoint/strict-json.js';
import type { SafetensorsTensor } from '../../checkpoint/safetensors.js';
import type { ModelConfig } from '../../core/model-config.js';
import { isLinear, partsOf, placeOfModule, siteShape } from '../module-place.js';
import type { ModulePart } from '../module-place.js';
import { checkShape, wrongTensor } from '../tensor-values.js';
import { twice } from './lora-tensors.js';
import type { LoraRole, LoraTensor } from './lora-tensors.js';

export interface LoraModule {
  /** As in the file, without its prefix; config patterns are matched against it. */
  readonly path: string;
  /** -1 for embedding and head. */
  readonly layer: number;
  readonly embedding: boolean;
  readonly a: SafetensorsTensor;
  readonly b: SafetensorsTensor;
  readonly bBias: SafetensorsTensor | undefined;
  readonly magnitude: SafetensorsTensor | undefined;
  readonly diagonal: SafetensorsTensor | undefined;
  readonly rank: number;
  readonly parts: readonly ModulePart[];
  /** `[out, in]` of the linear; for an embedding `[hidden, vocab]`, whose input is a one-hot. */
  readonly out: number;
  readonly in: number;
}

/** How one file format lays the factors out; PEFT's A is `[r, in]` and its B `[out, r]`. */
export interface FactorLayout {
  /** Blocks along the diagonal in which a factor is stored (BD-LoRA), 1 for a whole one. */
  readonly blocks?: (path: string) => { readonly a: number; readonly b: number };
  /** A holds averages of so many inputs (QA-LoRA); 1 for every input of its own. */
  readonly group?: number;
  /** Factors are stored transposed: A `[in, r]`, B `[r, out]` (MLX); of an embedding, always A `[vocab, r]`. */
  readonly transposed?: boolean;
  /** A of an embedding is stored `[vocab, r]`, all else as in PEFT (llama.cpp). */
  readonly embeddingRows?: boolean;
  /** Heads whose rows of B are paired as llama.cpp's RoPE has them; 0 for rows in Hugging Face's order. */
  readonly pairedHeads?: (path: string) => number;
  /** DoRA's m of an embedding has a value for each token (MLX) instead of each output. */
  readonly magnitudePerToken?: boolean;
  /** What adapts the embedding adapts a tied head too (MLX). */
  readonly tiedHead?: boolean;
}

type Slots = Partial<Record<LoraRole, SafetensorsTensor>>;

const FACTORS: ReadonlySet<LoraRole> = new Set<LoraRole>([
  'a',
  'b',
  'embeddingA',
  'embeddingB',
  'bBias',
  'magnitude',
  'diagonal',
]);

/** Throws 'invalid_adapter' for the first shape or pair that is wrong. */
export function groupModules(
  tensors: readonly LoraTensor[],
  model: ModelConfig,
  layout: FactorLayout = {},
): LoraModule[] {
  const groups = new Map<string, Slots>();
  for (const { path, role, tensor } of tensors) {
    if (!FACTORS.has(role)) continue;
    const slots = groups.get(path) ?? {};
    groups.set(path, slots);
    slots[role] = tensor;
  }
  const modules = [...groups].map(([path, slots]) => moduleOf(path, slots, model, layout));
  refuseAliases(modules);
  return modules;
}

function moduleOf(path: string, slots: Slots, model: ModelConfig, layout: FactorLayout): LoraModule {
  const place = placeOfModule(path, model);
  const site = place?.sites[0];
  if (place === undefined || site === undefined || !(isLinear(site) || site === 'embedding')) {
    throw wrongTensor(
      `it adapts ${quoteName(path)}, which the base (${model.family}, ${model.layers.length} layers) does not have`,
      'Serve it on the base that it was trained for.',
    );
  }
  const embedding = site === 'embedding';
  const { a, b } = factorPair(path, slots, embedding);
  const parts = embedding ? embeddingParts(model) : partsOf(place, model);
  const width = embedding ? model.vocabSize : siteShape(model, site).in;
  const height = parts.reduce((sum, { rows }) => sum + rows, 0);
  const rank = checkFactors(a, b, { path, width, height, embedding }, layout);
  const { bBias, magnitude, diagonal } = slots;
  if (bBias !== undefined) checkShape(bBias, [height]);
  if (magnitude !== undefined) checkVector(magnitude, embedding && layout.magnitudePerToken ? width : height);
  if (diagonal !== undefined) checkVector(diagonal, rank);
  return { path, layer: place.layer, embedding, a, b, bBias, magnitude, diagonal, rank, parts, out: height, in: width };
}

function factorPair(path: string, slots: Slots, embedding: boolean): { a: SafetensorsTensor; b: SafetensorsTensor } {
  if ((slots.a ?? slots.b) !== undefined && (slots.embeddingA ?? slots.embeddingB) !== undefined) {
    throw wrongTensor(
      `${quoteName(path)} has factors of a linear and of an embedding`,
      'Save the adapter again with PEFT.',
    );
  }
  const a = slots.a ?? slots.embeddingA;
  const b = slots.b ?? slots.embeddingB;
  if (a === undefined || b === undefined) {
    const lone = a ?? b ?? Object.values(slots)[0];
    const missing = a === undefined && b === undefined ? 'A and B' : a === undefined ? 'A' : 'B';
    throw wrongTensor(
      `${quoteName(lone?.name ?? path)} has no ${missing} beside it`,
      'The file is incomplete; download or save it again.',
    );
  }
  if ((slots.embeddingA !== undefined) !== embedding) {
    throw wrongTensor(
      `${quoteName(a.name)} is a factor of ${embedding ? 'a linear' : 'an embedding'}, the module is not`,
      'Save the adapter again with PEFT.',
    );
  }
  return { a, b };
}

interface Place {
  readonly path: string;
  readonly width: number;
  readonly height: number;
  readonly embedding: boolean;
}

/** Checks both shapes and gives the rank. */
function checkFactors(
  a: SafetensorsTensor,
  b: SafetensorsTensor,
  { path, width, height, embedding }: Place,
  layout: FactorLayout,
): number {
  const flippedA = layout.transposed === true || (embedding && layout.embeddingRows === true);
  const blocks = layout.blocks?.(path) ?? { a: 1, b: 1 };
  const group = embedding ? 1 : (layout.group ?? 1);
  const rank = a.shape[flippedA ? 1 : 0] ?? 0;
  if (width % (group * blocks.a) !== 0 || rank % blocks.b !== 0 || rank % blocks.a !== 0 || height % blocks.b !== 0) {
    throw wrongTensor(
      `${quoteName(a.name)} of ${width} inputs and rank ${rank} cannot be cut into groups of ${group} and ` +
        `${Math.max(blocks.a, blocks.b)} blocks`,
      'Config and tensors do not belong together; save them again together.',
    );
  }
  const wantedA = [rank, width / group / blocks.a];
  const wantedB = [height, rank / blocks.b];
  const shown = (shape: readonly number[], flipped: boolean): string => {
    const words = flipped ? [String(shape[1]), 'r'] : ['r', String(shape[1])];
    return `[${words.join(', ')}]`;
  };
  checkShape(a, flippedA ? wantedA.reverse() : wantedA, shown([rank, width / group / blocks.a], flippedA));
  if (layout.transposed === true) wantedB.reverse();
  checkShape(b, wantedB, `[${wantedB.join(', ')}], with the rank of ${quoteName(a.name)} [${a.shape.join(', ')}]`);
  return rank;
}

/** A vector that some files keep with a second dimension of one. */
function checkVector(tensor: SafetensorsTensor, size: number): void {
  const flat = tensor.shape.filter((dim) => dim !== 1);
  if (tensor.shape.length > 0 && (size === 1 ? flat.length === 0 : flat.length === 1 && flat[0] === size)) return;
  checkShape(tensor, [size]);
}

/** The embedding's input is a one-hot of the vocabulary, its output the hidden vector. */
function embeddingParts(model: ModelConfig): ModulePart[] {
  return [{ site: { layer: -1, site: 'embedding' }, firstRow: 0, rows: model.hiddenSize }];
}

/** Two paths may mean one site (`model.layers.0` and `layers.0`, q_proj and qkv_proj). */
function refuseAliases(modules: readonly LoraModule[]): void {
  const seen = new Map<string, LoraModule>();
  for (const module of modules) {
    for (const { site } of module.parts) {
      const place = `${site.layer} ${site.site}`;
      const other = seen.get(place);
      if (other !== undefined) throw twice(other.a.name, module.a.name);
      seen.set(place, module);
    }
  }
}
