/**
 * RoPE tables from a checked description. The formulas are those of transformers 5 (modeling_rope_utils.py), step by
 * step in float32 as torch does them, so that angles agree far out in a long context. Called by both config mappers.
 */
import type { RopeTable } from '../core/model-config.js';

export interface DefaultRope {
  readonly type: 'default';
  readonly theta: number;
}

export interface LinearRope {
  readonly type: 'linear';
  readonly theta: number;
  readonly factor: number;
}

export interface Llama3Rope {
  readonly type: 'llama3';
  readonly theta: number;
  readonly factor: number;
  readonly lowFreqFactor: number;
  readonly highFreqFactor: number;
  readonly originalPositions: number;
}

export interface YarnRope {
  readonly type: 'yarn';
  readonly theta: number;
  readonly factor: number;
  readonly originalPositions: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  /** Round the ends of the ramp to whole dimensions. */
  readonly truncate: boolean;
  /** cos and sin are multiplied by it. */
  readonly attentionFactor: number;
}

export type RopeSpec = DefaultRope | LinearRope | Llama3Rope | YarnRope;

const f32 = Math.fround;

/** The table of one RoPE for heads of `headDim`, which is even. */
export function ropeTable(spec: RopeSpec, headDim: number): RopeTable {
  const periods = Float32Array.from({ length: headDim / 2 }, (_, i) => f32(f32(spec.theta) ** f32((2 * i) / headDim)));
  switch (spec.type) {
    case 'default':
      return { invFreq: periods.map((period) => 1 / period), scale: 1 };
    case 'linear':
      return { invFreq: periods.map((period) => f32(1 / period) / f32(spec.factor)), scale: 1 };
    case 'llama3':
      return { invFreq: periods.map((period) => llama3(f32(1 / period), spec)), scale: 1 };
    case 'yarn':
      return { invFreq: yarn(periods, spec, headDim), scale: f32(spec.attentionFactor) };
  }
}

/** Long waves are slowed by the factor, short ones kept, those between blended. */
function llama3(invFreq: number, spec: Llama3Rope): number {
  const { factor, lowFreqFactor, highFreqFactor, originalPositions } = spec;
  const wavelength = f32(f32(2 * Math.PI) / invFreq);
  if (wavelength > f32(originalPositions / lowFreqFactor)) return f32(invFreq / f32(factor));
  if (wavelength < f32(originalPositions / highFreqFactor)) return invFreq;
  const above = f32(f32(f32(originalPositions) / wavelength) - f32(lowFreqFactor));
  const smooth = f32(above / f32(highFreqFactor - lowFreqFactor));
  const slowed = f32(f32(f32(1 - smooth) * invFreq) / f32(factor));
  return f32(slowed + f32(smooth * invFreq));
}

/** Pairs that turn often within the original context are kept, those that turn rarely are slowed, a ramp between. */
function yarn(periods: Float32Array, spec: YarnRope, headDim: number): Float32Array {
  const [low, high] = yarnRange(spec, headDim);
  const width = f32(low === high ? 0.001 : high - low);
  return periods.map((period, i) => {
    const ramp = f32(Math.min(Math.max(f32(f32(i - low) / width), 0), 1));
    const kept = f32(1 - ramp);
    const slowed = f32(f32(1 / f32(f32(spec.factor) * period)) * f32(1 - kept));
    return f32(slowed + f32(f32(1 / period) * kept));
  });
}

function yarnRange(spec: YarnRope, headDim: number): [number, number] {
  const dimension = (turns: number): number =>
    (headDim * Math.log(spec.originalPositions / (turns * 2 * Math.PI))) / (2 * Math.log(spec.theta));
  let low = dimension(spec.betaFast);
  let high = dimension(spec.betaSlow);
  if (spec.truncate) {
    low = Math.floor(low);
    high = Math.ceil(high);
  }
  return [Math.max(low, 0), Math.min(high, headDim - 1)];
}

/** YaRN's factor on cos and sin when the file gives none. */
export function yarnAttentionFactor(factor: number, mscale = 0, mscaleAllDim = 0): number {
  const scaleBy = (by: number): number => (factor <= 1 ? 1 : 0.1 * by * Math.log(factor) + 1);
  return mscale !== 0 && mscaleAllDim !== 0 ? scaleBy(mscale) / scaleBy(mscaleAllDim) : scaleBy(1);
}
