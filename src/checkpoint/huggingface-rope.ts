/**
 * RoPE settings of config.json, in the form of transformers 4 (`rope_theta` and `rope_scaling`) or of transformers 5
 * (`rope_parameters`, for Gemma 3 one for each kind of layer), turned into {@link RopeSpec}s. Called by
 * huggingface-config.
 */
import { ManyfoldError } from '../core/errors.js';
import { ConfigKeys } from './config-keys.js';
import { yarnAttentionFactor } from './rope.js';
import type { RopeSpec } from './rope.js';
import type { JsonObject } from './strict-json.js';

export interface RopeDefaults {
  /** Base when the file gives none. */
  readonly theta: number;
  readonly maxPositions: number;
}

/** Extra keys of old rope_scaling objects that no formula reads. */
const HARMLESS: ReadonlySet<string> = new Set(['finetuned', 'original_max_position_embeddings']);

/** The one RoPE of all layers. */
export function readRope(config: ConfigKeys, defaults: RopeDefaults): RopeSpec {
  config.only('partial_rotary_factor', [1]);
  const theta = config.number('rope_theta', 0, true) ?? defaults.theta;
  const original = config.count('original_max_position_embeddings');
  const resolve = (key: string): RopeSpec | undefined => {
    const section = config.section(key);
    if (section === undefined || Object.keys(section).length === 0) return undefined;
    return readSection(new ConfigKeys(section, `config.json ${key}`), { ...defaults, theta }, original);
  };
  const old = resolve('rope_scaling');
  const current = resolve('rope_parameters');
  if (old !== undefined && current !== undefined && JSON.stringify(old) !== JSON.stringify(current)) {
    throw new ManyfoldError(
      'invalid_model',
      'config.json: rope_scaling and rope_parameters say different things. Keep the one that is right.',
      { param: 'rope_scaling' },
    );
  }
  return old ?? current ?? { type: 'default', theta };
}

export interface LayerRopes {
  readonly full: RopeSpec;
  readonly sliding: RopeSpec;
}

/** Gemma 3: global layers take `rope_theta` and `rope_scaling`, local ones `rope_local_base_freq` and no scaling. */
export function readLayerRopes(config: ConfigKeys, maxPositions: number): LayerRopes {
  config.only('partial_rotary_factor', [1]);
  const parameters = config.section('rope_parameters') ?? {};
  const scaling = config.section('rope_scaling') ?? {};
  const nested = new ConfigKeys(parameters, 'config.json rope_parameters');
  const own = { full: nested.section('full_attention') ?? {}, sliding: nested.section('sliding_attention') ?? {} };
  nested.refuseOthers(new Set());
  const section = (object: JsonObject, name: string, theta: number): RopeSpec => {
    const keys = new ConfigKeys(object, `config.json ${name}`);
    // transformers reads neither of these where they stand here, so what the author meant is unknown.
    keys.only('truncate', [true]);
    if (!keys.has('rope_type')) keys.only('type', ['default']);
    return readSection(keys, { theta, maxPositions }, undefined);
  };
  const globalTheta = config.number('rope_theta', 0, true) ?? 1_000_000;
  const localTheta = config.number('rope_local_base_freq', 0, true) ?? 10_000;
  return {
    full: section({ ...own.full, ...scaling }, 'RoPE of full_attention', globalTheta),
    sliding: section(own.sliding, 'RoPE of sliding_attention', localTheta),
  };
}

/** `outerOriginal` is the config's own original_max_position_embeddings, which wins over the section's. */
function readSection(keys: ConfigKeys, defaults: RopeDefaults, outerOriginal: number | undefined): RopeSpec {
  const type = readType(keys);
  keys.only('partial_rotary_factor', [1]);
  const theta = keys.number('rope_theta', 0, true) ?? defaults.theta;
  const spec = readSpec(keys, type, { ...defaults, theta }, outerOriginal);
  keys.refuseOthers(HARMLESS);
  return spec;
}

function readType(keys: ConfigKeys): string {
  const current = keys.string('rope_type');
  const old = keys.string('type');
  if (current !== undefined && old !== undefined && current !== old) {
    keys.wrong('type', old, `the same as rope_type, ${JSON.stringify(current)}`);
  }
  return current ?? old ?? 'default';
}

function readSpec(keys: ConfigKeys, type: string, defaults: RopeDefaults, outer: number | undefined): RopeSpec {
  const { theta } = defaults;
  switch (type) {
    case 'default':
      return { type, theta };
    case 'linear':
      return { type, theta, factor: keys.number('factor', 0, true) ?? keys.wrong('factor', null, 'a number above 0') };
    case 'llama3':
      return readLlama3(keys, defaults, outer);
    case 'yarn':
      return readYarn(keys, defaults, outer);
    default:
      return keys.wrong('rope_type', type, 'default, linear, llama3 or yarn');
  }
}

function readLlama3(keys: ConfigKeys, { theta, maxPositions }: RopeDefaults, outer: number | undefined): RopeSpec {
  const positive = (key: string): number => keys.number(key, 0, true) ?? keys.wrong(key, null, 'a number above 0');
  const lowFreqFactor = positive('low_freq_factor');
  const highFreqFactor = positive('high_freq_factor');
  if (highFreqFactor <= lowFreqFactor) keys.wrong('high_freq_factor', highFreqFactor, `above ${lowFreqFactor}`);
  const inner = keys.count('original_max_position_embeddings');
  return {
    type: 'llama3',
    theta,
    factor: positive('factor'),
    lowFreqFactor,
    highFreqFactor,
    originalPositions: outer ?? inner ?? maxPositions,
  };
}

function readYarn(keys: ConfigKeys, { theta, maxPositions }: RopeDefaults, outer: number | undefined): RopeSpec {
  const inner = keys.count('original_max_position_embeddings');
  const originalPositions = outer ?? inner ?? maxPositions;
  const factor = keys.number('factor', 0, true) ?? maxPositions / originalPositions;
  const mscale = keys.number('mscale', 0);
  const mscaleAllDim = keys.number('mscale_all_dim', 0);
  return {
    type: 'yarn',
    theta,
    factor,
    originalPositions,
    betaFast: unlessZero(keys.number('beta_fast', 0)) ?? 32,
    betaSlow: unlessZero(keys.number('beta_slow', 0)) ?? 1,
    truncate: keys.boolean('truncate') ?? true,
    attentionFactor: keys.number('attention_factor', 0) ?? yarnAttentionFactor(factor, mscale, mscaleAllDim),
  };
}

/** Zero counts as absent where transformers takes it so. */
function unlessZero(value: number | undefined): number | undefined {
  return value === 0 ? undefined : value;
}
