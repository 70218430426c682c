/** What both config mappers make and weight-map, fingerprint and open-checkpoint take. */
import type { Activation, LayerConfig, ModelConfig, ModelFamily, RopeTable, SiteName } from '../core/model-config.js';

/** Largest number that native code takes for a size. */
export const MAX_COUNT = 2 ** 31 - 1;
/** Far above any model; they bound what a hostile config can make us allocate. */
export const MAX_LAYERS = 10_000;
export const MAX_HEAD_DIM = 65_536;

export interface ModelDescription {
  readonly config: ModelConfig;
  /** Linears that have a bias, in every layer. */
  readonly biases: ReadonlySet<SiteName>;
}

/** Facts of a config file, from which {@link buildDescription} makes the rest. */
export interface ModelFacts {
  readonly family: ModelFamily;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly ffnSize: number;
  readonly normEps: number;
  readonly activation: Activation;
  readonly tiedHead: boolean;
  /** q · k is divided by its square root. */
  readonly attnScalar: number;
  readonly layers: readonly LayerConfig[];
  readonly ropes: readonly RopeTable[];
  readonly maxPositions: number;
  readonly biases: ReadonlySet<SiteName>;
}

/** Adds what follows from the family alone. */
export function buildDescription(facts: ModelFacts): ModelDescription {
  const { biases, attnScalar, ...config } = facts;
  const gemma = facts.family === 'gemma3';
  return {
    config: {
      ...config,
      qkNorm: gemma || facts.family === 'qwen3',
      postNorms: gemma,
      embedScale: gemma ? Math.sqrt(facts.hiddenSize) : 1,
      attnScale: 1 / Math.sqrt(attnScalar),
    },
    biases,
  };
}
