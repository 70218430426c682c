/** All use cases over one set of dependencies: made by the composition root, called by the server. */
import type { GenerationDefaults } from '../checkpoint/checkpoint.js';
import type { Clock } from '../core/clock.js';
import type { EngineInfo, EnginePort } from '../engine/port.js';
import type { Logger } from '../telemetry/log.js';
import type { AdapterSnapshot } from '../telemetry/metrics.js';
import { AdapterActivity } from './adapter-activity.js';
import type { DetokenizeCommand, GenerateCommand, TokenizeCommand } from './commands.js';
import type { Generation } from './events.js';
import { generate } from './generate.js';
import type { GenerateContext } from './generate.js';
import { liveness, readiness } from './health.js';
import type { HealthAnswer } from './health.js';
import { Lifecycle } from './lifecycle.js';
import type { RequestLimits } from './limits.js';
import { ManageAdapters } from './manage-adapters.js';
import type { AdapterDirectory, Entropy, TextModels } from './ports.js';
import { QueueEstimate } from './queue-estimate.js';
import { ServedModels } from './served-models.js';
import type { BaseModel } from './served-models.js';
import { detokenize, tokenize } from './tokenize.js';
import type { Tokenized } from './tokenize.js';
import { VersionHolds } from './version-holds.js';

export interface ServiceDeps {
  readonly engine: EnginePort;
  readonly texts: TextModels;
  readonly adapters: AdapterDirectory;
  readonly base: BaseModel;
  readonly defaults: GenerationDefaults;
  readonly eosTokenIds: readonly number[];
  readonly limits: RequestLimits;
  /** How many adapters can be resident at once; told to the endpoint picker. */
  readonly maxLora: number;
  /** See {@link HealthAnswer}; 60,000 by default. */
  readonly stallLimitMs?: number;
  readonly entropy: Entropy;
  readonly clock: Clock;
  readonly logger: Logger;
}

export interface Service {
  readonly models: ServedModels;
  readonly manageAdapters: ManageAdapters;
  readonly lifecycle: Lifecycle;
  readonly limits: RequestLimits;
  readonly info: EngineInfo;
  generate(command: GenerateCommand, context: GenerateContext): Promise<Generation>;
  tokenize(command: TokenizeCommand): Promise<Tokenized>;
  detokenize(command: DetokenizeCommand): Promise<string>;
  liveness(): HealthAnswer;
  readiness(): HealthAnswer;
  /** For /metrics. */
  adapterSnapshot(): AdapterSnapshot;
}

export function createService(deps: ServiceDeps): Service {
  const { engine, adapters, texts, limits, entropy, logger } = deps;
  const models = new ServedModels(deps.base, adapters, engine.info);
  const lifecycle = new Lifecycle();
  const holds = new VersionHolds();
  const activity = new AdapterActivity();
  const estimate = new QueueEstimate(engine, entropy);
  const generating = { ...deps, models, lifecycle, holds, activity, estimate };
  const reading = { info: engine.info, models, texts, limits };
  const health = { engine, lifecycle, stallLimitMs: deps.stallLimitMs ?? 60_000 };
  return {
    models,
    manageAdapters: new ManageAdapters({ engine, adapters, texts, models, holds, logger }),
    lifecycle,
    limits,
    info: engine.info,
    generate: (command, context) => generate(generating, command, context),
    tokenize: (command) => tokenize(reading, command),
    detokenize: (command) => detokenize(reading, command),
    liveness: () => liveness(health),
    readiness: () => readiness(health),
    adapterSnapshot: () => activity.snapshot(engine, adapters, deps.maxLora),
  };
}
